//! The operating system's files.
#![allow(clippy::disallowed_methods, reason = "this file is the seam that the others go through")]

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::{DirEntry, Disk, DiskFile, DiskLock, OpenMode};

/// Permissions of new files: keys, secrets and tenants' data are for the node's own user.
const FILE_MODE: u32 = 0o600;

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
}

impl RealDisk {
    /// Opens a directory, which is made where it is missing.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    /// Gives the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> io::Result<PathBuf> {
        let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
        if inside {
            Ok(self.root.join(path))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{path} leaves the root")))
        }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(FILE_MODE);
        match mode {
            OpenMode::Existing => {}
            OpenMode::CreateNew => {
                options.create_new(true);
            }
            OpenMode::OpenOrCreate => {
                options.create(true);
            }
        }
        Ok(Arc::new(RealFile(options.open(self.path(path)?)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from)?, self.path(to)?)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path)?)
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        fs::remove_dir_all(self.path(path)?)
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        fs::create_dir_all(self.path(path)?)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        // A directory is synced through a descriptor of its own, which is why this can fail for
        // want of one.
        File::open(self.path(path)?)?.sync_all()
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(path)?)? {
            let entry = entry?;
            // A file may go between the listing and the look at it.
            let metadata = match entry.metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata?,
            };
            let is_dir = metadata.is_dir();
            entries.push(DirEntry {
                name: entry.file_name().to_string_lossy().into_owned(),
                is_dir,
                len: if is_dir { 0 } else { metadata.len() },
            });
        }
        entries.sort();
        Ok(entries)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.path(path)?.try_exists()
    }

    fn size(&self) -> io::Result<u64> {
        let told = rustix::fs::statvfs(&self.root)?;
        Ok(told.f_blocks.saturating_mul(told.f_frsize))
    }

    fn free(&self) -> io::Result<u64> {
        let told = rustix::fs::statvfs(&self.root)?;
        Ok(told.f_bavail.saturating_mul(told.f_frsize))
    }

    fn lock(&self, path: &str) -> io::Result<DiskLock> {
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(self.path(path)?)?;
        // The lock belongs to the open file: the kernel lets it go with the process, however that
        // ends.
        match file.try_lock() {
            Ok(()) => Ok(DiskLock::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

#[derive(Debug)]
struct RealFile(File);

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        // `fdatasync`: it includes the length, and leaves out times that nobody reads.
        self.0.sync_data()
    }
}

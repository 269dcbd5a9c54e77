//! The file seam of the whole program: everything that reads or writes a file does it through a
//! [`Disk`], so that the simulator can put one under it that loses power.
//!
//! Invariants that every implementation keeps, and every caller relies on:
//! - Paths are relative to the data directory, written with `/`, and never leave it.
//! - Nothing is durable before it is synced: bytes and lengths with [`DiskFile::sync_data`], names
//!   (creations, renames, removals) with [`Disk::sync_dir`] of the directory that holds them.
//! - All calls are synchronous; whoever must not block runs them through an
//!   [`Executor`](crate::Executor).

mod real;
#[cfg(any(test, feature = "sim"))]
mod sim;

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

use shiioo_actors::ports::StoreError;

pub use real::RealDisk;
#[cfg(any(test, feature = "sim"))]
pub use sim::SimDisk;

/// The largest file that [`read_small`] reads, bytes.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// It must be there.
    Existing,
    /// It must not be there, and is made empty.
    CreateNew,
    /// It is made empty where it is not there.
    OpenOrCreate,
}

/// A directory tree below one root.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file for reading and writing.
    ///
    /// # Errors
    /// When the system says no; `NotFound` and `AlreadyExists` as the mode has it.
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;

    /// Renames a file or directory, replacing a file that is there.
    ///
    /// # Errors
    /// When the system says no.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// When the system says no.
    fn remove_file(&self, path: &str) -> io::Result<()>;

    /// Removes a directory and what is in it.
    ///
    /// # Errors
    /// When the system says no.
    fn remove_dir_all(&self, path: &str) -> io::Result<()>;

    /// Makes a directory and the ones above it where they are missing.
    ///
    /// # Errors
    /// When the system says no.
    fn create_dir_all(&self, path: &str) -> io::Result<()>;

    /// Makes the names in a directory durable; `""` is the data directory itself.
    ///
    /// # Errors
    /// When the system says no.
    fn sync_dir(&self, path: &str) -> io::Result<()>;

    /// What is in a directory, by name.
    ///
    /// # Errors
    /// When the system says no; `NotFound` when there is none.
    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>>;

    /// Whether there is a file or a directory.
    ///
    /// # Errors
    /// When the system does not say. That is not a no: what is taken for not there is made anew.
    fn exists(&self, path: &str) -> io::Result<bool>;

    /// Takes an exclusive lock on a file, making it where it is not there. The lock lasts as long
    /// as what is returned, and at most as long as the process.
    ///
    /// # Errors
    /// `WouldBlock` when another holds it, else what the system says.
    fn lock(&self, path: &str) -> io::Result<DiskLock>;
}

/// An open file.
// `len` answers with an error: an `is_empty` beside it would only hide that.
#[allow(clippy::len_without_is_empty)]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before, else what the system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`, making the file longer where need be.
    ///
    /// # Errors
    /// When the system says no; some of it may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Length, bytes.
    ///
    /// # Errors
    /// When the system says no.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or fills it up with zeros.
    ///
    /// # Errors
    /// When the system says no.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes bytes and length durable.
    ///
    /// # Errors
    /// When the system says no. Then the file must be closed and never be synced again: the kernel
    /// may have dropped what it could not write, and would report success.
    fn sync_data(&self) -> io::Result<()>;
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// The name, without the directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Length of a file, bytes; 0 for a directory.
    pub len: u64,
}

/// An exclusive lock, released when dropped.
pub struct DiskLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DiskLock {
    /// Wraps what holds the lock.
    pub fn new(held: impl Any + Send + Sync) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for DiskLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskLock")
    }
}

/// Reads a whole small file; `None` when it is not there.
///
/// # Errors
/// When it cannot be read or is longer than [`SMALL_FILE_BYTES_MAX`].
pub fn read_small(disk: &dyn Disk, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let read = || {
        let file = match disk.open(path, OpenMode::Existing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let len = file.len()?;
        if len > SMALL_FILE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "longer than expected"));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_at(0, &mut bytes)?;
        Ok(Some(bytes))
    };
    read().map_err(|error| store_error(format!("read {path}"), error))
}

/// Replaces a small file so that after a power cut either the old or the new contents are there,
/// and after the return the new: writes beside it, syncs, renames, syncs the directory.
///
/// # Errors
/// When the file cannot be written.
pub fn write_durably(disk: &dyn Disk, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let beside = format!("{path}.tmp");
    let write = || {
        let file = disk.open(&beside, OpenMode::OpenOrCreate)?;
        file.set_len(0)?;
        file.write_at(0, bytes)?;
        file.sync_data()?;
        disk.rename(&beside, path)?;
        disk.sync_dir(parent(path))
    };
    write().map_err(|error| store_error(format!("write {path}"), error))
}

/// Makes a directory and its parents, all durably.
///
/// # Errors
/// When the system says no.
pub(crate) fn create_dir_durably(disk: &dyn Disk, path: &str) -> io::Result<()> {
    disk.create_dir_all(path)?;
    let mut dir = path;
    while !dir.is_empty() {
        dir = parent(dir);
        disk.sync_dir(dir)?;
    }
    Ok(())
}

/// The directory that holds a path; `""` for one at the top.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// What an operating system's error means to the actors. `what` names the file.
pub fn store_error(what: impl Into<String>, error: io::Error) -> StoreError {
    if is_full(&error) {
        StoreError::Full
    } else {
        StoreError::Io { what: what.into(), source: Arc::new(error) }
    }
}

/// Whether an error says that there is no room: then trying again later helps.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

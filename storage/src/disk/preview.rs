//! A disk that is looked at and not changed.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DirEntry, Disk, DiskFile, DiskLock, OpenMode};

/// Shows what a start would read from a disk, and leaves the disk as it is: what is written to a file
/// stays in memory until the file is closed, and changes of names do nothing. So the code that repairs
/// what a crash left can be run for a look.
#[derive(Debug)]
pub struct PreviewDisk(pub Arc<dyn Disk>);

/// A file whose changes are in memory.
#[derive(Debug)]
struct PreviewFile {
    base: Arc<dyn DiskFile>,
    /// All bytes of the file, from the first change on.
    changed: Mutex<Option<Vec<u8>>>,
}

/// A file that is nowhere else.
#[derive(Debug)]
struct NoFile;

impl Disk for PreviewDisk {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let base = match self.0.open(path, OpenMode::Existing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && mode != OpenMode::Existing => {
                Arc::new(NoFile)
            }
            opened => opened?,
        };
        Ok(Arc::new(PreviewFile { base, changed: Mutex::default() }))
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove_file(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove_dir_all(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn create_dir_all(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        self.0.list(path)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.0.exists(path)
    }

    fn lock(&self, path: &str) -> io::Result<DiskLock> {
        self.0.lock(path)
    }
}

impl PreviewFile {
    /// Changes the bytes, which are read from the disk before the first change.
    fn change(&self, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut changed = self.changed.lock();
        if changed.is_none() {
            let mut bytes = vec![0; usize::try_from(self.base.len()?).map_err(io::Error::other)?];
            self.base.read_at(0, &mut bytes)?;
            *changed = Some(bytes);
        }
        changed.as_mut().map(change);
        Ok(())
    }
}

impl DiskFile for PreviewFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &*self.changed.lock() {
            None => self.base.read_at(offset, buffer),
            Some(bytes) => {
                let from = usize::try_from(offset).map_err(io::Error::other)?;
                let read = from.checked_add(buffer.len()).and_then(|to| bytes.get(from..to));
                buffer.copy_from_slice(read.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    fn write_at(&self, offset: u64, written: &[u8]) -> io::Result<()> {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        self.change(|bytes| {
            bytes.resize(bytes.len().max(from + written.len()), 0);
            bytes[from..from + written.len()].copy_from_slice(written);
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.changed.lock().as_ref().map_or_else(|| self.base.len(), |bytes| Ok(bytes.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.change(|bytes| bytes.resize(len, 0))
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for NoFile {
    fn read_at(&self, _: u64, buffer: &mut [u8]) -> io::Result<()> {
        if buffer.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    #[test]
    fn changes_are_seen_and_reach_no_disk() {
        let disk = SimDisk::new(1).mount();
        let file = disk.open("a", OpenMode::CreateNew).unwrap();
        file.write_at(0, b"abc").unwrap();
        let preview = PreviewDisk(Arc::clone(&disk));
        let seen = preview.open("a", OpenMode::OpenOrCreate).unwrap();
        let read = |file: &dyn DiskFile| {
            let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
            file.read_at(0, &mut bytes).unwrap();
            bytes
        };
        assert_eq!(read(&*seen), b"abc");
        seen.write_at(2, b"xy").unwrap();
        assert_eq!(read(&*seen), b"abxy");
        seen.set_len(1).unwrap();
        seen.write_at(3, b"z").unwrap();
        assert_eq!(read(&*seen), b"a\0\0z");
        assert_eq!(seen.read_at(3, &mut [0; 2]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        seen.sync_data().unwrap();
        assert!(preview.open("b", OpenMode::Existing).is_err());
        let new = preview.open("b", OpenMode::CreateNew).unwrap();
        new.write_at(0, b"n").unwrap();
        assert_eq!(read(&*new), b"n");
        preview.remove_file("a").unwrap();
        preview.rename("a", "c").unwrap();
        preview.create_dir_all("d").unwrap();
        let names: Vec<_> = disk.list("").unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!((names, read(&*file)), (vec!["a".to_owned()], b"abc".to_vec()));
    }
}

//! The simulated disk as one life of the program sees it: a mount, its open files and its locks.

use std::io;
use std::sync::Arc;

use parking_lot::MutexGuard;

use super::SimDisk;
use super::state::{
    self, Change, File, Node, Pending, State, fenced, index, inode_of, resize, write,
};
use crate::disk::{DirEntry, Disk, DiskFile, DiskLock, OpenMode, parent};

/// The disk for one life of the program, which ends with its epoch.
#[derive(Debug)]
pub(super) struct Mounted {
    pub(super) disk: SimDisk,
    pub(super) epoch: u64,
}

impl Mounted {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.epoch == self.epoch { Ok(state) } else { Err(fenced()) }
    }

    fn handle(&self, inode: u64) -> Arc<dyn DiskFile> {
        Arc::new(Handle { disk: self.disk.clone(), epoch: self.epoch, inode })
    }
}

impl Disk for Mounted {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state()?;
        state.read()?;
        state.open()?;
        match (state.names.get(path).copied(), mode) {
            (Some(Node::Dir), _) => Err(io::ErrorKind::IsADirectory.into()),
            (Some(Node::File(_)), OpenMode::CreateNew) => Err(io::ErrorKind::AlreadyExists.into()),
            (Some(Node::File(inode)), _) => Ok(self.handle(inode)),
            (None, OpenMode::Existing) => Err(io::ErrorKind::NotFound.into()),
            (None, OpenMode::CreateNew | OpenMode::OpenOrCreate) => {
                state.require_dir(parent(path))?;
                state.next_inode += 1;
                let inode = state.next_inode;
                state.files.insert(inode, File::default());
                state.change(Change::Set(path.to_owned(), Node::File(inode)))?;
                Ok(self.handle(inode))
            }
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.state()?.capacity.unwrap_or(u64::MAX))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state()?;
        state.require_dir(parent(to))?;
        if !state.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if state.names.get(to) == Some(&Node::Dir) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.change(Change::Rename(from.to_owned(), to.to_owned()))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let mut state = self.state()?;
        match state.names.get(path) {
            Some(Node::File(_)) => state.change(Change::Remove(path.to_owned())),
            Some(Node::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        let mut state = self.state()?;
        state.require_dir(path)?;
        let below = format!("{path}/");
        let gone: Vec<String> = state
            .names
            .keys()
            .filter(|name| *name == path || name.starts_with(&below))
            .rev()
            .cloned()
            .collect();
        for name in gone {
            state.change(Change::Remove(name))?;
        }
        Ok(())
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        let mut state = self.state()?;
        let mut end = 0;
        while end < path.len() {
            end = path[end + 1..].find('/').map_or(path.len(), |at| end + 1 + at);
            let dir = &path[..end];
            match state.names.get(dir) {
                Some(Node::Dir) => {}
                Some(Node::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => state.change(Change::Set(dir.to_owned(), Node::Dir))?,
            }
        }
        Ok(())
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut state = self.state()?;
        state.require_dir(path)?;
        state.open()?;
        state.sync_dir(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let mut state = self.state()?;
        state.read()?;
        state.open()?;
        state.require_dir(path)?;
        Ok(state
            .names
            .iter()
            .filter(|(name, _)| !name.is_empty() && parent(name) == path)
            .map(|(name, node)| DirEntry {
                name: name.rsplit('/').next().unwrap_or(name).to_owned(),
                is_dir: *node == Node::Dir,
                len: inode_of(node)
                    .and_then(|inode| state.files.get(&inode))
                    .map_or(0, |file| file.bytes.len() as u64),
            })
            .collect())
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let mut state = self.state()?;
        state.read()?;
        Ok(state.names.contains_key(path))
    }

    fn free(&self) -> io::Result<u64> {
        Ok(self.state()?.free())
    }

    fn lock(&self, path: &str) -> io::Result<DiskLock> {
        self.open(path, OpenMode::OpenOrCreate)?;
        if self.state()?.locks.insert(path.to_owned()) {
            Ok(DiskLock::new(Locked {
                disk: self.disk.clone(),
                epoch: self.epoch,
                path: path.to_owned(),
            }))
        } else {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }
}

/// A lock that is held. It goes when dropped, unless the life that took it has ended.
struct Locked {
    disk: SimDisk,
    epoch: u64,
    path: String,
}

impl Drop for Locked {
    fn drop(&mut self) {
        let mut state = self.disk.state();
        if state.epoch == self.epoch {
            state.locks.remove(&self.path);
        }
    }
}

/// An open file. It outlives its name, as on a POSIX system.
#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    epoch: u64,
    inode: u64,
}

impl Handle {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.epoch == self.epoch { Ok(state) } else { Err(fenced()) }
    }
}

impl DiskFile for Handle {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut state = self.state()?;
        state.read()?;
        let bytes = &state.file(self.inode)?.bytes;
        let from = index(offset);
        match bytes.get(from..from + buffer.len()) {
            Some(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state()?;
        let len = state.file(self.inode)?.bytes.len() as u64;
        let more = (offset + bytes.len() as u64).saturating_sub(len);
        let fails = state.write();
        // A disk that fills up, or fails, takes what it can: half of the write, say.
        let room = state.has_room(more) && fails.is_ok();
        let taken = if room { bytes } else { &bytes[..bytes.len() / 2] };
        if room || state.has_room((offset + taken.len() as u64).saturating_sub(len)) {
            let file = state.file(self.inode)?;
            write(&mut file.bytes, offset, taken);
            file.pending.push(Pending::Write(offset, taken.to_vec()));
        }
        state.count()?;
        fails?;
        if room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state()?;
        state.read()?;
        Ok(state.file(self.inode)?.bytes.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
        state.write()?;
        let more = len.saturating_sub(state.file(self.inode)?.bytes.len() as u64);
        if more > 0 && !state.has_room(more) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = state.file(self.inode)?;
        resize(&mut file.bytes, len);
        file.pending.push(Pending::Len(len));
        state.count()
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        // Counted first: a program that ends in its sync has not synced.
        state.count()?;
        state.syncs += 1;
        let (fail, ignore) = (state.fail_syncs, state.ignore_syncs);
        let file = state.file(self.inode)?;
        if fail {
            // What the kernel does: the pages are clean now, and a later sync would report success.
            file.pending.clear();
            return Err(state::sync_failed());
        }
        if !ignore {
            for pending in std::mem::take(&mut file.pending) {
                match pending {
                    Pending::Write(offset, bytes) => write(&mut file.durable, offset, &bytes),
                    Pending::Len(len) => resize(&mut file.durable, len),
                }
            }
        }
        Ok(())
    }
}

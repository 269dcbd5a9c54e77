//! A disk in memory that loses power: the simulator's, and that of this crate's crash tests.
//!
//! What it promises is what POSIX promises, and no more:
//! - Bytes and lengths are pending until their file is synced. At a power cut every pending write
//!   on its own survives, is lost, or is torn at sectors of 512 bytes.
//! - Names are pending until their directory is synced. At a power cut the changes to a directory
//!   survive up to some point, in the order they were made. A file whose name is lost is lost.
//! - A failed sync forgets what was pending: the file reads as if written, and will never be.
//! - A failed write has written half of it, or nothing. A failed change of names changes nothing.
//! - What is fenced answers with [`io::ErrorKind::NotConnected`], and nothing else does.
//! - A power cut, or a kill, fences every handle and the mounted disk itself: a program that is still being
//!   torn down can do no more harm. [`SimDisk::mount`] gives the next life a new one.
//!
//! A sync cannot be slow here: the calls are synchronous and simulated time does not pass in them.
//! Whoever calls them waits before ([`Executor::Paced`](crate::Executor::Paced)).

mod state;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DirEntry, Disk, DiskFile, DiskLock, OpenMode, parent};
use state::{Change, End, File, Node, Pending, State, index, inode_of, no_power, resize, write};

/// The disk itself, which outlives the program that uses it.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk. The seed decides what survives its power cuts.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State::new(seed))))
    }

    /// A disk with the same contents and a life of its own: to look at what a power cut now would
    /// leave at best, without a trace on this one.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().fork())))
    }

    /// The disk as the next life of the program sees it.
    pub fn mount(&self) -> Arc<dyn Disk> {
        let epoch = self.state().epoch;
        Arc::new(Mounted { disk: self.clone(), epoch })
    }

    /// Power goes now. Everything mounted is fenced.
    pub fn cut_power(&self) {
        self.state().cut_power();
    }

    /// Power goes in the middle of the `ops`-th write, sync or change of names from now (0: the
    /// next one).
    pub fn cut_power_after(&self, ops: u64) {
        self.state().end_after = Some((ops, End::PowerCut));
    }

    /// The program is killed in the middle of that operation: it can do no more, and all that it
    /// did is there to be read, but what was not synced can still be lost to a power cut.
    pub fn kill_after(&self, ops: u64) {
        self.state().end_after = Some((ops, End::Kill));
    }

    /// Whether an end that was asked for has come since the last call.
    pub fn take_ended(&self) -> bool {
        std::mem::take(&mut self.state().has_ended)
    }

    /// Writes, syncs and changes of names so far.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Syncs of files and directories so far.
    pub fn syncs(&self) -> u64 {
        self.state().syncs
    }

    /// Makes every sync fail from now on, or work again.
    pub fn fail_syncs(&self, fail: bool) {
        self.state().fail_syncs = fail;
    }

    /// Makes writes and changes of names fail from now on, with this likelihood.
    pub fn fail_writes(&self, how_often: f64) {
        self.state().write_errors = how_often;
    }

    /// Makes reads fail from now on, with this likelihood.
    pub fn fail_reads(&self, how_often: f64) {
        self.state().read_errors = how_often;
    }

    /// Writes and changes of names that failed so far, and reads.
    pub fn failed(&self) -> (u64, u64) {
        let state = self.state();
        (state.failed_writes, state.failed_reads)
    }

    /// Everything is gone, and power with it: another disk is in its place, empty and whole.
    pub fn replace(&self) {
        let mut state = self.state();
        state.cut_power();
        let State { rng, epoch, next_inode, ops, failed_writes, failed_reads, .. } = &*state;
        *state = State {
            rng: rng.clone(),
            epoch: *epoch,
            next_inode: *next_inode,
            ops: *ops,
            failed_writes: *failed_writes,
            failed_reads: *failed_reads,
            ..State::new(0)
        };
    }

    /// What is durable of a file; nothing where something of it is pending.
    pub fn settled(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let inode = state.durable_names.get(path).and_then(inode_of)?;
        let file = state.files.get(&inode).filter(|file| file.pending.is_empty())?;
        Some(file.durable.clone())
    }

    /// Makes every sync return at once and do nothing: a disk that lies, or a program without the
    /// sync. Tests use it to show that they would notice.
    pub fn ignore_syncs(&self, ignore: bool) {
        self.state().ignore_syncs = ignore;
    }

    /// Bytes that files may hold in all; `None` for no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// How often files and directories can be opened from now on, until no descriptor is left;
    /// `None` for no bound.
    pub fn set_opens_left(&self, opens: Option<u64>) {
        self.state().opens_left = opens;
    }

    /// Flips one bit of a file, in what is read and in what is durable.
    pub fn flip_bit(&self, path: &str, offset: u64, bit: u8) {
        let mut state = self.state();
        let Some(Node::File(inode)) = state.names.get(path).copied() else { return };
        if let Some(file) = state.files.get_mut(&inode) {
            let at = usize::try_from(offset).unwrap_or(usize::MAX);
            for bytes in [&mut file.bytes, &mut file.durable] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << (bit % 8);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A disk for one life of the program.
#[derive(Debug)]
struct Mounted {
    disk: SimDisk,
    epoch: u64,
}

impl Mounted {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.epoch == self.epoch { Ok(state) } else { Err(no_power()) }
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

#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    epoch: u64,
    inode: u64,
}

impl Handle {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.epoch == self.epoch { Ok(state) } else { Err(no_power()) }
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
        // A disk that fills up, or fails, takes what it can: half of it, say.
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
        state.count()?;
        state.syncs += 1;
        let (fail, ignore) = (state.fail_syncs, state.ignore_syncs);
        let file = state.file(self.inode)?;
        if fail {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn made(disk: &SimDisk, path: &str) -> Arc<dyn DiskFile> {
        disk.mount().open(path, OpenMode::OpenOrCreate).unwrap()
    }

    #[test]
    fn what_is_synced_survives_and_what_is_not_may_not() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..64 {
            let disk = SimDisk::new(seed);
            let file = made(&disk, "a");
            file.write_at(0, b"synced").unwrap();
            file.sync_data().unwrap();
            disk.mount().sync_dir("").unwrap();
            file.write_at(6, b"pending").unwrap();
            disk.cut_power();
            assert!(file.len().is_err(), "the old handle is fenced");
            let file = disk.mount().open("a", OpenMode::Existing).unwrap();
            let mut bytes = vec![0; index(file.len().unwrap())];
            file.read_at(0, &mut bytes).unwrap();
            assert!(bytes.starts_with(b"synced"));
            if bytes.len() == 6 { lost += 1 } else { kept += 1 }
        }
        assert!(lost > 0 && kept > 0);
    }

    #[test]
    fn names_survive_only_with_their_directory() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..64 {
            let disk = SimDisk::new(seed);
            let mounted = disk.mount();
            mounted.create_dir_all("d/e").unwrap();
            made(&disk, "d/e/f").sync_data().unwrap();
            mounted.sync_dir("d/e").unwrap();
            disk.cut_power();
            if disk.mount().exists("d/e/f").unwrap() { kept += 1 } else { lost += 1 }
        }
        assert!(lost > 0 && kept > 0);
    }

    #[test]
    fn a_full_disk_and_a_failed_sync_say_so() {
        let disk = SimDisk::new(1);
        let file = made(&disk, "a");
        disk.set_capacity(Some(4));
        let full = file.write_at(0, b"too much").unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        disk.set_capacity(None);
        file.write_at(0, b"enough").unwrap();
        disk.fail_syncs(true);
        assert!(file.sync_data().is_err());
    }

    #[test]
    fn a_lock_has_one_holder() {
        let disk = SimDisk::new(1);
        let mounted = disk.mount();
        let held = mounted.lock("node.lock").unwrap();
        assert!(mounted.lock("node.lock").is_err());
        drop(held);
        assert!(mounted.lock("node.lock").is_ok());
    }
}

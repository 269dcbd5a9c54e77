//! A disk in memory that loses power: the simulator's, and that of this crate's crash tests.
//!
//! What it promises is what POSIX promises, and no more:
//! - Bytes and lengths are pending until their file is synced. At a power cut every pending write
//!   on its own survives, is lost, or is torn at sectors of 512 bytes.
//! - Names are pending until their directory is synced. At a power cut the changes to a directory
//!   survive up to some point, in the order they were made. A file whose name is lost is lost.
//! - A failed sync forgets what was pending: the file reads as if written, and will never be.
//! - A power cut fences every handle and the mounted disk itself: a program that is still being
//!   torn down can do no more harm. [`SimDisk::mount`] gives the next life a new one.
//!
//! A sync cannot be slow here: the calls are synchronous and simulated time does not pass in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{DirEntry, Disk, DiskFile, DiskLock, OpenMode, parent};

/// What survives or is lost whole when a write is torn, bytes.
const SECTOR_BYTES: u64 = 512;

/// The disk itself, which outlives the program that uses it.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk. The seed decides what survives its power cuts.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            names: BTreeMap::from([(String::new(), Node::Dir)]),
            durable_names: BTreeMap::from([(String::new(), Node::Dir)]),
            changes: Vec::new(),
            locks: BTreeSet::new(),
            next_inode: 0,
            epoch: 0,
            ops: 0,
            syncs: 0,
            cut_after: None,
            was_cut: false,
            fail_syncs: false,
            ignore_syncs: false,
            capacity: None,
            rng: SmallRng::seed_from_u64(seed),
        })))
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
        self.state().cut_after = Some(ops);
    }

    /// Whether a cut that was asked for with [`SimDisk::cut_power_after`] has come since the last
    /// call.
    pub fn take_cut(&self) -> bool {
        std::mem::take(&mut self.state().was_cut)
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

    /// Makes every sync return at once and do nothing: a disk that lies, or a program without the
    /// sync. Tests use it to show that they would notice.
    pub fn ignore_syncs(&self, ignore: bool) {
        self.state().ignore_syncs = ignore;
    }

    /// Bytes that files may hold in all; `None` for no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

/// A change to the names in one or two directories.
#[derive(Debug, Clone)]
enum Change {
    Set(String, Node),
    Remove(String),
    Rename(String, String),
}

impl Change {
    fn dirs(&self) -> Vec<&str> {
        match self {
            Self::Set(path, _) | Self::Remove(path) => vec![parent(path)],
            Self::Rename(from, to) => vec![parent(from), parent(to)],
        }
    }
}

#[derive(Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Debug, Default)]
struct File {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<u64, File>,
    /// What the program sees, by whole path.
    names: BTreeMap<String, Node>,
    /// What a power cut would leave.
    durable_names: BTreeMap<String, Node>,
    /// What is between the two, in order.
    changes: Vec<Change>,
    locks: BTreeSet<String>,
    next_inode: u64,
    /// How often power was cut; what was mounted before a cut is dead.
    epoch: u64,
    ops: u64,
    syncs: u64,
    cut_after: Option<u64>,
    was_cut: bool,
    fail_syncs: bool,
    ignore_syncs: bool,
    capacity: Option<u64>,
    rng: SmallRng,
}

impl State {
    /// Counts an operation and cuts the power in it when its turn has come.
    fn count(&mut self) -> io::Result<()> {
        self.ops += 1;
        match &mut self.cut_after {
            Some(0) => {
                self.cut_power();
                self.was_cut = true;
                Err(no_power())
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn cut_power(&mut self) {
        let mut blocked = BTreeSet::new();
        for change in std::mem::take(&mut self.changes) {
            let dirs = change.dirs();
            if dirs.iter().any(|dir| blocked.contains(*dir)) || self.rng.random_bool(0.5) {
                blocked.extend(dirs.into_iter().map(str::to_owned));
            } else {
                make_change(&mut self.durable_names, change);
            }
        }
        drop_orphans(&mut self.durable_names);
        self.names = self.durable_names.clone();
        let named: BTreeSet<u64> = self.names.values().filter_map(inode_of).collect();
        self.files.retain(|inode, _| named.contains(inode));
        for file in self.files.values_mut() {
            for pending in std::mem::take(&mut file.pending) {
                survive(&mut file.durable, pending, &mut self.rng);
            }
            file.bytes = file.durable.clone();
        }
        self.locks.clear();
        self.epoch += 1;
        self.cut_after = None;
        self.fail_syncs = false;
    }

    fn change(&mut self, change: Change) -> io::Result<()> {
        make_change(&mut self.names, change.clone());
        self.changes.push(change);
        self.count()
    }

    /// What is pending for a directory becomes durable, and what came before it in directories
    /// that share a rename with it.
    fn sync_dir(&mut self, path: &str) -> io::Result<()> {
        self.count()?;
        self.syncs += 1;
        if self.fail_syncs {
            return Err(sync_failed());
        }
        if self.ignore_syncs {
            return Ok(());
        }
        let mut needed = BTreeSet::from([path.to_owned()]);
        let mut kept = Vec::new();
        let mut durable = Vec::new();
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            if change.dirs().iter().any(|dir| needed.contains(*dir)) {
                needed.extend(change.dirs().into_iter().map(str::to_owned));
                durable.push(change);
            } else {
                kept.push(change);
            }
        }
        kept.reverse();
        self.changes = kept;
        for change in durable.into_iter().rev() {
            make_change(&mut self.durable_names, change);
        }
        Ok(())
    }

    fn file(&mut self, inode: u64) -> io::Result<&mut File> {
        self.files.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether files may grow by so much.
    fn has_room(&self, more: u64) -> bool {
        let Some(capacity) = self.capacity else { return true };
        let used: u64 = self
            .names
            .values()
            .filter_map(inode_of)
            .filter_map(|inode| self.files.get(&inode))
            .map(|file| file.bytes.len() as u64)
            .sum();
        used + more <= capacity
    }

    fn require_dir(&self, path: &str) -> io::Result<()> {
        match self.names.get(path) {
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

fn inode_of(node: &Node) -> Option<u64> {
    match node {
        Node::File(inode) => Some(*inode),
        Node::Dir => None,
    }
}

fn make_change(names: &mut BTreeMap<String, Node>, change: Change) {
    match change {
        Change::Set(path, node) => {
            names.insert(path, node);
        }
        Change::Remove(path) => {
            names.remove(&path);
        }
        Change::Rename(from, to) => {
            let below = format!("{from}/");
            let moved: Vec<String> = names
                .keys()
                .filter(|path| **path == from || path.starts_with(&below))
                .cloned()
                .collect();
            for path in moved {
                if let Some(node) = names.remove(&path) {
                    names.insert(format!("{to}{}", &path[from.len()..]), node);
                }
            }
        }
    }
}

/// A name in a directory that is not there is not there.
fn drop_orphans(names: &mut BTreeMap<String, Node>) {
    let dirs: Vec<String> = names
        .iter()
        .filter(|(_, node)| **node == Node::Dir)
        .map(|(path, _)| path.clone())
        .collect();
    let dirs: BTreeSet<String> = dirs
        .iter()
        .filter(|path| {
            let mut dir = path.as_str();
            while !dir.is_empty() && names.get(parent(dir)) == Some(&Node::Dir) {
                dir = parent(dir);
            }
            dir.is_empty()
        })
        .cloned()
        .collect();
    names.retain(|path, _| path.is_empty() || dirs.contains(parent(path)));
}

/// What a power cut makes of one pending write.
fn survive(durable: &mut Vec<u8>, pending: Pending, rng: &mut SmallRng) {
    match pending {
        Pending::Len(len) if rng.random_bool(0.5) => resize(durable, len),
        Pending::Len(_) => {}
        Pending::Write(offset, bytes) => match rng.random_range(0..3) {
            0 => write(durable, offset, &bytes),
            1 => {}
            _ => {
                let end = offset + bytes.len() as u64;
                let mut from = offset;
                while from < end {
                    let to = end.min((from / SECTOR_BYTES + 1) * SECTOR_BYTES);
                    if rng.random_bool(0.5) {
                        write(durable, from, &bytes[index(from - offset)..index(to - offset)]);
                    }
                    from = to;
                }
            }
        },
    }
}

fn resize(bytes: &mut Vec<u8>, len: u64) {
    bytes.resize(index(len), 0);
}

fn write(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let (from, to) = (index(offset), index(offset) + new.len());
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    bytes[from..to].copy_from_slice(new);
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files fit in memory")
}

fn no_power() -> io::Error {
    io::Error::other("the power is gone")
}

fn sync_failed() -> io::Error {
    io::Error::other("injected sync failure")
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
        state.sync_dir(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<DirEntry>> {
        let state = self.state()?;
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

    fn exists(&self, path: &str) -> bool {
        self.state().is_ok_and(|state| state.names.contains_key(path))
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
        // A disk that fills up takes what it can: half of it, say.
        let room = state.has_room(more);
        let taken = if room { bytes } else { &bytes[..bytes.len() / 2] };
        if room || state.has_room((offset + taken.len() as u64).saturating_sub(len)) {
            let file = state.file(self.inode)?;
            write(&mut file.bytes, offset, taken);
            file.pending.push(Pending::Write(offset, taken.to_vec()));
        }
        state.count()?;
        if room { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.file(self.inode)?.bytes.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state()?;
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
            return Err(sync_failed());
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
            if disk.mount().exists("d/e/f") { kept += 1 } else { lost += 1 }
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

//! What the simulated disk holds, and what a power cut makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::disk::parent;

/// The number of `EIO`, the error of a device that fails.
const EIO: i32 = 5;
/// The number of `EMFILE`.
const EMFILE: i32 = 24;

/// Length that survives or is lost whole when a write is torn, bytes.
const SECTOR_BYTES: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Dir,
    File(u64),
}

/// A change to the names in one or two directories.
#[derive(Debug, Clone)]
pub(super) enum Change {
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

/// How a program ends before its time.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    PowerCut,
    Kill,
}

#[derive(Debug, Clone)]
pub(super) enum Pending {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Debug, Default, Clone)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) durable: Vec<u8>,
    pub(super) pending: Vec<Pending>,
}

/// The contents of the disk, as the program sees them and as a power cut would leave them.
#[derive(Debug)]
pub(super) struct State {
    pub(super) files: BTreeMap<u64, File>,
    /// Names as the program sees them, by whole path.
    pub(super) names: BTreeMap<String, Node>,
    /// Names as a power cut would leave them at worst.
    pub(super) durable_names: BTreeMap<String, Node>,
    /// Changes of names that are not durable, in order.
    pub(super) changes: Vec<Change>,
    pub(super) locks: BTreeSet<String>,
    pub(super) next_inode: u64,
    /// Lives of the program that have ended. Mounts of earlier epochs are fenced.
    pub(super) epoch: u64,
    pub(super) ops: u64,
    pub(super) syncs: u64,
    pub(super) end_after: Option<(u64, End)>,
    pub(super) has_ended: bool,
    pub(super) fail_syncs: bool,
    /// Likelihood that a write or a change of names fails.
    pub(super) write_errors: f64,
    pub(super) read_errors: f64,
    pub(super) failed_writes: u64,
    pub(super) failed_reads: u64,
    pub(super) ignore_syncs: bool,
    pub(super) capacity: Option<u64>,
    /// Number of times that files and directories can still be opened.
    pub(super) opens_left: Option<u64>,
    pub(super) rng: SmallRng,
}

impl State {
    /// Makes an empty disk.
    pub(super) fn new(seed: u64) -> Self {
        let root = BTreeMap::from([(String::new(), Node::Dir)]);
        Self {
            files: BTreeMap::new(),
            names: root.clone(),
            durable_names: root,
            changes: Vec::new(),
            locks: BTreeSet::new(),
            next_inode: 0,
            epoch: 0,
            ops: 0,
            syncs: 0,
            end_after: None,
            has_ended: false,
            fail_syncs: false,
            write_errors: 0.0,
            read_errors: 0.0,
            failed_writes: 0,
            failed_reads: 0,
            ignore_syncs: false,
            capacity: None,
            opens_left: None,
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Makes a healthy disk that holds the same.
    pub(super) fn fork(&self) -> Self {
        Self {
            files: self.files.clone(),
            names: self.names.clone(),
            durable_names: self.durable_names.clone(),
            changes: self.changes.clone(),
            next_inode: self.next_inode,
            ..Self::new(0)
        }
    }

    /// Counts an operation and ends the program in it when its turn has come.
    pub(super) fn count(&mut self) -> io::Result<()> {
        self.ops += 1;
        match &mut self.end_after {
            Some((0, end)) => {
                match end {
                    End::PowerCut => self.cut_power(),
                    End::Kill => self.fence(),
                }
                self.has_ended = true;
                Err(fenced())
            }
            Some((left, _)) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Lets a read fail, by the likelihood that was asked for.
    pub(super) fn read(&mut self) -> io::Result<()> {
        if self.read_errors > 0.0 && self.rng.random_bool(self.read_errors) {
            self.failed_reads += 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    /// Takes a descriptor for a file or a directory.
    pub(super) fn open(&mut self) -> io::Result<()> {
        match &mut self.opens_left {
            Some(0) => Err(io::Error::from_raw_os_error(EMFILE)),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Lets a write or a change of names fail, by the likelihood that was asked for.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.write_errors > 0.0 && self.rng.random_bool(self.write_errors) {
            self.failed_writes += 1;
            return Err(io::Error::from_raw_os_error(EIO));
        }
        Ok(())
    }

    pub(super) fn cut_power(&mut self) {
        // Changes to a directory survive in order: behind the first that is lost, the directory
        // takes no more. A rename between two directories is lost in both, or in neither.
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
        self.fail_syncs = false;
        self.fence();
    }

    fn fence(&mut self) {
        self.locks.clear();
        self.epoch += 1;
        self.end_after = None;
    }

    pub(super) fn change(&mut self, change: Change) -> io::Result<()> {
        self.write()?;
        make_change(&mut self.names, change.clone());
        self.changes.push(change);
        self.count()
    }

    /// Makes durable what is pending for a directory, and what came before it in directories that
    /// share a rename with it.
    pub(super) fn sync_dir(&mut self, path: &str) -> io::Result<()> {
        self.count()?;
        self.syncs += 1;
        if self.fail_syncs {
            return Err(sync_failed());
        }
        if self.ignore_syncs {
            return Ok(());
        }
        // Backwards: a rename that becomes durable takes its other directory along, and with that
        // the earlier changes there.
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

    pub(super) fn file(&mut self, inode: u64) -> io::Result<&mut File> {
        self.files.get_mut(&inode).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Tells whether files may grow by so many bytes.
    pub(super) fn has_room(&self, more: u64) -> bool {
        self.capacity.is_none_or(|capacity| self.used() + more <= capacity)
    }

    /// Tells by how many bytes files may grow.
    pub(super) fn free(&self) -> u64 {
        self.capacity.map_or(u64::MAX, |capacity| capacity.saturating_sub(self.used()))
    }

    fn used(&self) -> u64 {
        let files = self.names.values().filter_map(inode_of);
        let files = files.filter_map(|inode| self.files.get(&inode));
        files.map(|file| file.bytes.len() as u64).sum()
    }

    pub(super) fn require_dir(&self, path: &str) -> io::Result<()> {
        match self.names.get(path) {
            Some(Node::Dir) => Ok(()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }
}

pub(super) fn inode_of(node: &Node) -> Option<u64> {
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

/// Drops names in directories that are not there.
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

/// Lets a power cut make of one pending write what chance wants.
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

pub(super) fn resize(bytes: &mut Vec<u8>, len: u64) {
    bytes.resize(index(len), 0);
}

pub(super) fn write(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let (from, to) = (index(offset), index(offset) + new.len());
    if bytes.len() < to {
        bytes.resize(to, 0);
    }
    bytes[from..to].copy_from_slice(new);
}

pub(super) fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files fit in memory")
}

/// Makes the one error of this kind, by which a test can tell the program's end from a fault.
pub(super) fn fenced() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the program has ended: its disk is fenced")
}

pub(super) fn sync_failed() -> io::Error {
    io::Error::other("injected sync failure")
}

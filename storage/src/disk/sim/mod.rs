//! A disk in memory that loses power: the simulator's, and that of this crate's crash tests.
//!
//! It promises what POSIX promises, and no more:
//! - Bytes and lengths are pending until their file is synced. At a power cut every pending write
//!   on its own survives, is lost, or is torn at sectors of 512 bytes.
//! - Names are pending until their directory is synced. At a power cut the changes to a directory
//!   survive up to some point, in the order in which they were made. A file whose name is lost is
//!   lost.
//! - A failed sync forgets what was pending: the file reads as if written, and will never be.
//! - A failed write has written half of it, or nothing. A failed change of names changes nothing.
//! - A power cut, or a kill, fences every handle and the mounted disk itself: a program that is
//!   still being torn down can do no more harm. [`SimDisk::mount`] gives the next life a new one.
//! - A fenced handle answers with [`NotConnected`](std::io::ErrorKind::NotConnected), and nothing
//!   else does.
//!
//! A sync cannot be slow here: the calls are synchronous and simulated time does not pass in them.
//! Callers wait before them ([`Executor::Paced`](crate::Executor::Paced)).

mod copy;
mod mounted;
mod state;

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::Disk;
pub use copy::DiskCopy;
use mounted::Mounted;
use state::{End, Node, State, inode_of};

/// The disk itself, which outlives the program that uses it.
#[derive(Debug, Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// Makes an empty disk. The seed decides what survives its power cuts.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State::new(seed))))
    }

    /// Makes a disk with the same contents and a life of its own, to look at what a power cut now
    /// would leave at best, without a trace on this one.
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.state().fork())))
    }

    /// Gives the disk to the next life of the program.
    pub fn mount(&self) -> Arc<dyn Disk> {
        let epoch = self.state().epoch;
        Arc::new(Mounted { disk: self.clone(), epoch })
    }

    /// Cuts power now. Everything mounted is fenced.
    pub fn cut_power(&self) {
        self.state().cut_power();
    }

    /// Cuts power in the middle of the `ops`-th write, sync or change of names from now (0: the
    /// next one).
    pub fn cut_power_after(&self, ops: u64) {
        self.state().end_after = Some((ops, End::PowerCut));
    }

    /// Kills the program in the middle of that operation. All that it did is there to be read, but
    /// what was not synced can still be lost to a power cut.
    pub fn kill_after(&self, ops: u64) {
        self.state().end_after = Some((ops, End::Kill));
    }

    /// Tells whether an end that was asked for has come since the last call.
    pub fn take_ended(&self) -> bool {
        std::mem::take(&mut self.state().has_ended)
    }

    /// Counts writes, syncs and changes of names so far.
    pub fn ops(&self) -> u64 {
        self.state().ops
    }

    /// Counts syncs of files and directories so far.
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

    /// Counts writes and changes of names that failed so far, and reads.
    pub fn failed(&self) -> (u64, u64) {
        let state = self.state();
        (state.failed_writes, state.failed_reads)
    }

    /// Puts another disk in its place, empty and whole. Power goes with the old one.
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

    /// Gives the durable bytes of a file; `None` where some are pending.
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

    /// Bounds the bytes that files may hold in all; `None` for no bound.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Bounds how often files and directories can be opened from now on; `None` for no bound.
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
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::state::index;
    use super::*;
    use crate::disk::{DiskFile, OpenMode};

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

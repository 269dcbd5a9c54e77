//! Syncs long writes piece by piece, so that nobody's sync waits for all of them.
//!
//! # Problem
//!
//! A disk works through what it was handed in order, whatever file it is of. While an index commits six
//! megabytes with one sync at the end, the sync of a log record of some hundred bytes takes 35 ms instead of 1
//! (the 99th percentile, on the disk that `docs/performance.md` names), and every tenant waits for it.
//!
//! # Rule
//!
//! A file is synced whenever [`PIECE_BYTES`] were written to it, so that the disk never has more of it to write
//! before it gets to others. The whole takes longer, by those syncs.
//!
//! # Invariants
//!
//! - Nothing changes for what a crash leaves: any part of what is not synced may be durable anyway.
//! - A file whose sync failed is not synced again, nor written to: the kernel may have dropped what it could
//!   not write, and would report success.
//!
//! # What this does not do
//!
//! Several files that are written at the same time have a piece each under way.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::DiskFile;

/// So much is written between two syncs, bytes.
const PIECE_BYTES: usize = 128 << 10;

/// A file whose long writes are synced piece by piece.
#[derive(Debug)]
pub(crate) struct PiecemealFile {
    file: Arc<dyn DiskFile>,
    unsynced_bytes: AtomicUsize,
    /// Held during a sync: the kernel reports a failure once, to one of two syncs at the same time, and the
    /// other would succeed.
    has_failed: Mutex<bool>,
}

impl PiecemealFile {
    pub(crate) fn over(file: Arc<dyn DiskFile>) -> Self {
        Self { file, unsynced_bytes: AtomicUsize::new(0), has_failed: Mutex::new(false) }
    }

    /// Gives the right to sync the file, or why nobody may.
    fn right_to_sync(&self) -> io::Result<MutexGuard<'_, bool>> {
        let has_failed = self.has_failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *has_failed {
            return Err(io::Error::other("an earlier sync of this file failed"));
        }
        Ok(has_failed)
    }
}

impl DiskFile for PiecemealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        drop(self.right_to_sync()?);
        let mut at = offset;
        for piece in bytes.chunks(PIECE_BYTES) {
            self.file.write_at(at, piece)?;
            at += piece.len() as u64;
            let before = self.unsynced_bytes.fetch_add(piece.len(), Ordering::Relaxed);
            if before + piece.len() >= PIECE_BYTES {
                self.sync_data()?;
            }
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut has_failed = self.right_to_sync()?;
        // Before the sync: what another thread writes meanwhile counts for the next one.
        self.unsynced_bytes.store(0, Ordering::Relaxed);
        let synced = self.file.sync_data();
        *has_failed = synced.is_err();
        synced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{OpenMode, SimDisk};

    fn opened(disk: &SimDisk) -> PiecemealFile {
        let disk = disk.mount();
        let file = disk.open("a", OpenMode::CreateNew).unwrap();
        disk.sync_dir("").unwrap();
        PiecemealFile::over(file)
    }

    #[test]
    fn long_writes_are_durable_but_for_the_last_piece() {
        for piece in [1 << 10, PIECE_BYTES, 3 * PIECE_BYTES + 5] {
            let disk = SimDisk::new(7);
            let file = opened(&disk);
            let total = 4 * PIECE_BYTES;
            let bytes: Vec<u8> = (0..total).map(|at| (at % 251) as u8 + 1).collect();
            let mut at = 0;
            for part in bytes.chunks(piece) {
                file.write_at(at as u64, part).unwrap();
                at += part.len();
            }
            disk.cut_power();
            let file = disk.mount().open("a", OpenMode::Existing).unwrap();
            let mut kept = vec![0; total - PIECE_BYTES];
            file.read_at(0, &mut kept).unwrap();
            assert!(kept == bytes[..kept.len()], "written in parts of {piece}");
        }
    }

    #[test]
    fn a_file_whose_sync_failed_is_left_alone() {
        let disk = SimDisk::new(7);
        let file = opened(&disk);
        disk.fail_syncs(true);
        file.write_at(0, &[1; 10]).unwrap();
        assert!(file.write_at(10, &[1; PIECE_BYTES]).is_err());
        disk.fail_syncs(false);
        let syncs = disk.syncs();
        assert!(file.sync_data().is_err());
        assert!(file.write_at(0, &[1]).is_err());
        assert_eq!(disk.syncs(), syncs);
    }
}

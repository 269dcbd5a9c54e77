//! Room that the log keeps for itself: a file of zeros that gives way when the disk is full.
//!
//! A disk fills up at any moment, and then the log still has something to write: entries that were
//! proposed before anybody knew, and votes, without which a node that starts has no leader and
//! nobody can read. That room is taken from here. From then on the disk counts as full until the
//! reserve is whole again and there is some room beside it.

use std::io;
use std::sync::Arc;

use super::MAKING_ROOM_COMMAND_BYTES_MAX;
use super::segment::LOG_DIR;
use crate::disk::{Disk, DiskFile, LOG_ROOM_BYTES_MIN, OpenMode, Shortage};

/// Length of the reserve, bytes: more than most batches. One that is larger than what is given of it, about 1.2 MiB,
/// blocks the log until there is room.
pub(crate) const RESERVE_BYTES: u64 = 2 << 20;

/// Share of the reserve that large batches leave for votes, bytes. A vote takes some hundred.
const VOTE_BYTES: u64 = 512 << 10;

/// Share of the reserve that large batches leave, beside that of votes, for commands that make room, bytes. Each
/// takes some hundred: without them the room would not come back.
const MAKING_ROOM_BYTES: u64 = 256 << 10;

/// A batch that is no longer than this may have all of the reserve, bytes.
const SMALL_BYTES: usize = 16 << 10;

/// What a command that makes room takes in the log at most beside itself, bytes: the record around it.
const RECORD_BYTES: usize = 256;

/// A batch on a full disk takes no more once it is so long, bytes. With one more command that makes room it is still
/// a small one, which may have all of the reserve: were they together a large batch, it would wait, and votes behind it.
pub(crate) const FULL_BATCH_BYTES: usize =
    SMALL_BYTES - MAKING_ROOM_COMMAND_BYTES_MAX - RECORD_BYTES;

/// Room that a file system needs beside the bytes that are written, bytes.
const SLACK_BYTES: u64 = 32 << 10;

/// Room beside the reserve without which the disk counts as full, bytes.
const ROOM_BYTES: u64 = 1 << 20;

/// What copies leave on the disk is enough for a log that is not full.
const _: () = assert!(LOG_ROOM_BYTES_MIN > RESERVE_BYTES + ROOM_BYTES);

/// The smallest step in which the reserve grows back, bytes.
const GROWTH_BYTES_MIN: u64 = 64 << 10;

/// Name of the file, in the log's directory.
pub(crate) const NAME: &str = "reserve";

/// The reserve of one log.
#[derive(Debug)]
pub(crate) struct Reserve {
    /// `None` where there is no reserve, or its file cannot be used.
    file: Option<Arc<dyn DiskFile>>,
    len: u64,
}

impl Reserve {
    /// Makes a log go without a reserve: its disk is full only while a write finds no room.
    pub const fn none() -> Self {
        Self { file: None, len: 0 }
    }

    /// Opens the reserve as long as it was left.
    pub fn open(disk: &dyn Disk) -> Self {
        let path = format!("{LOG_DIR}/{NAME}");
        let open = || {
            let file = disk.open(&path, OpenMode::OpenOrCreate)?;
            let len = file.len()?;
            Ok((file, len))
        };
        match open() {
            Ok((file, len)) => Self { file: Some(file), len },
            Err(error) => Self::unusable(&error),
        }
    }

    /// Goes on without a reserve: nothing that the log promises depends on it.
    fn unusable(error: &io::Error) -> Self {
        tracing::warn!(%error, "the log has no room in reserve");
        Self::none()
    }

    /// Gives up room for a batch of so many bytes, and tells whether there was some to give.
    pub fn release(&mut self, bytes: usize) -> bool {
        let Some(file) = &self.file else { return false };
        let needed = bytes as u64 + SLACK_BYTES;
        let kept = if bytes > SMALL_BYTES { VOTE_BYTES + MAKING_ROOM_BYTES } else { 0 };
        if self.len == 0 || (kept > 0 && self.len < needed + kept) {
            return false;
        }
        let len = self.len.saturating_sub(needed);
        // Synced before the batch is written: a file system may free the blocks only then.
        match file.set_len(len).and_then(|()| file.sync_data()) {
            Ok(()) => {
                self.len = len;
                true
            }
            Err(error) => {
                *self = Self::unusable(&error);
                false
            }
        }
    }

    /// Tells whether there is more in it than votes need: then commands that make room may have some.
    pub const fn serves_what_makes_room(&self) -> bool {
        self.file.is_some() && self.len > VOTE_BYTES
    }

    /// Takes back the room it gave, and tells whether it is whole with room beside it.
    pub fn refill(&mut self) -> bool {
        let Some(file) = self.file.clone() else { return true };
        match self.grow(file.as_ref()) {
            Ok(is_whole) => is_whole,
            Err(error) => {
                *self = Self::unusable(&error);
                true
            }
        }
    }

    /// Grows by writing zeros, because a length that is only set takes no room. Each step that
    /// finds no room is undone and tried smaller.
    fn grow(&mut self, file: &dyn DiskFile) -> io::Result<bool> {
        let before = self.len;
        let mut step = RESERVE_BYTES.saturating_sub(self.len);
        while self.len < RESERVE_BYTES && step >= GROWTH_BYTES_MIN.min(RESERVE_BYTES - self.len) {
            step = step.min(RESERVE_BYTES - self.len);
            if fill(file, self.len, step)? {
                self.len += step;
            } else {
                file.set_len(self.len)?;
                step /= 4;
            }
        }
        if self.len != before {
            file.sync_data()?;
        }
        if self.len < RESERVE_BYTES {
            return Ok(false);
        }
        // Whether there is room beside the reserve shows only by taking it for a moment. Not
        // synced: it is given back at once.
        let has_room = fill(file, self.len, ROOM_BYTES)?;
        file.set_len(self.len)?;
        Ok(has_room)
    }
}

/// Writes zeros, and tells whether there was room for them.
fn fill(file: &dyn DiskFile, at: u64, bytes: u64) -> io::Result<bool> {
    let zeros = vec![0; usize::try_from(bytes).unwrap_or(0)];
    match file.write_at(at, &zeros) {
        Ok(()) => Ok(true),
        Err(error) if Shortage::of(&error) == Some(Shortage::Room) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimDisk;

    fn fresh() -> (SimDisk, Reserve) {
        let disk = SimDisk::new(1);
        disk.mount().create_dir_all(LOG_DIR).unwrap();
        let reserve = Reserve::open(&*disk.mount());
        (disk, reserve)
    }

    #[test]
    fn it_is_whole_when_there_is_room_beside_it() {
        let (disk, mut reserve) = fresh();
        disk.set_capacity(Some(RESERVE_BYTES + ROOM_BYTES - 1));
        assert!(!reserve.refill());
        assert_eq!(reserve.len, RESERVE_BYTES, "it takes what it gets");
        disk.set_capacity(Some(RESERVE_BYTES + ROOM_BYTES));
        assert!(reserve.refill());
        assert_eq!(Reserve::open(&*disk.mount()).len, RESERVE_BYTES);
    }

    #[test]
    fn large_batches_leave_room_for_votes() {
        let (disk, mut reserve) = fresh();
        assert!(reserve.refill());
        disk.set_capacity(Some(0));
        assert!(reserve.release(1 << 20));
        assert!(!reserve.release(1 << 20), "the rest is kept");
        assert!(!reserve.release(400 << 10), "and the share of what makes room");
        let making_room =
            (0..1000).take_while(|_| reserve.serves_what_makes_room() && reserve.release(300));
        assert!(making_room.count() >= 5, "some is kept for what makes room");
        let votes = (0..1000).take_while(|_| reserve.release(300)).count();
        assert!(votes >= 10, "{votes}");
        assert!(!reserve.release(1));
        assert!(!reserve.refill());
    }

    #[test]
    fn a_node_that_starts_on_a_full_disk_finds_what_was_left() {
        let (disk, mut reserve) = fresh();
        assert!(reserve.refill());
        assert!(reserve.release(1 << 20));
        let len = reserve.len;
        disk.set_capacity(Some(0));
        let mut reserve = Reserve::open(&*disk.mount());
        assert_eq!(reserve.len, len);
        assert!(!reserve.refill() && reserve.release(300));
    }

    #[test]
    fn without_a_reserve_nothing_depends_on_it() {
        let mut none = Reserve::none();
        assert!(none.refill() && !none.release(1));
    }
}

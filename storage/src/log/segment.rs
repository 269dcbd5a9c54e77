//! Segment files: their names and their heads.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `shiiolog` |
//! | 4 | version of the format |
//! | 4 | number of the segment, from 1 |
//! | 8 | length of the segment before when this one was begun; 0 for the first |
//! | 16 | id of the log, the same in every segment; from version 2 on |
//! | 4 | CRC-32 of the bytes before |
//! | n | a checkpoint record |
//!
//! The id of the log stands in the node's identity and in the index of every tenant, too: files
//! that do not belong together are told apart by it. Version 1 had none, and its checkpoints do not
//! say who has files. Its segments are read and never written to.
//!
//! A segment is begun only when everything in the one before is synced; head and checkpoint are
//! synced, and so is the directory, before anything else is written into it.

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::record::{self, Checkpoint};
use crate::disk::{Disk, DiskFile, OpenMode, Shortage};

/// The directory of the segments, below the data directory.
pub(crate) const LOG_DIR: &str = "log";

/// Length at which a segment is followed by another, bytes, at most.
pub(super) const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// The same at least: each segment costs a file and a look at every group.
const SEGMENT_BYTES_MIN: u64 = 1 << 20;

/// The part of the disk that a segment may take: one in so many. The log goes by whole segments, and the
/// last one stays: it must not fill a small disk before there is anything to cut.
const SEGMENT_DISK_DIVISOR: u64 = 16;

/// Gives the length at which a segment is followed by another, on a disk of so many bytes.
pub(crate) fn length_on(disk_bytes: u64) -> u64 {
    (disk_bytes / SEGMENT_DISK_DIVISOR).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX)
}

/// Length of a segment's head without the checkpoint, bytes.
pub(crate) const HEAD_BYTES: usize = 44;

/// Length of a head of version 1, bytes. Below it there is nothing but a head in any version.
pub(crate) const HEAD_BYTES_MIN: usize = 28;

const MAGIC: &[u8; 8] = b"shiiolog";
pub(super) const VERSION: u32 = 2;
/// The version without an id of the log.
const VERSION_WITHOUT_ID: u32 = 1;

/// Gives the path of a segment.
pub(crate) fn path(number: u32) -> String {
    format!("{LOG_DIR}/{number:010}.log")
}

/// Parses the number of a segment from its file name.
pub(crate) fn number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    path(number).ends_with(&format!("/{name}")).then_some(number)
}

/// The head of a segment, as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    Valid {
        /// Length of the segment before this one.
        previous_len: u64,
        /// Id of the log; `None` in version 1.
        log: Option<Uuid>,
        /// Length of the head, bytes.
        len: usize,
    },
    /// The head is not whole, or not a head.
    Broken,
    /// The head is whole, and of a version that this program does not know.
    Unknown(u32),
}

/// Reads the head of a segment.
pub(crate) fn read_head(number: u32, bytes: &[u8]) -> Head {
    if !bytes.starts_with(MAGIC) || bytes.len() < HEAD_BYTES_MIN {
        return Head::Broken;
    }
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&bytes[at..at + 4]);
        u32::from_le_bytes(word)
    };
    let is_whole =
        |len: usize| len <= bytes.len() && crc32fast::hash(&bytes[..len - 4]) == word(len - 4);
    let version = word(8);
    let len = if version == VERSION_WITHOUT_ID { HEAD_BYTES_MIN } else { HEAD_BYTES };
    if !(VERSION_WITHOUT_ID..=VERSION).contains(&version) {
        // A head of a later version is whole in one of the layouts that there are, or not certain
        // to be one.
        let is_head = is_whole(HEAD_BYTES) || is_whole(HEAD_BYTES_MIN);
        return if is_head { Head::Unknown(version) } else { Head::Broken };
    }
    if !is_whole(len) || word(12) != number {
        return Head::Broken;
    }
    let previous_len = u64::from(word(20)) << 32 | u64::from(word(16));
    let log = bytes[24..len - 4].try_into().ok().map(Uuid::from_bytes);
    Head::Valid { previous_len, log, len }
}

/// A segment that was just begun.
pub(crate) struct NewSegment {
    pub file: Arc<dyn DiskFile>,
    pub len: u64,
}

/// Begins a segment, durably. Leaves no file when there is no room or no descriptor, so that it can
/// be tried again.
pub(crate) fn begin(
    disk: &dyn Disk,
    number: u32,
    previous_len: u64,
    log: Uuid,
    checkpoint: &Checkpoint,
) -> io::Result<NewSegment> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&previous_len.to_le_bytes());
    bytes.extend_from_slice(log.as_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    record::frame(number, 0, &mut bytes, |bytes| record::put_checkpoint(checkpoint, bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "checkpoint too large"))?;

    let path = path(number);
    // `CreateNew`: a file that is there already would be another segment of this number.
    let file = disk.open(&path, OpenMode::CreateNew)?;
    match file.write_at(0, &bytes) {
        Err(error) if Shortage::of(&error) == Some(Shortage::Room) => {
            disk.remove_file(&path).map_err(io::Error::other)?;
            return Err(error);
        }
        written => written?,
    }
    // The bytes before the name: a name that is durable without its bytes would be a segment with a
    // broken head. Both before the first batch: it must not be acknowledged in a file that a power
    // cut can take away.
    file.sync_data()?;
    match disk.sync_dir(LOG_DIR) {
        // A directory has to be opened to be synced. Should power go now, the file may be there
        // after all: then it is the segment that was about to be begun, with nothing in it.
        Err(error) if Shortage::of(&error) == Some(Shortage::Descriptors) => {
            disk.remove_file(&path).map_err(io::Error::other)?;
            return Err(error);
        }
        synced => synced?,
    }
    Ok(NewSegment { file, len: bytes.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    #[test]
    fn two_segments_are_a_small_part_of_a_small_disk() {
        const MIB: u64 = 1 << 20;
        for (disk, segment) in [(0, 1), (24, 1), (64, 4), (256, 16), (1 << 20, 16)] {
            assert_eq!(length_on(disk * MIB) / MIB, segment, "of {disk} MiB");
        }
        assert_eq!(length_on(u64::MAX), SEGMENT_BYTES_MAX);
        let folder = tempfile::tempdir().unwrap();
        let size = RealDisk::new(folder.path()).unwrap().size().unwrap();
        assert!(size > MIB && size < u64::MAX, "{size}");
    }
}

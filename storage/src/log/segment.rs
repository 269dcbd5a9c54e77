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
//! The id of the log stands in the node's identity and in the index of every part, too: files that do
//! not belong together are told apart by it. Version 1 had none, and its checkpoints do not say which
//! parts have files. Its segments are read and never written to.
//!
//! A segment is begun only when everything in the one before is synced; head and checkpoint are
//! synced, and so is the directory, before anything else is written into it.

use std::io;
use std::sync::Arc;

use uuid::Uuid;

use super::record::{self, Checkpoint};
use crate::disk::{Disk, DiskFile, OpenMode, is_full};
use shiioo_actors::ports::descriptors::is_exhausted;

/// Where the segments are, below the data directory.
pub(crate) const LOG_DIR: &str = "log";

/// A segment that has reached this length is followed by another, bytes.
pub(crate) const SEGMENT_BYTES: u64 = 16 << 20;

/// Length of a segment's head without the checkpoint.
pub(crate) const HEAD_BYTES: usize = 44;

/// The same in version 1: nothing but a head is before it in any version.
pub(crate) const HEAD_BYTES_MIN: usize = 28;

const MAGIC: &[u8; 8] = b"shiiolog";
const VERSION: u32 = 2;
/// The version without an id of the log.
const VERSION_NAMELESS: u32 = 1;

/// The file of a segment.
pub(crate) fn path(number: u32) -> String {
    format!("{LOG_DIR}/{number:010}.log")
}

/// The number of the segment with this file name.
pub(crate) fn number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    path(number).ends_with(&format!("/{name}")).then_some(number)
}

/// What a head says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// It is whole.
    Good {
        /// Length of the segment before.
        previous_len: u64,
        /// The log that it belongs to; `None` in version 1.
        log: Option<Uuid>,
        /// Bytes of the head.
        len: usize,
    },
    /// It is not whole, or not a head.
    Broken,
    /// It is whole, and of a version that this program does not know.
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
    let len = if version == VERSION_NAMELESS { HEAD_BYTES_MIN } else { HEAD_BYTES };
    if !(VERSION_NAMELESS..=VERSION).contains(&version) {
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
    Head::Good { previous_len, log, len }
}

/// A segment that was just begun.
pub(crate) struct Begun {
    pub file: Arc<dyn DiskFile>,
    pub len: u64,
}

/// Begins a segment, durably. Leaves no file when the disk is full or no descriptor is left, so that
/// it can be tried again.
pub(crate) fn begin(
    disk: &dyn Disk,
    number: u32,
    previous_len: u64,
    log: Uuid,
    checkpoint: &Checkpoint,
) -> io::Result<Begun> {
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
    let file = disk.open(&path, OpenMode::CreateNew)?;
    match file.write_at(0, &bytes) {
        Err(error) if is_full(&error) => {
            disk.remove_file(&path).map_err(io::Error::other)?;
            return Err(error);
        }
        written => written?,
    }
    file.sync_data()?;
    match disk.sync_dir(LOG_DIR) {
        // A directory has to be opened to be synced. Should power go now, the file may be there
        // after all: then it is the segment that was about to be begun, with nothing in it.
        Err(error) if is_exhausted(&error) => {
            disk.remove_file(&path).map_err(io::Error::other)?;
            return Err(error);
        }
        synced => synced?,
    }
    Ok(Begun { file, len: bytes.len() as u64 })
}

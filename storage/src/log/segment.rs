//! Segment files: their names and their heads.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `shiiolog` |
//! | 4 | version of the format |
//! | 4 | number of the segment, from 1 |
//! | 8 | length of the segment before when this one was begun; 0 for the first |
//! | 4 | CRC-32 of the 24 bytes before |
//! | n | a checkpoint record |
//!
//! A segment is begun only when everything in the one before is synced; head and checkpoint are
//! synced, and so is the directory, before anything else is written into it.

use std::io;
use std::sync::Arc;

use shiioo_actors::ids::GroupId;

use super::record::{self, GroupState};
use crate::disk::{Disk, DiskFile, OpenMode, is_full};
use shiioo_actors::descriptors::is_exhausted;

/// Where the segments are, below the data directory.
pub(crate) const LOG_DIR: &str = "log";

/// A segment that has reached this length is followed by another, bytes.
pub(crate) const SEGMENT_BYTES: u64 = 16 << 20;

/// Length of a segment's head without the checkpoint.
pub(crate) const HEAD_BYTES: usize = 28;

const MAGIC: &[u8; 8] = b"shiiolog";
const VERSION: u32 = 1;

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
    Good { previous_len: u64 },
    /// It is not whole, or not a head.
    Broken,
    /// It is whole, and of a version that this program does not know.
    Unknown(u32),
}

/// Reads the head of a segment.
pub(crate) fn read_head(number: u32, bytes: &[u8]) -> Head {
    let Some((head, crc)) = bytes.get(..HEAD_BYTES).and_then(|head| head.split_at_checked(24))
    else {
        return Head::Broken;
    };
    if crc32fast::hash(head).to_le_bytes() != crc || !head.starts_with(MAGIC) {
        return Head::Broken;
    }
    let mut words = head[8..].chunks_exact(4).map(|word| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(word);
        u32::from_le_bytes(bytes)
    });
    let mut word = || words.next().unwrap_or_default();
    match (word(), word(), word(), word()) {
        (VERSION, own, low, high) if own == number => {
            Head::Good { previous_len: u64::from(high) << 32 | u64::from(low) }
        }
        (VERSION, ..) => Head::Broken,
        (version, ..) => Head::Unknown(version),
    }
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
    groups: &[(GroupId, GroupState)],
) -> io::Result<Begun> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&number.to_le_bytes());
    bytes.extend_from_slice(&previous_len.to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    record::frame(number, 0, &mut bytes, |bytes| record::put_checkpoint(groups, bytes))
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

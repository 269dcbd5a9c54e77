//! Reads entries from their segments.

use std::io;

use shiioo_actors::ports::StoreError;

use super::entry_index::{FoundEntry, StoredEntry};
use super::record::{self, LogEntry};
use super::segment;
use crate::disk::{Disk, store_error};

/// Tells whether there is a log below the data directory, or what is left of one.
///
/// # Errors
/// When the directory cannot be read.
pub fn has_log(disk: &dyn Disk) -> io::Result<bool> {
    if !disk.exists(segment::LOG_DIR)? {
        return Ok(false);
    }
    let entries = disk.list(segment::LOG_DIR)?;
    Ok(entries.iter().any(|entry| segment::number(&entry.name).is_some()))
}

/// Reads the entries that are not in memory. Blocks.
pub(crate) fn load(found: Vec<FoundEntry>) -> Result<Vec<LogEntry>, StoreError> {
    found
        .into_iter()
        .map(|found| match found {
            FoundEntry::Cached(entry) => Ok(entry),
            FoundEntry::Stored(stored) => load_stored(&stored),
        })
        .collect()
}

/// Reads one entry and checks it: bytes may have rotted since recovery read them.
fn load_stored(stored: &StoredEntry) -> Result<LogEntry, StoreError> {
    let StoredEntry { position, location, file } = stored;
    let path = segment::path(location.segment);
    let damaged = |what: String| StoreError::Damaged {
        file: path.clone(),
        offset: location.offset,
        what: format!("entry {position}: {what}"),
    };
    let mut bytes = vec![0; location.len as usize];
    // The file is held open by `stored`: a segment that is removed in the meantime can still be
    // read.
    file.read_at(location.offset, &mut bytes)
        .map_err(|error| store_error(format!("read {path}"), error))?;
    let framed = record::read_frame(location.segment, &bytes, 0).ok_or_else(|| {
        damaged("the checksum does not match; put the log back from a copy".into())
    })?;
    let (_, entry) = record::decode_entry(&bytes[framed.payload]).map_err(damaged)?;
    if entry.position == *position {
        Ok(entry)
    } else {
        Err(damaged(format!("entry {} stands in its place", entry.position)))
    }
}

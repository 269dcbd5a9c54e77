//! Small files that are read and replaced whole.

use std::io;

use shiioo_actors::ports::StoreError;

use super::{Disk, OpenMode, parent, store_error};

/// The largest file that [`read_small`] reads, bytes.
pub const SMALL_FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads a whole small file; `None` when there is none.
///
/// # Errors
/// When it cannot be read or is longer than [`SMALL_FILE_BYTES_MAX`].
pub fn read_small(disk: &dyn Disk, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let read = || {
        let file = match disk.open(path, OpenMode::Existing) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let len = file.len()?;
        if len > SMALL_FILE_BYTES_MAX {
            let why =
                format!("it has {len} bytes, and at most {SMALL_FILE_BYTES_MAX} are expected");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_at(0, &mut bytes)?;
        Ok(Some(bytes))
    };
    read().map_err(|error| store_error(format!("read {path}"), error))
}

/// Replaces a small file. After a power cut the old or the new contents are there, never a mixture,
/// and after the return the new ones.
///
/// # Errors
/// When the file cannot be written.
pub fn write_durably(disk: &dyn Disk, path: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let beside = format!("{path}.tmp");
    let write = || {
        // A leftover of an earlier attempt is written over: it may hold anything.
        let file = disk.open(&beside, OpenMode::OpenOrCreate)?;
        file.set_len(0)?;
        file.write_at(0, bytes)?;
        // Before the rename: the name must never lead to bytes that are not durable.
        file.sync_data()?;
        disk.rename(&beside, path)?;
        // Last: until the directory is synced, a power cut brings the old file back.
        disk.sync_dir(parent(path))
    };
    write().map_err(|error| store_error(format!("write {path}"), error))
}

//! Reads the disk of a node that does not run: the log of every group, and the state of every state
//! machine. For checks that compare several nodes.
//!
//! It opens the files as a start does, which cuts torn writes off: give it a copy
//! ([`SimDisk::fork`](crate::disk::SimDisk::fork)).

use std::collections::BTreeMap;
use std::sync::Arc;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::ports::StoreError;

use crate::disk::{Disk, OpenMode, store_error};
use crate::index::row_index::RowIndex;
use crate::log::record;
use crate::log::recovery;

/// Above every key of a row.
const KEY_END: [u8; 64] = [0xff; 64];

/// The contents of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogImage {
    /// The entries of each group, in order: their positions, and their bytes as they are written.
    pub groups: BTreeMap<GroupId, Vec<(Position, Vec<u8>)>>,
    /// The state machines that have files, and up to where those were durable when the log was told.
    pub files: BTreeMap<StateMachineId, Position>,
}

/// The contents of a state machine's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartImage {
    /// The last entry whose effect is in the files.
    pub applied: Position,
    /// The rows of the index.
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The event log up to that entry.
    pub events: Vec<u8>,
}

/// Reads the whole log.
///
/// # Errors
/// When it cannot be read or is damaged.
pub fn log(disk: &dyn Disk) -> Result<LogImage, StoreError> {
    let index = recovery::recover(disk, None, uuid::Uuid::nil())?.index;
    let mut image = LogImage { files: index.all_files().clone(), ..LogImage::default() };
    for group in index.groups() {
        let mut entries = Vec::new();
        for entry in crate::log::load(index.find(group, 0, u64::MAX))? {
            let mut bytes = Vec::new();
            record::put_entry(group, &entry, &mut bytes);
            entries.push((entry.position, bytes));
        }
        image.groups.insert(group, entries);
    }
    Ok(image)
}

/// Reads a state machine's files by the path of its index; `None` when nothing was ever applied to
/// it.
///
/// # Errors
/// When a file cannot be read or is damaged.
pub fn part(disk: &Arc<dyn Disk>, index_path: &str) -> Result<Option<PartImage>, StoreError> {
    let failed = |error| store_error(format!("read {index_path}"), error);
    let file = disk.open(index_path, OpenMode::Existing).map_err(failed)?;
    let (index, state) = RowIndex::open(index_path, file, None)?;
    let Some(state) = state else { return Ok(None) };
    let rows = index.scan(&[], &KEY_END, usize::MAX, false)?.into_iter().collect();
    let mut events = vec![0; usize::try_from(state.events_len).unwrap_or(usize::MAX)];
    if !events.is_empty() {
        let path = index_path.replace("index.redb", "events.jsonl");
        let file = disk.open(&path, OpenMode::Existing).map_err(failed)?;
        file.read_at(0, &mut events).map_err(failed)?;
    }
    Ok(Some(PartImage { applied: state.position, rows, events }))
}

//! The knowledge of one life of the program: what it did, and what it was told of it.

use std::collections::BTreeMap;

use shiioo_actors::domain::ids::{GroupId, Position, TenantId};
use shiioo_actors::ports::{Store, StoreError};

use crate::log::record::{LogEntry, Vote};
use crate::log::{Log, Op};

/// The log of one group.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct GroupModel {
    pub vote: Option<Vote>,
    pub purged: Option<Position>,
    pub entries: BTreeMap<u64, LogEntry>,
}

impl GroupModel {
    pub fn next(&self) -> u64 {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or(self.purged.map(|purged| purged.index)).map_or(0, |last| last + 1)
    }

    /// Gives the log after an operation of which, if it appends, only `count` entries came through.
    pub fn after(&self, op: &Op, count: usize) -> Self {
        let mut next = self.clone();
        match op {
            Op::Vote(vote) => next.vote = Some(*vote),
            Op::Append(entries) => next.entries.extend(
                entries.iter().take(count).map(|entry| (entry.position.index, entry.clone())),
            ),
            Op::Truncate(from) => drop(next.entries.split_off(from)),
            Op::Purge(upto) => {
                next.entries = next.entries.split_off(&(upto.index + 1));
                next.purged = Some(*upto);
            }
            Op::Leave(_) => next = Self { vote: self.vote, ..Self::default() },
            Op::ForgetFiles(_) | Op::Close => {}
        }
        next
    }

    pub fn of(log: &Log, group: GroupId) -> Self {
        let state = log.state(group);
        let entries = crate::log::tests::read(log, group);
        let entries = entries.into_iter().map(|entry| (entry.position.index, entry)).collect();
        Self { vote: state.vote, purged: state.purged, entries }
    }
}

/// One state of a tenant's files.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct FileState {
    pub position: Option<Position>,
    pub rows: Vec<(Vec<u8>, Vec<u8>)>,
    pub events: Vec<u8>,
}

impl FileState {
    pub fn of(store: &dyn Store) -> Result<Self, StoreError> {
        let len = usize::try_from(store.events_len()).unwrap();
        Ok(Self {
            position: store.position(),
            rows: store.scan(b"", b"\xff", usize::MAX, false)?,
            events: store.read_events(0, len)?,
        })
    }
}

/// Every state that was written to a tenant's files, and the last one that was acknowledged as
/// durable.
#[derive(Debug, Clone)]
pub struct FileModel {
    pub states: Vec<FileState>,
    pub durable: usize,
}

/// Everything that a life of the program did, as it knew.
#[derive(Debug, Default)]
pub struct Oracle {
    pub groups: BTreeMap<GroupId, GroupModel>,
    pub under_way: Option<(GroupId, Op)>,
    pub files: BTreeMap<TenantId, FileModel>,
    /// The tenant is being removed, or has been.
    pub removed: Option<(TenantId, bool)>,
    /// Index of the low-water mark when the last batch was acknowledged.
    pub mark_acknowledged: Option<u64>,
    /// Index of the low-water mark in memory.
    pub mark_known: Option<u64>,
}

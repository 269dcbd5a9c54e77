//! The log in memory: where every entry stands, the recent entries decoded, and the state of every
//! group beside its entries.
//!
//! An entry can be read from the moment it is appended. It has a location in a segment only once it
//! is durable; until then it is kept decoded, whatever the cache's bound says. Everything else
//! (votes, truncations, purges, low-water marks) shows here only once it is durable.
//!
//! Invariants:
//! - The indexes of a group's slots have no gap.
//! - A segment's count of live entries is the number of slots located in it. It goes when that is
//!   0.
//! - The cache never drops an entry that has no location.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shiioo_actors::command::Envelope;
use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};

use super::record::{GroupState, LogEntry, LowWaterMark, Vote};
use crate::disk::DiskFile;

/// Bytes of entries that are kept decoded, for all groups together. An entry counts as its record, which
/// stands for its texts, and [`CACHED_ENTRY_BYTES`].
const CACHE_BYTES_MAX: usize = 32 << 20;

/// Bytes that an entry takes in memory beside its texts: the entry itself, its slot among those of
/// its group, and its name among those that may go. Most entries are short, and take several times
/// their record: without this the cache grew to several times its bound.
const CACHED_ENTRY_BYTES: usize = size_of::<Envelope>()
    + size_of::<(u64, (LogEntry, usize))>()
    + size_of::<(GroupId, Position)>();

/// Positions in the eviction queue of entries that are not cached any more, at most.
const STALE_POSITIONS_MAX: usize = 4096;

/// The location of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordLocation {
    pub segment: u32,
    /// Length of the whole record; 0 while the record is not durable.
    pub len: u32,
    pub offset: u64,
}

const NOT_STORED: RecordLocation = RecordLocation { segment: 0, len: 0, offset: 0 };

/// An entry in memory, or the way to it.
#[derive(Debug)]
pub(crate) enum FoundEntry {
    Cached(LogEntry),
    Stored(StoredEntry),
}

/// An entry that has to be read from its segment.
#[derive(Debug)]
pub(crate) struct StoredEntry {
    pub position: Position,
    pub location: RecordLocation,
    pub file: Arc<dyn DiskFile>,
}

#[derive(Debug, Clone, Copy)]
struct EntrySlot {
    term: u64,
    location: RecordLocation,
}

#[derive(Debug, Default)]
struct Group {
    state: GroupState,
    /// EntryIndex of the first slot.
    first: u64,
    slots: VecDeque<EntrySlot>,
    cached: BTreeMap<u64, (LogEntry, usize)>,
}

impl Group {
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn slot(&self, index: u64) -> Option<&EntrySlot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut EntrySlot> {
        self.slots.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }
}

#[derive(Debug)]
struct Segment {
    file: Arc<dyn DiskFile>,
    /// Entries in it that are neither purged nor truncated.
    live: u64,
}

/// The index of all entries of the log.
#[derive(Debug, Default)]
pub(crate) struct EntryIndex {
    groups: BTreeMap<GroupId, Group>,
    segments: BTreeMap<u32, Segment>,
    /// Who has files, and up to where those are durable at least.
    files: BTreeMap<StateMachineId, Position>,
    /// Where the logs of the groups ended that this node has left.
    left: BTreeMap<GroupId, Position>,
    cached_bytes: usize,
    cached_count: usize,
    /// Cached entries that have a location, oldest first. Some may be gone from the cache.
    evictable: VecDeque<(GroupId, Position)>,
}

impl EntryIndex {
    pub fn add_segment(&mut self, number: u32, file: Arc<dyn DiskFile>) {
        self.segments.insert(number, Segment { file, live: 0 });
    }

    #[cfg(test)]
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// Gives the oldest segment, if nothing in it is needed and it is not the newest.
    pub fn oldest_unneeded(&self) -> Option<u32> {
        let (number, segment) = self.segments.first_key_value()?;
        (segment.live == 0 && self.segments.len() > 1).then_some(*number)
    }

    pub fn remove_segment(&mut self, number: u32) {
        self.segments.remove(&number);
    }

    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    pub fn states(&self) -> BTreeMap<GroupId, GroupState> {
        self.groups.iter().map(|(id, group)| (*id, group.state.clone())).collect()
    }

    pub fn state(&self, group: GroupId) -> GroupState {
        self.groups.get(&group).map(|group| group.state.clone()).unwrap_or_default()
    }

    pub fn set_state(&mut self, group: GroupId, state: GroupState) {
        self.group(group).state = state;
    }

    pub fn set_vote(&mut self, group: GroupId, vote: Vote) {
        self.group(group).state.vote = Some(vote);
    }

    pub fn set_low_water_mark(&mut self, group: GroupId, mark: LowWaterMark) {
        self.group(group).state.low_water_mark = Some(mark);
    }

    /// Gives the position up to which files are durable at least; `None` where there are none.
    pub fn files(&self, part: StateMachineId) -> Option<Position> {
        self.files.get(&part).copied()
    }

    pub fn all_files(&self) -> &BTreeMap<StateMachineId, Position> {
        &self.files
    }

    pub fn set_all_files(&mut self, files: BTreeMap<StateMachineId, Position>) {
        self.files = files;
    }

    /// Gives where the log of a group ended when this node left it last.
    pub fn left(&self, group: GroupId) -> Option<Position> {
        self.left.get(&group).copied()
    }

    pub fn all_left(&self) -> &BTreeMap<GroupId, Position> {
        &self.left
    }

    pub fn set_all_left(&mut self, left: BTreeMap<GroupId, Position>) {
        self.left = left;
    }

    pub fn set_files(&mut self, part: StateMachineId, upto: Option<Position>) {
        match upto {
            Some(upto) => drop(self.files.insert(part, upto)),
            None => drop(self.files.remove(&part)),
        }
    }

    /// Gives the term of the entry at an index, also of the last one that was purged.
    pub fn term_at(&self, group: GroupId, index: u64) -> Option<u64> {
        let group = self.groups.get(&group)?;
        let purged = group.state.purged.filter(|purged| purged.index == index);
        group.slot(index).map(|slot| slot.term).or(purged.map(|purged| purged.term))
    }

    /// Gives the last entry of a group, or else the last one purged.
    pub fn last(&self, group: GroupId) -> Option<Position> {
        let group = self.groups.get(&group)?;
        match group.slots.back() {
            Some(slot) => Some(Position { term: slot.term, index: group.end() - 1 }),
            None => group.state.purged,
        }
    }

    /// Appends an entry that is not durable yet.
    pub fn append(&mut self, id: GroupId, entry: LogEntry) {
        let position = entry.position;
        self.push(id, position, NOT_STORED);
        self.group(id).cached.insert(position.index, (entry, 0));
        self.cached_count += 1;
    }

    /// Appends an entry that recovery found.
    pub fn recover(&mut self, id: GroupId, position: Position, location: RecordLocation) {
        self.push(id, position, NOT_STORED);
        self.store(id, position, location);
    }

    fn push(&mut self, id: GroupId, position: Position, location: RecordLocation) {
        let group = self.group(id);
        if position.index < group.end() {
            // A new leader overwrites what a former one could not commit.
            self.truncate(id, position.index);
        } else if position.index > group.end() {
            // Only in recovery, from a segment that is not the first: entries between were purged
            // by a record still to come, and so were those before. A gap that is none of that is
            // found by `holes` in the end.
            self.remove_before(id, position.index);
        }
        let group = self.group(id);
        if group.slots.is_empty() {
            group.first = position.index;
        }
        group.slots.push_back(EntrySlot { term: position.term, location });
    }

    /// Notes the location of an entry that has become durable.
    pub fn store(&mut self, id: GroupId, position: Position, location: RecordLocation) {
        let group = self.groups.entry(id).or_default();
        let Some(slot) = group.slot_mut(position.index) else { return };
        // While the batch was written the entry may have been replaced by one of another term,
        // which has a batch of its own to come.
        if slot.term != position.term || slot.location.len != 0 {
            return;
        }
        slot.location = location;
        if let Some(segment) = self.segments.get_mut(&location.segment) {
            segment.live += 1;
        }
        if let Some((_, bytes)) = group.cached.get_mut(&position.index) {
            *bytes = location.len as usize + CACHED_ENTRY_BYTES;
            self.cached_bytes += *bytes;
            self.evictable.push_back((id, position));
            self.evict();
        }
    }

    /// Drops the entries from `from` on.
    pub fn truncate(&mut self, id: GroupId, from: u64) {
        let group = self.group(id);
        let keep = usize::try_from(from.saturating_sub(group.first)).unwrap_or(usize::MAX);
        let gone = group.slots.split_off(keep.min(group.slots.len()));
        let cached = group.cached.split_off(&from);
        self.forget(gone.into_iter(), cached);
    }

    /// Drops the entries up to `upto`.
    pub fn purge(&mut self, id: GroupId, upto: Position) {
        self.remove_before(id, upto.index.saturating_add(1));
        self.group(id).state.purged = Some(upto);
    }

    /// Drops everything of a group but its vote, and remembers where its log ended.
    pub fn leave(&mut self, id: GroupId, last: Option<Position>) {
        if let Some(last) = last {
            let left = self.left.entry(id).or_insert(last);
            *left = last.max(*left);
        }
        self.truncate(id, 0);
        let group = self.group(id);
        group.first = 0;
        group.state = GroupState { vote: group.state.vote, ..GroupState::default() };
    }

    fn remove_before(&mut self, id: GroupId, index: u64) {
        let group = self.group(id);
        let count = usize::try_from(index.saturating_sub(group.first)).unwrap_or(usize::MAX);
        let keep = group.slots.split_off(count.min(group.slots.len()));
        let gone = std::mem::replace(&mut group.slots, keep);
        group.first = group.first.max(index);
        let keep = group.cached.split_off(&index);
        let cached = std::mem::replace(&mut group.cached, keep);
        self.forget(gone.into_iter(), cached);
    }

    fn forget(
        &mut self,
        slots: impl Iterator<Item = EntrySlot>,
        cached: BTreeMap<u64, (LogEntry, usize)>,
    ) {
        for slot in slots.filter(|slot| slot.location.len != 0) {
            if let Some(segment) = self.segments.get_mut(&slot.location.segment) {
                segment.live -= 1;
            }
        }
        self.cached_count -= cached.len();
        self.cached_bytes -= cached.values().map(|(_, bytes)| bytes).sum::<usize>();
    }

    fn evict(&mut self) {
        while self.cached_bytes > CACHE_BYTES_MAX {
            let Some((id, position)) = self.evictable.pop_front() else { return };
            if !self.is_evictable(id, position) {
                continue;
            }
            if let Some((_, bytes)) = self.group(id).cached.remove(&position.index) {
                self.cached_bytes -= bytes;
                self.cached_count -= 1;
            }
        }
        // Positions of entries that were truncated or purged stay in the queue: bound them.
        if self.evictable.len() > 2 * self.cached_count + STALE_POSITIONS_MAX {
            let names = std::mem::take(&mut self.evictable);
            self.evictable =
                names.into_iter().filter(|(id, at)| self.is_evictable(*id, *at)).collect();
        }
    }

    fn is_evictable(&self, id: GroupId, position: Position) -> bool {
        self.groups
            .get(&id)
            .and_then(|group| group.cached.get(&position.index))
            .is_some_and(|(entry, bytes)| entry.position == position && *bytes != 0)
    }

    /// Finds the entries with `from <= index < to` that are there, in order.
    pub fn find(&self, id: GroupId, from: u64, to: u64) -> Vec<FoundEntry> {
        self.find_some(id, from, to, usize::MAX)
    }

    /// Finds the first entries with `from <= index < to` that are there, in order: so many that
    /// their records hold `bytes` or a little more, and at least one.
    pub fn find_some(&self, id: GroupId, from: u64, to: u64, bytes: usize) -> Vec<FoundEntry> {
        let Some(group) = self.groups.get(&id) else { return Vec::new() };
        let mut found = Vec::new();
        let mut found_bytes = 0;
        for index in from.max(group.first)..to.min(group.end()) {
            if found_bytes >= bytes {
                break;
            }
            let Some(slot) = group.slot(index) else { continue };
            found_bytes += slot.location.len as usize;
            if let Some((entry, _)) = group.cached.get(&index) {
                found.push(FoundEntry::Cached(entry.clone()));
            } else if let Some(segment) = self.segments.get(&slot.location.segment) {
                let position = Position { term: slot.term, index };
                let file = Arc::clone(&segment.file);
                found.push(FoundEntry::Stored(StoredEntry {
                    position,
                    location: slot.location,
                    file,
                }));
            }
        }
        found
    }

    /// Counts the bytes of the records of a group's entries with `from <= index < to`.
    pub fn bytes_between(&self, id: GroupId, from: u64, to: u64) -> u64 {
        let Some(group) = self.groups.get(&id) else { return 0 };
        (from.max(group.first)..to.min(group.end()))
            .filter_map(|index| group.slot(index))
            .map(|slot| u64::from(slot.location.len))
            .sum()
    }

    /// Counts the segments from the one with the first entry of a group to the newest.
    pub fn segments_from(&self, id: GroupId) -> usize {
        let first = self.groups.get(&id).and_then(|group| group.slots.front());
        let first = first.map(|slot| slot.location).filter(|first| *first != NOT_STORED);
        first.map_or(0, |first| self.segments.range(first.segment..).count())
    }

    /// Tells whether entries of a group up to an index keep a segment that nothing is written to any more.
    pub fn keeps_old_segment(&self, id: GroupId, upto: u64) -> bool {
        let Some(group) = self.groups.get(&id).filter(|group| group.first <= upto) else {
            return false;
        };
        let oldest = group.slots.front().map(|slot| slot.location);
        let newest = self.segments.last_key_value().map_or(0, |(number, _)| *number);
        oldest.is_some_and(|oldest| oldest != NOT_STORED && oldest.segment < newest)
    }

    /// Lists the groups whose entries do not begin right behind what was purged, and what is
    /// missing.
    pub fn holes(&self) -> Vec<(GroupId, std::ops::Range<u64>)> {
        self.groups
            .iter()
            .filter(|(_, group)| !group.slots.is_empty())
            .filter_map(|(id, group)| {
                let expected = group.state.purged.map_or(0, |purged| purged.index + 1);
                (group.first != expected).then_some((*id, expected..group.first))
            })
            .collect()
    }

    fn group(&mut self, id: GroupId) -> &mut Group {
        self.groups.entry(id).or_default()
    }
}

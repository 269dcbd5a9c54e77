//! What of the log is in memory: where every entry is, the recent ones decoded, and the state of
//! every group beside its entries.
//!
//! An entry can be read from the moment it is appended; it has a place in a segment only once it
//! is durable. Until then it is kept decoded, whatever the cache's bound says. Everything else
//! (votes, truncations, purges, floors) shows here only when it is durable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};

use super::record::{Floor, GroupState, LogEntry, Vote};
use crate::disk::DiskFile;

/// Bytes of encoded entries that are kept decoded, for all groups together.
const CACHE_BYTES_MAX: usize = 32 << 20;

/// Names of cached entries that may be kept beyond those that are still cached.
const STALE_NAMES_MAX: usize = 4096;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub segment: u32,
    /// Length of the whole record; 0 while it has no place.
    pub len: u32,
    pub offset: u64,
}

const NOWHERE: Place = Place { segment: 0, len: 0, offset: 0 };

/// An entry as it is found.
#[derive(Debug)]
pub(crate) enum Found {
    Cached(LogEntry),
    Placed(Placed),
}

/// An entry that has to be read from its segment.
#[derive(Debug)]
pub(crate) struct Placed {
    pub position: Position,
    pub place: Place,
    pub file: Arc<dyn DiskFile>,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    term: u64,
    place: Place,
}

#[derive(Debug, Default)]
struct Group {
    state: GroupState,
    /// Index of the first slot.
    first: u64,
    slots: VecDeque<Slot>,
    cached: BTreeMap<u64, (LogEntry, usize)>,
}

impl Group {
    fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }
}

#[derive(Debug)]
struct Segment {
    file: Arc<dyn DiskFile>,
    /// Entries in it that are neither purged nor truncated.
    live: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Index {
    groups: BTreeMap<GroupId, Group>,
    segments: BTreeMap<u32, Segment>,
    /// The parts that have files, and up to where those are durable at least.
    parts: BTreeMap<StateMachineId, Position>,
    cached_bytes: usize,
    cached_count: usize,
    /// Cached entries that have a place, oldest first; some may be gone from the cache.
    evictable: VecDeque<(GroupId, Position)>,
}

impl Index {
    pub fn add_segment(&mut self, number: u32, file: Arc<dyn DiskFile>) {
        self.segments.insert(number, Segment { file, live: 0 });
    }

    #[cfg(test)]
    pub fn segment_count(&self) -> usize {
        self.segments.len()
    }

    /// The oldest segment, if nothing in it is needed and it is not the newest.
    pub fn oldest_unneeded(&self) -> Option<u32> {
        let (number, segment) = self.segments.first_key_value()?;
        (segment.live == 0 && self.segments.len() > 1).then_some(*number)
    }

    pub fn remove_segment(&mut self, number: u32) {
        self.segments.remove(&number);
    }

    /// The groups there are.
    #[cfg(feature = "sim")]
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

    pub fn set_floor(&mut self, group: GroupId, floor: Floor) {
        self.group(group).state.floor = Some(floor);
    }

    /// Where a part's files are durable up to, at least; `None` for one without files.
    pub fn part(&self, part: StateMachineId) -> Option<Position> {
        self.parts.get(&part).copied()
    }

    pub fn parts(&self) -> &BTreeMap<StateMachineId, Position> {
        &self.parts
    }

    pub fn set_parts(&mut self, parts: BTreeMap<StateMachineId, Position>) {
        self.parts = parts;
    }

    pub fn set_part(&mut self, part: StateMachineId, upto: Option<Position>) {
        match upto {
            Some(upto) => drop(self.parts.insert(part, upto)),
            None => drop(self.parts.remove(&part)),
        }
    }

    /// The term of the entry at an index, or of the last one purged where that was there.
    pub fn term_at(&self, group: GroupId, index: u64) -> Option<u64> {
        let group = self.groups.get(&group)?;
        let purged = group.state.purged.filter(|purged| purged.index == index);
        group.slot(index).map(|slot| slot.term).or(purged.map(|purged| purged.term))
    }

    /// The last entry, or else the last one purged.
    pub fn last(&self, group: GroupId) -> Option<Position> {
        let group = self.groups.get(&group)?;
        match group.slots.back() {
            Some(slot) => Some(Position { term: slot.term, index: group.end() - 1 }),
            None => group.state.purged,
        }
    }

    /// Appends an entry that is not written yet.
    pub fn append(&mut self, id: GroupId, entry: LogEntry) {
        let position = entry.position;
        self.push(id, position, NOWHERE);
        self.group(id).cached.insert(position.index, (entry, 0));
        self.cached_count += 1;
    }

    /// Takes in an entry that recovery found.
    pub fn recover(&mut self, id: GroupId, position: Position, place: Place) {
        self.push(id, position, NOWHERE);
        self.place(id, position, place);
    }

    fn push(&mut self, id: GroupId, position: Position, place: Place) {
        let group = self.group(id);
        if position.index < group.end() {
            self.truncate(id, position.index);
        } else if position.index > group.end() {
            // What is between was purged by a record still to come; what is before, too.
            self.remove_before(id, position.index);
        }
        let group = self.group(id);
        if group.slots.is_empty() {
            group.first = position.index;
        }
        group.slots.push_back(Slot { term: position.term, place });
    }

    /// Notes where an entry has been written.
    pub fn place(&mut self, id: GroupId, position: Position, place: Place) {
        let group = self.groups.entry(id).or_default();
        let Some(slot) = group.slot_mut(position.index) else { return };
        if slot.term != position.term || slot.place.len != 0 {
            return;
        }
        slot.place = place;
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live += 1;
        }
        if let Some((_, bytes)) = group.cached.get_mut(&position.index) {
            *bytes = place.len as usize;
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
        slots: impl Iterator<Item = Slot>,
        cached: BTreeMap<u64, (LogEntry, usize)>,
    ) {
        for slot in slots.filter(|slot| slot.place.len != 0) {
            if let Some(segment) = self.segments.get_mut(&slot.place.segment) {
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
        // Names of entries that were truncated or purged stay behind: bound them.
        if self.evictable.len() > 2 * self.cached_count + STALE_NAMES_MAX {
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

    /// The entries with `from <= index < to` that are there, in order.
    pub fn find(&self, id: GroupId, from: u64, to: u64) -> Vec<Found> {
        self.find_some(id, from, to, usize::MAX)
    }

    /// The first entries with `from <= index < to` that are there, in order: so many that their
    /// records hold `bytes` or a little more, and at least one.
    pub fn find_some(&self, id: GroupId, from: u64, to: u64, bytes: usize) -> Vec<Found> {
        let Some(group) = self.groups.get(&id) else { return Vec::new() };
        let mut found = Vec::new();
        let mut found_bytes = 0;
        for index in from.max(group.first)..to.min(group.end()) {
            if found_bytes >= bytes {
                break;
            }
            let Some(slot) = group.slot(index) else { continue };
            found_bytes += slot.place.len as usize;
            if let Some((entry, _)) = group.cached.get(&index) {
                found.push(Found::Cached(entry.clone()));
            } else if let Some(segment) = self.segments.get(&slot.place.segment) {
                let position = Position { term: slot.term, index };
                let file = Arc::clone(&segment.file);
                found.push(Found::Placed(Placed { position, place: slot.place, file }));
            }
        }
        found
    }

    /// Bytes of the records of a group's entries with `from <= index < to`.
    pub fn bytes_between(&self, id: GroupId, from: u64, to: u64) -> u64 {
        let Some(group) = self.groups.get(&id) else { return 0 };
        (from.max(group.first)..to.min(group.end()))
            .filter_map(|index| group.slot(index))
            .map(|slot| u64::from(slot.place.len))
            .sum()
    }

    /// The groups whose entries do not begin right behind what was purged, and what is missing.
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

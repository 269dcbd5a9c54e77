//! Reads what is left of a log that is damaged, for a node that nobody else can give it back to.
//!
//! Recovery ends at the first broken place and changes nothing. Here reading goes on: behind a broken
//! place the next whole record is looked for, and everything that can be read is kept with the place
//! where it stands. Nothing is decided here (see `rewrite`) and nothing is written.
//!
//! Invariants:
//! - a torn write at the end is none of the broken places: it was never acknowledged, as in recovery;
//! - a record with a right checksum that cannot be decoded is of a newer version. It is no damage, and
//!   nothing is salvaged then;
//! - records count in the order in which they were written, as in recovery.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::ports::StoreError;
use uuid::Uuid;

use super::record::{self, Body, Checkpoint, GroupState, LogEntry, LowWaterMark, Record};
use super::segment::{self, HEAD_BYTES_MIN, Head};
use crate::disk::{Disk, DiskFile, OpenMode, store_error};

/// A place of the log that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrokenPlace {
    /// File, relative to the data directory.
    pub file: String,
    /// Where the place begins.
    pub offset: u64,
    /// Bytes that cannot be read; 0 where nobody can tell.
    pub bytes: u64,
    /// What is wrong with it.
    pub what: String,
}

/// An entry that can be read, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Salvaged {
    pub term: u64,
    /// The state machine that a command is for; `None` for other entries.
    pub part: Option<StateMachineId>,
    pub(super) segment: u32,
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// What can be read of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SalvagedGroup {
    pub state: GroupState,
    pub entries: BTreeMap<u64, Salvaged>,
}

/// What can be read of a damaged log.
pub struct DamagedLog {
    broken: Vec<BrokenPlace>,
    pub(super) groups: BTreeMap<GroupId, SalvagedGroup>,
    pub(super) files: BTreeMap<StateMachineId, Position>,
    pub(super) left: BTreeMap<GroupId, Position>,
    segments: BTreeMap<u32, Arc<dyn DiskFile>>,
}

impl DamagedLog {
    /// Reads what is left of the log with an id, in a directory. Blocks.
    ///
    /// # Errors
    /// When it cannot be read for another reason than damage, or a newer version wrote it.
    pub fn read(disk: &dyn Disk, dir: &str, id: Uuid) -> Result<Self, StoreError> {
        let mut log = Self {
            broken: Vec::new(),
            groups: BTreeMap::new(),
            files: BTreeMap::new(),
            left: BTreeMap::new(),
            segments: BTreeMap::new(),
        };
        let numbers = numbers(disk, dir)?;
        if numbers.is_empty() {
            log.note(dir.to_owned(), 0, 0, "there is no segment");
        }
        let mut previous: Option<(u32, u64)> = None;
        for (at, &number) in numbers.iter().enumerate() {
            for missing in previous.map_or(number, |(before, _)| before + 1)..number {
                log.note(path(dir, missing), 0, 0, "the segment is missing");
            }
            let is_last = at + 1 == numbers.len();
            let len = log.read_segment(disk, dir, (id, number), previous, is_last)?;
            previous = Some((number, len));
        }
        for group in log.groups.values_mut() {
            let purged = group.state.purged.map_or(0, |purged| purged.index + 1);
            group.entries = group.entries.split_off(&purged);
        }
        Ok(log)
    }

    fn note(&mut self, file: String, offset: usize, bytes: usize, what: &str) {
        let (offset, bytes, what) = (offset as u64, bytes as u64, what.to_owned());
        self.broken.push(BrokenPlace { file, offset, bytes, what });
    }

    /// Reads a segment. Returns its length.
    fn read_segment(
        &mut self,
        disk: &dyn Disk,
        dir: &str,
        (id, number): (Uuid, u32),
        previous: Option<(u32, u64)>,
        is_last: bool,
    ) -> Result<u64, StoreError> {
        let path = path(dir, number);
        let failed = |error| store_error(format!("read {path}"), error);
        let file = disk.open(&path, OpenMode::Existing).map_err(failed)?;
        let len = file.len().map_err(failed)?;
        // At once, as recovery does: a segment has up to 16 MiB.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        file.read_at(0, &mut bytes).map_err(failed)?;
        let mut offset = match segment::read_head(number, &bytes) {
            Head::Valid { log, .. } if log.is_some_and(|log| log != id) => {
                self.note(path, 0, bytes.len(), "the segment belongs to another log");
                return Ok(len);
            }
            Head::Valid { previous_len, len: head, .. } => {
                if let Some((before, found)) = previous.filter(|(_, found)| *found < previous_len) {
                    let lost = usize::try_from(previous_len - found).unwrap_or(usize::MAX);
                    let at = usize::try_from(found).unwrap_or(usize::MAX);
                    self.note(self::path(dir, before), at, lost, "the end is missing");
                }
                head
            }
            Head::Unknown(version) => {
                let what = format!("{path} has version {version}");
                return Err(StoreError::TooNew { what, known: segment::VERSION.into() });
            }
            // Begun and never used, as in recovery.
            Head::Broken
                if is_last
                    && previous.is_some()
                    && !record::is_witnessed(number, &bytes, HEAD_BYTES_MIN) =>
            {
                return Ok(len);
            }
            Head::Broken => {
                let next = record::next_record(number, &bytes, 0).unwrap_or(bytes.len());
                self.note(path.clone(), 0, next, "the head of the segment is broken");
                next
            }
        };
        self.segments.insert(number, file);
        while offset < bytes.len() {
            if let Some(framed) = record::read_frame(number, &bytes, offset) {
                let end = framed.payload.end;
                self.replay(number, offset, &bytes[offset..end])
                    .map_err(|what| written_by_newer(&path, offset, &what))?;
                offset = end;
                continue;
            }
            if is_last && !record::is_witnessed(number, &bytes, offset) {
                break;
            }
            let next = record::next_record(number, &bytes, offset).unwrap_or(bytes.len());
            self.note(path.clone(), offset, next - offset, "no record can be read");
            offset = next;
        }
        Ok(len)
    }

    /// Takes one record, as recovery does.
    fn replay(&mut self, segment: u32, offset: usize, record: &[u8]) -> Result<(), String> {
        let payload = &record[record::FRAME_BYTES..];
        match record::decode_record(payload)? {
            Record::Checkpoint(Checkpoint { groups, files, left }) => {
                for (group, state) in groups {
                    self.group(group).state = state;
                }
                (self.files, self.left) = (files, left);
            }
            Record::Files(part, Some(upto)) => drop(self.files.insert(part, upto)),
            Record::Files(part, None) => drop(self.files.remove(&part)),
            Record::Vote(group, vote) => self.group(group).state.vote = Some(vote),
            Record::Entry(group, position) => {
                let (_, LogEntry { body, .. }) = record::decode_entry(payload)?;
                let part = match &body {
                    Body::Command(envelope) => Some(record::target_of(envelope)),
                    Body::Blank | Body::Members(_) => None,
                };
                let (term, len) = (position.term, record.len());
                let salvaged = Salvaged { term, part, segment, offset: offset as u64, len };
                if !self.may_be(group, position.index) {
                    let file = segment::path(segment);
                    self.note(
                        file,
                        offset,
                        record.len(),
                        "no entry of the group can stand so far on",
                    );
                    return Ok(());
                }
                let entries = &mut self.group(group).entries;
                // What stood there before lost an election.
                drop(entries.split_off(&position.index));
                entries.insert(position.index, salvaged);
            }
            Record::Truncate(group, from) => drop(self.group(group).entries.split_off(&from)),
            Record::Purge(group, upto) => self.group(group).state.purged = Some(upto),
            Record::Left(group, last) => {
                self.left.extend(last.map(|last| (group, last)));
                let group = self.group(group);
                let vote = group.state.vote;
                *group = SalvagedGroup::default();
                group.state.vote = vote;
            }
            Record::LowWaterMark(group, mark) => {
                self.group(group).state.low_water_mark = Some(mark);
            }
            Record::Closed => {}
        }
        Ok(())
    }

    /// Tells whether an entry may have this index: no further behind the last one than entries are lost. Behind a
    /// broken place a record is looked for byte by byte, and a tenant chose some of these bytes: each entry up to an
    /// index that it invented would be taken for lost, and written.
    fn may_be(&self, group: GroupId, index: u64) -> bool {
        let last = self.groups.get(&group).and_then(|group| {
            let last = group.entries.last_key_value().map(|(index, _)| *index);
            last.max(group.base().map(|base| base.index))
        });
        // A segment that is missing is no longer than one that is there may be.
        let lost = self.broken.iter().map(|place| match place.bytes {
            0 => segment::SEGMENT_BYTES_MAX + record::PAYLOAD_BYTES_MAX as u64,
            bytes => bytes,
        });
        let lost = lost.sum::<u64>() / record::FRAME_BYTES as u64;
        last.is_none_or(|last| index <= last.saturating_add(lost).saturating_add(1))
    }

    fn group(&mut self, group: GroupId) -> &mut SalvagedGroup {
        self.groups.entry(group).or_default()
    }

    /// Lists the places that cannot be read, in their order.
    pub fn broken(&self) -> &[BrokenPlace] {
        &self.broken
    }

    /// Lists the groups of which something can be read.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    /// Gives the last entry of a group that can be read, or else the last one purged.
    pub fn last(&self, group: GroupId) -> Option<Position> {
        let group = self.groups.get(&group)?;
        let last = group.entries.last_key_value();
        last.map(|(index, entry)| Position { term: entry.term, index: *index })
            .or(group.state.purged)
    }

    /// Lists who has files, and up to where the log knows them to be durable.
    pub fn files(&self) -> &BTreeMap<StateMachineId, Position> {
        &self.files
    }

    /// Tells whether the log has a group from its first entry on.
    pub fn has_beginning(&self, group: GroupId) -> bool {
        self.groups.get(&group).is_some_and(|group| group.entries.contains_key(&0))
    }

    /// Reads one entry again.
    ///
    /// # Errors
    /// When it cannot be read any more.
    pub(super) fn entry(&self, salvaged: &Salvaged) -> Result<LogEntry, StoreError> {
        let Salvaged { segment, offset, len, .. } = *salvaged;
        let path = segment::path(segment);
        let changed = |what: String| StoreError::Damaged { file: path.clone(), offset, what };
        let file = self.segments.get(&segment);
        let file = file.ok_or_else(|| changed("the segment is not open".to_owned()))?;
        let mut bytes = vec![0; len];
        let read = file.read_at(offset, &mut bytes);
        read.map_err(|error| store_error(format!("read {path}"), error))?;
        let framed = record::read_frame(segment, &bytes, 0);
        let framed = framed.ok_or_else(|| changed("the record was whole before".to_owned()))?;
        Ok(record::decode_entry(&bytes[framed.payload]).map_err(changed)?.1)
    }
}

impl SalvagedGroup {
    /// Gives the position up to which files hold everything, as far as the log says, and nothing before
    /// it is needed.
    pub fn base(&self) -> Option<Position> {
        let mark =
            self.state.low_water_mark.as_ref().map(|LowWaterMark { position, .. }| *position);
        mark.max(self.state.purged)
    }
}

fn path(dir: &str, number: u32) -> String {
    let path = segment::path(number);
    let name = path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name);
    format!("{dir}/{name}")
}

fn numbers(disk: &dyn Disk, dir: &str) -> Result<Vec<u32>, StoreError> {
    let failed = |error| store_error(format!("list {dir}"), error);
    if !disk.exists(dir).map_err(failed)? {
        return Ok(Vec::new());
    }
    let entries = disk.list(dir).map_err(failed)?;
    let mut numbers: Vec<u32> =
        entries.iter().filter_map(|entry| segment::number(&entry.name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes the error about a record that is whole and cannot be understood.
fn written_by_newer(path: &str, offset: usize, what: &str) -> StoreError {
    let what = format!("{path} has a record at byte {offset} that is whole ({what}); it");
    StoreError::TooNew { what, known: segment::VERSION.into() }
}

impl fmt::Debug for DamagedLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DamagedLog").field("broken", &self.broken).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_stands_no_further_on_than_entries_can_be_lost() {
        let (known, unknown) = (GroupId(1), GroupId(2));
        let entry = Salvaged { term: 1, part: None, segment: 1, offset: 0, len: 40 };
        let entries = (0..=7).map(|index| (index, entry)).collect();
        let group = SalvagedGroup { entries, ..SalvagedGroup::default() };
        let mut log = DamagedLog {
            broken: Vec::new(),
            groups: BTreeMap::from([(known, group)]),
            files: BTreeMap::new(),
            left: BTreeMap::new(),
            segments: BTreeMap::new(),
        };
        assert!(log.may_be(known, 8) && !log.may_be(known, 9), "nothing is lost");
        log.note("a segment".to_owned(), 0, 10 * record::FRAME_BYTES, "a broken place");
        assert!(log.may_be(known, 18) && !log.may_be(known, 19), "ten are");
        assert!(!log.may_be(known, u64::MAX));
        assert!(log.may_be(unknown, 500), "a log may begin anywhere");
    }
}

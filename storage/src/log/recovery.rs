//! Reads the log when it is opened, and tells a torn write from damage.
//!
//! A batch is written only when everything before it is synced, a segment is begun only when the
//! one before is, and nobody is told of a batch before its own sync. So of all places only the last
//! batch of the last segment can be half written, and in any way: missing, cut short, with holes,
//! or with its later records whole and its earlier ones not.
//!
//! From the first broken record on, the last segment is therefore cut, **unless** a record behind
//! it names a batch that begins behind the broken place (see `record`). Then that place had been
//! synced, acknowledged entries are lost, and the log refuses to open. In all other segments
//! everything broken is damage, and the next segment's head tells the length that they must have.
//!
//! What this cannot see is damage within the very last batch that was acknowledged, when nothing
//! was written after it: it looks exactly like a torn write. A log that was closed ends with a
//! record of its own batch, which is the witness for everything before it.
//!
//! The last segment is written again and synced before it is used. After a kill without a power cut
//! the last batch may be whole in the page cache and nowhere else; and after a failed sync the
//! system may take pages for clean that never reached the disk, so that a sync alone would not
//! write them. An entry that recovery has shown must not be gone after the next power cut: the node
//! may have voted by it.

use std::io;
use std::sync::Arc;

use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::StoreError;
use uuid::Uuid;

use super::entry_index::{EntryIndex, RecordLocation};
use super::record::{self, Checkpoint, Framed, Record};
use super::reserve;
use super::segment::{self, HEAD_BYTES_MIN, Head, LOG_DIR};
use crate::disk::{Disk, DiskFile, OpenMode, create_dir_durably, store_error};

/// What the operator of a node with a damaged log can do.
const REMEDY: &str = "put the log back from a copy; where other members have its entries, the node \
                      can join anew with an empty directory instead";

/// A log that has been read.
pub(crate) struct Recovered {
    pub index: EntryIndex,
    /// Id of the log; `None` when all its segments are of version 1.
    pub log: Option<Uuid>,
    /// The segment that is written next.
    pub number: u32,
    pub file: Arc<dyn DiskFile>,
    pub len: u64,
}

/// Reads the log with the id that is `expected`, or begins one with the id `fresh` where none is
/// expected. A log of which nothing is left, or of another id, is never replaced: the node that it
/// belonged to has acknowledged what was in it.
pub(crate) fn recover(
    disk: &dyn Disk,
    expected: Option<Uuid>,
    fresh: Uuid,
) -> Result<Recovered, StoreError> {
    // Also where it is there already: the name may not be durable, and with it nothing in it is.
    create_dir_durably(disk, LOG_DIR)
        .map_err(|error| store_error(format!("create {LOG_DIR}"), error))?;
    let numbers = segment_numbers(disk)?;
    let mut recovery =
        Recovery { disk, expected, index: EntryIndex::default(), log: None, last: None };
    for (at, &number) in numbers.iter().enumerate() {
        let expected = numbers[0] + u32::try_from(at).unwrap_or(u32::MAX);
        // Segments go from the front only, so a gap is a loss. Which number the first one has tells
        // nothing: those before it were purged.
        if number != expected {
            let what = format!("the segment is missing, with every entry in it; {REMEDY}");
            return Err(StoreError::Damaged { file: segment::path(expected), offset: 0, what });
        }
        recovery.read_segment(number, at + 1 == numbers.len())?;
    }
    let Recovery { mut index, mut log, last, .. } = recovery;
    // After the last segment: a purge may stand in a later segment than the gap that it explains.
    check_holes(&index)?;
    if expected.is_some() && log.is_none() && !mutants::is(Mutant::TrustMissingLog) {
        return Err(StoreError::Damaged {
            file: LOG_DIR.into(),
            offset: 0,
            what: format!("the log of this node is missing, with every entry in it; {REMEDY}"),
        });
    }
    let last = match last {
        Some(last) => last,
        None => {
            log = Some(fresh);
            begin_first(disk, &mut index, fresh)?
        }
    };
    Ok(Recovered { index, log, number: last.number, file: last.file, len: last.len })
}

/// The last segment read so far.
struct LastSegment {
    number: u32,
    file: Arc<dyn DiskFile>,
    len: u64,
}

fn segment_numbers(disk: &dyn Disk) -> Result<Vec<u32>, StoreError> {
    let mut numbers = Vec::new();
    let entries =
        disk.list(LOG_DIR).map_err(|error| store_error(format!("list {LOG_DIR}"), error))?;
    for entry in entries {
        match segment::number(&entry.name) {
            Some(number) => numbers.push(number),
            None if entry.name == reserve::NAME => {}
            None => tracing::warn!(file = %entry.name, "a foreign file in the log's directory"),
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn check_holes(index: &EntryIndex) -> Result<(), StoreError> {
    match index.holes().first() {
        None => Ok(()),
        Some((group, missing)) => Err(StoreError::Damaged {
            file: LOG_DIR.into(),
            offset: 0,
            what: format!("entries {missing:?} of group {group} are missing; {REMEDY}"),
        }),
    }
}

fn begin_first(
    disk: &dyn Disk,
    index: &mut EntryIndex,
    log: Uuid,
) -> Result<LastSegment, StoreError> {
    let begun = segment::begin(disk, 1, 0, log, &Checkpoint::default())
        .map_err(|error| store_error(format!("begin {}", segment::path(1)), error))?;
    index.add_segment(1, Arc::clone(&begun.file));
    Ok(LastSegment { number: 1, file: begun.file, len: begun.len })
}

fn damaged(segment: u32, offset: usize, what: String) -> StoreError {
    StoreError::Damaged { file: segment::path(segment), offset: offset as u64, what }
}

struct Recovery<'a> {
    disk: &'a dyn Disk,
    expected: Option<Uuid>,
    index: EntryIndex,
    /// The id in the heads read so far.
    log: Option<Uuid>,
    last: Option<LastSegment>,
}

impl Recovery<'_> {
    fn read_segment(&mut self, number: u32, is_last: bool) -> Result<(), StoreError> {
        let path = segment::path(number);
        let damaged = |offset, what| damaged(number, offset, what);
        // At once: a segment has up to 16 MiB, and the search for a witness goes over all of it.
        let (file, bytes) =
            read(self.disk, &path).map_err(|error| store_error(format!("read {path}"), error))?;

        let mut offset = HEAD_BYTES_MIN;
        let checkpoint = match segment::read_head(number, &bytes) {
            Head::Valid { previous_len, log, len } => {
                self.check_previous(previous_len)?;
                self.check_log(log).map_err(|what| damaged(0, what))?;
                offset = len;
                record::read_frame(number, &bytes, offset)
            }
            Head::Unknown(version) => {
                // No damage, and nothing to be healed: the program that wrote it can read it.
                let what = format!("{path} has version {version}");
                return Err(StoreError::TooNew { what, known: segment::VERSION.into() });
            }
            Head::Broken => None,
        };
        let Some(checkpoint) = checkpoint else {
            // The segment was begun and never used, or used and then damaged: the same question as
            // for a batch.
            let was_used = record::is_witnessed(number, &bytes, HEAD_BYTES_MIN);
            let is_first = number == 1 && self.expected.is_none();
            let has_predecessor = self.last.is_some() || is_first;
            if is_last && has_predecessor && !was_used {
                // Never acknowledged from: its predecessor is the end of the log. Its name goes
                // durably, since the next roll makes a file of this name anew.
                tracing::warn!(file = %path, "removing a segment whose beginning was torn");
                return remove(self.disk, &path)
                    .map_err(|error| store_error(format!("remove {path}"), error));
            }
            return Err(damaged(0, format!("the head of the segment is broken; {REMEDY}")));
        };

        self.index.add_segment(number, Arc::clone(&file));
        let offset = self.replay_all(number, &bytes, (offset, checkpoint))?;
        if offset < bytes.len() {
            if !is_last || record::is_witnessed(number, &bytes, offset) {
                let what = format!("the record is broken, acknowledged entries are lost; {REMEDY}");
                return Err(damaged(offset, what));
            }
            tracing::warn!(
                file = %path, offset, bytes = bytes.len() - offset,
                "cutting off a torn write that was never acknowledged"
            );
        }
        if is_last {
            // Bytes, then length, then one sync of both, then the name, which an earlier process
            // may have made and not synced. See the module for why the bytes are written again.
            let rewrite = || {
                file.write_at(0, &bytes[..offset])?;
                file.set_len(offset as u64)?;
                file.sync_data()?;
                self.disk.sync_dir(LOG_DIR)
            };
            rewrite().map_err(|error| store_error(format!("sync {path}"), error))?;
        }
        self.last = Some(LastSegment { number, file, len: offset as u64 });
        Ok(())
    }

    /// Replays the records of a segment from the checkpoint on, which stands at `offset`. Returns where the
    /// first place is that is no record: the end, a torn write, or damage.
    fn replay_all(
        &mut self,
        number: u32,
        bytes: &[u8],
        (mut offset, checkpoint): (usize, Framed),
    ) -> Result<usize, StoreError> {
        let mut next = Some(checkpoint);
        while let Some(framed) = next {
            let end = framed.payload.end;
            let record = record::decode_record(&bytes[framed.payload])
                .map_err(|what| damaged(number, offset, what))?;
            let len = u32::try_from(end - offset)
                .map_err(|_| damaged(number, offset, "too long".to_owned()))?;
            self.replay(record, RecordLocation { segment: number, len, offset: offset as u64 });
            offset = end;
            next = record::read_frame(number, bytes, offset);
        }
        Ok(offset)
    }

    /// Checks that all segments belong to one log, and that it is the one expected. Segments of
    /// version 1 do not say; none of them comes after one that does.
    fn check_log(&mut self, log: Option<Uuid>) -> Result<(), String> {
        match (self.expected.or(self.log), log) {
            (Some(known), Some(log)) if known != log => Err(format!(
                "the segment belongs to the log of another node, or to an earlier one of this \
                 node: its id is {log}, and {known} is expected"
            )),
            (_, None) if self.log.is_some() => {
                Err(format!("the segment has no id, and the one before it has; {REMEDY}"))
            }
            (_, log) => {
                self.log = log;
                Ok(())
            }
        }
    }

    /// Checks the length of the segment before. One that lost its end at the border of two records
    /// shows only here.
    fn check_previous(&self, expected: u64) -> Result<(), StoreError> {
        match &self.last {
            Some(previous) if previous.len != expected => Err(StoreError::Damaged {
                file: segment::path(previous.number),
                offset: previous.len.min(expected),
                what: format!("it is {} bytes long and was {expected}; {REMEDY}", previous.len),
            }),
            _ => Ok(()),
        }
    }

    /// Applies one record to the index. Records are applied in the order in which they were
    /// written.
    fn replay(&mut self, record: Record, location: RecordLocation) {
        match record {
            Record::Checkpoint(Checkpoint { groups, files, left }) => {
                for (group, state) in groups {
                    self.index.set_state(group, state);
                }
                self.index.set_all_files(files);
                self.index.set_all_left(left);
            }
            Record::Files(part, upto) => self.index.set_files(part, upto),
            Record::Vote(group, vote) => self.index.set_vote(group, vote),
            Record::Entry(group, position) => self.index.recover(group, position, location),
            Record::Truncate(group, from) => self.index.truncate(group, from),
            Record::Purge(group, upto) => self.index.purge(group, upto),
            Record::Left(group, last) => self.index.leave(group, last),
            Record::LowWaterMark(group, mark) => self.index.set_low_water_mark(group, mark),
            Record::Closed => {}
        }
    }
}

fn read(disk: &dyn Disk, path: &str) -> io::Result<(Arc<dyn DiskFile>, Vec<u8>)> {
    let file = disk.open(path, OpenMode::Existing)?;
    let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    Ok((file, bytes))
}

fn remove(disk: &dyn Disk, path: &str) -> io::Result<()> {
    disk.remove_file(path)?;
    disk.sync_dir(LOG_DIR)
}

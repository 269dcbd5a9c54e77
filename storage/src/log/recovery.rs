//! Reads the log when it is opened, and tells a torn write from damage.
//!
//! A batch is written only when everything before it is synced, a segment is begun only when the
//! one before is, and nobody is told of a batch before its own sync. So of all places only the last
//! batch of the last segment can be half written, in any way: missing, cut short, with holes, or
//! with its later records whole and its earlier ones not. From the first broken record on, the
//! last segment is therefore cut, **unless** a record behind it names a batch that begins behind
//! the broken place (see `record`): then that place had been synced, acknowledged entries are
//! lost, and the log refuses to open. In all other segments everything broken is damage, and the
//! next segment's head tells the length they must have.
//!
//! What this cannot see: damage within the very last batch that was acknowledged, when nothing was
//! written after it. It looks exactly like a torn write. A log that was closed ends with a mark,
//! whose batch is the witness for all before it.
//!
//! What is found in the last segment is written again and synced before it is used. After a kill
//! (without a power cut) the last batch may be whole in the page cache and nowhere else; and after
//! a failed sync the system may take pages for clean that never reached the disk, so that a sync
//! alone would not write them.

use std::io;
use std::sync::Arc;

use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::StoreError;
use uuid::Uuid;

use super::index::{Index, Place};
use super::record::{self, Checkpoint, Record};
use super::reserve;
use super::segment::{self, HEAD_BYTES_MIN, Head, LOG_DIR};
use crate::disk::{Disk, DiskFile, OpenMode, create_dir_durably, store_error};

/// A log that has been read.
pub(crate) struct Recovered {
    pub index: Index,
    /// The log's id; `None` when all its segments are of version 1.
    pub log: Option<Uuid>,
    /// The segment that is written next.
    pub number: u32,
    pub file: Arc<dyn DiskFile>,
    pub len: u64,
}

/// Opens the log with the id that is `expected`, or makes one with the id `fresh` where none is
/// expected. A log of which nothing is left, or of another id, is never replaced: who it belonged to
/// has acknowledged what was in it.
pub(crate) fn recover(
    disk: &dyn Disk,
    expected: Option<Uuid>,
    fresh: Uuid,
) -> Result<Recovered, StoreError> {
    create_dir_durably(disk, LOG_DIR)
        .map_err(|error| store_error(format!("create {LOG_DIR}"), error))?;
    let numbers = segment_numbers(disk)?;
    let mut reading = Reading { disk, expected, index: Index::default(), log: None, last: None };
    for (at, &number) in numbers.iter().enumerate() {
        let expected = numbers[0] + u32::try_from(at).unwrap_or(u32::MAX);
        if number != expected {
            let what = "the segment is missing, with every entry in it".to_owned();
            return Err(StoreError::Damaged { file: segment::path(expected), offset: 0, what });
        }
        reading.read_segment(number, at + 1 == numbers.len())?;
    }
    let Reading { mut index, mut log, last, .. } = reading;
    check_holes(&index)?;
    if expected.is_some() && log.is_none() && !mutants::is(Mutant::TrustMissingLog) {
        return Err(StoreError::Damaged {
            file: LOG_DIR.into(),
            offset: 0,
            what: "the log of this node is missing, with every entry in it".into(),
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

struct Last {
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

fn check_holes(index: &Index) -> Result<(), StoreError> {
    match index.holes().first() {
        None => Ok(()),
        Some((group, missing)) => Err(StoreError::Damaged {
            file: LOG_DIR.into(),
            offset: 0,
            what: format!("entries {missing:?} of group {group} are missing"),
        }),
    }
}

fn begin_first(disk: &dyn Disk, index: &mut Index, log: Uuid) -> Result<Last, StoreError> {
    let begun = segment::begin(disk, 1, 0, log, &Checkpoint::default())
        .map_err(|error| store_error(format!("begin {}", segment::path(1)), error))?;
    index.add_segment(1, Arc::clone(&begun.file));
    Ok(Last { number: 1, file: begun.file, len: begun.len })
}

struct Reading<'a> {
    disk: &'a dyn Disk,
    expected: Option<Uuid>,
    index: Index,
    /// The id in the heads read so far.
    log: Option<Uuid>,
    /// The last segment read so far.
    last: Option<Last>,
}

impl Reading<'_> {
    fn read_segment(&mut self, number: u32, is_last: bool) -> Result<(), StoreError> {
        let path = segment::path(number);
        let damaged = |offset: usize, what: &str| StoreError::Damaged {
            file: path.clone(),
            offset: offset as u64,
            what: what.to_owned(),
        };
        let (file, bytes) =
            read(self.disk, &path).map_err(|error| store_error(format!("read {path}"), error))?;

        let mut offset = HEAD_BYTES_MIN;
        let checkpoint = match segment::read_head(number, &bytes) {
            Head::Good { previous_len, log, len } => {
                self.check_previous(previous_len)?;
                self.check_log(log).map_err(|what| damaged(0, &what))?;
                offset = len;
                record::read_frame(number, &bytes, offset)
            }
            Head::Unknown(version) => {
                return Err(damaged(8, &format!("version {version} is not known")));
            }
            Head::Broken => None,
        };
        let Some(checkpoint) = checkpoint else {
            // Begun and never used, or used and then damaged: the same question as for a batch.
            let was_used = record::is_witnessed(number, &bytes, HEAD_BYTES_MIN);
            let is_first = number == 1 && self.expected.is_none();
            let has_predecessor = self.last.is_some() || is_first;
            if is_last && has_predecessor && !was_used {
                tracing::warn!(file = %path, "removing a segment whose beginning was torn");
                return remove(self.disk, &path)
                    .map_err(|error| store_error(format!("remove {path}"), error));
            }
            return Err(damaged(0, "the head of the segment is broken"));
        };

        self.index.add_segment(number, Arc::clone(&file));
        let mut next = Some(checkpoint);
        while let Some(framed) = next {
            let end = framed.payload.end;
            let record = record::decode_record(&bytes[framed.payload])
                .map_err(|what| damaged(offset, &what))?;
            let place = Place {
                segment: number,
                len: u32::try_from(end - offset).map_err(|_| damaged(offset, "too long"))?,
                offset: offset as u64,
            };
            self.take_in(record, place);
            offset = end;
            next = record::read_frame(number, &bytes, offset);
        }

        if offset < bytes.len() {
            if !is_last || record::is_witnessed(number, &bytes, offset) {
                return Err(damaged(offset, "the record is broken, acknowledged entries are lost"));
            }
            tracing::warn!(
                file = %path, offset, bytes = bytes.len() - offset,
                "cutting off a torn write that was never acknowledged"
            );
        }
        if is_last {
            let settle = || {
                file.write_at(0, &bytes[..offset])?;
                file.set_len(offset as u64)?;
                file.sync_data()?;
                self.disk.sync_dir(LOG_DIR)
            };
            settle().map_err(|error| store_error(format!("sync {path}"), error))?;
        }
        self.last = Some(Last { number, file, len: offset as u64 });
        Ok(())
    }

    /// All segments belong to one log, and it is the one that belongs here. Those of version 1 do
    /// not say; none comes after one that does.
    fn check_log(&mut self, log: Option<Uuid>) -> Result<(), String> {
        match (self.expected.or(self.log), log) {
            (Some(known), Some(log)) if known != log => Err(
                "the segment belongs to the log of another node, or of another life of this one"
                    .into(),
            ),
            (_, None) if self.log.is_some() => {
                Err("the segment is older than the one before it".into())
            }
            (_, log) => {
                self.log = log;
                Ok(())
            }
        }
    }

    /// A segment that lost its end at the border of two records shows only here.
    fn check_previous(&self, expected: u64) -> Result<(), StoreError> {
        match &self.last {
            Some(previous) if previous.len != expected => Err(StoreError::Damaged {
                file: segment::path(previous.number),
                offset: previous.len.min(expected),
                what: format!("it is {} bytes long and was {expected}", previous.len),
            }),
            _ => Ok(()),
        }
    }

    fn take_in(&mut self, record: Record, place: Place) {
        match record {
            Record::Checkpoint(Checkpoint { groups, parts }) => {
                for (group, state) in groups {
                    self.index.set_state(group, state);
                }
                self.index.set_parts(parts);
            }
            Record::Part(part, upto) => self.index.set_part(part, upto),
            Record::Vote(group, vote) => self.index.set_vote(group, vote),
            Record::Entry(group, position) => self.index.recover(group, position, place),
            Record::Truncate(group, from) => self.index.truncate(group, from),
            Record::Purge(group, upto) => self.index.purge(group, upto),
            Record::Floor(group, floor) => self.index.set_floor(group, floor),
            Record::Mark => {}
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

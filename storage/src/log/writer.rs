//! The one writer of the log: puts a batch on disk with one write and one sync, and only then lets
//! its changes show.
//!
//! Invariants:
//! - A batch begins only where everything before it is synced.
//! - After a failed write or sync nothing is ever written again. What the kernel dropped cannot be
//!   known, and a second sync of the same file would report success for it. There are two
//!   exceptions. A full disk: the file is cut back to the end of the last batch, that is synced,
//!   and the batch waits for room. A file that cannot be opened for want of descriptors: nothing
//!   was written.
//! - Segments go only when the records that emptied them are synced, oldest first, each removal
//!   synced before the next.

use std::io;
use std::sync::Arc;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::mutants::{self, Mutant};
use uuid::Uuid;

use super::entry_index::{EntryIndex, RecordLocation};
use super::job::{Job, Op};
use super::record::{self, Checkpoint, GroupState, LogEntry, LowWaterMark, Vote};
use super::recovery::Recovered;
use super::reserve::{FULL_BATCH_BYTES, Reserve};
use super::segment::{self, LOG_DIR};
use super::shared::Shared;
use crate::disk::{Disk, DiskFile, Shortage};

/// A batch takes no more jobs once it is so long, bytes.
pub(crate) const BATCH_BYTES: usize = 4 << 20;

/// The buffer of a batch is given back when it grew beyond this, bytes.
const BUFFER_BYTES_KEPT: usize = 8 << 20;

/// Why a batch is not durable.
#[derive(Debug)]
pub(crate) enum CommitError {
    /// The same batch can be tried again later.
    ShortOf(Shortage),
    /// The log is dead.
    Dead,
}

/// A change that shows in memory once the batch is durable.
enum PendingChange {
    Vote(GroupId, Vote),
    Stored(GroupId, Position, RecordLocation),
    Truncate(GroupId, u64),
    Purge(GroupId, Position),
    Leave(GroupId, Option<Position>),
    LowWaterMark(GroupId, LowWaterMark),
    Files(StateMachineId, Option<Position>),
}

pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    log: Uuid,
    /// The durable state beside the entries, for the checkpoint of the next segment.
    checkpoint: Checkpoint,
    number: u32,
    file: Arc<dyn DiskFile>,
    /// Length of the segment that is synced, where the next batch begins.
    len: u64,
    buffer: Vec<u8>,
    changes: Vec<PendingChange>,
    /// A segment that is removed, where that is not synced yet.
    removing: Option<u32>,
    dead: bool,
    reserve: Reserve,
    segment_bytes: u64,
}

impl Writer {
    pub fn new(
        disk: Arc<dyn Disk>,
        shared: Arc<Shared>,
        recovered: RecoveredEnd,
        reserve: Reserve,
        segment_bytes: u64,
    ) -> Self {
        let RecoveredEnd { log, checkpoint, number, file, len } = recovered;
        shared.set_serves_what_makes_room(reserve.serves_what_makes_room());
        let (buffer, changes) = (Vec::new(), Vec::new());
        Self {
            disk,
            shared,
            log,
            checkpoint,
            number,
            file,
            len,
            buffer,
            changes,
            removing: None,
            dead: false,
            reserve,
            segment_bytes,
        }
    }

    /// Starts a new batch, in another segment when this one is long enough.
    pub fn begin(&mut self) -> Result<(), CommitError> {
        if self.dead {
            return Err(CommitError::Dead);
        }
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        self.changes.clear();
        // Before the marks are taken: a roll that fails for want of room must not lose them.
        if self.len >= self.segment_bytes {
            self.roll()?;
        }
        // Low-water marks are taken first and written last. Whoever raises a mark has reported
        // before which files hold the entries below it. So with any mark taken here its report is
        // taken, too; and a batch that is torn between the two has the report without the mark,
        // never the mark without the report.
        let marks = std::mem::take(&mut *self.shared.low_water_marks.lock());
        let files = std::mem::take(&mut *self.shared.files.lock());
        for (part, upto) in files {
            self.put(|bytes| record::put_files(part, Some(upto), bytes));
            self.changes.push(PendingChange::Files(part, Some(upto)));
        }
        for (group, mark) in marks {
            self.put(|bytes| record::put_low_water_mark(group, &mark, bytes));
            self.changes.push(PendingChange::LowWaterMark(group, mark));
        }
        Ok(())
    }

    /// Takes a job into the batch, or leaves no trace of it when something in it is too large ever
    /// to be written.
    pub fn add(&mut self, job: &Job) -> io::Result<()> {
        let (length, count) = (self.buffer.len(), self.changes.len());
        let group = job.group;
        for op in &job.ops {
            let fits = match op {
                Op::Vote(vote) if mutants::is(Mutant::NoVoteOnDisk) => {
                    self.changes.push(PendingChange::Vote(group, *vote));
                    self.put(record::put_closed).is_some()
                }
                Op::Vote(vote) => {
                    self.changes.push(PendingChange::Vote(group, *vote));
                    self.put(|bytes| record::put_vote(group, *vote, bytes)).is_some()
                }
                Op::Append(entries) => entries.iter().all(|entry| self.add_entry(group, entry)),
                Op::Truncate(from) => {
                    self.changes.push(PendingChange::Truncate(group, *from));
                    self.put(|bytes| record::put_truncate(group, *from, bytes)).is_some()
                }
                Op::Purge(upto) => {
                    self.changes.push(PendingChange::Purge(group, *upto));
                    self.put(|bytes| record::put_purge(group, *upto, bytes)).is_some()
                }
                Op::Leave(last) => {
                    self.changes.push(PendingChange::Leave(group, *last));
                    self.put(|bytes| record::put_left(group, *last, bytes)).is_some()
                }
                Op::ForgetFiles(part) => {
                    self.changes.push(PendingChange::Files(*part, None));
                    self.put(|bytes| record::put_files(*part, None, bytes)).is_some()
                }
                Op::Close => self.put(record::put_closed).is_some(),
            };
            if !fits {
                self.buffer.truncate(length);
                self.changes.truncate(count);
                let why = format!(
                    "an entry of group {group} is larger than the {} bytes that a record may have",
                    record::PAYLOAD_BYTES_MAX
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, group: GroupId, entry: &LogEntry) -> bool {
        let offset = self.len + self.buffer.len() as u64;
        let Some(len) = self.put(|bytes| record::put_entry(group, entry, bytes)) else {
            return false;
        };
        let location = RecordLocation { segment: self.number, len, offset };
        self.changes.push(PendingChange::Stored(group, entry.position, location));
        true
    }

    fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Option<u32> {
        // A segment is rolled long before its length leaves 32 bits.
        let batch = u32::try_from(self.len).ok()?;
        record::frame(self.number, batch, &mut self.buffer, put)
    }

    /// Counts the bytes that the batch may still take, or go beyond with one job more.
    pub fn batch_bytes_left(&self) -> usize {
        // Small where the disk is full: it can then have all of the reserve, and holds up nobody.
        let most = if self.shared.is_full() { FULL_BATCH_BYTES } else { BATCH_BYTES };
        most.saturating_sub(self.buffer.len())
    }

    /// Makes the batch durable and lets it show. Can be called again when it was short of
    /// something.
    pub fn commit(&mut self) -> Result<(), CommitError> {
        if self.dead {
            return Err(CommitError::Dead);
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        // One write at the synced end of the file: `batch` in every record of it is `self.len`.
        while let Err(error) = self.file.write_at(self.len, &self.buffer) {
            let error = self.not_written(error);
            let needs_room = matches!(error, CommitError::ShortOf(Shortage::Room));
            if !needs_room || !self.make_room(self.buffer.len()) {
                return Err(error);
            }
        }
        // The sync comes before `len` moves and before anything shows: a batch that is not durable
        // must neither be built upon nor be seen.
        if !mutants::is(Mutant::NoLogSync)
            && let Err(error) = self.file.sync_data()
        {
            // Never tried again: the kernel may have marked the pages clean without writing them.
            return Err(self.die("sync", &error));
        }
        self.len += self.buffer.len() as u64;
        self.publish();
        // Last: the purge that emptied a segment is durable now, so a crash from here on finds
        // either the segment or no need for it.
        self.remove_segments()
    }

    /// Takes room from the reserve, and tells whether there was some. From then on the disk is
    /// full.
    fn make_room(&mut self, bytes: usize) -> bool {
        self.shared.set_full(true);
        let is_made = self.reserve.release(bytes);
        self.shared.set_serves_what_makes_room(self.reserve.serves_what_makes_room());
        is_made
    }

    /// Tells whether the disk has room again, after it had none.
    pub fn has_room(&mut self) -> bool {
        let has_room = self.dead || self.reserve.refill();
        self.shared.set_serves_what_makes_room(self.reserve.serves_what_makes_room());
        has_room
    }

    /// Lets the changes of the batch show, all under one lock, so that no reader sees half of a
    /// job.
    fn publish(&mut self) {
        let mut index = self.shared.index.lock();
        for change in self.changes.drain(..) {
            match change {
                PendingChange::Vote(group, vote) => {
                    self.checkpoint.groups.entry(group).or_default().vote = Some(vote);
                    index.set_vote(group, vote);
                }
                PendingChange::Stored(group, position, location) => {
                    index.store(group, position, location);
                }
                PendingChange::Truncate(group, from) => index.truncate(group, from),
                PendingChange::Purge(group, upto) => {
                    self.checkpoint.groups.entry(group).or_default().purged = Some(upto);
                    index.purge(group, upto);
                }
                PendingChange::Leave(group, last) => {
                    let state = self.checkpoint.groups.entry(group).or_default();
                    *state = GroupState { vote: state.vote, ..GroupState::default() };
                    index.leave(group, last);
                    self.checkpoint.left.clone_from(index.all_left());
                }
                PendingChange::LowWaterMark(group, mark) => {
                    self.checkpoint.groups.entry(group).or_default().low_water_mark =
                        Some(mark.clone());
                    index.set_low_water_mark(group, mark);
                }
                PendingChange::Files(part, upto) => {
                    index.set_files(part, upto);
                    match upto {
                        Some(upto) => drop(self.checkpoint.files.insert(part, upto)),
                        None => drop(self.checkpoint.files.remove(&part)),
                    }
                }
            }
        }
    }

    /// Begins another segment. Everything in this one is synced: it is called between batches only.
    pub fn roll(&mut self) -> Result<(), CommitError> {
        let begin = |writer: &Self| {
            let (disk, number) = (writer.disk.as_ref(), writer.number + 1);
            segment::begin(disk, number, writer.len, writer.log, &writer.checkpoint)
        };
        let mut begun = begin(self);
        if let Err(error) = &begun
            && Shortage::of(error) == Some(Shortage::Room)
            && self.make_room(0)
        {
            begun = begin(self);
        }
        let begun = begun.map_err(|error| match Shortage::of(&error) {
            Some(shortage) => CommitError::ShortOf(shortage),
            None => self.die("begin a segment after", &error),
        })?;
        self.number += 1;
        self.len = begun.len;
        self.file = Arc::clone(&begun.file);
        self.shared.index.lock().add_segment(self.number, begun.file);
        // After the index has the segment: whoever is told has older ones purged.
        self.shared.rolled.send_replace(self.number);
        Ok(())
    }

    /// Removes segments from the front while nothing in them is needed.
    fn remove_segments(&mut self) -> Result<(), CommitError> {
        loop {
            let Some(number) = self.shared.index.lock().oldest_unneeded() else { return Ok(()) };
            let removed = match self.removing {
                Some(removing) if removing == number => Ok(()),
                _ => self.disk.remove_file(&segment::path(number)),
            };
            // Each removal is synced before the next one. Otherwise a power cut could keep an older
            // segment and lose a newer one, which recovery would rightly take for damage.
            match removed.and_then(|()| self.disk.sync_dir(LOG_DIR)) {
                // The batch is durable, and an old segment more does no harm: the next batch syncs.
                Err(error) if Shortage::of(&error) == Some(Shortage::Descriptors) => {
                    self.removing = Some(number);
                    return Ok(());
                }
                Err(error) => return Err(self.die("remove a segment before", &error)),
                Ok(()) => self.removing = None,
            }
            self.shared.index.lock().remove_segment(number);
        }
    }

    /// Makes the file what it was before a write that failed for want of room.
    fn not_written(&mut self, error: io::Error) -> CommitError {
        if Shortage::of(&error) != Some(Shortage::Room) {
            return self.die("write", &error);
        }
        // What got written must be gone, durably, before anything else is written in its place: a
        // mixture of two batches could look whole.
        match self.file.set_len(self.len).and_then(|()| self.file.sync_data()) {
            Ok(()) => CommitError::ShortOf(Shortage::Room),
            Err(error) => self.die("cut back", &error),
        }
    }

    fn die(&mut self, what: &str, error: &io::Error) -> CommitError {
        self.dead = true;
        self.shared.fail(format!("cannot {what} {}: {error}", segment::path(self.number)));
        CommitError::Dead
    }
}

/// Where recovery left off and the writer goes on.
pub(crate) struct RecoveredEnd {
    log: Uuid,
    checkpoint: Checkpoint,
    number: u32,
    file: Arc<dyn DiskFile>,
    len: u64,
}

impl RecoveredEnd {
    /// Splits what recovery found into what is read from and where to go on writing.
    pub fn split(recovered: Recovered, log: Uuid) -> (EntryIndex, Self) {
        let Recovered { index, number, file, len, .. } = recovered;
        let checkpoint = Checkpoint {
            groups: index.states(),
            files: index.all_files().clone(),
            left: index.all_left().clone(),
        };
        (index, Self { log, checkpoint, number, file, len })
    }
}

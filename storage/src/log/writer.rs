//! The one writer of the log: makes a batch of what waits, writes it with one write and one sync,
//! and only then lets it show.
//!
//! Invariants:
//! - A batch begins only where everything before it is synced.
//! - After a failed write or sync nothing is ever written again: what the kernel dropped cannot be
//!   known, and a second sync of the same file would report success for it. A full disk is the one
//!   exception: the file is cut back to the end of the last batch, that is synced, and the batch
//!   waits until there is room. A file that cannot be opened for want of descriptors is no failed
//!   write: it is waited for, too.
//! - Segments go only when the records that emptied them are synced, oldest first, each removal
//!   synced before the next.

use std::io;
use std::sync::Arc;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::descriptors::is_exhausted;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Shared;
use super::index::Place;
use super::record::{self, Checkpoint, Floor, LogEntry, Vote};
use super::recovery::Recovered;
use super::reserve::Reserve;
use super::segment::{self, LOG_DIR};
use crate::disk::{Disk, DiskFile, is_full};

/// A batch takes nothing more once it is so long, bytes.
pub(crate) const BATCH_BYTES: usize = 4 << 20;

/// The buffer of a batch is given back when it grew beyond this, bytes.
const BUFFER_BYTES_KEPT: usize = 8 << 20;

/// One change to the log.
#[derive(Debug)]
pub(crate) enum Op {
    Vote(Vote),
    Append(Vec<LogEntry>),
    /// Entries from this index on go.
    Truncate(u64),
    /// Entries up to this one go.
    Purge(Position),
    /// A part's files are about to be removed.
    Forget(StateMachineId),
    /// The witness that all before was synced.
    Mark,
}

/// Told once what became of a job.
pub(crate) type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Changes to one group's part of the log, made durable together.
pub(crate) struct Job {
    pub group: GroupId,
    pub ops: Vec<Op>,
    pub done: Done,
}

impl Job {
    /// A job, and what it comes to.
    pub fn new(group: GroupId, ops: Vec<Op>) -> (Self, oneshot::Receiver<io::Result<()>>) {
        let (tell, told) = oneshot::channel();
        let done = Box::new(move |result| drop(tell.send(result)));
        (Self { group, ops, done }, told)
    }
}

/// Why a batch is not written.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// No room: the same batch can be tried again.
    Full,
    /// No descriptor is left to open a file with: the same batch can be tried again.
    Exhausted,
    /// The log is dead.
    Dead,
}

/// A change that shows once the batch is durable.
enum Effect {
    Vote(GroupId, Vote),
    Placed(GroupId, Position, Place),
    Truncate(GroupId, u64),
    Purge(GroupId, Position),
    Floor(GroupId, Floor),
    Part(StateMachineId, Option<Position>),
}

pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    shared: Arc<Shared>,
    /// The log's id, in the head of every segment.
    log: Uuid,
    /// What is durable beside the entries.
    states: Checkpoint,
    number: u32,
    file: Arc<dyn DiskFile>,
    /// Length of the segment that is synced: where the next batch begins.
    len: u64,
    buffer: Vec<u8>,
    effects: Vec<Effect>,
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
        let RecoveredEnd { log, states, number, file, len } = recovered;
        let (buffer, effects) = (Vec::new(), Vec::new());
        Self {
            disk,
            shared,
            log,
            states,
            number,
            file,
            len,
            buffer,
            effects,
            removing: None,
            dead: false,
            reserve,
            segment_bytes,
        }
    }

    /// Makes ready for a new batch: begins another segment when this one is long enough.
    pub fn begin(&mut self) -> Result<(), Trouble> {
        if self.dead {
            return Err(Trouble::Dead);
        }
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_KEPT);
        self.effects.clear();
        if self.len >= self.segment_bytes {
            self.roll()?;
        }
        // Floors are taken first and written last: whoever raises one has said before which files
        // hold what it leaves behind.
        let floors = std::mem::take(&mut *self.shared.floors());
        let parts = std::mem::take(&mut *self.shared.parts());
        for (part, upto) in parts {
            self.put(|bytes| record::put_part(part, Some(upto), bytes));
            self.effects.push(Effect::Part(part, Some(upto)));
        }
        for (group, floor) in floors {
            self.put(|bytes| record::put_floor(group, &floor, bytes));
            self.effects.push(Effect::Floor(group, floor));
        }
        Ok(())
    }

    /// Takes a job into the batch. Gives it back when something in it is too large ever to be
    /// written.
    pub fn add(&mut self, job: &Job) -> io::Result<()> {
        let (length, count) = (self.buffer.len(), self.effects.len());
        let group = job.group;
        for op in &job.ops {
            let fits = match op {
                Op::Vote(vote) if mutants::is(Mutant::NoVoteOnDisk) => {
                    self.effects.push(Effect::Vote(group, *vote));
                    self.put(record::put_mark).is_some()
                }
                Op::Vote(vote) => {
                    self.effects.push(Effect::Vote(group, *vote));
                    self.put(|bytes| record::put_vote(group, *vote, bytes)).is_some()
                }
                Op::Append(entries) => entries.iter().all(|entry| self.add_entry(group, entry)),
                Op::Truncate(from) => {
                    self.effects.push(Effect::Truncate(group, *from));
                    self.put(|bytes| record::put_truncate(group, *from, bytes)).is_some()
                }
                Op::Purge(upto) => {
                    self.effects.push(Effect::Purge(group, *upto));
                    self.put(|bytes| record::put_purge(group, *upto, bytes)).is_some()
                }
                Op::Forget(part) => {
                    self.effects.push(Effect::Part(*part, None));
                    self.put(|bytes| record::put_part(*part, None, bytes)).is_some()
                }
                Op::Mark => self.put(record::put_mark).is_some(),
            };
            if !fits {
                self.buffer.truncate(length);
                self.effects.truncate(count);
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "entry too large"));
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, group: GroupId, entry: &LogEntry) -> bool {
        let offset = self.len + self.buffer.len() as u64;
        let Some(len) = self.put(|bytes| record::put_entry(group, entry, bytes)) else {
            return false;
        };
        let place = Place { segment: self.number, len, offset };
        self.effects.push(Effect::Placed(group, entry.position, place));
        true
    }

    fn put(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Option<u32> {
        // A segment is rolled long before its length leaves 32 bits.
        let batch = u32::try_from(self.len).ok()?;
        record::frame(self.number, batch, &mut self.buffer, put)
    }

    /// Whether the batch should take no more.
    pub fn is_batch_full(&self) -> bool {
        self.buffer.len() >= BATCH_BYTES
    }

    /// Makes the batch durable and lets it show. After [`Trouble::Full`] it can be called again.
    pub fn commit(&mut self) -> Result<(), Trouble> {
        if self.dead {
            return Err(Trouble::Dead);
        }
        if self.buffer.is_empty() {
            return Ok(());
        }
        while let Err(error) = self.file.write_at(self.len, &self.buffer) {
            let trouble = self.not_written(error);
            if !matches!(trouble, Trouble::Full) || !self.make_room(self.buffer.len()) {
                return Err(trouble);
            }
        }
        if !mutants::is(Mutant::NoLogSync)
            && let Err(error) = self.file.sync_data()
        {
            return Err(self.die("sync", &error));
        }
        self.len += self.buffer.len() as u64;
        self.show();
        self.remove_segments()
    }

    /// Takes from the reserve; whether there was something to take. From then on the disk is full.
    fn make_room(&mut self, bytes: usize) -> bool {
        self.shared.set_full(true);
        self.reserve.give_way(bytes)
    }

    /// Whether the disk has room again, after it had none.
    pub fn has_room(&mut self) -> bool {
        self.dead || self.reserve.restore()
    }

    fn show(&mut self) {
        let mut index = self.shared.index();
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Vote(group, vote) => {
                    self.states.groups.entry(group).or_default().vote = Some(vote);
                    index.set_vote(group, vote);
                }
                Effect::Placed(group, position, place) => index.place(group, position, place),
                Effect::Truncate(group, from) => index.truncate(group, from),
                Effect::Purge(group, upto) => {
                    self.states.groups.entry(group).or_default().purged = Some(upto);
                    index.purge(group, upto);
                }
                Effect::Floor(group, floor) => {
                    self.states.groups.entry(group).or_default().floor = Some(floor.clone());
                    index.set_floor(group, floor);
                }
                Effect::Part(part, upto) => {
                    index.set_part(part, upto);
                    match upto {
                        Some(upto) => drop(self.states.parts.insert(part, upto)),
                        None => drop(self.states.parts.remove(&part)),
                    }
                }
            }
        }
    }

    /// Begins another segment.
    pub fn roll(&mut self) -> Result<(), Trouble> {
        let begin = |writer: &Self| {
            let (disk, number) = (writer.disk.as_ref(), writer.number + 1);
            segment::begin(disk, number, writer.len, writer.log, &writer.states)
        };
        let begun = match begin(self) {
            Err(error) if is_full(&error) && self.make_room(0) => begin(self),
            begun => begun,
        };
        let begun = match begun {
            Err(error) if is_full(&error) => return Err(Trouble::Full),
            Err(error) if is_exhausted(&error) => return Err(Trouble::Exhausted),
            Err(error) => return Err(self.die("begin a segment after", &error)),
            Ok(begun) => begun,
        };
        self.number += 1;
        self.len = begun.len;
        self.file = Arc::clone(&begun.file);
        self.shared.index().add_segment(self.number, begun.file);
        self.shared.rolled.send_replace(self.number);
        Ok(())
    }

    fn remove_segments(&mut self) -> Result<(), Trouble> {
        loop {
            let Some(number) = self.shared.index().oldest_unneeded() else { return Ok(()) };
            let removed = match self.removing {
                Some(removing) if removing == number => Ok(()),
                _ => self.disk.remove_file(&segment::path(number)),
            };
            match removed.and_then(|()| self.disk.sync_dir(LOG_DIR)) {
                // The batch is durable, and an old segment more does no harm: the next batch syncs.
                Err(error) if is_exhausted(&error) => {
                    self.removing = Some(number);
                    return Ok(());
                }
                Err(error) => return Err(self.die("remove a segment before", &error)),
                Ok(()) => self.removing = None,
            }
            self.shared.index().remove_segment(number);
        }
    }

    fn not_written(&mut self, error: io::Error) -> Trouble {
        if !is_full(&error) {
            return self.die("write", &error);
        }
        // What got written must be gone before anything else is written in its place: a mixture
        // of two batches could look whole.
        match self.file.set_len(self.len).and_then(|()| self.file.sync_data()) {
            Ok(()) => Trouble::Full,
            Err(error) => self.die("cut back", &error),
        }
    }

    fn die(&mut self, what: &str, error: &io::Error) -> Trouble {
        self.dead = true;
        self.shared.fail(format!("cannot {what} {}: {error}", segment::path(self.number)));
        Trouble::Dead
    }
}

/// Where recovery left off.
pub(crate) struct RecoveredEnd {
    log: Uuid,
    states: Checkpoint,
    number: u32,
    file: Arc<dyn DiskFile>,
    len: u64,
}

impl RecoveredEnd {
    /// Splits what recovery found into what is read and where to go on writing.
    pub fn split(recovered: Recovered, log: Uuid) -> (super::index::Index, Self) {
        let Recovered { index, number, file, len, .. } = recovered;
        let states = Checkpoint { groups: index.states(), parts: index.parts().clone() };
        (index, Self { log, states, number, file, len })
    }
}

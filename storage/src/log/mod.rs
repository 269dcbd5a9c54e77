//! The log: one per node for all its groups, append-only, segmented, checksummed.
//!
//! Everything that is acknowledged is durable here first, with one write and one `fdatasync` for
//! all that waits. The layout on disk is told in [`record`] and [`segment`], what is done about
//! torn writes and damage in [`recovery`], when segments go in [`writer`].
//!
//! Invariants:
//! - A job's `done` is called once, and with `Ok` only when the job is durable and shows.
//! - Entries can be read from the moment [`Log::append`] returns.
//! - The jobs of one group are carried out in the order in which they were handed in.
//! - A floor is written with the next batch, never with a sync of its own: it is a lower bound.
//!   Before a purge it is always in the log.

mod index;
mod pump;
pub(crate) mod record;
pub(crate) mod recovery;
mod reserve;
#[cfg(any(test, feature = "sim"))]
mod rot;
pub(crate) mod segment;
mod writer;

#[cfg(test)]
mod claim_tests;
#[cfg(test)]
mod failure_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::ports::StoreError;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use crate::disk::Disk;
use crate::executor::Executor;
use crate::parts;
use index::{Found, Index, Placed};
use pump::{Inline, Pump};
use record::{Body, Floor, GroupState, LogEntry};
use reserve::Reserve;
use segment::SEGMENT_BYTES;
use writer::{Job, RecoveredEnd, Trouble, Writer};

#[cfg(any(test, feature = "sim"))]
pub use rot::witnessed_log_bytes;
pub(crate) use writer::{Done, Op};

/// Jobs that may wait for the writer.
const QUEUE_JOBS_MAX: usize = 1024;

/// How long a full disk, or a process without descriptors, is left alone before the batch that waits is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// Whose log is opened.
#[derive(Debug, Clone)]
pub struct LogClaim {
    /// The id of the log that belongs to the node; `None` before the node has one, or where a
    /// version of the program began it that gave none.
    pub expected: Option<Uuid>,
    /// The id of a log that is begun now.
    pub fresh: Uuid,
    /// The node's region: where its tenants' files are.
    pub region: String,
}

#[cfg(test)]
impl LogClaim {
    /// Of a log of whatever id.
    fn any() -> Self {
        let fresh = Uuid::from_u128(1);
        Self { expected: None, fresh, region: "default".to_owned() }
    }
}

/// See the module.
pub(crate) struct Log {
    id: Uuid,
    executor: Executor,
    shared: Arc<Shared>,
    queue: Queue,
}

enum Queue {
    Inline(Inline),
    Thread(mpsc::Sender<Job>),
}

/// What writer and readers have in common.
pub(crate) struct Shared {
    index: Mutex<Index>,
    floors: Mutex<BTreeMap<GroupId, Floor>>,
    /// Which parts' files are durable up to where, as far as that is not in the log yet.
    parts: Mutex<BTreeMap<StateMachineId, Position>>,
    /// Number of the segment that is written; changes when another is begun.
    rolled: watch::Sender<u32>,
    full: AtomicBool,
    /// Whether the next segment waits for a descriptor.
    exhausted: AtomicBool,
    /// Whether what finds no room fails instead of waiting.
    closing: AtomicBool,
    failed: watch::Sender<Option<String>>,
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Floors that are not in the log yet.
    fn floors(&self) -> MutexGuard<'_, BTreeMap<GroupId, Floor>> {
        self.floors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn parts(&self) -> MutexGuard<'_, BTreeMap<StateMachineId, Position>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, why: String) {
        tracing::error!(%why, "the log is dead: nothing more will be written");
        self.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert(why);
            first
        });
    }

    fn error(&self) -> io::Error {
        match &*self.failed.borrow() {
            Some(why) => io::Error::other(why.clone()),
            None => io::Error::other("the log is closed"),
        }
    }

    fn set_full(&self, full: bool) {
        if self.full.swap(full, Ordering::AcqRel) != full {
            if full {
                tracing::error!("the disk is full: nothing is written until there is room");
            } else {
                tracing::info!("there is room on the disk again");
            }
        }
    }
}

impl Shared {
    fn set_exhausted(&self, exhausted: bool) {
        if self.exhausted.swap(exhausted, Ordering::AcqRel) != exhausted {
            if exhausted {
                tracing::error!("no file descriptor is left: nothing is written until one is");
            } else {
                tracing::info!("there are file descriptors again");
            }
        }
    }
}

impl Log {
    /// Opens a log of any id below the data directory, or makes one. Blocks.
    #[cfg(test)]
    pub fn open(disk: Arc<dyn Disk>, executor: Executor) -> Result<Arc<Self>, StoreError> {
        Self::open_claimed(disk, executor, &LogClaim::any())
    }

    /// As [`Log::open`], with segments of another length and nothing in reserve.
    #[cfg(test)]
    pub fn open_sized(
        disk: Arc<dyn Disk>,
        executor: Executor,
        segment_bytes: u64,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_with(disk, executor, segment_bytes, |_| Reserve::none(), &LogClaim::any())
    }

    /// Opens the log of a node, or begins it where the node has none yet. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, is not the one claimed, or holds what no crash can have left.
    pub fn open_claimed(
        disk: Arc<dyn Disk>,
        executor: Executor,
        claim: &LogClaim,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_with(disk, executor, SEGMENT_BYTES, Reserve::open, claim)
    }

    fn open_with(
        disk: Arc<dyn Disk>,
        executor: Executor,
        segment_bytes: u64,
        reserve: impl FnOnce(&dyn Disk) -> Reserve,
        claim: &LogClaim,
    ) -> Result<Arc<Self>, StoreError> {
        let mut recovered = recovery::recover(disk.as_ref(), claim.expected, claim.fresh)?;
        let is_nameless = recovered.log.is_none();
        if is_nameless {
            let parts = filed_before_names(disk.as_ref(), &claim.region, &recovered.index)?;
            recovered.index.set_parts(parts);
        }
        let id = recovered.log.unwrap_or(claim.fresh);
        let (index, end) = RecoveredEnd::split(recovered, id);
        // In the log's directory, which is there by now.
        let mut reserve = reserve(disk.as_ref());
        let is_full = !reserve.restore();
        let shared = Arc::new(Shared {
            index: Mutex::new(index),
            floors: Mutex::default(),
            parts: Mutex::default(),
            rolled: watch::Sender::new(0),
            full: AtomicBool::new(is_full),
            exhausted: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            failed: watch::Sender::new(None),
        });
        let mut writer = Writer::new(disk, Arc::clone(&shared), end, reserve, segment_bytes);
        if is_nameless {
            // From now on the log has an id and says which parts have files.
            writer.roll().map_err(|trouble| match trouble {
                Trouble::Full => StoreError::Full,
                Trouble::Exhausted | Trouble::Dead => {
                    crate::disk::store_error("give the log an id", shared.error())
                }
            })?;
        }
        let pump = Pump::new(writer, Arc::clone(&shared));
        let queue = match &executor {
            Executor::Inline | Executor::Paced(_) => {
                Queue::Inline(Inline::new(pump, executor.pace()))
            }
            Executor::Threads => {
                let (queue, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
                executor
                    .spawn_thread("shiioo-log", move || pump::serve(pump, jobs))
                    .map_err(|error| crate::disk::store_error("start the log's writer", error))?;
                Queue::Thread(queue)
            }
        };
        let log = Arc::new(Self { id, executor, shared, queue });
        if is_full {
            log.found_no_room();
        }
        Ok(log)
    }

    /// Appends entries, which can be read when this returns. `done` is called when they are
    /// durable.
    pub async fn append(&self, group: GroupId, entries: Vec<LogEntry>, done: Done) {
        {
            let mut index = self.shared.index();
            for entry in &entries {
                index.append(group, entry.clone());
            }
        }
        self.submit(Job { group, ops: vec![Op::Append(entries)], done }).await;
    }

    /// Makes changes that show when this returns, durable.
    ///
    /// # Errors
    /// When the log is dead or closed.
    pub async fn write(&self, group: GroupId, ops: Vec<Op>) -> io::Result<()> {
        let (job, told) = Job::new(group, ops);
        self.submit(job).await;
        told.await.unwrap_or_else(|_| Err(self.shared.error()))
    }

    async fn submit(&self, job: Job) {
        match &self.queue {
            Queue::Inline(inline) => inline.submit(job),
            Queue::Thread(queue) => {
                if let Err(mpsc::error::SendError(job)) = queue.send(job).await {
                    (job.done)(Err(self.shared.error()));
                }
            }
        }
    }

    /// Notes a floor, to be written with the next batch.
    pub fn set_floor(&self, group: GroupId, floor: Floor) {
        self.shared.floors().insert(group, floor);
    }

    /// The log's id.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Notes that a part's files hold everything up to a position durably, to be written with the
    /// next batch, and before a floor that is noted later.
    pub fn set_part(&self, part: StateMachineId, upto: Position) {
        if self.shared.index().part(part) != Some(upto) {
            self.shared.parts().insert(part, upto);
        }
    }

    /// Up to where a part's files were durable at the last report; `None` for one that has no files.
    pub fn part(&self, part: StateMachineId) -> Option<Position> {
        let noted = self.shared.parts().get(&part).copied();
        noted.or_else(|| self.shared.index().part(part))
    }

    /// The parts that have files.
    pub fn parts(&self) -> BTreeSet<StateMachineId> {
        let noted: BTreeSet<StateMachineId> = self.shared.parts().keys().copied().collect();
        self.shared.index().parts().keys().copied().chain(noted).collect()
    }

    /// Notes durably that a part has no files any more, before they are removed: whoever finds none
    /// must be able to tell that they were not lost.
    ///
    /// # Errors
    /// When the log is dead or closed.
    pub async fn forget_part(&self, group: GroupId, part: StateMachineId) -> io::Result<()> {
        self.shared.parts().remove(&part);
        self.write(group, vec![Op::Forget(part)]).await
    }

    /// The term of the entry at an index, as far as it is known.
    pub fn term_at(&self, group: GroupId, index: u64) -> Option<u64> {
        self.shared.index().term_at(group, index)
    }

    /// The state of a group beside its entries, as it is durable.
    pub fn state(&self, group: GroupId) -> GroupState {
        self.shared.index().state(group)
    }

    /// The last entry of a group, or else the last one purged.
    pub fn last(&self, group: GroupId) -> Option<Position> {
        self.shared.index().last(group)
    }

    /// The entries with `from <= index < to` that are there, in order.
    ///
    /// # Errors
    /// When one cannot be read or is damaged.
    pub async fn read(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let found = self.shared.index().find(group, from, to);
        self.load(found).await
    }

    /// The first entries with `from <= index < to` that are there, in order: so many that their
    /// records hold `bytes` or a little more, and at least one where there is one.
    ///
    /// # Errors
    /// When one cannot be read or is damaged.
    pub async fn read_some(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes: usize,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let found = self.shared.index().find_some(group, from, to, bytes);
        self.load(found).await
    }

    /// Bytes of the records of a group's entries with `from <= index < to`.
    pub fn bytes_between(&self, group: GroupId, from: u64, to: u64) -> u64 {
        self.shared.index().bytes_between(group, from, to)
    }

    async fn load(&self, found: Vec<Found>) -> Result<Vec<LogEntry>, StoreError> {
        if found.iter().all(|found| matches!(found, Found::Cached(_))) {
            return load(found);
        }
        self.executor.run(move || load(found)).await
    }

    /// Segments there are.
    #[cfg(test)]
    pub fn segment_count(&self) -> usize {
        self.shared.index().segment_count()
    }

    /// Changes when another segment is begun.
    pub fn rolled(&self) -> watch::Receiver<u32> {
        self.shared.rolled.subscribe()
    }

    /// Whether the disk has no room, and what is handed in waits.
    pub fn is_full(&self) -> bool {
        self.shared.full.load(Ordering::Acquire)
    }

    /// Tells that there is no room on the disk, also where the log itself has not met that yet. It
    /// looks again and again until there is some.
    pub fn found_no_room(&self) {
        self.shared.set_full(true);
        let look = Job { group: GroupId::SYSTEM, ops: Vec::new(), done: Box::new(drop) };
        match &self.queue {
            Queue::Inline(inline) => inline.submit(look),
            // A queue without room is being worked off, and the writer looks at its end.
            Queue::Thread(queue) => drop(queue.try_send(look)),
        }
    }

    /// Whether what finds no room fails instead of waiting: the node stops.
    pub fn is_closing(&self) -> bool {
        self.shared.closing.load(Ordering::Acquire)
    }

    /// Why the log died, once it has.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// From now on what finds no room fails instead of waiting, so that it holds up no end.
    pub fn give_up_when_full(&self) {
        self.shared.closing.store(true, Ordering::Release);
    }

    /// Writes what waits, floors too, and takes nothing more.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn close(&self) -> io::Result<()> {
        self.give_up_when_full();
        self.write(GroupId::SYSTEM, vec![Op::Mark]).await
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("executor", &self.executor).finish_non_exhaustive()
    }
}

/// Whether there is a log below the data directory, or what is left of one.
///
/// # Errors
/// When the directory cannot be read.
pub fn has_log(disk: &dyn Disk) -> io::Result<bool> {
    if !disk.exists(segment::LOG_DIR)? {
        return Ok(false);
    }
    let entries = disk.list(segment::LOG_DIR)?;
    Ok(entries.iter().any(|entry| segment::number(&entry.name).is_some()))
}

/// The parts that have files in a directory whose log does not say which do. The control plane's
/// file must be there also where it is not, when entries that were for it are not handed over any
/// more.
fn filed_before_names(
    disk: &dyn Disk,
    region: &str,
    index: &Index,
) -> Result<BTreeMap<StateMachineId, Position>, StoreError> {
    let parts = parts::present(disk, region)?;
    let mut parts: BTreeMap<_, _> =
        parts.into_iter().map(|part| (part, Position::default())).collect();
    let state = index.state(GroupId::SYSTEM);
    let floor = state.floor.map_or(0, |floor| floor.position.index + 1);
    let is_command = |entry: &LogEntry| matches!(entry.body, Body::Command(_));
    let below = load(index.find(GroupId::SYSTEM, 0, floor))?;
    if state.purged.is_some() || below.iter().any(is_command) {
        parts.entry(StateMachineId::System).or_default();
    }
    Ok(parts)
}

pub(crate) fn load(found: Vec<Found>) -> Result<Vec<LogEntry>, StoreError> {
    found
        .into_iter()
        .map(|found| match found {
            Found::Cached(entry) => Ok(entry),
            Found::Placed(placed) => load_placed(&placed),
        })
        .collect()
}

fn load_placed(placed: &Placed) -> Result<LogEntry, StoreError> {
    let Placed { position, place, file } = placed;
    let path = segment::path(place.segment);
    let damaged = |what: String| StoreError::Damaged {
        file: path.clone(),
        offset: place.offset,
        what: format!("entry {position}: {what}"),
    };
    let mut bytes = vec![0; place.len as usize];
    file.read_at(place.offset, &mut bytes)
        .map_err(|error| crate::disk::store_error(format!("read {path}"), error))?;
    let framed = record::read_frame(place.segment, &bytes, 0)
        .ok_or_else(|| damaged("the checksum does not match".into()))?;
    let (_, entry) = record::decode_entry(&bytes[framed.payload]).map_err(damaged)?;
    if entry.position == *position {
        Ok(entry)
    } else {
        Err(damaged(format!("entry {} stands in its place", entry.position)))
    }
}

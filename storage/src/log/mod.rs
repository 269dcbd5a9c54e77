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
#[cfg(any(test, feature = "sim"))]
mod rot;
pub(crate) mod segment;
mod writer;

#[cfg(test)]
mod failure_tests;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shiioo_actors::ids::{GroupId, Position};
use shiioo_actors::ports::StoreError;
use tokio::sync::{mpsc, watch};

use crate::disk::Disk;
use crate::executor::Executor;
use index::{Found, Index, Placed};
use pump::{Inline, Pump};
use record::{Floor, GroupState, LogEntry};
use segment::SEGMENT_BYTES;
use writer::{Job, RecoveredEnd, Writer};

#[cfg(any(test, feature = "sim"))]
pub use rot::witnessed_log_bytes;
pub(crate) use writer::{Done, Op};

/// Jobs that may wait for the writer.
const QUEUE_JOBS_MAX: usize = 1024;

/// How long a full disk, or a process without descriptors, is left alone before the batch that waits is tried again.
const FULL_RETRY: Duration = Duration::from_millis(200);

/// See the module.
pub(crate) struct Log {
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
    /// Opens the log below the data directory, or makes one. Blocks.
    ///
    /// # Errors
    /// When it cannot be read, or holds what no crash can have left.
    pub fn open(disk: Arc<dyn Disk>, executor: Executor) -> Result<Arc<Self>, StoreError> {
        Self::open_sized(disk, executor, SEGMENT_BYTES)
    }

    /// As [`Log::open`], with segments of another length.
    pub fn open_sized(
        disk: Arc<dyn Disk>,
        executor: Executor,
        segment_bytes: u64,
    ) -> Result<Arc<Self>, StoreError> {
        let (index, end) = RecoveredEnd::split(recovery::recover(disk.as_ref())?);
        let shared = Arc::new(Shared {
            index: Mutex::new(index),
            floors: Mutex::default(),
            rolled: watch::Sender::new(0),
            full: AtomicBool::new(false),
            exhausted: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            failed: watch::Sender::new(None),
        });
        let writer = Writer::new(disk, Arc::clone(&shared), end, segment_bytes);
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
        Ok(Arc::new(Self { executor, shared, queue }))
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

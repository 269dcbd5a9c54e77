//! The handle of the log: opens it, hands jobs to its writer, answers from memory.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::StoreError;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::QUEUE_JOBS_MAX;
use super::drivers::{self, InlineDriver};
use super::entry_index::FoundEntry;
use super::group_commit::GroupCommit;
use super::job::{Completion, Job, Op};
use super::read::load;
use super::record::{GroupState, LogEntry, LowWaterMark};
use super::recovery;
use super::reserve::Reserve;
use super::segment;
use super::shared::Shared;
use super::upgrade::files_beside_log_without_id;
use super::writer::{CommitError, RecoveredEnd, Writer};
use crate::disk::{Disk, Shortage, store_error};
use crate::executor::Executor;

/// Which log is opened, and whose it is.
#[derive(Debug, Clone)]
pub struct LogIdentity {
    /// The id of the log that belongs to the node. `None` before the node has a log, or where
    /// version 1 of the program began it, which gave none.
    pub expected: Option<Uuid>,
    /// The id of a log that is begun now.
    pub fresh: Uuid,
    /// The node's region, below which its tenants' files are.
    pub region: Region,
}

#[cfg(test)]
impl LogIdentity {
    /// Accepts a log of any id.
    fn any() -> Self {
        let fresh = Uuid::from_u128(1);
        Self { expected: None, fresh, region: Region::default() }
    }
}

/// The log of the node. See the module's documentation.
pub(crate) struct Log {
    id: Uuid,
    executor: Executor,
    shared: Arc<Shared>,
    queue: Queue,
    is_on_small_disk: bool,
}

/// The way to the writer.
enum Queue {
    Inline(InlineDriver),
    Thread(mpsc::Sender<Job>),
}

impl Log {
    /// Opens a log of any id below the data directory, or begins one. Blocks.
    #[cfg(test)]
    pub fn open(disk: Arc<dyn Disk>, executor: Executor) -> Result<Arc<Self>, StoreError> {
        Self::open_as(disk, executor, &LogIdentity::any())
    }

    /// Opens a log as [`Log::open`] does, with segments of another length and no reserve.
    #[cfg(test)]
    pub fn open_sized(
        disk: Arc<dyn Disk>,
        executor: Executor,
        segment_bytes: u64,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_with(disk, executor, segment_bytes, |_| Reserve::none(), &LogIdentity::any())
    }

    /// Opens the log of a node, or begins it where the node has none yet. Blocks.
    ///
    /// # Errors
    /// When the log cannot be read, is another than the one expected, or holds what no crash can
    /// have left.
    pub fn open_as(
        disk: Arc<dyn Disk>,
        executor: Executor,
        identity: &LogIdentity,
    ) -> Result<Arc<Self>, StoreError> {
        // A disk that does not tell its size is written to as a large one is.
        let segment_bytes = segment::length_on(disk.size().unwrap_or(u64::MAX));
        Self::open_with(disk, executor, segment_bytes, Reserve::open, identity)
    }

    pub(super) fn open_with(
        disk: Arc<dyn Disk>,
        executor: Executor,
        segment_bytes: u64,
        reserve: impl FnOnce(&dyn Disk) -> Reserve,
        identity: &LogIdentity,
    ) -> Result<Arc<Self>, StoreError> {
        let is_on_small_disk = segment_bytes < segment::SEGMENT_BYTES_MAX;
        let mut recovered = recovery::recover(disk.as_ref(), identity.expected, identity.fresh)?;
        let has_no_id = recovered.log.is_none();
        if has_no_id {
            let files =
                files_beside_log_without_id(disk.as_ref(), &identity.region, &recovered.index)?;
            recovered.index.set_all_files(files);
        }
        let id = recovered.log.unwrap_or(identity.fresh);
        let (index, end) = RecoveredEnd::split(recovered, id);
        // Only now: the reserve's file is in the log's directory, which recovery makes.
        let mut reserve = reserve(disk.as_ref());
        let is_full = !reserve.refill();
        let shared = Arc::new(Shared::new(index, is_full));
        let mut writer = Writer::new(disk, Arc::clone(&shared), end, reserve, segment_bytes);
        if has_no_id {
            // The head of the new segment has the id, and its checkpoint says who has files. Before
            // anything is appended: entries in a segment without an id belong to nobody.
            writer.roll().map_err(|error| match error {
                CommitError::ShortOf(Shortage::Room) => StoreError::Full,
                CommitError::ShortOf(Shortage::Descriptors) | CommitError::Dead => {
                    store_error("give the log an id", shared.error())
                }
            })?;
        }
        let commits = GroupCommit::new(writer, Arc::clone(&shared));
        let queue = match &executor {
            Executor::Inline | Executor::Paced(_) => {
                Queue::Inline(InlineDriver::new(commits, executor.pace()))
            }
            Executor::Threads => {
                let (queue, jobs) = mpsc::channel(QUEUE_JOBS_MAX);
                executor
                    .spawn_thread("shiioo-log", move || drivers::serve(commits, jobs))
                    .map_err(|error| store_error("start the log's writer", error))?;
                Queue::Thread(queue)
            }
        };
        let log = Arc::new(Self { id, executor, shared, queue, is_on_small_disk });
        if is_full {
            log.found_no_room();
        }
        Ok(log)
    }

    /// Appends entries, which can be read when this returns. Calls `completion` when they are
    /// durable.
    pub async fn append(&self, group: GroupId, entries: Vec<LogEntry>, completion: Completion) {
        // Before the job is handed in: the writer finds the entry's slot there to note its
        // location.
        {
            let mut index = self.shared.index.lock();
            for entry in &entries {
                index.append(group, entry.clone());
            }
        }
        self.submit(Job { group, ops: vec![Op::Append(entries)], completion }).await;
    }

    /// Makes changes that are durable and show when this returns.
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
                    (job.completion)(Err(self.shared.error()));
                }
            }
        }
    }

    /// Notes a group's low-water mark, to be written with the next batch.
    pub fn set_low_water_mark(&self, group: GroupId, mark: LowWaterMark) {
        self.shared.low_water_marks.lock().insert(group, mark);
    }

    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Notes that files hold everything up to a position durably, to be written with the next
    /// batch, and before a low-water mark that is noted later.
    pub fn note_files(&self, part: StateMachineId, upto: Position) {
        if self.shared.index.lock().files(part) != Some(upto) {
            self.shared.files.lock().insert(part, upto);
        }
    }

    /// Tells up to where files were durable at the last report; `None` where there are no files.
    pub fn files(&self, part: StateMachineId) -> Option<Position> {
        // What is noted first: it is newer than what is written.
        let noted = self.shared.files.lock().get(&part).copied();
        noted.or_else(|| self.shared.index.lock().files(part))
    }

    /// Lists who has files.
    pub fn with_files(&self) -> BTreeSet<StateMachineId> {
        let noted: BTreeSet<StateMachineId> = self.shared.files.lock().keys().copied().collect();
        self.shared.index.lock().all_files().keys().copied().chain(noted).collect()
    }

    /// Notes durably that files are about to be removed. Called before the removal: a start that
    /// finds no files must be able to tell that they were not lost.
    ///
    /// # Errors
    /// When the log is dead or closed.
    pub async fn forget_files(&self, group: GroupId, part: StateMachineId) -> io::Result<()> {
        self.shared.files.lock().remove(&part);
        self.write(group, vec![Op::ForgetFiles(part)]).await
    }

    /// Gives up everything of a group but its vote, durably: this node has no replica of it any more. The
    /// vote stays, so that a replica that comes back cannot vote twice in one term.
    ///
    /// # Errors
    /// When the log is dead or closed.
    pub async fn leave(&self, group: GroupId) -> io::Result<()> {
        // A mark that was noted would be written behind the record that gives the entries up.
        self.shared.low_water_marks.lock().remove(&group);
        self.write(group, vec![Op::Leave(self.last(group))]).await
    }

    /// Gives where the log of a group ended when this node left it last. A replica that comes back votes
    /// for nobody who has less, until it has as much itself: it may have acknowledged that much.
    pub fn left(&self, group: GroupId) -> Option<Position> {
        self.shared.index.lock().left(group)
    }

    /// Gives the term of the entry at an index, as far as it is known.
    pub fn term_at(&self, group: GroupId, index: u64) -> Option<u64> {
        self.shared.index.lock().term_at(group, index)
    }

    /// Gives the state of a group beside its entries, as it is durable.
    pub fn state(&self, group: GroupId) -> GroupState {
        self.shared.index.lock().state(group)
    }

    /// Lists the groups that the log knows.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared.index.lock().groups().collect()
    }

    /// Gives the last entry of a group, or else the last one purged.
    pub fn last(&self, group: GroupId) -> Option<Position> {
        self.shared.index.lock().last(group)
    }

    /// Reads the entries with `from <= index < to` that are there, in order.
    ///
    /// # Errors
    /// When one cannot be read or is damaged.
    pub async fn read(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
    ) -> Result<Vec<LogEntry>, StoreError> {
        let found = self.shared.index.lock().find(group, from, to);
        self.load(found).await
    }

    /// Reads the first entries with `from <= index < to` that are there, in order: so many that
    /// their records hold `bytes` or a little more, and at least one where there is one.
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
        let found = self.shared.index.lock().find_some(group, from, to, bytes);
        self.load(found).await
    }

    /// Counts the bytes of the records of a group's entries with `from <= index < to`.
    pub fn bytes_between(&self, group: GroupId, from: u64, to: u64) -> u64 {
        self.shared.index.lock().bytes_between(group, from, to)
    }

    /// Counts the segments from the one with the first entry of a group to the newest.
    pub fn segments_from(&self, group: GroupId) -> usize {
        self.shared.index.lock().segments_from(group)
    }

    /// Tells whether entries of a group up to an index keep a segment that nothing is written to any more.
    pub fn keeps_old_segment(&self, group: GroupId, upto: u64) -> bool {
        self.shared.index.lock().keeps_old_segment(group, upto)
    }

    /// Tells whether the disk is so small that the segments are shorter than elsewhere.
    pub const fn is_on_small_disk(&self) -> bool {
        self.is_on_small_disk
    }

    async fn load(&self, found: Vec<FoundEntry>) -> Result<Vec<LogEntry>, StoreError> {
        // The usual case needs no thread: what is replicated or applied now was appended just
        // before.
        if found.iter().all(|found| matches!(found, FoundEntry::Cached(_))) {
            return load(found);
        }
        self.executor.run(move || load(found)).await
    }

    #[cfg(test)]
    pub fn segment_count(&self) -> usize {
        self.shared.index.lock().segment_count()
    }

    /// Changes when another segment is begun.
    pub fn rolled(&self) -> watch::Receiver<u32> {
        self.shared.rolled.subscribe()
    }

    /// Tells whether the disk has no room, so that what is handed in waits.
    pub fn is_full(&self) -> bool {
        self.shared.is_full()
    }

    /// Tells whether a command that makes room is written, though the disk is full: from the reserve, as long as
    /// that has more than votes need and no larger batch waits before it.
    pub fn takes_what_makes_room(&self) -> bool {
        self.shared.takes_what_makes_room()
    }

    /// Takes note of a disk without room, also where the log itself has not met that yet. The
    /// writer then looks for room again and again.
    pub fn found_no_room(&self) {
        self.shared.set_full(true);
        let look = Job { group: GroupId::SYSTEM, ops: Vec::new(), completion: Box::new(drop) };
        match &self.queue {
            Queue::Inline(inline) => inline.submit(look),
            // A queue that takes no more jobs is being worked off, and the writer looks at its end.
            Queue::Thread(queue) => drop(queue.try_send(look)),
        }
    }

    /// Holds the reason once the log is dead.
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// Lets a batch that finds no room fail from now on, so that it does not hold up the node's
    /// end.
    pub fn give_up_when_full(&self) {
        self.shared.set_closing();
    }

    /// Writes what waits, low-water marks too, and takes nothing more.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn close(&self) -> io::Result<()> {
        self.give_up_when_full();
        self.write(GroupId::SYSTEM, vec![Op::Close]).await
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("executor", &self.executor).finish_non_exhaustive()
    }
}

//! The queue between a group's apply loop and the actor that owns a replica.
//!
//! Invariants:
//! - what waits in memory is bounded in entries and in bytes, for each replica and for all replicas
//!   that share a [`QueueBytes`]: an entry that finds no room is let go, and read from the log instead;
//! - no replica takes more of the shared room than it leaves to others;
//! - from the first entry that was let go until the next [`ApplyQueue::take`] all entries are let go:
//!   what is in memory is a prefix of what was delivered, and the log has the rest;
//! - the proposer of an entry that was let go is told its outcome all the same: the reply is kept.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::domain::codec;
use crate::domain::ids::Position;
use crate::domain::time::{Pause, Timestamp};
use crate::ports::{CommittedEntry, Payload, Reply};
use crate::state::AGE_STEP_MS_MAX;

/// Entries that wait in memory for one replica. A replica further behind reads the log instead.
const QUEUE_ENTRIES_MAX: usize = 4096;

/// Bytes of encoded entries that wait in memory for one replica.
const QUEUE_BYTES_MAX: usize = 8 << 20;

/// Bytes of encoded entries that wait in memory for all replicas that share a budget.
const QUEUES_BYTES_MAX: usize = 64 << 20;

/// Counts the bytes that the queues of many replicas hold together.
#[derive(Debug, Default)]
pub struct QueueBytes(AtomicUsize);

impl QueueBytes {
    /// Takes `bytes` for a queue that holds `own` bytes. The queue has to leave as much room as it then
    /// holds: however many replicas have stalled, the next one finds room.
    fn take(&self, own: usize, bytes: usize) -> bool {
        let taken = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            let left = QUEUES_BYTES_MAX.checked_sub(held.checked_add(bytes)?)?;
            (own.saturating_add(bytes) <= left).then_some(held + bytes)
        });
        taken.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Holds the entries that were delivered to a replica and that its actor has not taken yet.
#[derive(Default)]
pub struct ApplyQueue {
    inner: Mutex<Inner>,
    shared: Arc<QueueBytes>,
    /// Whether others need the descriptors of the replica's files.
    files_wanted: AtomicBool,
}

#[derive(Default)]
struct Inner {
    entries: VecDeque<CommittedEntry>,
    /// Bytes of `entries`.
    bytes: usize,
    /// Whether entries after `entries` were let go. The log has them, up to `last`.
    overflowed: bool,
    /// Replies to the proposers of entries that were let go, by index.
    asking: VecDeque<(u64, Reply)>,
    /// The last entry delivered, kept or not.
    last: Option<Position>,
    /// The last entry that an actor has taken. An actor that dies takes it with it: its successor
    /// reads up to here from the log.
    taken: Option<Position>,
    wake: Option<Box<dyn Fn() + Send>>,
    /// The time in the last command delivered, and when it was delivered by the monotonic clock.
    heard: Option<(Timestamp, Instant)>,
}

/// Carries what a replica takes out of its queue.
#[derive(Debug, Default)]
pub struct Batch {
    /// Entries, in order.
    pub entries: VecDeque<CommittedEntry>,
    /// The index up to which the log is to be read after `entries`, when the queue has overflowed.
    pub then_replay_to: Option<u64>,
    /// Replies to the proposers of what is read from the log, by index, in order.
    pub asking: VecDeque<(u64, Reply)>,
    /// The room that `entries` take among the queues. Held until they have been applied.
    pub room: Room,
}

/// Gives room among the queues back when it is dropped.
#[derive(Debug, Default)]
pub struct Room {
    shared: Arc<QueueBytes>,
    bytes: usize,
}

impl Room {
    /// Bytes of the encoded entries.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.shared.give_back(self.bytes);
    }
}

impl ApplyQueue {
    /// Makes a queue that shares its room with the queues of other replicas.
    pub fn sharing(shared: Arc<QueueBytes>) -> Self {
        Self { inner: Mutex::default(), shared, files_wanted: AtomicBool::new(false) }
    }

    /// Sets the function that is called when an entry comes into a queue that was empty.
    pub fn set_wake(&self, wake: impl Fn() + Send + 'static) {
        self.lock().wake = Some(Box::new(wake));
    }

    /// Adds an entry. Never blocks for long and never fails.
    pub fn push(&self, entry: CommittedEntry) {
        let bytes = match &entry.payload {
            Payload::Command(envelope) => codec::encoded_len(envelope.as_ref()),
            Payload::NewTerm => 0,
        };
        let mut inner = self.lock();
        let idle = inner.entries.is_empty() && !inner.overflowed;
        inner.last = Some(entry.position);
        if let Payload::Command(envelope) = &entry.payload {
            inner.heard = Some((envelope.at, Instant::now()));
        }
        // A queue takes one entry whatever its size: else a replica would read the log for each
        // large entry, also when it is not behind.
        let has_room = inner.entries.len() < QUEUE_ENTRIES_MAX
            && (inner.entries.is_empty() || inner.bytes + bytes <= QUEUE_BYTES_MAX);
        if !inner.overflowed && has_room && self.shared.take(inner.bytes, bytes) {
            inner.bytes += bytes;
            inner.entries.push_back(entry);
        } else {
            inner.overflowed = true;
            let index = entry.position.index;
            inner.asking.extend(entry.reply.map(|reply| (index, reply)));
        }
        // Under the lock, after the entry is in: an actor that goes to sleep looks at the queue after it
        // has said so, and sees the entry, or this call sees that it sleeps. Only the first entry
        // wakes: an actor that has been woken takes everything.
        if idle && let Some(wake) = &inner.wake {
            wake();
        }
    }

    /// Takes everything, in one step: entries that come from now on wake the replica again.
    pub fn take(&self) -> Batch {
        let mut inner = self.lock();
        let overflowed = std::mem::take(&mut inner.overflowed);
        // Noted before the entries are applied: an actor that dies with them leaves this behind.
        inner.taken = inner.last;
        let bytes = std::mem::take(&mut inner.bytes);
        Batch {
            entries: std::mem::take(&mut inner.entries),
            then_replay_to: inner.last.filter(|_| overflowed).map(|last| last.index),
            asking: std::mem::take(&mut inner.asking),
            room: Room { shared: Arc::clone(&self.shared), bytes },
        }
    }

    /// Tells whether an entry that waits in memory matches `wanted`.
    pub fn holds(&self, wanted: impl Fn(&Payload) -> bool) -> bool {
        self.lock().entries.iter().any(|entry| wanted(&entry.payload))
    }

    /// Drops the replies of all entries that wait, because nobody will apply them soon. Their
    /// proposers learn that the outcome is unknown.
    pub fn forget_proposers(&self) {
        let mut inner = self.lock();
        let mut forgotten: Vec<_> = inner.asking.drain(..).map(|(_, reply)| reply).collect();
        forgotten.extend(inner.entries.iter_mut().filter_map(|entry| entry.reply.take()));
        // A reply that is dropped runs its proposer's code: not under the lock.
        drop(inner);
        drop(forgotten);
    }

    /// Tells whether there is something to take.
    pub fn has_work(&self) -> bool {
        let inner = self.lock();
        !inner.entries.is_empty() || inner.overflowed
    }

    /// Returns the index up to which a replica that starts again has to read the log first: an earlier
    /// actor took those entries, and may have died with them. `None` at the first start in this
    /// process: the group delivers whatever the files may lack.
    pub fn taken_up_to(&self) -> Option<u64> {
        self.lock().taken.map(|taken| taken.index)
    }

    /// Asks the replica to close its files as soon as it can, because others need the descriptors.
    pub fn want_files(&self) {
        // Before the wake-up, which makes the actor look.
        self.files_wanted.store(true, Ordering::Release);
        if let Some(wake) = &self.lock().wake {
            wake();
        }
    }

    /// Tells whether others need the descriptors of the files.
    pub fn are_files_wanted(&self) -> bool {
        self.files_wanted.load(Ordering::Acquire)
    }

    /// Notes that the files are closed, or about to be closed.
    pub fn files_given_up(&self) {
        self.files_wanted.store(false, Ordering::Release);
    }

    /// Measures how long no command was delivered. `None` where that is no longer than the replica
    /// believes by itself.
    pub fn pause(&self) -> Option<Pause> {
        let (since, heard) = self.lock().heard?;
        let ms = u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX);
        (ms > AGE_STEP_MS_MAX).then_some(Pause { since, ms })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave the queue half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ApplyQueue {
    fn drop(&mut self) {
        let bytes = self.lock().bytes;
        self.shared.give_back(bytes);
    }
}

impl fmt::Debug for ApplyQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        let (entries, bytes, overflowed) = (inner.entries.len(), inner.bytes, inner.overflowed);
        write!(f, "ApplyQueue({entries} entries, {bytes} bytes, overflowed: {overflowed})")
    }
}

impl fmt::Debug for CommittedEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CommittedEntry({})", self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::command::{
        COMMAND_VERSION, CancelRun, Command, Envelope, MemberOffline, Outcome, SystemCommand,
        TenantCommand,
    };
    use crate::domain::ids::{Epoch, NodeId};

    /// An entry of about `bytes` bytes, whose proposer counts in `told`.
    fn handed(index: u64, bytes: usize, told: &Arc<AtomicUsize>) -> CommittedEntry {
        let run = "10000000-0000-0000-0000-000000000000".parse().unwrap();
        let tenant = "20000000-0000-0000-0000-000000000000".parse().unwrap();
        let command = TenantCommand::CancelRun(CancelRun { run, reason: Some("x".repeat(bytes)) });
        let command = Command::Tenant { tenant, epoch: Epoch(1), command };
        let envelope = Envelope {
            version: 1,
            at: Timestamp(0),
            term: None,
            cause: None,
            rpc_id: None,
            command,
        };
        let told = Arc::clone(told);
        let reply = Reply::new(move |_| {
            told.fetch_add(1, Ordering::Relaxed);
        });
        CommittedEntry {
            position: Position { term: 1, index },
            payload: Payload::Command(Arc::new(envelope)),
            reply: Some(reply),
        }
    }

    fn held(queue: &ApplyQueue) -> usize {
        queue.shared.0.load(Ordering::Acquire)
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None, cases: 64, ..ProptestConfig::default()
        })]

        /// Whatever is pushed: the queues hold no more than their bounds, every index is either
        /// taken in order or to be read from the log, every proposer is still known, and nothing
        /// is held in the end.
        #[test]
        fn bytes_are_bounded_and_nothing_is_forgotten(
            pushes in prop::collection::vec((0_usize..3, 0_usize..3 << 20, 0_u8..8), 1..60),
        ) {
            let shared = Arc::new(QueueBytes::default());
            let queues = [(); 3].map(|()| ApplyQueue::sharing(Arc::clone(&shared)));
            let told = Arc::new(AtomicUsize::new(0));
            let mut next = [0_u64; 3];
            let mut seen = [0_u64; 3];
            let mut count = 0;
            let mut take = |at: usize, next: u64| -> Result<(), TestCaseError> {
                let batch = queues[at].take();
                for entry in batch.entries {
                    prop_assert_eq!(entry.position.index, seen[at]);
                    seen[at] += 1;
                    entry.reply.unwrap().send(Outcome::Done);
                }
                let asked: Vec<u64> = batch.asking.iter().map(|(index, _)| *index).collect();
                let unread = seen[at]..batch.then_replay_to.map_or(seen[at], |last| last + 1);
                prop_assert_eq!(asked, unread.collect::<Vec<_>>());
                seen[at] = next;
                batch.asking.into_iter().for_each(|(_, reply)| reply.send(Outcome::Done));
                Ok(())
            };
            for (at, bytes, then_take) in pushes {
                queues[at].push(handed(next[at], bytes, &told));
                next[at] += 1;
                count += 1;
                prop_assert!(queues[at].lock().bytes <= QUEUE_BYTES_MAX);
                if then_take == 0 {
                    take(at, next[at])?;
                }
            }
            for (at, next) in next.into_iter().enumerate() {
                take(at, next)?;
            }
            prop_assert_eq!(told.load(Ordering::Relaxed), count);
            prop_assert_eq!(held(&queues[0]), 0);
        }
    }

    #[test]
    fn all_queues_together_are_bounded_too() {
        let shared = Arc::new(QueueBytes::default());
        let told = Arc::new(AtomicUsize::new(0));
        let queues: Vec<_> = (0..20).map(|_| ApplyQueue::sharing(Arc::clone(&shared))).collect();
        for queue in &queues {
            for index in 0..8 {
                queue.push(handed(index, 1 << 20, &told));
            }
        }
        assert!(held(&queues[0]) <= QUEUES_BYTES_MAX);
        assert!(queues.iter().all(ApplyQueue::has_work), "who found no room reads the log");
        drop(queues);
        assert_eq!(shared.0.load(Ordering::Acquire), 0, "a queue that goes gives its room back");
    }

    #[test]
    fn stalled_replicas_leave_room_to_a_healthy_one() {
        let shared = Arc::new(QueueBytes::default());
        let told = Arc::new(AtomicUsize::new(0));
        let stalled: Vec<_> = (0..12).map(|_| ApplyQueue::sharing(Arc::clone(&shared))).collect();
        for queue in &stalled {
            for index in 0..16 {
                queue.push(handed(index, 1 << 19, &told));
            }
        }
        let healthy = ApplyQueue::sharing(shared);
        for index in 0..64 {
            healthy.push(handed(index, 1 << 12, &told));
        }
        let batch = healthy.take();
        assert_eq!((batch.entries.len(), batch.then_replay_to), (64, None));
    }

    #[test]
    fn a_single_entry_is_taken_whatever_its_size() {
        let queue = ApplyQueue::default();
        queue.push(handed(0, QUEUE_BYTES_MAX + 1, &Arc::default()));
        assert_eq!(queue.take().entries.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_pause_is_told_from_the_last_command_on() {
        let queue = ApplyQueue::default();
        let push = |payload| {
            let position = Position { term: 1, index: 1 };
            queue.push(CommittedEntry { position, payload, reply: None });
        };
        tokio::time::advance(Duration::from_secs(90_000)).await;
        assert_eq!(queue.pause(), None, "nobody watched from a beginning");
        let node = NodeId::from_uuid(uuid::Uuid::nil());
        push(Payload::Command(Arc::new(Envelope {
            version: COMMAND_VERSION,
            at: Timestamp(7),
            term: None,
            cause: None,
            rpc_id: None,
            command: Command::System(SystemCommand::MemberOffline(MemberOffline { node })),
        })));
        tokio::time::advance(Duration::from_millis(AGE_STEP_MS_MAX)).await;
        assert_eq!(queue.pause(), None, "so much it believes by itself");
        push(Payload::NewTerm);
        tokio::time::advance(Duration::from_millis(1)).await;
        let pause = Pause { since: Timestamp(7), ms: AGE_STEP_MS_MAX + 1 };
        assert_eq!(queue.pause(), Some(pause));
    }
}

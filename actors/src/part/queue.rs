//! The queue between a group's apply loop and a part's actor.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::{AGE_STEP_MS_MAX, Pause};
use crate::ids::Position;
use crate::ports::{Handed, Payload};
use crate::seams::Timestamp;

/// Entries that wait in memory for one part. A part further behind reads the log instead.
const QUEUE_ENTRIES_MAX: usize = 4096;

/// Entries handed to a part that it has not taken yet.
#[derive(Default)]
pub struct PartQueue(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    entries: VecDeque<Handed>,
    /// Entries after those in the queue were let go: they are in the log, up to `last`.
    overflowed: bool,
    /// The last entry handed over, kept or not.
    last: Option<Position>,
    /// The last entry that an actor of this part is responsible for.
    taken: Option<Position>,
    wake: Option<Box<dyn Fn() + Send>>,
    /// The time in the last command handed over, and when that was by the monotonic clock.
    heard: Option<(Timestamp, Instant)>,
}

/// What a part takes out of its queue.
#[derive(Debug, Default)]
pub struct Batch {
    /// Entries, in order.
    pub entries: VecDeque<Handed>,
    /// After `entries`, read the log up to this index: the queue had overflowed.
    pub then_replay_to: Option<u64>,
}

impl PartQueue {
    /// Sets what is called whenever the queue has something new for a part that had taken all.
    pub fn set_wake(&self, wake: impl Fn() + Send + 'static) {
        self.lock().wake = Some(Box::new(wake));
    }

    /// Adds an entry. Never blocks for long and never fails.
    pub fn push(&self, entry: Handed) {
        let mut inner = self.lock();
        let idle = inner.entries.is_empty() && !inner.overflowed;
        inner.last = Some(entry.position);
        if let Payload::Command(envelope) = &entry.payload {
            inner.heard = Some((envelope.at, Instant::now()));
        }
        if inner.overflowed || inner.entries.len() >= QUEUE_ENTRIES_MAX {
            inner.overflowed = true;
        } else {
            inner.entries.push_back(entry);
        }
        if idle && let Some(wake) = &inner.wake {
            wake();
        }
    }

    /// Takes everything.
    pub fn take(&self) -> Batch {
        let mut inner = self.lock();
        let overflowed = std::mem::take(&mut inner.overflowed);
        inner.taken = inner.last;
        Batch {
            entries: std::mem::take(&mut inner.entries),
            then_replay_to: inner.last.filter(|_| overflowed).map(|last| last.index),
        }
    }

    /// Whether there is something to take.
    pub fn has_work(&self) -> bool {
        let inner = self.lock();
        !inner.entries.is_empty() || inner.overflowed
    }

    /// The index up to which a part that starts anew has to read the log first: what an actor
    /// before it took, and may have died with. Nothing at the first start on this node: what was
    /// not handed over since is in the part's files.
    pub fn taken_up_to(&self) -> Option<u64> {
        self.lock().taken.map(|taken| taken.index)
    }

    /// How long nothing has come, where that is longer than the part believes by itself.
    pub fn pause(&self) -> Option<Pause> {
        let (since, heard) = self.lock().heard?;
        let ms = u64::try_from(heard.elapsed().as_millis()).unwrap_or(u64::MAX);
        (ms > AGE_STEP_MS_MAX).then_some(Pause { since, ms })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave the queue half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for PartQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        write!(f, "PartQueue({} entries, overflowed: {})", inner.entries.len(), inner.overflowed)
    }
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handed({})", self.position)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::command::{COMMAND_VERSION, Command, Envelope, SystemCommand};
    use crate::ids::NodeId;

    #[tokio::test(start_paused = true)]
    async fn a_long_pause_is_told_from_the_last_command_on() {
        let queue = PartQueue::default();
        let push = |payload| {
            let position = Position { term: 1, index: 1 };
            queue.push(Handed { position, payload, reply: None });
        };
        tokio::time::advance(Duration::from_secs(90_000)).await;
        assert_eq!(queue.pause(), None, "nobody watched from a beginning");
        let node = NodeId::from_uuid(uuid::Uuid::nil());
        push(Payload::Command(Arc::new(Envelope {
            version: COMMAND_VERSION,
            at: Timestamp(7),
            term: None,
            cause: None,
            origin: None,
            command: Command::System(SystemCommand::MemberOffline { node }),
        })));
        tokio::time::advance(Duration::from_millis(AGE_STEP_MS_MAX)).await;
        assert_eq!(queue.pause(), None, "so much it believes by itself");
        push(Payload::NewTerm);
        tokio::time::advance(Duration::from_millis(1)).await;
        let pause = Pause { since: Timestamp(7), ms: AGE_STEP_MS_MAX + 1 };
        assert_eq!(queue.pause(), Some(pause));
    }
}

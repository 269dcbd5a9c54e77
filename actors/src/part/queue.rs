//! The queue between a group's apply loop and a part's actor.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ids::Position;
use crate::ports::{Handed, Payload};

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

    /// Whether an entry that waits in memory is one of these.
    pub fn holds(&self, wanted: impl Fn(&Payload) -> bool) -> bool {
        self.lock().entries.iter().any(|entry| wanted(&entry.payload))
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

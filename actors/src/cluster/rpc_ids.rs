//! Names this node's requests, so that one that is sent twice is done once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::command::Origin;
use crate::ports::seams::Seams;

/// The requests of one life of this node that are under way.
///
/// Long polls are counted apart: else one that waits for minutes would keep the outcomes of all
/// that came after it.
#[derive(Debug)]
pub struct Origins {
    quick: Arc<Sequence>,
    long: Arc<Sequence>,
}

/// Requests that are counted together.
#[derive(Debug)]
struct Sequence {
    incarnation: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    under_way: BTreeSet<u64>,
}

/// A request under way. It is answered, and not asked again, when this is dropped.
#[derive(Debug)]
pub struct UnderWay {
    origins: Arc<Sequence>,
    sequence: u64,
}

impl Origins {
    /// A new life.
    pub fn new(seams: &Seams) -> Self {
        let sequence = || {
            let mut bytes = [0; 8];
            seams.entropy.fill(&mut bytes);
            Arc::new(Sequence { incarnation: u64::from_le_bytes(bytes), inner: Mutex::default() })
        };
        Self { quick: sequence(), long: sequence() }
    }

    /// Begins a request, a long poll or not.
    pub fn begin(&self, is_long: bool) -> UnderWay {
        if is_long { self.long.begin() } else { self.quick.begin() }
    }
}

impl Sequence {
    fn begin(self: &Arc<Self>) -> UnderWay {
        let mut inner = self.lock();
        let sequence = inner.next;
        inner.next += 1;
        inner.under_way.insert(sequence);
        UnderWay { origins: Arc::clone(self), sequence }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnderWay {
    /// The name of the request, for an attempt that is sent now.
    pub fn origin(&self) -> Origin {
        let inner = self.origins.lock();
        Origin {
            incarnation: self.origins.incarnation,
            sequence: self.sequence,
            answered_below: inner.under_way.first().copied().unwrap_or(inner.next),
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.origins.lock().under_way.remove(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Ones;

    impl crate::ports::seams::Entropy for Ones {
        fn fill(&self, buffer: &mut [u8]) {
            buffer.fill(1);
        }
    }

    #[derive(Debug)]
    struct Never;

    impl crate::ports::seams::Clock for Never {
        fn now(&self) -> crate::domain::time::Timestamp {
            crate::domain::time::Timestamp(0)
        }
    }

    #[test]
    fn what_is_answered_is_told_with_the_next_request() {
        let seams = Seams { clock: Arc::new(Never), entropy: Arc::new(Ones) };
        let origins = Origins::new(&seams);
        let (first, second) = (origins.begin(false), origins.begin(false));
        assert_eq!((second.origin().sequence, second.origin().answered_below), (1, 0));
        let poll = origins.begin(true);
        drop(first);
        assert_eq!(second.origin().answered_below, 1);
        drop(second);
        assert_eq!(origins.begin(false).origin().answered_below, 2);
        assert_eq!(poll.origin().answered_below, 0);
    }
}

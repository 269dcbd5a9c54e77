//! Names this node's requests, so that one that is sent twice is done once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::command::Origin;
use crate::seams::Seams;

/// The requests of one life of this node that are under way.
#[derive(Debug)]
pub struct Origins {
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
    origins: Arc<Origins>,
    sequence: u64,
}

impl Origins {
    /// A new life.
    pub fn new(seams: &Seams) -> Self {
        let mut bytes = [0; 8];
        seams.entropy.fill(&mut bytes);
        Self { incarnation: u64::from_le_bytes(bytes), inner: Mutex::default() }
    }

    /// Begins a request.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
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

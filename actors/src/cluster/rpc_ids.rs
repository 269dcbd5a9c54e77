//! Names this node's requests, so that one that is sent twice is done once.
//!
//! The problem: a request whose answer is lost is sent again, perhaps to another leader. The state
//! machine that does it has to know that it is the same, and must not keep what it knows for ever
//! (`state/tables/completion_records.rs`).
//!
//! The protocol: a request is under way from [`RpcIdSource::begin`] until its [`InFlight`] is
//! dropped, because its client has an answer or has gone. All its attempts carry one sequence. Each
//! also carries the lowest sequence that is under way *at that moment*, so the name is made anew
//! for each attempt: what was answered since the last one lets the state machines forget more.
//!
//! Invariants:
//! - a sequence is given once in an incarnation, and an incarnation is drawn by chance at each
//!   start;
//! - a request that may be sent again is never below the `first_incomplete` that this node tells.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::command::RpcId;
use crate::ports::seams::Seams;

/// The requests of one incarnation of this node that are under way.
///
/// Long polls are counted apart: else one that waits for minutes would keep the outcomes of all
/// that came after it.
#[derive(Debug)]
pub struct RpcIdSource {
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
    in_flight: BTreeSet<u64>,
}

/// A request under way. It is answered, and not asked again, when this is dropped.
#[derive(Debug)]
pub struct InFlight {
    rpc_ids: Arc<Sequence>,
    sequence: u64,
}

impl RpcIdSource {
    /// A new incarnation.
    pub fn new(seams: &Seams) -> Self {
        let sequence = || {
            let mut bytes = [0; 8];
            seams.entropy.fill(&mut bytes);
            Arc::new(Sequence { incarnation: u64::from_le_bytes(bytes), inner: Mutex::default() })
        };
        Self { quick: sequence(), long: sequence() }
    }

    /// Begins a request, a long poll or not.
    pub fn begin(&self, is_long: bool) -> InFlight {
        if is_long { self.long.begin() } else { self.quick.begin() }
    }
}

impl Sequence {
    fn begin(self: &Arc<Self>) -> InFlight {
        let mut inner = self.lock();
        let sequence = inner.next;
        inner.next += 1;
        inner.in_flight.insert(sequence);
        InFlight { rpc_ids: Arc::clone(self), sequence }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InFlight {
    /// The name of the request, for an attempt that is sent now.
    pub fn rpc_id(&self) -> RpcId {
        let inner = self.rpc_ids.lock();
        RpcId {
            incarnation: self.rpc_ids.incarnation,
            sequence: self.sequence,
            first_incomplete: inner.in_flight.first().copied().unwrap_or(inner.next),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.rpc_ids.lock().in_flight.remove(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;
    use crate::testing::fixed_seams;

    #[test]
    fn what_is_answered_is_told_with_the_next_request() {
        let rpc_ids = RpcIdSource::new(&fixed_seams(Timestamp(0)));
        let (first, second) = (rpc_ids.begin(false), rpc_ids.begin(false));
        assert_eq!((second.rpc_id().sequence, second.rpc_id().first_incomplete), (1, 0));
        let poll = rpc_ids.begin(true);
        drop(first);
        assert_eq!(second.rpc_id().first_incomplete, 1);
        drop(second);
        assert_eq!(rpc_ids.begin(false).rpc_id().first_incomplete, 2);
        assert_eq!(poll.rpc_id().first_incomplete, 0);
    }
}

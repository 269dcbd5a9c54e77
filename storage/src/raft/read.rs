//! Linearizable reads, by read index.
//!
//! The leader takes its commit index and confirms with a round of heartbeats that it still leads.
//! The reader waits until everything up to that index has been delivered to the replica that it
//! reads.
//!
//! Invariants:
//! - A read relies on a round that began after the read was asked for, never on an earlier one.
//! - At most one round is under way. Reads that come meanwhile share the next.
//! - A lease is never trusted.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{LinearizableReadError, RaftError};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::ProposeError;

use super::group::Group;
use super::wire::{RequestBody, Response};

/// How long a read waits for this node to catch up with the index it was told.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);

type Confirmed = Result<u64, ProposeError>;

/// The rounds of heartbeats of one group.
#[derive(Debug)]
pub(crate) struct ReadRounds {
    begun: AtomicU64,
    /// The number of the last round that ended, and its result. Held while a round is under way.
    last: tokio::sync::Mutex<(u64, Confirmed)>,
}

impl Default for ReadRounds {
    fn default() -> Self {
        let none = (0, Err(ProposeError::NoLeader));
        Self { begun: AtomicU64::new(0), last: tokio::sync::Mutex::new(none) }
    }
}

impl Group {
    /// Returns once everything that was committed before the call has been delivered here.
    pub async fn read_index(&self) -> Result<(), ProposeError> {
        if mutants::is(Mutant::NoReadIndex) {
            return Ok(());
        }
        let leader = self.raft().metrics().borrow_watched().current_leader;
        let index = match leader {
            Some(leader) if leader == self.raft_id() => self.confirmed_index().await?,
            Some(leader) => self.index_of(leader).await?,
            None => return Err(ProposeError::NoLeader),
        };
        // Biased: what is delivered can be read, also when the group ends at this moment or the time
        // is just up.
        tokio::select! {
            biased;
            () = self.progress().delivered_at_least(index) => Ok(()),
            () = self.ended() => Err(ProposeError::Stopping),
            () = tokio::time::sleep(CATCH_UP_MAX) => Err(ProposeError::NoLeader),
        }
    }

    /// Gives the index that a read asked for by now has to wait for, if this node leads.
    pub async fn confirmed_index(&self) -> Confirmed {
        let rounds = self.read_rounds();
        // Before the lock: rounds that have begun by now may have missed a write that this read
        // must see.
        let asked_after = rounds.begun.load(Ordering::SeqCst);
        let mut last = rounds.last.lock().await;
        // While this call waited for the lock, one of those that waited with it may have run a
        // round that began after all of them were asked.
        if last.0 <= asked_after {
            let round = rounds.begun.fetch_add(1, Ordering::SeqCst) + 1;
            *last = (round, self.round().await);
        }
        last.1.clone()
    }

    async fn round(&self) -> Confirmed {
        if mutants::is(Mutant::NoReadRound) {
            let committed = self.raft().metrics().borrow_watched().local_committed;
            return Ok(committed.map_or(0, |committed| committed.index()));
        }
        let _urgent = self.network().hurry();
        match self.raft().get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(self.not_here(&forward))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ProposeError::NoLeader)
            }
            Err(RaftError::Fatal(_)) => Err(ProposeError::Stopping),
        }
    }

    /// Asks another node for the index. Whatever goes wrong, nothing was done, and the leader that
    /// was known does not lead as far as this node can tell.
    async fn index_of(&self, leader: RaftId) -> Confirmed {
        // A round takes as long as the lease at most; twice that leaves time for the way.
        let time = Duration::from_millis(self.raft().config().election_timeout_max) * 2;
        match self.network().replica(leader).call(RequestBody::ReadIndex, time).await {
            Ok(Response::ReadIndex(Some(index))) => Ok(index),
            Ok(_) => Err(ProposeError::NoLeader),
            Err(error) => {
                tracing::debug!(group = %self.id(), %error, "no read index");
                Err(ProposeError::NoLeader)
            }
        }
    }
}

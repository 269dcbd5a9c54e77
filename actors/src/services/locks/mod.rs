//! The lock manager: waiters and leases of the lock tables that this node leads.
//!
//! A lock lives in two places. The *lock table* (`state/tables/lock_table.rs`) is replicated: it says who
//! holds a key, under which fencing token, and it knows no time. The *lock manager* is the leader's own,
//! in memory: it knows who waits, and when a lease is over. It decides only *when* a command is
//! proposed; the table decides what the command comes to. A manager that is wrong, late or gone can
//! therefore make a client wait, and can never give a lock to two.
//!
//! One manager serves all tables of a node: the cluster's own and those of the tenants ([`Space`]).
//!
//! # Waiters
//!
//! A request for a held lock may wait. It stands in the queue of its key, ordered by the moment at which
//! the *client* began to wait, on whatever node: a request that is sent again to a new leader does not
//! lose its place. When the key is freed the manager takes the first waiter out and proposes its
//! `Acquire`. Until that attempt has an outcome the key looks free in the table and is spoken for here,
//! so that a newcomer queues behind, or is told who is next; nobody barges past a queue.
//!
//! An attempt is an ordinary command and may lose, for example to a request that another node took in
//! while it still believed that it led. Then the waiter goes back to its place. Waiters are not
//! replicated: a new leader begins with empty queues, and clients ask again (decision 2).
//!
//! # Leases
//!
//! A lease is measured by the monotonic clock of the leader, and by no other. It begins here when the
//! grant has been *applied*, which is later than when the holder asked for it. So the leader never
//! ends a lease on which its holder, by its own clock, may still count.
//!
//! When a lease is over the manager proposes `Expire` with the token and the number of the renewal that
//! it has seen. If a renewal came into the log first, its number differs and the expiry does nothing.
//! The log alone decides which was first: a renewal is proposed even if the timer here has fired,
//! because this node may lose the lead before the expiry counts.
//!
//! A new leader cannot know how much of a lease has passed, as its clock is another. It gives every lock
//! a full lease again. A lease may so last longer than was asked for, and never less. The table's
//! `expires_at` is then too early, since only a renewal changes it: what clients are shown is the end of
//! the lease that the leader measures. A node that does not lead shows the table's.
//!
//! # Giving back
//!
//! A client may go away while its attempt is under way. The lock is then granted to nobody who knows of
//! it, and would be held for a whole lease. The manager gives it back at once, by an *expiry* of exactly
//! this grant and not by a release: if the same holder has asked again meanwhile, its renewal counts
//! and the expiry does nothing. A grant that is itself a renewal is never given back, because the holder
//! may have been told of an earlier one.
//!
//! # Invariants
//!
//! - Grants, renewals and expiries are replicated commands; the manager never changes a table.
//! - The leader never ends a lease on which its holder may still count.
//! - For each key at most one waiter's attempt is under way, and waiters are served in the order in
//!   which their clients began to wait.
//! - A request that has left the queues is answered, or its attempt is under way.
//! - A node that does not lead a space knows no lease and no waiter of it.
//!
//! # Not done
//!
//! Waiters have no share for each tenant: one number bounds those of all keys and tenants of a node
//! (`WAITERS_MAX`).

mod actor;
#[cfg(test)]
mod actor_tests;
mod message;
mod state;
#[cfg(test)]
mod tests;

use std::time::Duration;

use ractor::ActorRef;
use tokio::time::Instant;

pub use actor::{LockActor, LockArguments};
pub use message::{AcquireRequest, LockMessage, RenewRequest};

use crate::command::{Cause, LockCommand};
use crate::domain::ids::{Epoch, GroupId, TenantId};
use crate::domain::json::Json;
use crate::domain::lock::{FencingToken, Holder, LockKey, LockView};
use crate::domain::views::Acquired;
use crate::ports::error::CallError;
use crate::services::mailbox::call;
use crate::state::tables::lock_table::LockNotice;

/// Names a lock table: whose keys they are, and the group that replicates the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    /// The tenant; `None` for the cluster's own keys.
    pub tenant: Option<(TenantId, Epoch)>,
    /// The group that replicates the table.
    pub group: GroupId,
}

impl Space {
    /// The cluster's own keys.
    pub const CLUSTER: Self = Self { tenant: None, group: GroupId::SYSTEM };

    /// Addresses a command to this table.
    pub(crate) const fn command(self, command: LockCommand) -> crate::command::Command {
        use crate::command::{Command, SystemCommand, TenantCommand};
        match self.tenant {
            None => Command::System(SystemCommand::Lock(command)),
            Some((tenant, epoch)) => {
                Command::Tenant { tenant, epoch, command: TenantCommand::Lock(command) }
            }
        }
    }
}

/// Asks the lock manager.
#[derive(Debug, Clone)]
pub struct LockManager {
    actor: ActorRef<LockMessage>,
}

impl LockManager {
    /// Makes a handle to `actor`.
    pub const fn new(actor: ActorRef<LockMessage>) -> Self {
        Self { actor }
    }

    /// Acquires a lock, or waits for it for `wait`. The client has waited for `waited` already, at
    /// other nodes.
    ///
    /// # Errors
    /// When the command had no outcome by the request's deadline.
    pub async fn acquire(
        &self,
        space: Space,
        cause: Cause,
        deadline: Instant,
        (wait, waited): (Duration, Duration),
        request: (LockKey, Holder, u64, Json),
    ) -> Result<Acquired, CallError> {
        let (key, holder, ttl_ms, metadata) = request;
        let now = Instant::now();
        let wait_until = (!wait.is_zero()).then(|| now + wait);
        // The manager answers by itself at the deadline, with more knowledge: its answer is to win.
        let give_up = deadline.max(wait_until.unwrap_or(deadline)) + message::GRACE;
        call(&self.actor, give_up, |reply| {
            LockMessage::Acquire(AcquireRequest {
                space,
                key,
                holder,
                ttl_ms,
                metadata,
                cause,
                deadline,
                wait_until,
                since: now.checked_sub(waited).unwrap_or(now),
                reply,
            })
        })
        .await?
    }

    /// Renews a lease.
    ///
    /// # Errors
    /// When the lease has ended, or the command had no outcome by `deadline`.
    pub async fn renew(
        &self,
        space: Space,
        cause: Cause,
        deadline: Instant,
        request: (LockKey, Holder, Option<FencingToken>, Option<u64>),
    ) -> Result<LockView, CallError> {
        let (key, holder, token, ttl_ms) = request;
        call(&self.actor, deadline + message::GRACE, |reply| {
            LockMessage::Renew(RenewRequest {
                space,
                key,
                holder,
                token,
                ttl_ms,
                cause,
                deadline,
                reply,
            })
        })
        .await?
    }

    /// Returns each lock as it is to be shown, and how many wait for it. Where this node leads, the end that
    /// is shown is that of the lease which it measures.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn look(
        &self,
        space: Space,
        locks: Vec<LockView>,
        deadline: Instant,
    ) -> Result<Vec<(LockView, u64)>, CallError> {
        call(&self.actor, deadline, |reply| LockMessage::Look { space, locks, reply }).await
    }

    /// Tells that a table has changed.
    pub fn notice(&self, space: Space, notice: LockNotice) {
        self.tell(LockMessage::Notice { space, notice });
    }

    /// Tells that this node leads a table now, in which `locks` are held.
    pub fn lead(&self, space: Space, locks: Vec<LockView>) {
        self.tell(LockMessage::Lead { space, locks });
    }

    /// Tells that this node does not lead a table any more.
    pub fn unlead(&self, space: Space) {
        self.tell(LockMessage::Unlead { space });
    }

    fn tell(&self, message: LockMessage) {
        if self.actor.send_message(message).is_err() {
            tracing::debug!("the lock manager has stopped");
        }
    }
}

//! The lock manager: waiters and expiry timers of the lock tables this node leads.
//!
//! Invariants:
//! - grants are replicated commands; the manager only decides *when* to propose them;
//! - a lease is measured by the leader's monotonic clock, from when the grant was applied, which is
//!   later than when the holder asked: the leader never expires a lease that the holder may still
//!   count on;
//! - who leads anew grants every lock its full lease again;
//! - waiters are served first come, first served; nobody barges past them;
//! - whether a renewal or the expiry of its lease came first is decided in the log alone: a leader
//!   whose timer has fired may lose the lead before that counts.

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
use crate::domain::lock::LockView;
use crate::domain::views::Acquired;
use crate::ports::error::CallError;
use crate::services::mailbox::call;
use crate::state::tables::lock_table::LockNotice;

/// A key space and the group that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Space {
    /// Whose; `None` is the cluster's own.
    pub tenant: Option<(TenantId, Epoch)>,
    /// The group that replicates the table.
    pub group: GroupId,
}

impl Space {
    /// The cluster's own key space.
    pub const CLUSTER: Self = Self { tenant: None, group: GroupId::SYSTEM };

    /// A command to the table of this space.
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

/// Handle to the lock manager.
#[derive(Debug, Clone)]
pub struct LockManager {
    actor: ActorRef<LockMessage>,
}

impl LockManager {
    /// A handle to `actor`.
    pub const fn new(actor: ActorRef<LockMessage>) -> Self {
        Self { actor }
    }

    /// Takes a lock, or queues for it for `wait`; the client has waited for `waited` already,
    /// elsewhere.
    ///
    /// # Errors
    /// When the command came to no outcome by the request's deadline.
    pub async fn acquire(
        &self,
        space: Space,
        cause: Cause,
        deadline: Instant,
        (wait, waited): (Duration, Duration),
        request: (String, String, u64, Json),
    ) -> Result<Acquired, CallError> {
        let (key, holder, ttl_ms, metadata) = request;
        let now = Instant::now();
        let wait_until = (!wait.is_zero()).then(|| now + wait);
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

    /// Begins a holder's lease again.
    ///
    /// # Errors
    /// When the lease has ended, or the command came to no outcome by `deadline`.
    pub async fn renew(
        &self,
        space: Space,
        cause: Cause,
        deadline: Instant,
        request: (String, String, Option<u64>, Option<u64>),
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

    /// How many wait for each of `keys`.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn waiters(
        &self,
        space: Space,
        keys: Vec<String>,
        deadline: Instant,
    ) -> Result<Vec<u64>, CallError> {
        call(&self.actor, deadline, |reply| LockMessage::Waiters { space, keys, reply }).await
    }

    /// The table changed.
    pub fn notice(&self, space: Space, notice: LockNotice) {
        self.tell(LockMessage::Notice { space, notice });
    }

    /// This node leads the space now; `locks` are held.
    pub fn lead(&self, space: Space, locks: Vec<LockView>) {
        self.tell(LockMessage::Lead { space, locks });
    }

    /// This node does not lead the space any more.
    pub fn unlead(&self, space: Space) {
        self.tell(LockMessage::Unlead { space });
    }

    fn tell(&self, message: LockMessage) {
        if self.actor.send_message(message).is_err() {
            tracing::debug!("the lock manager has stopped");
        }
    }
}

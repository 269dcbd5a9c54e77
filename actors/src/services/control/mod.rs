//! The control plane's actor: owns [`SystemState`](crate::state::system::SystemState) on this node.
//!
//! # Two groups, one truth
//!
//! A tenant is decided about in group 0 and lives in a group of its own: two logs, and no
//! transaction over both. So one of them decides and the other follows.
//!
//! ```text
//! client ── create, change, delete ──> group 0 decides: (epoch, version, record); 'unconfirmed'
//!             sync_tenant ── Set(epoch, version, record) ──> the tenant's group: takes what is newer
//!                         <── Done ─────────────────────────
//! client <── what group 0 answered to this command
//!             ConfirmTenant(version) ──> group 0: confirmed       (nobody waits for this)
//! ```
//!
//! - `Set` is idempotent: the tenant's state takes it if `(epoch, version)` is greater than what it
//!   has, and says `Done` in any case. Nothing else creates a tenant's state, and it refuses
//!   commands of another epoch.
//! - The client is answered when both groups have it, with the outcome that group 0 gave this very
//!   command. If the second does not confirm in time the answer is 'unknown', never a refusal.
//! - The leader of group 0 sends again what stays unconfirmed: every 2 s, at most 64 a look, and
//!   only what the look before found as well. What is younger is being sent by whoever changed it.
//! - Before each attempt group 0 is read linearizably. Otherwise a node that was cut off could
//!   bring back a tenant that another leader has deleted meanwhile.
//! - A deleted tenant leaves a tombstone in group 0 for ever. Where its files turn up all the same,
//!   in a copy or by a message that was under way for very long, its group is told again: each node
//!   looks every 60 s.
//!
//! # What it publishes
//!
//! For those who would otherwise ask the actor with each request: the
//! [`Directory`](crate::cluster::routing::Directory), which is a hint, as a tenant's own group
//! decides; the members, to the transport and the heartbeat monitor; the admin token. It also opens
//! the groups that are placed on this node. The members are durable before they are published: a
//! node that restarts has to know whom to ask.
//!
//! # Leading
//!
//! A node that begins to lead gives the cluster's locks to the lock manager. Unlike a tenant's
//! actor it does not wait until everything of earlier terms is applied: what is still to come tells
//! the manager of each change, and a command that was decided on an older table is decided again
//! where it is applied.
//!
//! # Invariants
//!
//! - The state changes by applied commands only; everyone else reads.
//! - What has been delivered is applied before any message is handled: a caller that has seen its
//!   command applied reads the state after it.
//! - On one node an older version of a tenant is never proposed after a newer one.
//! - While this node leads group 0, every tenant whose group lacks the newest version is sent it
//!   again until the group confirms.
//!
//! Where its files are damaged and others have replicas it begins with what the leader of group 0 sends
//! (`healing`).
//!
//! # Moves
//!
//! A tenant that changes its region moves to another group. Group 0 decides (`state/system/moves.rs`), and the node
//! that leads the tenant's present group carries it out ([`mover`]).

mod actor;
mod copying;
mod healing;
mod hindrance;
mod message;
mod mover;
mod publishing;
mod target_room;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::ActorRef;
use tokio::time::Instant;

pub use actor::{ControlActor, ControlArguments};
pub use message::{ControlCopy, ControlMessage};
pub use publishing::Removed;

use crate::cluster::routing::Router;
use crate::command::{
    Command, ConfirmTenant, Outcome, Request, SetTenant, SystemCommand, TenantCommand,
};
use crate::domain::ids::{GroupId, TenantId};
use crate::ports::Proposals;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::replica::ApplyQueue;
use crate::services::Call;
use crate::services::mailbox::{answer, call, catch_up, client_envelope, internal_envelope, until};
use crate::state::system::{SystemState, TenantEntry};

/// Wait before a tenant's group is told again in a new term of its leader.
const NEXT_TERM: Duration = Duration::from_millis(20);

/// Handle to the control plane.
#[derive(Clone)]
pub struct Control {
    actor: ActorRef<ControlMessage>,
    log: Arc<dyn Proposals>,
    router: Router,
    seams: Seams,
    tenant_turns: Arc<KeyedMutex>,
    queue: Arc<ApplyQueue>,
}

/// Tenants whose groups are being told of a new version: one at a time each, so that an older
/// version is never proposed after a newer one.
#[derive(Debug, Default)]
pub struct KeyedMutex(Mutex<BTreeMap<TenantId, Arc<tokio::sync::Mutex<()>>>>);

impl KeyedMutex {
    fn turn(&self, tenant: TenantId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(tenant).or_default())
    }

    /// Whether somebody is at it.
    fn is_under_way(&self, tenant: TenantId) -> bool {
        self.turn(tenant).try_lock().is_err()
    }
}

impl Control {
    /// A handle to `actor`.
    pub fn new(
        actor: ActorRef<ControlMessage>,
        log: Arc<dyn Proposals>,
        router: Router,
        seams: Seams,
        tenant_turns: Arc<KeyedMutex>,
        queue: Arc<ApplyQueue>,
    ) -> Self {
        Self { actor, log, router, seams, tenant_turns, queue }
    }

    /// Proposes a command that a client asked for.
    ///
    /// # Errors
    /// When it was refused, or came to no outcome by `deadline`.
    pub async fn ask<R: Request<SystemCommand>>(
        &self,
        call: &Call,
        request: R,
    ) -> Result<R::Answer, CallError> {
        if call.idempotency.is_some() {
            self.tell_pause(call).await;
        }
        let command = Command::System(request.into());
        let envelope = client_envelope(&self.seams, &call.cause, call.rpc_id, command);
        answer(until(call.deadline, self.log.propose(GroupId::SYSTEM, envelope)).await?)
    }

    /// Tells the control plane how long it was left alone, before a call whose key may have had its
    /// time. Who fails to keeps the key for longer, which does no harm.
    async fn tell_pause(&self, call: &Call) {
        let Some(pause) = self.queue.pause() else { return };
        let Some(term) = self.term_here(GroupId::SYSTEM) else { return };
        let told = self.bring_up(term, call.deadline, SystemCommand::TimePassed(pause)).await;
        tracing::debug!(?told, "told of a pause");
    }

    /// Proposes a command that the leader of `term`, this node, brings up.
    ///
    /// # Errors
    /// When it came to no outcome by `deadline`.
    pub async fn bring_up(
        &self,
        term: u64,
        deadline: Instant,
        command: SystemCommand,
    ) -> Result<Outcome, CallError> {
        let envelope = internal_envelope(&self.seams, Some(term), Command::System(command));
        until(deadline, self.log.propose(GroupId::SYSTEM, envelope)).await
    }

    /// Brings a command to whoever leads the system group. It may be applied twice.
    ///
    /// # Errors
    /// When it came to no outcome by `deadline`.
    pub async fn send(
        &self,
        deadline: Instant,
        command: SystemCommand,
    ) -> Result<Outcome, CallError> {
        let make = || {
            let envelope = internal_envelope(&self.seams, None, Command::System(command.clone()));
            std::future::ready(Ok(Some(envelope)))
        };
        let outcome = self.router.propose(GroupId::SYSTEM, deadline, make).await?;
        outcome.ok_or(CallError::NoLeader)
    }

    /// Reads the state as it is on this node.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn read<T: Send + 'static>(
        &self,
        deadline: Instant,
        read: impl FnOnce(&SystemState) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        call(&self.actor, deadline, |reply| {
            ControlMessage::Read(Box::new(move |state| {
                // Whoever asked may have gone; nobody minds.
                let _ = reply.send(read(state));
            }))
        })
        .await
    }

    /// Index of the last entry that is in the state on this node.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn applied(&self, deadline: Instant) -> Result<u64, CallError> {
        call(&self.actor, deadline, ControlMessage::Applied).await
    }

    /// Reads the state as the call wants it: linearizably, or as it is on this node.
    ///
    /// # Errors
    /// When there is no quorum, or no answer came by the deadline.
    pub async fn read_for<T: Send + 'static>(
        &self,
        call: &Call,
        read: impl FnOnce(&SystemState) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        if call.stale {
            return self.read(call.deadline, read).await;
        }
        self.read_linearizable(call.deadline, read).await
    }

    /// Reads the state, linearizably.
    ///
    /// # Errors
    /// When there is no quorum, or no answer came by `deadline`.
    pub async fn read_linearizable<T: Send + 'static>(
        &self,
        deadline: Instant,
        read: impl FnOnce(&SystemState) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        catch_up(&*self.log, GroupId::SYSTEM, deadline).await?;
        self.read(deadline, read).await
    }

    /// Brings a tenant's group up to version `version` of what group 0 says of the tenant, or to the
    /// newest one, and has group 0 remember that it did. Idempotent.
    ///
    /// # Errors
    /// When the tenant's group did not confirm by `deadline`.
    pub async fn sync_tenant(
        &self,
        tenant: TenantId,
        version: Option<u64>,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let wanted = move |entry: &TenantEntry| {
            entry.confirmed < version.unwrap_or(entry.version).min(entry.version)
        };
        self.tell_group(tenant, wanted, deadline).await
    }

    /// Tells a tenant's group again that the tenant was deleted: files of it have been found.
    ///
    /// # Errors
    /// When the tenant's group did not confirm by `deadline`.
    pub(super) async fn finish_deletion(
        &self,
        tenant: TenantId,
        deadline: Instant,
    ) -> Result<(), CallError> {
        self.tell_group(tenant, |entry| entry.record.is_none(), deadline).await
    }

    /// Tells a tenant's group what group 0 says, while that is `wanted`.
    ///
    /// Group 0 is looked at before each attempt, linearizably: an attempt that failed while this node
    /// was cut off may be followed by one that succeeds long afterwards, and must not bring back a
    /// tenant that another leader has deleted meanwhile. What is proposed here counts only in the
    /// term of the tenant's group that it is proposed in.
    async fn tell_group(
        &self,
        tenant: TenantId,
        wanted: impl Fn(&TenantEntry) -> bool + Copy + Send + 'static,
        deadline: Instant,
    ) -> Result<(), CallError> {
        let turn = self.tenant_turns.turn(tenant);
        let Ok(_turn) = tokio::time::timeout_at(deadline, turn.lock()).await else {
            return Err(CallError::DeadlineExceeded);
        };
        let told = AtomicU64::new(0);
        loop {
            let find = move |state: &SystemState| state.tenant(tenant).map(|it| it.group);
            let Some(group) = self.read(deadline, find).await? else { return Ok(()) };
            let has_moved = AtomicBool::new(false);
            let make = async || {
                let find = move |state: &SystemState| {
                    state.tenant(tenant).filter(|entry| wanted(entry)).cloned()
                };
                let Some(entry) = self.read_linearizable(deadline, find).await? else {
                    return Ok(None);
                };
                if entry.group != group {
                    has_moved.store(true, Ordering::Relaxed);
                    return Ok(None);
                }
                told.store(entry.version, Ordering::Relaxed);
                let set =
                    TenantCommand::Set(SetTenant { version: entry.version, record: entry.record });
                let command = Command::Tenant { tenant, epoch: entry.epoch, command: set };
                Ok(Some(internal_envelope(&self.seams, self.term_here(group), command)))
            };
            match self.router.propose(group, deadline, make).await? {
                None if has_moved.into_inner() => {}
                None => return Ok(()),
                // The term ended before it was proposed; or the tenant is about to move, and whichever group
                // has it then is told.
                Some(Outcome::Ignored | Outcome::Refused(_)) => {
                    let why = || "the tenant's group does not take it at the moment".to_owned();
                    if Instant::now() + NEXT_TERM >= deadline {
                        return Err(CallError::Unknown { why: why() });
                    }
                    tokio::time::sleep(NEXT_TERM).await;
                }
                Some(_) => break,
            }
        }
        // Nobody has to wait for this: if it is lost, the reconciler sends the version again.
        let confirm =
            SystemCommand::ConfirmTenant(ConfirmTenant { tenant, version: told.into_inner() });
        let control = self.clone();
        tokio::spawn(async move {
            if let Err(error) = control.send(deadline, confirm).await {
                tracing::debug!(%tenant, %error, "not confirmed, will be sent again");
            }
        });
        Ok(())
    }

    /// The term of a group that this node leads.
    fn term_here(&self, group: GroupId) -> Option<u64> {
        let leadership = self.log.leadership(group)?;
        let now = *leadership.borrow();
        now.here.then_some(now.term)
    }
}

#[cfg(test)]
mod moves_tests;
#[cfg(test)]
mod tests;

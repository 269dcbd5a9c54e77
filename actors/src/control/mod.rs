//! The control plane's actor: owns [`SystemState`](crate::system::SystemState) on this node.
//!
//! Invariants:
//! - the state changes by applied commands only; everyone else reads;
//! - what it publishes (the [`Directory`]) is a hint: a tenant's own group decides;
//! - while this node leads group 0, every tenant whose group lacks the newest version is sent it
//!   again until the group confirms.

mod actor;
mod directory;
mod message;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ractor::ActorRef;
use tokio::time::Instant;

pub use actor::{ControlActor, ControlArguments};
pub use directory::{Directory, Placed};
pub use message::ControlMessage;

use crate::command::{Command, SystemCommand, TenantCommand};
use crate::error::CallError;
use crate::handles::Call;
use crate::ids::{GroupId, TenantId};
use crate::mailbox::{asked, born, call, until};
use crate::outcome::Outcome;
use crate::ports::Ledger;
use crate::router::Router;
use crate::seams::Seams;
use crate::system::SystemState;

/// Handle to the control plane.
#[derive(Clone)]
pub struct Control {
    actor: ActorRef<ControlMessage>,
    ledger: Arc<dyn Ledger>,
    router: Router,
    seams: Seams,
    syncs: Arc<Syncs>,
}

/// Tenants whose groups are being told of a new version: one at a time each, so that an older
/// version is never proposed after a newer one.
#[derive(Debug, Default)]
pub struct Syncs(Mutex<BTreeMap<TenantId, Arc<tokio::sync::Mutex<()>>>>);

impl Syncs {
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

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Control")
    }
}

impl Control {
    /// A handle to `actor`.
    pub fn new(
        actor: ActorRef<ControlMessage>,
        ledger: Arc<dyn Ledger>,
        router: Router,
        seams: Seams,
        syncs: Arc<Syncs>,
    ) -> Self {
        Self { actor, ledger, router, seams, syncs }
    }

    /// Proposes a command that a client asked for.
    ///
    /// # Errors
    /// When it was refused, or came to no outcome by `deadline`.
    pub async fn ask(&self, call: &Call, command: SystemCommand) -> Result<Outcome, CallError> {
        let command = Command::System(command);
        let envelope = asked(&self.seams, &call.cause, call.origin, command);
        match until(call.deadline, self.ledger.propose(GroupId::SYSTEM, envelope)).await? {
            Outcome::Refused(refusal) => Err(refusal.into()),
            outcome => Ok(outcome),
        }
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
        let envelope = born(&self.seams, Some(term), Command::System(command));
        until(deadline, self.ledger.propose(GroupId::SYSTEM, envelope)).await
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
        let envelope = born(&self.seams, None, Command::System(command));
        self.router.propose(GroupId::SYSTEM, envelope, deadline).await
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
        match tokio::time::timeout_at(deadline, self.ledger.read_index(GroupId::SYSTEM)).await {
            Ok(ready) => ready?,
            Err(_) => return Err(CallError::DeadlineExceeded),
        }
        self.read(deadline, read).await
    }

    /// Brings a tenant's group up to what group 0 says of the tenant, and has group 0 remember
    /// that it did. Idempotent.
    ///
    /// # Errors
    /// When the tenant's group did not confirm by `deadline`.
    pub async fn sync_tenant(&self, tenant: TenantId, deadline: Instant) -> Result<(), CallError> {
        let turn = self.syncs.turn(tenant);
        let Ok(_turn) = tokio::time::timeout_at(deadline, turn.lock()).await else {
            return Err(CallError::DeadlineExceeded);
        };
        let entry = self.read(deadline, move |state| state.tenant(tenant).cloned()).await?;
        let Some(entry) = entry else { return Ok(()) };
        let version = entry.version;
        if entry.confirmed >= version {
            return Ok(());
        }
        let set = TenantCommand::Set { version, record: entry.record };
        let command = Command::Tenant { tenant, epoch: entry.epoch, command: set };
        let envelope = born(&self.seams, None, command);
        self.router.propose(entry.group, envelope, deadline).await?;
        // Nobody has to wait for this: if it is lost, the reconciler sends the version again.
        let confirm = SystemCommand::ConfirmTenant { tenant, version };
        let control = self.clone();
        tokio::spawn(async move {
            if let Err(error) = control.send(deadline, confirm).await {
                tracing::debug!(%tenant, %error, "not confirmed, will be sent again");
            }
        });
        Ok(())
    }
}

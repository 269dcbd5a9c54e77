//! Every tenant's place on this node, by group; and where groups hand their entries over.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use ractor::ActorRef;
use tokio::sync::{oneshot, watch};

use super::{Activation, SupervisorMessage};
use crate::command::{Command, Envelope, SetTenant, TenantCommand};
use crate::domain::ids::{GroupId, StateMachineId, TenantId};
use crate::ports::{
    ApplySink, BoxFuture, CommittedEntry, Dump, Payload, ReplicatedLog, StoreError,
};
use crate::replica::{ApplyQueue, QueueBytes};
use crate::services::control::ControlMessage;

/// Tenants of one group.
#[derive(Debug, Default)]
struct GroupTenants {
    delivered_term: Arc<AtomicU64>,
    activations: RwLock<BTreeMap<TenantId, Arc<Activation>>>,
}

/// A tenant that was put aside because it keeps failing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Which.
    pub tenant: TenantId,
    /// Why.
    pub reason: String,
    /// Bytes of its group's log that cannot be removed because of it. They are kept, however many
    /// they become: nothing else holds what it lacks.
    pub log_bytes_kept: u64,
}

/// All tenants on this node.
#[derive(Debug, Default)]
pub struct Registry {
    /// What group 0 hands to the control plane.
    pub control: Arc<ApplyQueue>,
    groups: RwLock<BTreeMap<GroupId, Arc<GroupTenants>>>,
    /// Room for what waits in the tenants' queues.
    queued: Arc<QueueBytes>,
    supervisor: OnceLock<ActorRef<SupervisorMessage>>,
    control_actor: watch::Sender<Option<ActorRef<ControlMessage>>>,
}

impl Registry {
    /// Tells who starts actors. Before the first tenant group is opened, and once.
    pub fn set_supervisor(&self, supervisor: ActorRef<SupervisorMessage>) {
        let _ = self.supervisor.set(supervisor);
    }

    /// Tells who owns the control plane's state: snapshots of group 0 go through it. Once.
    pub fn set_control(&self, control: ActorRef<ControlMessage>) {
        self.control_actor.send_replace(Some(control));
    }

    /// Asks the control plane's actor, once there is one.
    async fn ask_control<T>(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> ControlMessage,
    ) -> Result<T, StoreError> {
        let stopped = || StoreError::Io {
            what: "reach the control plane".to_owned(),
            source: Arc::new(io::ErrorKind::NotConnected.into()),
        };
        let mut actor = self.control_actor.subscribe();
        let actor = actor.wait_for(Option::is_some).await.map_err(|_| stopped())?.clone();
        let (reply, answer) = oneshot::channel();
        actor.ok_or_else(stopped)?.send_message(message(reply)).map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// The tenant's place; made when there is none. `None` before the supervisor is known.
    pub fn activation(&self, group: GroupId, tenant: TenantId) -> Option<Arc<Activation>> {
        let tenants = self.group(group);
        let known = tenants.activations.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(activation) = known.get(&tenant) {
            return Some(Arc::clone(activation));
        }
        drop(known);
        let supervisor = self.supervisor.get()?.clone();
        let mut activations = tenants.activations.write().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let (delivered_term, queued) =
                (Arc::clone(&tenants.delivered_term), Arc::clone(&self.queued));
            Activation::new(tenant, group, delivered_term, queued, supervisor)
        };
        Some(Arc::clone(activations.entry(tenant).or_insert_with(new)))
    }

    /// Every place there is.
    pub fn activations(&self) -> Vec<Arc<Activation>> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let activations = groups.values().flat_map(|group| {
            let activations = group.activations.read().unwrap_or_else(PoisonError::into_inner);
            activations.values().cloned().collect::<Vec<_>>()
        });
        activations.collect()
    }

    /// The tenants that are quarantined, and what of the log is kept for them.
    pub fn quarantined(&self, log: &dyn ReplicatedLog) -> Vec<Quarantined> {
        let told = self.activations().into_iter().filter_map(|activation| {
            let reason = activation.quarantined()?;
            let log_bytes_kept =
                log.kept_for(activation.group, StateMachineId::Tenant(activation.tenant));
            Some(Quarantined { tenant: activation.tenant, reason, log_bytes_kept })
        });
        told.collect()
    }

    fn group(&self, group: GroupId) -> Arc<GroupTenants> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenants) = groups.get(&group) {
            return Arc::clone(tenants);
        }
        drop(groups);
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(groups.entry(group).or_default())
    }

    /// A new leader's term has begun in a tenant group: those who run look whether it is theirs.
    fn begin_term(&self, group: GroupId, term: u64) {
        let tenants = self.group(group);
        tenants.delivered_term.store(term, Ordering::Release);
        let activations = tenants.activations.read().unwrap_or_else(PoisonError::into_inner);
        for activation in activations.values() {
            activation.wake_if_running();
        }
        drop(activations);
        if let Some(supervisor) = self.supervisor.get() {
            let _ = supervisor.send_message(SupervisorMessage::LookForWork(group));
        }
    }
}

impl ApplySink for Registry {
    fn deliver(&self, group: GroupId, entry: CommittedEntry) {
        let tenant = match &entry.payload {
            Payload::NewTerm if group == GroupId::SYSTEM => return,
            Payload::NewTerm => return self.begin_term(group, entry.position.term),
            Payload::Command(envelope) => match &envelope.command {
                Command::System(_) => return self.control.push(entry),
                Command::Tenant { tenant, .. } => *tenant,
            },
        };
        let Some(activation) = self.activation(group, tenant) else { return };
        let deletes = is_deletion(&entry.payload);
        activation.queue.push(entry);
        if deletes {
            activation.bury();
        }
    }

    fn refuses(&self, group: GroupId, envelope: &Envelope) -> Option<String> {
        let Command::Tenant { tenant, command, .. } = &envelope.command else { return None };
        // A deletion needs nothing of what is damaged, and has to be in the log to be done.
        if matches!(command, TenantCommand::Set(SetTenant { record: None, .. })) {
            return None;
        }
        let tenants = self.group(group);
        let activations = tenants.activations.read().unwrap_or_else(PoisonError::into_inner);
        activations.get(tenant)?.quarantined()
    }

    fn dump(&self, group: GroupId) -> BoxFuture<'_, Result<Dump, StoreError>> {
        Box::pin(async move {
            only_system(group)?;
            self.ask_control(ControlMessage::Dump).await
        })
    }

    fn install(&self, group: GroupId, dump: Dump) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            only_system(group)?;
            self.ask_control(|reply| ControlMessage::Install(dump, reply)).await
        })
    }

    fn settle(&self, group: GroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            only_system(group)?;
            self.ask_control(ControlMessage::Settle).await
        })
    }
}

/// Whether an entry ends a tenant.
pub(super) fn is_deletion(payload: &Payload) -> bool {
    let Payload::Command(envelope) = payload else { return false };
    let Command::Tenant { command, .. } = &envelope.command else { return false };
    matches!(command, TenantCommand::Set(SetTenant { record: None, .. }))
}

/// Refuses a tenant group: its snapshot would carry the control plane's rows, at a position of
/// another log.
fn only_system(group: GroupId) -> Result<(), StoreError> {
    if group == GroupId::SYSTEM {
        return Ok(());
    }
    Err(StoreError::Io {
        what: format!("snapshot of group {group}"),
        source: Arc::new(io::ErrorKind::Unsupported.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_group_0_has_snapshots() {
        let registry = Registry::default();
        let dump = Dump { position: None, rows: Vec::new() };
        assert!(registry.dump(GroupId(1)).await.is_err());
        assert!(registry.install(GroupId(1), dump).await.is_err());
    }
}

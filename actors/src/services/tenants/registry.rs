//! All activations of this node, by group, and the sink to which groups deliver their entries.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use ractor::ActorRef;
use tokio::sync::{oneshot, watch};

use super::{Activation, SupervisorMessage};
use crate::command::{Command, Envelope, SetTenant, TenantCommand};
use crate::domain::ids::{GroupId, StateMachineId, TenantId};
use crate::ports::{ApplySink, BoxFuture, CommittedEntry, Dump, Durability, Payload, StoreError};
use crate::replica::{ApplyQueue, QueueBytes};
use crate::services::control::ControlMessage;

/// Holds the tenants of one group.
#[derive(Debug, Default)]
struct GroupTenants {
    delivered_term: Arc<AtomicU64>,
    activations: RwLock<BTreeMap<TenantId, Arc<Activation>>>,
}

/// Describes a tenant that is out of service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The tenant.
    pub tenant: TenantId,
    /// Why the tenant is out of service.
    pub reason: String,
    /// Bytes of the group's log that are kept because of this tenant. Nothing else holds what its files
    /// lack, so they are kept however many they become.
    pub log_bytes_kept: u64,
}

/// Holds all tenants of this node.
#[derive(Debug, Default)]
pub struct Registry {
    /// What group 0 delivers to the control plane.
    pub control: Arc<ApplyQueue>,
    groups: RwLock<BTreeMap<GroupId, Arc<GroupTenants>>>,
    /// Room for what waits in the tenants' queues.
    queued: Arc<QueueBytes>,
    supervisor: OnceLock<ActorRef<SupervisorMessage>>,
    control_actor: watch::Sender<Option<ActorRef<ControlMessage>>>,
}

impl Registry {
    /// Sets the supervisor, which starts actors. To be called once, before the first tenant group is
    /// opened: an entry that is delivered earlier would have no place.
    pub fn set_supervisor(&self, supervisor: ActorRef<SupervisorMessage>) {
        let _ = self.supervisor.set(supervisor);
    }

    /// Sets the actor of the control plane, which makes and takes snapshots of group 0. To be called once.
    pub fn set_control(&self, control: ActorRef<ControlMessage>) {
        self.control_actor.send_replace(Some(control));
    }

    /// Asks the actor of the control plane, and waits until there is one.
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

    /// Returns the tenant's activation, and makes one where there is none. `None` before the supervisor is
    /// set.
    pub fn activation(&self, group: GroupId, tenant: TenantId) -> Option<Arc<Activation>> {
        let tenants = self.group(group);
        let known = tenants.activations.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(activation) = known.get(&tenant) {
            return Some(Arc::clone(activation));
        }
        // Between the two locks another caller may make it: `entry` looks again.
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

    /// Lists all activations.
    pub fn activations(&self) -> Vec<Arc<Activation>> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let activations = groups.values().flat_map(|group| {
            let activations = group.activations.read().unwrap_or_else(PoisonError::into_inner);
            activations.values().cloned().collect::<Vec<_>>()
        });
        activations.collect()
    }

    /// Lists the tenants that are out of service.
    pub fn quarantined(&self, log: &dyn Durability) -> Vec<Quarantined> {
        let told = self.activations().into_iter().filter_map(|activation| {
            let reason = activation.quarantined()?;
            let log_bytes_kept =
                log.kept_for(activation.group, StateMachineId::Tenant(activation.tenant));
            Some(Quarantined { tenant: activation.tenant, reason, log_bytes_kept })
        });
        told.collect()
    }

    /// Returns the tenants of a group, and begins with none where the group is new.
    fn group(&self, group: GroupId) -> Arc<GroupTenants> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenants) = groups.get(&group) {
            return Arc::clone(tenants);
        }
        drop(groups);
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(groups.entry(group).or_default())
    }

    /// Notes that a new leader's term has begun in a tenant group. Actors that run look whether this node
    /// leads it.
    fn begin_term(&self, group: GroupId, term: u64) {
        let tenants = self.group(group);
        // After everything of earlier terms is in the queues, and before the actors are woken: an actor
        // that reads the new term finds all of that in its queue.
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
        // First into the queue, then look whether the tenant is damaged. The supervisor says `Damaged` and
        // then looks into the queue: one of the two sees that both are true.
        activation.queue.push(entry);
        if deletes {
            activation.bury();
        }
    }

    fn refuses(&self, group: GroupId, envelope: &Envelope) -> Option<String> {
        let Command::Tenant { tenant, command, .. } = &envelope.command else { return None };
        // A deletion needs nothing of what is damaged, and is done only if the log has it.
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

/// Tells whether an entry deletes a tenant.
pub(super) fn is_deletion(payload: &Payload) -> bool {
    let Payload::Command(envelope) = payload else { return false };
    let Command::Tenant { command, .. } = &envelope.command else { return false };
    matches!(command, TenantCommand::Set(SetTenant { record: None, .. }))
}

/// Refuses a tenant group: its snapshot would carry the rows of the control plane, at a position of
/// another group's log.
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

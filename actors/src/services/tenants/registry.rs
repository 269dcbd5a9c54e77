//! All activations of this node, by group, and the sink to which groups deliver their entries.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak};

use ractor::ActorRef;
use tokio::sync::{mpsc, oneshot, watch};

use super::parts::unreachable;
use super::{Activation, SupervisorMessage};
use crate::cluster::routing::Directory;
use crate::command::{Command, Envelope, SetTenant, TenantCommand};
use crate::domain::ids::{GroupId, Position, StateMachineId, TenantId};
use crate::ports::{
    ApplySink, BoxFuture, CommittedEntry, Dump, Durability, Held, Payload, Proposals, Staged,
    Staging, StateDigest, StoreError, Stores,
};
use crate::replica::{ApplyQueue, QueueBytes, ReplicaDeps, ReplicaRequest};
use crate::services::control::{ControlCopy, ControlMessage};

/// Holds the tenants of one group.
#[derive(Debug, Default)]
pub(super) struct GroupTenants {
    delivered_term: Arc<AtomicU64>,
    pub(super) activations: RwLock<BTreeMap<TenantId, Arc<Activation>>>,
}

/// What the registry works with once the actors run.
pub(super) struct Sources {
    pub(super) supervisor: ActorRef<SupervisorMessage>,
    /// Weak: the log owns this registry, to which it delivers. Each would keep the other, and the
    /// node's sockets with it, beyond the node's end.
    pub(super) log: Weak<dyn Durability>,
    /// Weak as well: it is the same log.
    pub(super) proposals: Weak<dyn Proposals>,
    pub(super) stores: Arc<dyn Stores>,
    pub(super) directory: Arc<Directory>,
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
#[derive(Default)]
pub struct Registry {
    /// What group 0 delivers to the control plane.
    pub control: Arc<ApplyQueue>,
    pub(super) groups: RwLock<BTreeMap<GroupId, Arc<GroupTenants>>>,
    /// Room for what waits in the tenants' queues.
    queued: Arc<QueueBytes>,
    /// How often the files of all tenants have been looked through for damage.
    scrubs: AtomicU64,
    /// How many damaged tenants were replaced by what another replica held.
    pub(super) rebuilt: AtomicU64,
    /// How many comparisons of a tenant's replicas this node has made, as the leader of their group.
    pub(super) compared: AtomicU64,
    /// In how many of them the replicas differed.
    pub(super) differing: AtomicU64,
    /// Held while events are hashed: one replica at a time.
    pub(super) hashing: tokio::sync::Mutex<()>,
    /// The tenants whose files are damaged here.
    damaged: Mutex<BTreeSet<(GroupId, TenantId)>>,
    /// The tenants with files here that group 0 does not know, as far as that was told.
    pub(super) unknown: Mutex<BTreeSet<TenantId>>,
    /// Takes what another replica holds of the control plane, while its files here are damaged.
    control_copies: Mutex<Option<mpsc::Sender<ControlCopy>>>,
    pub(super) sources: OnceLock<Sources>,
    pub(super) control_actor: watch::Sender<Option<ActorRef<ControlMessage>>>,
}

impl Registry {
    /// Sets the supervisor, which starts actors, with what else is needed. To be called once, before
    /// the first tenant group is opened: an entry that is delivered earlier would have no place.
    pub fn set_supervisor(
        &self,
        supervisor: ActorRef<SupervisorMessage>,
        deps: &ReplicaDeps,
        proposals: &Arc<dyn Proposals>,
        directory: Arc<Directory>,
    ) {
        let (log, stores) = (Arc::downgrade(&deps.log), Arc::clone(&deps.stores));
        let proposals = Arc::downgrade(proposals);
        let _ = self.sources.set(Sources { supervisor, log, proposals, stores, directory });
    }

    /// Sets the actor of the control plane, which makes and takes snapshots of group 0. To be called once.
    pub fn set_control(&self, control: ActorRef<ControlMessage>) {
        self.control_actor.send_replace(Some(control));
    }

    /// Says that the control plane's files are damaged here: whatever another replica sends of it comes
    /// here until the receiver is dropped.
    pub fn want_control(&self) -> mpsc::Receiver<ControlCopy> {
        let (copies, wanted) = mpsc::channel(1);
        *self.control_copies.lock().unwrap_or_else(PoisonError::into_inner) = Some(copies);
        wanted
    }

    /// Returns the way for what another replica holds of a state machine, where that is the control plane
    /// and its files are damaged.
    fn control_copies(&self, part: StateMachineId) -> Option<mpsc::Sender<ControlCopy>> {
        let copies = self.control_copies.lock().unwrap_or_else(PoisonError::into_inner).clone();
        copies.filter(|copies| part == StateMachineId::System && !copies.is_closed())
    }

    /// Lists the groups in which a tenant's files are damaged here. This node should not lead them.
    pub fn damaged_groups(&self) -> BTreeSet<GroupId> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        damaged.iter().map(|(group, _)| *group).collect()
    }

    /// Notes whether a tenant's files are damaged here.
    pub(super) fn note_damage(&self, activation: &Activation, is_damaged: bool) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let tenant = (activation.group, activation.tenant);
        if is_damaged {
            damaged.insert(tenant);
        } else {
            damaged.remove(&tenant);
        }
    }

    /// Counts a pass over the files of all tenants.
    pub(super) fn note_scrub(&self) {
        self.scrubs.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the damaged tenants that were replaced by what another replica held.
    pub fn rebuilt(&self) -> u64 {
        self.rebuilt.load(Ordering::Relaxed)
    }

    /// Counts the comparisons of a tenant's replicas, and those in which the replicas differed.
    pub fn comparisons(&self) -> (u64, u64) {
        (self.compared.load(Ordering::Relaxed), self.differing.load(Ordering::Relaxed))
    }

    /// Counts how often the files of all tenants have been looked through for damage.
    pub fn scrubs(&self) -> u64 {
        self.scrubs.load(Ordering::Relaxed)
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
        let supervisor = self.sources.get()?.supervisor.clone();
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
    pub(super) fn group(&self, group: GroupId) -> Arc<GroupTenants> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(tenants) = groups.get(&group) {
            return Arc::clone(tenants);
        }
        drop(groups);
        let mut groups = self.groups.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(groups.entry(group).or_default())
    }

    /// Gives up the tenants of a group that this node has left, and returns them.
    pub(super) fn give_up(&self, group: GroupId) -> Vec<Arc<Activation>> {
        let left = self.groups.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
        let Some(left) = left else { return Vec::new() };
        let left = left.activations.read().unwrap_or_else(PoisonError::into_inner);
        for activation in left.values() {
            activation.is_given_up.store(true, Ordering::SeqCst);
            activation.news.notify_waiters();
            self.note_damage(activation, false);
        }
        left.values().cloned().collect()
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
        if let Some(Sources { supervisor, .. }) = self.sources.get() {
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
            activation.remove_if_damaged();
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

    fn write_soon(&self, group: GroupId, part: StateMachineId) {
        match part {
            StateMachineId::System => {
                if let Some(control) = &*self.control_actor.borrow() {
                    let _ = control.send_message(ControlMessage::Flush);
                }
            }
            StateMachineId::Tenant(tenant) => {
                let tenants = self.group(group);
                let activations =
                    tenants.activations.read().unwrap_or_else(PoisonError::into_inner);
                if let Some(activation) = activations.get(&tenant) {
                    activation.write_if_running();
                }
            }
        }
    }

    fn parts(&self, group: GroupId) -> BoxFuture<'_, Result<Vec<StateMachineId>, StoreError>> {
        Box::pin(self.list_parts(group))
    }

    fn held(
        &self,
        group: GroupId,
        part: StateMachineId,
    ) -> BoxFuture<'_, Result<Held, StoreError>> {
        Box::pin(async move {
            if self.control_copies(part).is_some() {
                return Ok(Held::default());
            }
            let held = self.ask(group, part, ReplicaRequest::Held).await;
            // After the question, which starts a tenant that sleeps: the start finds the damage.
            match self.replaceable(group, part) {
                // Nothing that can be relied on: everything is to be sent.
                Some(_) => Ok(Held::default()),
                None => held,
            }
        })
    }

    fn dump(
        &self,
        group: GroupId,
        part: StateMachineId,
        beyond: Held,
    ) -> BoxFuture<'_, Result<Option<Dump>, StoreError>> {
        Box::pin(self.read_dump(group, part, beyond))
    }

    fn stage(
        &self,
        _: GroupId,
        part: StateMachineId,
        events_from: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>> {
        Box::pin(async move {
            let starting = || unreachable(part, "the node is starting".to_owned());
            let Sources { stores, .. } = self.sources.get().ok_or_else(starting)?;
            stores.stage(part, events_from).await
        })
    }

    fn install(
        &self,
        group: GroupId,
        part: StateMachineId,
        staged: Staged,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if let Some(copies) = self.control_copies(part) {
                let stopped = || unreachable(part, "it has stopped".to_owned());
                let (taken, is_taken) = oneshot::channel();
                copies.send(ControlCopy { staged, taken }).await.map_err(|_| stopped())?;
                return is_taken.await.map_err(|_| stopped())?;
            }
            match self.replaceable(group, part) {
                Some(activation) => self.rebuild(&activation, staged).await,
                None => self.hand_over(group, part, staged).await,
            }
        })
    }

    fn digest(
        &self,
        group: GroupId,
        part: StateMachineId,
        at: Position,
    ) -> BoxFuture<'_, Result<Option<StateDigest>, StoreError>> {
        Box::pin(async move {
            let StateMachineId::Tenant(tenant) = part else { return Ok(None) };
            Ok(self.hash(group, tenant, Some(at)).await?.and_then(|held| held.digest()))
        })
    }

    fn distrust(
        &self,
        group: GroupId,
        part: StateMachineId,
        at: Position,
        digest: StateDigest,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.take_out(group, part, at, digest))
    }

    fn leave(&self, group: GroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.leave_group(group))
    }

    fn keep_only(
        &self,
        group: GroupId,
        parts: Vec<StateMachineId>,
        upto: Position,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let here = self.list_parts(group).await?;
            let mut here: BTreeSet<StateMachineId> = here.into_iter().collect();
            // Those as well whose state is in memory only: nothing deletes them later.
            here.extend(self.awake_parts(group));
            for part in here.into_iter().filter(|part| !parts.contains(part)) {
                if let Some(activation) = self.replaceable(group, part) {
                    // Deleted while this node was away. Nothing of the damaged files is needed for that.
                    activation.remove_if_damaged();
                    return Err(unreachable(
                        part,
                        "its damaged files are being removed".to_owned(),
                    ));
                }
                self.ask(group, part, |reply| ReplicaRequest::Clear(upto, reply)).await?;
            }
            Ok(())
        })
    }
}

/// Tells whether an entry deletes a tenant.
pub(super) fn is_deletion(payload: &Payload) -> bool {
    let Payload::Command(envelope) = payload else { return false };
    let Command::Tenant { command, .. } = &envelope.command else { return false };
    matches!(command, TenantCommand::Set(SetTenant { record: None, .. }))
}

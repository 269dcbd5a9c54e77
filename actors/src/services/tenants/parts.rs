//! Finds the replicas of this node, and asks their owners for what they hold.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::registry::{GroupTenants, Registry, Sources};
use super::{Activation, SupervisorMessage, TenantMessage};
use crate::domain::ids::{GroupId, StateMachineId, TenantId};
use crate::ports::{Dump, Held, Staged, StoreError};
use crate::replica::ReplicaRequest;
use crate::services::control::ControlMessage;

/// Longest time that a tenant may take to start when it is asked about snapshots.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Longest time that a replica may take to answer about snapshots.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of events that a replica adds to its own in a second, at least, when it takes them over.
const TAKEN_OVER_BYTES_A_SECOND: u64 = 8 << 20;

impl Registry {
    /// Asks the owner of a replica for what it holds, or gives it something. The control plane is waited for; a tenant that
    /// sleeps is woken.
    pub(super) async fn ask<T>(
        &self,
        group: GroupId,
        part: StateMachineId,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> ReplicaRequest,
    ) -> Result<T, StoreError> {
        self.ask_within(ANSWER_DEADLINE, group, part, request).await
    }

    async fn ask_within<T>(
        &self,
        within: Duration,
        group: GroupId,
        part: StateMachineId,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> ReplicaRequest,
    ) -> Result<T, StoreError> {
        let asked = self.ask_for_ever(group, part, request);
        // A replica that stalls must not keep a leader from sending the others.
        let late = || unreachable(part, format!("it did not answer within {within:?}"));
        timeout(within, asked).await.unwrap_or_else(|_| Err(late()))
    }

    async fn ask_for_ever<T>(
        &self,
        group: GroupId,
        part: StateMachineId,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> ReplicaRequest,
    ) -> Result<T, StoreError> {
        let failed = |why: String| unreachable(part, why);
        let stopped = || failed("it has stopped".to_owned());
        let (reply, answer) = oneshot::channel();
        match part {
            StateMachineId::System => {
                let mut actor = self.control_actor.subscribe();
                let actor = actor.wait_for(Option::is_some).await.map_err(|_| stopped())?.clone();
                let message = ControlMessage::Replica(request(reply));
                actor.ok_or_else(stopped)?.send_message(message).map_err(|_| stopped())?;
                answer.await.map_err(|_| stopped())?
            }
            StateMachineId::Tenant(tenant) => {
                let activation = self.activation(group, tenant).ok_or_else(stopped)?;
                // Held until the answer is there: it keeps the tenant awake.
                let _permit =
                    activation.replica_permit().map_err(|error| failed(error.to_string()))?;
                let actor = activation.actor(Instant::now() + START_DEADLINE).await;
                let actor = actor.map_err(|error| failed(error.to_string()))?;
                let message = TenantMessage::Replica(request(reply));
                actor.send_message(message).map_err(|_| stopped())?;
                answer.await.map_err(|_| stopped())?
            }
        }
    }

    /// Asks a replica for what it holds beyond another. The tenant stays awake until the dump is dropped, and goes out
    /// of service where its files are found to be damaged.
    pub(super) async fn read_dump(
        &self,
        group: GroupId,
        part: StateMachineId,
        beyond: Held,
    ) -> Result<Option<Dump>, StoreError> {
        let stopped = || unreachable(part, "it has stopped".to_owned());
        let tell: Box<dyn Fn(ReplicaRequest) + Send> = match part {
            StateMachineId::System => {
                let actor = self.control_actor.subscribe();
                Box::new(move |request| {
                    if let Some(actor) = &*actor.borrow() {
                        let _ = actor.send_message(ControlMessage::Replica(request));
                    }
                })
            }
            StateMachineId::Tenant(tenant) => {
                let activation = self.activation(group, tenant).ok_or_else(stopped)?;
                let permit = activation
                    .replica_permit()
                    .map_err(|error| unreachable(part, error.to_string()))?;
                Box::new(move |request| {
                    // Named, so that it is kept as long as this.
                    let _awake = &permit;
                    activation.tell_if_running(TenantMessage::Replica(request));
                })
            }
        };
        let dump = self.ask(group, part, move |reply| ReplicaRequest::Dump(beyond, reply)).await?;
        Ok(dump.map(|dump| {
            let told = dump.parts.inspect(move |read| {
                if let Some(damage) = read.as_ref().err().filter(|error| error.lasting().is_some())
                {
                    tell(ReplicaRequest::Damaged(damage.clone()));
                }
            });
            Dump { parts: told.boxed(), ..dump }
        }))
    }

    /// Gives a replica what another has sent.
    pub(super) async fn hand_over(
        &self,
        group: GroupId,
        part: StateMachineId,
        staged: Staged,
    ) -> Result<(), StoreError> {
        let seconds = staged.files.events_len() / TAKEN_OVER_BYTES_A_SECOND;
        let within = ANSWER_DEADLINE + Duration::from_secs(seconds);
        let request = move |reply| ReplicaRequest::Install(staged, reply);
        self.ask_within(within, group, part, request).await
    }

    /// Returns the activation of a tenant whose damaged files another replica can take the place of.
    pub(super) fn replaceable(
        &self,
        group: GroupId,
        part: StateMachineId,
    ) -> Option<Arc<Activation>> {
        let StateMachineId::Tenant(tenant) = part else { return None };
        self.activation(group, tenant).filter(|activation| activation.is_replaceable())
    }

    /// Puts what another replica holds in the place of damaged files, and waits until the tenant runs.
    pub(super) async fn rebuild(
        &self,
        activation: &Arc<Activation>,
        staged: Staged,
    ) -> Result<(), StoreError> {
        let part = StateMachineId::Tenant(activation.tenant);
        let Some(Sources { supervisor, .. }) = self.sources.get() else {
            return Err(unreachable(part, "the node is starting".to_owned()));
        };
        // What was sent without the first events cannot stand alone.
        if staged.events_from != 0 {
            return Err(unreachable(part, "it is damaged, and lacks the first events".to_owned()));
        }
        let (begun, has_begun) = oneshot::channel();
        let message = SupervisorMessage::Rebuild(Arc::clone(activation), staged, begun);
        let stopped = || unreachable(part, "the node is stopping".to_owned());
        supervisor.send_message(message).map_err(|_| stopped())?;
        if !has_begun.await.map_err(|_| stopped())? {
            // Another copy came first, which may be older.
            return Err(unreachable(part, "it is being rebuilt, or removed".to_owned()));
        }
        let started = activation.actor(Instant::now() + START_DEADLINE).await;
        started.map_err(|error| unreachable(part, error.to_string()))?;
        self.rebuilt.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(tenant = %activation.tenant, "a damaged tenant is whole again");
        Ok(())
    }

    /// Stops the tenants of a group that this node has left, and removes their files.
    ///
    /// # Errors
    /// When not all could be removed.
    pub(super) async fn leave_group(&self, group: GroupId) -> Result<(), StoreError> {
        let parts = self.list_parts(group).await?;
        let stopped = || unreachable(StateMachineId::System, "the node is stopping".to_owned());
        let Sources { supervisor, log, stores, .. } = self.sources.get().ok_or_else(stopped)?;
        let log = log.upgrade().ok_or_else(stopped)?;
        let (done, is_done) = oneshot::channel();
        let message = SupervisorMessage::Leave(group, done);
        supervisor.send_message(message).map_err(|_| stopped())?;
        is_done.await.map_err(|_| stopped())?;
        for part in parts {
            let StateMachineId::Tenant(tenant) = part else { continue };
            log.unfile(group, part).await?;
            stores.remove(tenant).await?;
        }
        Ok(())
    }

    /// Lists the replicas of a group that have files here, or should: whose files are lost is among
    /// them, so that nobody takes the loss for a deletion.
    ///
    /// # Errors
    /// When it cannot be told which group a tenant belongs to.
    pub(super) async fn list_parts(
        &self,
        group: GroupId,
    ) -> Result<Vec<StateMachineId>, StoreError> {
        if group == GroupId::SYSTEM {
            return Ok(vec![StateMachineId::System]);
        }
        let mut tenants = self.tenants_here()?;
        if tenants.iter().any(|(_, of)| of.is_none()) {
            // The control plane here may not have come to them yet: it begins with what its files hold.
            self.catch_up().await?;
            tenants = self.tenants_here()?;
            self.tell_unknown(&tenants);
        }
        let own = tenants.into_iter().filter(|(_, of)| *of == Some(group));
        Ok(own.map(|(tenant, _)| StateMachineId::Tenant(tenant)).collect())
    }

    /// Waits until the control plane here has applied all that was committed before the call.
    async fn catch_up(&self) -> Result<(), StoreError> {
        let failed = |why: String| unreachable(StateMachineId::System, why);
        let stopped = || failed("the node is stopping".to_owned());
        let Sources { proposals, .. } = self.sources.get().ok_or_else(stopped)?;
        let proposals = proposals.upgrade().ok_or_else(stopped)?;
        let delivered = proposals.read_index(GroupId::SYSTEM).await;
        delivered.map_err(|error| failed(error.to_string()))?;
        let actor = self.control_actor.borrow().clone().ok_or_else(stopped)?;
        // Its actor applies what is delivered before it answers anything.
        let (reply, applied) = oneshot::channel();
        actor.send_message(ControlMessage::Applied(reply)).map_err(|_| stopped())?;
        applied.await.map(drop).map_err(|_| stopped())
    }

    /// Says once which tenants have files here that the control plane does not know, deleted ones
    /// included. A forced recovery leaves such files; nobody serves them, and nobody sends them.
    fn tell_unknown(&self, tenants: &[(TenantId, Option<GroupId>)]) {
        let mut told = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let unknown = tenants.iter().filter(|(_, of)| of.is_none());
        for (tenant, _) in unknown.filter(|(tenant, _)| told.insert(*tenant)) {
            tracing::warn!(
                %tenant,
                "the cluster knows no such tenant, and it has files here: they are left alone; move them \
                 away when nobody misses them"
            );
        }
    }

    /// Lists the tenants that have files here, or should, with their groups as far as they are known.
    pub(super) fn tenants_here(&self) -> Result<Vec<(TenantId, Option<GroupId>)>, StoreError> {
        let stopped = || StoreError::Io {
            what: "list the tenants".to_owned(),
            source: Arc::new(io::ErrorKind::NotConnected.into()),
        };
        let Sources { log, proposals, stores, directory, .. } =
            self.sources.get().ok_or_else(stopped)?;
        let log = log.upgrade().ok_or_else(stopped)?;
        let proposals = proposals.upgrade().ok_or_else(stopped)?;
        let mut tenants: BTreeSet<TenantId> = stores.tenants()?.into_iter().collect();
        tenants.extend(log.with_files().into_iter().filter_map(|part| match part {
            StateMachineId::Tenant(tenant) => Some(tenant),
            StateMachineId::System => None,
        }));
        let group = |tenant| match directory.group_of(tenant) {
            Some(group) if proposals.leadership(group).is_some() => Some(group),
            // It lives in another region. Its files here are of the group that it has in this one: it came
            // from there and they are still to go, or it is about to come.
            Some(group) => {
                // A request may have looked for it in a group that is not here.
                let delivered = self.group_of(tenant);
                let delivered = delivered.filter(|group| proposals.leadership(*group).is_some());
                delivered.or_else(|| directory.group_in_own_region(tenant)).or(Some(group))
            }
            // One that this node's control plane has not heard of yet may have been delivered something.
            None => self.group_of(tenant),
        };
        Ok(tenants.into_iter().map(|tenant| (tenant, group(tenant))).collect())
    }

    /// Lists the tenants of a group that something was delivered to.
    pub(super) fn awake_parts(&self, group: GroupId) -> Vec<StateMachineId> {
        let tenants = self.group(group);
        let activations = tenants.activations.read().unwrap_or_else(PoisonError::into_inner);
        activations.keys().copied().map(StateMachineId::Tenant).collect()
    }

    /// Returns the group that has delivered something to the tenant.
    fn group_of(&self, tenant: TenantId) -> Option<GroupId> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        let has = |tenants: &GroupTenants| {
            let activations = tenants.activations.read().unwrap_or_else(PoisonError::into_inner);
            activations.contains_key(&tenant)
        };
        groups.iter().find(|(_, tenants)| has(tenants)).map(|(group, _)| *group)
    }
}

/// Says that a replica cannot be asked.
pub(super) fn unreachable(part: StateMachineId, why: String) -> StoreError {
    StoreError::Io {
        what: format!("reach the replica of {part}"),
        source: Arc::new(io::Error::new(io::ErrorKind::NotConnected, why)),
    }
}

#[cfg(test)]
#[path = "parts_tests.rs"]
mod tests;

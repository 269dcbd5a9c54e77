//! The tenant supervisor: starts tenants' actors, restarts those that fail, and puts aside those
//! that keep failing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::actor::{TenantActor, TenantDeps};
use super::{Phase, Registry, Slot};
use crate::control::Directory;
use crate::ids::{GroupId, TenantId};
use crate::ports::StoreError;

/// Failures within [`RESTART_WINDOW`] after which a tenant is quarantined.
const RESTARTS_MAX: usize = 3;
/// The window that [`RESTARTS_MAX`] counts in.
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// How long a tenant stays in quarantine before it is tried again.
const QUARANTINE: Duration = Duration::from_secs(15);
/// Pause before a tenant is opened again for which no descriptor was left.
const OPEN_AGAIN: Duration = Duration::from_millis(250);
/// Pause before the tenants with files are listed again, for which no descriptor was left.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How often a group that is being opened is looked for.
const GROUP_POLL: Duration = Duration::from_millis(5);
/// How long a tenant may take to open when it is looked at for unfinished work.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// How long a tenant's actor may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Tenants that are opened at the same time to look for unfinished work.
const OPEN_AT_ONCE_MAX: usize = 8;

/// A message to the tenant supervisor.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Start the tenant's actor; its phase is `Starting` already.
    Start(Arc<Slot>),
    /// The actor could not be started.
    StartFailed(Arc<Slot>, String),
    /// The actor failed for want of file descriptors only.
    Exhausted(Arc<Slot>),
    /// Quarantine is over, or ended by hand.
    TryAgain(Arc<Slot>),
    /// A new term has begun: open the group's tenants that have files, for runs they may owe.
    LookForWork(GroupId),
    /// Stop all tenants' actors and answer when they have stopped.
    StopAll(oneshot::Sender<()>),
}

/// The tenant supervisor.
pub struct TenantSupervisor;

/// What it starts with.
pub struct SupervisorArguments {
    /// What tenants' actors need.
    pub deps: Arc<TenantDeps>,
    /// Every tenant's place.
    pub registry: Arc<Registry>,
    /// Where each tenant lives.
    pub directory: Arc<Directory>,
}

/// What it keeps.
pub struct SupervisorState {
    arguments: SupervisorArguments,
    failures: BTreeMap<TenantId, VecDeque<Instant>>,
    openings: Arc<Semaphore>,
    stopping: bool,
}

impl Actor for TenantSupervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        _: ActorRef<SupervisorMessage>,
        arguments: SupervisorArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        Ok(SupervisorState {
            arguments,
            failures: BTreeMap::new(),
            openings: Arc::new(Semaphore::new(OPEN_AT_ONCE_MAX)),
            stopping: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Start(slot) => state.start(&myself, slot),
            SupervisorMessage::StartFailed(slot, why) => state.failed(&myself, &slot, why),
            SupervisorMessage::Exhausted(slot) => state.exhausted(&myself, slot),
            SupervisorMessage::TryAgain(slot) => {
                if matches!(&*slot.phase.borrow(), Phase::Quarantined { .. }) {
                    state.failures.remove(&slot.tenant);
                    slot.phase.send_replace(Phase::Starting);
                    state.start(&myself, slot);
                }
            }
            SupervisorMessage::LookForWork(group) => match state.look_for_work(group) {
                Err(error) if error.is_passing() => {
                    tracing::warn!(%error, "looking for unfinished runs again in a moment");
                    myself.send_after(LOOK_AGAIN, move || SupervisorMessage::LookForWork(group));
                }
                looked => looked?,
            },
            SupervisorMessage::StopAll(done) => state.stop_all(done),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            let is_it = |slot: &Arc<Slot>| match &*slot.phase.borrow() {
                Phase::Running(actor) => actor.get_id() == cell.get_id(),
                _ => false,
            };
            if let Some(slot) = state.arguments.registry.slots().into_iter().find(is_it) {
                if is_passing(&error) {
                    state.exhausted(&myself, slot);
                } else {
                    state.failed(&myself, &slot, error.to_string());
                }
            }
        }
        Ok(())
    }
}

impl SupervisorState {
    fn start(&self, myself: &ActorRef<SupervisorMessage>, slot: Arc<Slot>) {
        if self.stopping {
            return;
        }
        let (myself, deps) = (myself.clone(), Arc::clone(&self.arguments.deps));
        // Opening files and reading the log takes a while: others are not to wait for it.
        tokio::spawn(async move {
            // A group hands entries over as soon as it runs, perhaps before it is listed.
            while deps.part.ledger.leadership(slot.group).is_none() {
                tokio::time::sleep(GROUP_POLL).await;
            }
            let arguments = (Arc::clone(&slot), deps);
            let supervisor = myself.get_cell();
            let started = Actor::spawn_linked(None, TenantActor, arguments, supervisor).await;
            let _ = match started {
                Ok(_) => Ok(()),
                Err(SpawnErr::StartupFailed(error)) if is_passing(&error) => {
                    myself.send_message(SupervisorMessage::Exhausted(slot))
                }
                Err(error) => {
                    myself.send_message(SupervisorMessage::StartFailed(slot, error.to_string()))
                }
            };
        });
    }

    /// Starts the actor again, or puts the tenant aside when it has failed too often.
    fn failed(&mut self, myself: &ActorRef<SupervisorMessage>, slot: &Arc<Slot>, why: String) {
        let now = Instant::now();
        let failures = self.failures.entry(slot.tenant).or_default();
        failures.retain(|at| now.duration_since(*at) < RESTART_WINDOW);
        failures.push_back(now);
        if failures.len() <= RESTARTS_MAX {
            tracing::warn!(tenant = %slot.tenant, %why, "a tenant's actor failed and is restarted");
            slot.phase.send_replace(Phase::Starting);
            return self.start(myself, Arc::clone(slot));
        }
        tracing::error!(tenant = %slot.tenant, %why, "a tenant keeps failing and is quarantined");
        // The text names actors and files: it is for the log.
        let reason = "its actor failed again and again; the node's log says why".to_owned();
        slot.phase.send_replace(Phase::Quarantined { reason });
        let slot = Arc::clone(slot);
        myself.send_after(QUARANTINE, move || SupervisorMessage::TryAgain(slot));
    }

    /// Starts the actor again in a moment. That the process has no descriptor left is no failure of
    /// the tenant's, so that it does not count.
    fn exhausted(&self, myself: &ActorRef<SupervisorMessage>, slot: Arc<Slot>) {
        if !slot.exhausted.swap(true, Ordering::AcqRel) {
            tracing::warn!(tenant = %slot.tenant, "no file descriptor is left to open a tenant with");
        }
        // Its callers wait, and are told that the node is busy when their time is up.
        slot.phase.send_replace(Phase::Starting);
        myself.send_after(OPEN_AGAIN, move || SupervisorMessage::Start(slot));
    }

    fn look_for_work(&self, group: GroupId) -> Result<(), StoreError> {
        for tenant in self.arguments.deps.part.stores.tenants()? {
            let here = self.arguments.directory.get(tenant);
            if here.is_none_or(|placed| placed.group != group) {
                continue;
            }
            let Some(slot) = self.arguments.registry.slot(group, tenant) else { continue };
            let openings = Arc::clone(&self.openings);
            tokio::spawn(async move {
                let Ok(_opening) = openings.acquire_owned().await else { return };
                let deadline = Instant::now() + OPEN_DEADLINE;
                if let Err(error) = slot.actor(deadline).await {
                    tracing::warn!(%tenant, %error, "cannot look for unfinished runs");
                }
            });
        }
        Ok(())
    }

    fn stop_all(&mut self, done: oneshot::Sender<()>) {
        self.stopping = true;
        let slots = self.arguments.registry.slots();
        tokio::spawn(async move {
            let stops = slots.iter().filter_map(|slot| match &*slot.phase.borrow() {
                Phase::Running(actor) => Some(actor.clone()),
                _ => None,
            });
            let stops = stops.map(|actor| async move {
                if let Err(error) = actor.stop_and_wait(None, Some(STOP_DEADLINE)).await {
                    tracing::warn!(%error, "a tenant's actor did not stop in time");
                }
            });
            futures_util::future::join_all(stops).await;
            let _ = done.send(());
        });
    }
}

/// Whether an actor failed for want of file descriptors only.
fn is_passing(error: &ActorProcessingErr) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_passing)
}

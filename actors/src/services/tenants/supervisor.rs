//! The tenant supervisor: starts tenants' actors, restarts those that fail, and puts aside those
//! that keep failing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::actor::{TenantActor, TenantDeps};
use super::registry::is_deletion;
use super::{Activation, ActivationState, Registry};
use crate::cluster::routing::Directory;
use crate::domain::ids::{GroupId, StateMachineId, TenantId};
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
/// How often a group that is being opened is looked for.
const GROUP_POLL: Duration = Duration::from_millis(5);
/// How long a tenant may take to open when it is looked at for unfinished work.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// How long a tenant's actor may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// Tenants that are opened at the same time to look for unfinished work.
const OPEN_AT_ONCE_MAX: usize = 8;
/// Wait before a list of tenants that failed, or was not complete, is tried again.
const LOOK_RETRY: Duration = Duration::from_secs(1);
/// Longest wait before tenants that group 0 does not know yet are looked for again.
const LOOK_RETRY_MAX: Duration = Duration::from_secs(32);

/// A message to the tenant supervisor.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Start the tenant's actor; its phase is `Starting` already.
    Start(Arc<Activation>),
    /// The actor could not be started.
    StartFailed(Arc<Activation>, Failure),
    /// A tenant that is out of service for good was deleted.
    Bury(Arc<Activation>),
    /// The actor failed for want of file descriptors only.
    Exhausted(Arc<Activation>),
    /// Quarantine is over, or ended by hand.
    TryAgain(Arc<Activation>),
    /// A new term has begun: start the group's tenants that have work, or may have.
    LookForWork(GroupId),
    /// Stop all tenants' actors and answer when they have stopped.
    StopAll(oneshot::Sender<()>),
}

/// Why an actor failed.
#[derive(Debug)]
pub struct Failure {
    /// For the log.
    why: String,
    /// What clients are told, where no other attempt will come to more.
    lasting: Option<String>,
}

impl Failure {
    fn of(error: &ActorProcessingErr) -> Self {
        let lasting = error.downcast_ref::<StoreError>().and_then(StoreError::lasting);
        Self { why: error.to_string(), lasting }
    }

    fn at_start(error: &SpawnErr) -> Self {
        match error {
            SpawnErr::StartupFailed(error) => Self::of(error),
            other => Self { why: other.to_string(), lasting: None },
        }
    }
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
            SupervisorMessage::Start(activation) => state.start(&myself, activation),
            SupervisorMessage::StartFailed(activation, failure) => {
                state.failed(&myself, &activation, failure);
            }
            SupervisorMessage::Bury(activation) => state.bury(&myself, activation),
            SupervisorMessage::Exhausted(activation) => state.exhausted(&myself, activation),
            SupervisorMessage::TryAgain(activation) => {
                let is_aside = matches!(
                    &*activation.state.borrow(),
                    ActivationState::Quarantined { .. } | ActivationState::Damaged { .. }
                );
                if is_aside {
                    activation.end_burial();
                    state.failures.remove(&activation.tenant);
                    activation.state.send_replace(ActivationState::Starting);
                    state.start(&myself, activation);
                }
            }
            SupervisorMessage::LookForWork(group) => state.look_for_work(group),
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
            let is_it = |activation: &Arc<Activation>| match &*activation.state.borrow() {
                ActivationState::Running(actor) => actor.get_id() == cell.get_id(),
                _ => false,
            };
            if let Some(activation) = state.arguments.registry.activations().into_iter().find(is_it)
            {
                if is_passing(&error) {
                    state.exhausted(&myself, activation);
                } else {
                    state.failed(&myself, &activation, Failure::of(&error));
                }
            }
        }
        Ok(())
    }
}

impl SupervisorState {
    fn start(&self, myself: &ActorRef<SupervisorMessage>, activation: Arc<Activation>) {
        if self.stopping {
            return;
        }
        let (myself, deps) = (myself.clone(), Arc::clone(&self.arguments.deps));
        // Opening files and reading the log takes a while: others are not to wait for it.
        tokio::spawn(async move {
            // A group hands entries over as soon as it runs, perhaps before it is listed.
            while deps.part.log.leadership(activation.group).is_none() {
                tokio::time::sleep(GROUP_POLL).await;
            }
            let arguments = (Arc::clone(&activation), deps);
            let supervisor = myself.get_cell();
            let started = Actor::spawn_linked(None, TenantActor, arguments, supervisor).await;
            let _ = match started {
                Ok(_) => Ok(()),
                Err(SpawnErr::StartupFailed(error)) if is_passing(&error) => {
                    myself.send_message(SupervisorMessage::Exhausted(activation))
                }
                Err(error) => {
                    let failure = Failure::at_start(&error);
                    myself.send_message(SupervisorMessage::StartFailed(activation, failure))
                }
            };
        });
    }

    /// Starts the actor again, or puts the tenant aside when it has failed too often.
    fn failed(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        activation: &Arc<Activation>,
        failure: Failure,
    ) {
        let Failure { why, lasting } = failure;
        if let Some(reason) = lasting {
            // Another attempt would find the same. Whoever repairs the files starts the node again.
            tracing::error!(tenant = %activation.tenant, %why, "a tenant's data is damaged: it is out of service");
            activation.state.send_replace(ActivationState::Damaged { reason });
            if activation.queue.holds(is_deletion) {
                self.bury(myself, Arc::clone(activation));
            }
            return;
        }
        let now = Instant::now();
        let failures = self.failures.entry(activation.tenant).or_default();
        failures.retain(|at| now.duration_since(*at) < RESTART_WINDOW);
        failures.push_back(now);
        if failures.len() <= RESTARTS_MAX {
            tracing::warn!(tenant = %activation.tenant, %why, "a tenant's actor failed and is restarted");
            activation.state.send_replace(ActivationState::Starting);
            return self.start(myself, Arc::clone(activation));
        }
        let log_bytes_kept = self
            .arguments
            .deps
            .part
            .log
            .kept_for(activation.group, StateMachineId::Tenant(activation.tenant));
        tracing::error!(
            tenant = %activation.tenant, %why, log_bytes_kept,
            "a tenant keeps failing and is quarantined"
        );
        // The text names actors and files: it is for the log.
        let reason = "its actor failed again and again; the node's log says why".to_owned();
        activation.state.send_replace(ActivationState::Quarantined { reason });
        // Who proposes from now on is refused at once; who has proposed need not wait longer.
        activation.queue.forget_proposers();
        let activation = Arc::clone(activation);
        myself.send_after(QUARANTINE, move || SupervisorMessage::TryAgain(activation));
    }

    /// Starts the actor again in a moment. That the process has no descriptor left is no failure of
    /// the tenant's, so that it does not count.
    fn exhausted(&self, myself: &ActorRef<SupervisorMessage>, activation: Arc<Activation>) {
        if !activation.exhausted.swap(true, Ordering::AcqRel) {
            tracing::warn!(tenant = %activation.tenant, "no file descriptor is left to open a tenant with");
        }
        // Its callers wait, and are told that the node is busy when their time is up.
        activation.state.send_replace(ActivationState::Starting);
        myself.send_after(OPEN_AGAIN, move || SupervisorMessage::Start(activation));
    }

    /// Removes the files of a damaged tenant that is deleted, and starts it again: the deletion needs
    /// nothing of what was in them.
    fn bury(&self, myself: &ActorRef<SupervisorMessage>, activation: Arc<Activation>) {
        // A deletion that waits and one that comes may both ask: the first starts the tenant again.
        if !activation.begin_burial() {
            return;
        }
        let (myself, deps) = (myself.clone(), Arc::clone(&self.arguments.deps));
        tokio::spawn(async move {
            let (tenant, part) = (activation.tenant, &deps.part);
            let removed = async {
                part.log.unfile(activation.group, StateMachineId::Tenant(tenant)).await?;
                part.stores.remove(tenant).await
            };
            match removed.await {
                Ok(()) => drop(myself.send_message(SupervisorMessage::TryAgain(activation))),
                Err(error) => {
                    tracing::warn!(%tenant, %error, "the files cannot be removed");
                    activation.end_burial();
                }
            }
        });
    }

    /// Starts the group's tenants whose files do not say that they are idle. What is handed over
    /// starts the others that need it.
    fn look_for_work(&self, group: GroupId) {
        let deps = Arc::clone(&self.arguments.deps);
        let directory = Arc::clone(&self.arguments.directory);
        let registry = Arc::clone(&self.arguments.registry);
        let openings = Arc::clone(&self.openings);
        tokio::spawn(async move {
            let mut unplaced = with_work(&deps).await;
            let mut wait = LOOK_RETRY;
            // A later term looks again by itself.
            while deps.part.log.leads(group).is_some() {
                let look = |tenant: &TenantId| directory.get(*tenant);
                let placed = unplaced.iter().filter(|tenant| look(tenant).is_some());
                for tenant in placed.copied().collect::<Vec<_>>() {
                    if look(&tenant).is_some_and(|placed| placed.group == group)
                        && let Some(activation) = registry.activation(group, tenant)
                    {
                        start_for_work(activation, Arc::clone(&openings));
                    }
                }
                // Group 0 may have to tell first where a tenant is that was made shortly before
                // this node stopped, and may have no quorum for long.
                unplaced.retain(|tenant| look(tenant).is_none());
                if unplaced.is_empty() {
                    return;
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LOOK_RETRY_MAX);
                if wait == LOOK_RETRY_MAX {
                    // Files of deleted tenants go.
                    let listed = with_work(&deps).await;
                    unplaced.retain(|tenant| listed.contains(tenant));
                }
            }
        });
    }

    fn stop_all(&mut self, done: oneshot::Sender<()>) {
        self.stopping = true;
        let activations = self.arguments.registry.activations();
        tokio::spawn(async move {
            let stops =
                activations.iter().filter_map(|activation| match &*activation.state.borrow() {
                    ActivationState::Running(actor) => Some(actor.clone()),
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

/// The tenants that have work, or may have: those whose files do not say that they are idle, and
/// those whose files are gone, so that it is told at once and not when they are missed.
async fn with_work(deps: &TenantDeps) -> Vec<TenantId> {
    let part = &deps.part;
    let look = async || {
        let mut tenants = part.stores.tenants_with_work().await?;
        let listed: BTreeSet<TenantId> = part.stores.tenants()?.into_iter().collect();
        tenants.extend(part.log.with_files().into_iter().filter_map(|part| match part {
            StateMachineId::Tenant(tenant) if !listed.contains(&tenant) => Some(tenant),
            StateMachineId::Tenant(_) | StateMachineId::System => None,
        }));
        Ok::<_, StoreError>(tenants)
    };
    loop {
        match look().await {
            Ok(tenants) => return tenants,
            Err(error) => tracing::warn!(%error, "cannot list the tenants; trying again"),
        }
        tokio::time::sleep(LOOK_RETRY).await;
    }
}

/// Starts a tenant when it is its turn.
fn start_for_work(activation: Arc<Activation>, openings: Arc<Semaphore>) {
    tokio::spawn(async move {
        let Ok(_opening) = openings.acquire_owned().await else { return };
        let deadline = Instant::now() + OPEN_DEADLINE;
        if let Err(error) = activation.actor(deadline).await {
            tracing::warn!(tenant = %activation.tenant, %error, "cannot look for unfinished runs");
        }
    });
}

/// Whether an actor failed for want of file descriptors only.
fn is_passing(error: &ActorProcessingErr) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_passing)
}

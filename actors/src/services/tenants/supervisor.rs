//! The tenant supervisor: starts the actors of tenants, restarts those that fail, and quarantines those
//! that keep failing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::actor::{TenantActor, TenantDeps};
use super::compare::Comparer;
use super::registry::is_deletion;
use super::scrub::scrub_for_ever;
use super::unfinished_work::{self, OPEN_AT_ONCE_MAX};
use super::{Activation, ActivationState, Registry, SupervisorMessage};
use crate::cluster::routing::{Directory, Router};
use crate::domain::ids::{RaftId, StateMachineId, TenantId};
use crate::ports::StoreError;
use crate::services::mailbox::stop_children;

/// Failures within [`RESTART_WINDOW`] after which an actor is still restarted. One more, and the tenant
/// is quarantined.
const RESTARTS_MAX: usize = 3;
/// The window that [`RESTARTS_MAX`] counts in.
const RESTART_WINDOW: Duration = Duration::from_secs(60);
/// How long a tenant stays in quarantine before it is tried again.
const QUARANTINE: Duration = Duration::from_secs(15);
/// Pause before a tenant is opened again for which no file descriptor was left.
const OPEN_AGAIN: Duration = Duration::from_millis(250);
/// Pause before the first request to another replica for what damaged files held: the group may have no leader yet.
const ASK_AFTER: Duration = Duration::from_millis(250);
/// Pause between the first two requests. It doubles with each, because a copy for which there is no room here is sent
/// again from its beginning.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Longest pause between two requests.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(60);
/// Time between two looks for a group that is being opened.
const GROUP_POLL: Duration = Duration::from_millis(5);
/// Longest time that a tenant's actor may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Says why an actor failed.
#[derive(Debug)]
pub struct Failure {
    /// The reason for the node's log.
    why: String,
    /// The reason for clients, if no other attempt will come to more.
    lasting: Option<String>,
    /// Whether what another replica holds can take the place of the files.
    is_replaceable: bool,
}

impl Failure {
    fn of(error: &ActorProcessingErr) -> Self {
        let files = error.downcast_ref::<StoreError>();
        let lasting = files.and_then(StoreError::lasting);
        let is_replaceable = matches!(files, Some(StoreError::Damaged { .. }));
        Self { why: error.to_string(), lasting, is_replaceable }
    }

    fn at_start(error: &SpawnErr) -> Self {
        match error {
            SpawnErr::StartupFailed(error) => Self::of(error),
            other => Self { why: other.to_string(), lasting: None, is_replaceable: false },
        }
    }
}

/// The actor of the tenant supervisor.
pub struct TenantSupervisor;

/// Carries what the supervisor starts with.
pub struct SupervisorArguments {
    /// What the actors of tenants need.
    pub deps: Arc<TenantDeps>,
    /// All activations.
    pub registry: Arc<Registry>,
    /// Where each tenant lives.
    pub directory: Arc<Directory>,
    /// Who has replicas of each group.
    pub router: Router,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
}

/// Holds the state of the supervisor.
pub struct SupervisorState {
    myself: ActorRef<SupervisorMessage>,
    arguments: SupervisorArguments,
    /// When the actors of tenants failed, within [`RESTART_WINDOW`].
    failures: BTreeMap<TenantId, VecDeque<Instant>>,
    /// Bounds how many tenants are opened to look for unfinished work.
    openings: Arc<Semaphore>,
    /// The task that looks for damage, and for replicas that differ.
    checks: AbortHandle,
    stopping: bool,
}

impl Actor for TenantSupervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<SupervisorMessage>,
        arguments: SupervisorArguments,
    ) -> Result<SupervisorState, ActorProcessingErr> {
        let (registry, deps) = (Arc::clone(&arguments.registry), Arc::clone(&arguments.deps));
        let (router, raft_id) = (arguments.router.clone(), arguments.raft_id);
        let comparer = Comparer {
            registry: Arc::clone(&registry),
            deps: Arc::clone(&deps),
            directory: Arc::clone(&arguments.directory),
            router: router.clone(),
            raft_id,
        };
        let checks = async move {
            tokio::join!(
                scrub_for_ever(registry, deps, router, raft_id),
                comparer.compare_for_ever()
            );
        };
        Ok(SupervisorState {
            myself,
            arguments,
            checks: tokio::spawn(checks).abort_handle(),
            failures: BTreeMap::new(),
            openings: Arc::new(Semaphore::new(OPEN_AT_ONCE_MAX)),
            stopping: false,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<SupervisorMessage>,
        message: SupervisorMessage,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Start(activation) => state.start(activation),
            SupervisorMessage::StartFailed(activation, failure) => {
                state.failed(&activation, failure);
            }
            SupervisorMessage::RemoveDeleted(activation) => state.remove_deleted(activation),
            SupervisorMessage::AskForCopy(activation, next) => {
                state.ask_for_copy(activation, next);
            }
            SupervisorMessage::Rebuild(activation, staged, begun) => {
                // Not while the files of a deleted tenant are being removed.
                let is_free = activation.claim_files();
                if is_free {
                    activation.put_copy(staged);
                    state.start_again(activation);
                }
                let _ = begun.send(is_free);
            }
            SupervisorMessage::Exhausted(activation) => state.exhausted(activation),
            SupervisorMessage::TryAgain(activation) => {
                let is_out_of_service = matches!(
                    &*activation.state.borrow(),
                    ActivationState::Quarantined { .. } | ActivationState::Damaged { .. }
                );
                // A tenant that has been started by another cause meanwhile is left alone: its files
                // must not be open twice.
                if is_out_of_service {
                    state.start_again(activation);
                }
            }
            SupervisorMessage::LookForWork(group) => {
                unfinished_work::start(&state.arguments, group, &state.openings);
            }
            SupervisorMessage::Leave(group, done) => {
                stop_actors(state.arguments.registry.give_up(group), done);
            }
            SupervisorMessage::StopAll(done) => state.stop_all(done),
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<SupervisorMessage>,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        state.checks.abort();
        stop_children(&myself.get_cell(), STOP_DEADLINE).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<SupervisorMessage>,
        event: SupervisionEvent,
        state: &mut SupervisorState,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(cell, error) = event {
            // By the id of the actor: a failure that comes late must not be taken for one of the
            // successor. An actor that failed while it was `Starting` is told by `StartFailed`.
            let is_it = |activation: &Arc<Activation>| match &*activation.state.borrow() {
                ActivationState::Running(actor) => actor.get_id() == cell.get_id(),
                _ => false,
            };
            match state.arguments.registry.activations().into_iter().find(is_it) {
                Some(activation) if is_passing(&error) => state.exhausted(activation),
                Some(activation) => state.failed(&activation, Failure::of(&error)),
                None => {}
            }
        }
        Ok(())
    }
}

impl SupervisorState {
    /// Starts the actor of a tenant in a task of its own.
    fn start(&self, activation: Arc<Activation>) {
        if self.stopping {
            // Whoever waits for its end sees it.
            activation.state.send_replace(ActivationState::Asleep);
            return;
        }
        let (myself, deps) = (self.myself.clone(), Arc::clone(&self.arguments.deps));
        // To open files and read the log takes a while. Other tenants must not wait for it.
        tokio::spawn(async move {
            // A group delivers entries as soon as it runs, perhaps before it is listed.
            while deps.executor.log.leadership(activation.group).is_none()
                && !activation.is_given_up.load(Ordering::SeqCst)
            {
                tokio::time::sleep(GROUP_POLL).await;
            }
            if activation.is_given_up.load(Ordering::SeqCst) {
                activation.state.send_replace(ActivationState::Asleep);
                return;
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

    /// Starts the actor of a tenant that was out of service.
    fn start_again(&mut self, activation: Arc<Activation>) {
        activation.release_files();
        self.arguments.registry.note_damage(&activation, false);
        self.failures.remove(&activation.tenant);
        activation.state.send_replace(ActivationState::Starting);
        self.start(activation);
    }

    /// Asks for what takes the place of a damaged tenant's files, until the tenant is not damaged.
    fn ask_for_copy(&self, activation: Arc<Activation>, next: Duration) {
        let is_given_up = activation.is_given_up.load(Ordering::SeqCst);
        if !activation.is_replaceable() || self.stopping || is_given_up {
            activation.is_asking.store(false, Ordering::Release);
            return;
        }
        let log = Arc::clone(&self.arguments.deps.part.log);
        let asks = Arc::clone(&activation);
        tokio::spawn(async move {
            let part = StateMachineId::Tenant(asks.tenant);
            if let Err(error) = log.ask_for_copy(asks.group, part).await {
                tracing::debug!(tenant = %asks.tenant, %error, "nobody sends the damaged tenant");
            }
        });
        let after = (next * 2).min(ASK_AGAIN_MAX);
        self.myself.send_after(next, move || SupervisorMessage::AskForCopy(activation, after));
    }

    /// Starts the actor again, or takes the tenant out of service: at once when its files are damaged, or
    /// when the restart budget is used up.
    fn failed(&mut self, activation: &Arc<Activation>, failure: Failure) {
        self.go_on_after(activation, failure);
        // After the new state is set: who looks now is told it.
        activation.news.notify_waiters();
    }

    fn go_on_after(&mut self, activation: &Arc<Activation>, failure: Failure) {
        if activation.is_given_up.load(Ordering::SeqCst) {
            // Whoever waits for its end sees it.
            activation.state.send_replace(ActivationState::Asleep);
            return;
        }
        let Failure { why, lasting, is_replaceable } = failure;
        if let Some(reason) = lasting {
            // Another attempt would find the same. Another replica may send what the files held; without
            // one a person repairs them and starts the node again.
            tracing::error!(tenant = %activation.tenant, %why, "a tenant's data is damaged: it is out of service here");
            self.arguments.registry.note_damage(activation, true);
            activation.state.send_replace(ActivationState::Damaged { reason, is_replaceable });
            if is_replaceable && !activation.is_asking.swap(true, Ordering::AcqRel) {
                let asks = Arc::clone(activation);
                self.myself
                    .send_after(ASK_AFTER, move || SupervisorMessage::AskForCopy(asks, ASK_AGAIN));
            }
            // After the state is `Damaged`: a deletion that comes from now on asks for itself. One that
            // came before is in the queue.
            if activation.queue.holds(is_deletion) {
                self.remove_deleted(Arc::clone(activation));
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
            return self.start(Arc::clone(activation));
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
        // `why` names actors and files: it is for the node's log, not for clients.
        let reason = "its actor failed again and again; the node's log says why".to_owned();
        activation.state.send_replace(ActivationState::Quarantined { reason });
        // After the state is `Quarantined`, by which new proposals are refused. The proposers of what
        // waits in the queue need not wait any longer.
        activation.queue.forget_proposers();
        let activation = Arc::clone(activation);
        self.myself.send_after(QUARANTINE, move || SupervisorMessage::TryAgain(activation));
    }

    /// Starts the actor again in a moment. It is no failure of the tenant that the process has no file
    /// descriptor left, so it does not count.
    fn exhausted(&self, activation: Arc<Activation>) {
        if !activation.exhausted.swap(true, Ordering::AcqRel) {
            tracing::warn!(tenant = %activation.tenant, "no file descriptor is left to open a tenant with");
        }
        // Callers of the tenant wait, and are told that the node is busy when their time is up.
        activation.state.send_replace(ActivationState::Starting);
        self.myself.send_after(OPEN_AGAIN, move || SupervisorMessage::Start(activation));
    }

    /// Removes the files of a damaged tenant that was deleted, and starts the tenant without files. The
    /// deletion needs nothing of what was in them.
    fn remove_deleted(&self, activation: Arc<Activation>) {
        // A deletion in the queue and one that comes may both ask. The first starts the tenant again.
        if !activation.claim_files() {
            return;
        }
        let (myself, deps) = (self.myself.clone(), Arc::clone(&self.arguments.deps));
        tokio::spawn(async move {
            let (tenant, part) = (activation.tenant, &deps.part);
            // The log notes first that there are no files: after a crash in between it does not miss
            // them, and the deletion is delivered again.
            let removed = async {
                part.log.unfile(activation.group, StateMachineId::Tenant(tenant)).await?;
                part.stores.remove(tenant).await
            };
            match removed.await {
                Ok(()) => drop(myself.send_message(SupervisorMessage::TryAgain(activation))),
                Err(error) => {
                    tracing::warn!(%tenant, %error, "the files cannot be removed");
                    activation.release_files();
                }
            }
        });
    }

    /// Stops the actors that run, all at once.
    fn stop_all(&mut self, done: oneshot::Sender<()>) {
        self.checks.abort();
        // First no actor is started any more: an entry may still wake a tenant that is stopped below.
        self.stopping = true;
        stop_actors(self.arguments.registry.activations(), done);
    }
}

/// Stops those of the tenants' actors that run, all at once, and says when they have stopped.
fn stop_actors(activations: Vec<Arc<Activation>>, done: oneshot::Sender<()>) {
    tokio::spawn(async move {
        let stops = activations.iter().map(|activation| async move {
            // One that starts ends by itself when it sees that it is given up, or runs and is stopped.
            let mut states = activation.state.subscribe();
            let is_still = |state: &ActivationState| {
                !matches!(state, ActivationState::Starting | ActivationState::Closing)
            };
            let state = match activation.is_given_up.load(Ordering::SeqCst) {
                true => states.wait_for(is_still).await.map(|state| state.clone()),
                false => Ok(activation.state.borrow().clone()),
            };
            let Ok(ActivationState::Running(actor)) = state else { return };
            if let Err(error) = actor.stop_and_wait(None, Some(STOP_DEADLINE)).await {
                tracing::warn!(%error, "a tenant's actor did not stop in time");
            }
        });
        futures_util::future::join_all(stops).await;
        let _ = done.send(());
    });
}

/// Tells whether an actor failed for lack of file descriptors only.
fn is_passing(error: &ActorProcessingErr) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_passing)
}

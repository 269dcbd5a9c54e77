//! The shell around one tenant's state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::message::{AdmitReply, TenantReader};
use super::rendering::Renderer;
use super::steps::{self, Link, StepKey, StepLimits, StepTask};
use super::timers::Timers;
use super::{Activation, ActivationState, TENANT_CALLS_MAX, TenantMessage, TestHook};
use crate::command::Refusal;
use crate::domain::ids::{RunId, StateMachineId};
use crate::domain::tenant::Quota;
use crate::ports::seams::Seams;
use crate::ports::{AttemptJournal, HttpCaller, Leadership};
use crate::replica::{ReplicaDeps, ReplicaRunner};
use crate::services::locks::{LockManager, Space};
use crate::services::tenants::rate::RateWindow;
use crate::state::tenant::{TenantEffect, TenantState};

/// What has changed is made durable this often, at least.
const HOUSEKEEPING_EVERY: Duration = Duration::from_secs(5);
/// What every tenant's actor needs from outside.
pub struct TenantDeps {
    /// Log and files.
    pub part: ReplicaDeps,
    /// Time and chance.
    pub seams: Seams,
    /// Sends the requests of `http` steps.
    pub http: Arc<dyn HttpCaller>,
    /// Who keeps waiters and timers of locks.
    pub locks: LockManager,
    /// Fills templates in, away from the runtime's threads.
    pub renderer: Renderer,
    /// How many steps are performed at once.
    pub step_limits: StepLimits,
    /// Remembers what was under way when the process died.
    pub under_way: Arc<dyn AttemptJournal>,
}

/// A tenant's actor.
pub(super) struct TenantActor;

/// What it keeps.
pub(super) struct TenantShell {
    activation: Arc<Activation>,
    pub(super) deps: Arc<TenantDeps>,
    pub(super) runner: ReplicaRunner<TenantState>,
    leadership: watch::Receiver<Leadership>,
    /// Tells this actor of changes of leadership.
    watcher: AbortHandle,
    /// The term in which this node leads, once everything of earlier terms has been applied.
    pub(super) leads: Option<u64>,
    /// The lock space that the lock manager was told to lead.
    led_space: Option<Space>,
    /// Tasks under way, by step and attempt.
    pub(super) tasks: BTreeMap<StepKey, AbortHandle>,
    waiters: BTreeMap<RunId, Vec<oneshot::Sender<()>>>,
    requests: RateWindow,
    started: Instant,
    /// When steps that wait go on.
    pub(super) timers: Timers<StepKey>,
    /// Those whose timer went off while their task was under way still.
    pub(super) late: BTreeSet<StepKey>,
    /// When the next timer is looked at, and what wakes this actor then.
    pub(super) timer: Option<(Instant, AbortHandle)>,
}

impl Actor for TenantActor {
    type Msg = TenantMessage;
    type State = TenantShell;
    type Arguments = (Arc<Activation>, Arc<TenantDeps>);

    async fn pre_start(
        &self,
        myself: ActorRef<TenantMessage>,
        (activation, deps): Self::Arguments,
    ) -> Result<TenantShell, ActorProcessingErr> {
        assert!(*activation.test_hook.borrow() != TestHook::Fail, "asked to fail, for a test");
        let leadership =
            deps.part.log.leadership(activation.group).ok_or("the tenant's group is not here")?;
        let part = StateMachineId::Tenant(activation.tenant);
        let queue = Arc::clone(&activation.queue);
        let (runner, effects) =
            ReplicaRunner::<TenantState>::start(deps.part.clone(), activation.group, part, queue)
                .await?;
        let watcher = tokio::spawn(watch_leadership(myself.clone(), leadership.clone()));
        let mut shell = TenantShell {
            activation: Arc::clone(&activation),
            deps,
            runner,
            leadership,
            watcher: watcher.abort_handle(),
            leads: None,
            led_space: None,
            tasks: BTreeMap::new(),
            waiters: BTreeMap::new(),
            requests: RateWindow::default(),
            started: Instant::now(),
            timers: Timers::default(),
            late: BTreeSet::new(),
            timer: None,
        };
        for effect in effects {
            shell.perform(&myself, effect).await?;
        }
        myself.send_interval(HOUSEKEEPING_EVERY, || TenantMessage::Housekeeping);
        activation.exhausted.store(false, Ordering::Release);
        activation.state.send_replace(ActivationState::Running(myself.clone()));
        // Entries that came before the phase was set woke nobody.
        myself.send_message(TenantMessage::Drain)?;
        Ok(shell)
    }

    async fn handle(
        &self,
        myself: ActorRef<TenantMessage>,
        message: TenantMessage,
        shell: &mut TenantShell,
    ) -> Result<(), ActorProcessingErr> {
        shell.drain(&myself).await?;
        match message {
            TenantMessage::Drain | TenantMessage::Leadership => {}
            TenantMessage::Admit(reply) => {
                let _ = reply.send(shell.admit());
            }
            TenantMessage::Read(read) => {
                shell.runner.ensure_files().await?;
                let now = shell.now_secs();
                let requests = (shell.requests.used(now), shell.requests.reset_secs());
                let (state, rows) = (&shell.runner.machine, &shell.runner.rows);
                let mut reader = TenantReader { state, rows, requests, damage: None };
                read(&mut reader);
                let damage = reader.damage.take().or_else(|| shell.runner.failure());
                if let Some(error) = damage {
                    // Whoever asked was told. Nobody else is to be served from these files.
                    return Err(error.into());
                }
            }
            TenantMessage::WaitRun(run, reply) => {
                if shell.runner.machine.runs().contains_key(&run) {
                    let waiters = shell.waiters.entry(run).or_default();
                    waiters.retain(|waiter| !waiter.is_closed());
                    waiters.push(reply);
                } else {
                    let _ = reply.send(());
                }
            }
            TenantMessage::Due => shell.timer = None,
            TenantMessage::Take { run, step, attempt, reply } => {
                let state = &shell.runner.machine;
                let _ = reply.send(StepTask::of(state, run, step, attempt));
            }
            TenantMessage::Performed { run, step, attempt } => {
                shell.tasks.remove(&(run, step, attempt));
                // Its timer may have gone off while its task was seen as under way.
                if shell.late.remove(&(run, step, attempt)) {
                    shell.timers.set((run, step, attempt), Instant::now());
                }
            }
            TenantMessage::Housekeeping => shell.flush_and_maybe_sleep(&myself).await?,
            TenantMessage::Test(hook) => shell.apply_test_hook(hook).await,
        }
        shell.follow_waits(&myself);
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<TenantMessage>,
        shell: &mut TenantShell,
    ) -> Result<(), ActorProcessingErr> {
        shell.stop_tasks();
        let is_current = match &*shell.activation.state.borrow() {
            ActivationState::Running(current) => current.get_id() == myself.get_id(),
            _ => false,
        };
        if !is_current {
            // It went to sleep, and perhaps has a successor by now, whose queue this is.
            return Ok(());
        }
        shell.runner.drain().await?;
        shell.runner.make_durable().await?;
        shell.runner.mark_idle().await?;
        Ok(())
    }
}

impl Drop for TenantShell {
    /// Also when the actor panics: its tasks must not go on beside those of its successor.
    fn drop(&mut self) {
        self.stop_tasks();
        self.watcher.abort();
        self.unlead();
    }
}

/// Tells the actor whenever leadership changes.
async fn watch_leadership(
    actor: ActorRef<TenantMessage>,
    mut leadership: watch::Receiver<Leadership>,
) {
    while leadership.changed().await.is_ok() {
        if actor.send_message(TenantMessage::Leadership).is_err() {
            return;
        }
    }
}

impl TenantShell {
    /// Applies what has been handed over, performs the effects, and follows leadership.
    async fn drain(&mut self, myself: &ActorRef<TenantMessage>) -> Result<(), ActorProcessingErr> {
        // Read first: what was handed over before this term began is applied before it counts.
        let delivered_term = self.activation.delivered_term();
        for effect in self.runner.drain().await? {
            self.perform(myself, effect).await?;
        }
        if self.follow_leadership(myself, delivered_term) {
            // What was applied again after a start need not be applied again after the next.
            self.runner.make_durable().await?;
        }
        Ok(())
    }

    async fn perform(
        &mut self,
        myself: &ActorRef<TenantMessage>,
        effect: TenantEffect,
    ) -> Result<(), ActorProcessingErr> {
        match effect {
            TenantEffect::PerformStep { run, step, attempt } => {
                self.perform_step(myself, run, step, attempt);
            }
            TenantEffect::StopStep { run, step, attempt } => {
                self.timers.clear((run, step, attempt));
                if let Some(task) = self.tasks.remove(&(run, step, attempt)) {
                    task.abort();
                }
            }
            TenantEffect::RunEnded(run) => {
                self.deps.renderer.forget(run);
                for waiter in self.waiters.remove(&run).into_iter().flatten() {
                    let _ = waiter.send(());
                }
            }
            TenantEffect::Lock(notice) => {
                if let Some(space) = self.led_space {
                    self.deps.locks.notice(space, notice);
                }
            }
            TenantEffect::Deleted => {
                self.stop_tasks();
                self.waiters.clear();
                self.unlead();
                self.runner.make_durable().await?;
            }
        }
        Ok(())
    }

    /// Begins to lead, or stops, when leadership of the group has moved. Whether it leads anew.
    fn follow_leadership(&mut self, myself: &ActorRef<TenantMessage>, delivered_term: u64) -> bool {
        let now = *self.leadership.borrow_and_update();
        let leads = (now.here && now.term == delivered_term).then_some(now.term);
        if leads == self.leads {
            return false;
        }
        self.stop_tasks();
        self.leads = leads;
        self.unlead();
        let Some(space) = self.space().filter(|_| leads.is_some()) else {
            return leads.is_some();
        };
        self.led_space = Some(space);
        self.deps.locks.lead(space, self.runner.machine.locks().list("", None).cloned().collect());
        for effect in self.runner.machine.outstanding() {
            if let TenantEffect::PerformStep { run, step, attempt } = effect {
                self.perform_step(myself, run, step, attempt);
            }
        }
        self.arm_all();
        true
    }

    fn perform_step(
        &mut self,
        myself: &ActorRef<TenantMessage>,
        run: RunId,
        step: u16,
        attempt: u32,
    ) {
        let Some(link) = self.link() else { return };
        // The task takes the rest when its turn has come: thousands may wait for theirs.
        let live = self.runner.machine.runs().get(&run);
        let Some(spec) = live.and_then(|live| live.workflow.steps.get(usize::from(step))) else {
            return;
        };
        let task = steps::perform(link, (run, step, attempt), spec.json.clone(), myself.clone());
        self.spawn(myself, (run, step, attempt), task);
    }

    /// Runs a task for a step, unless one is under way for this attempt.
    pub(super) fn spawn(
        &mut self,
        myself: &ActorRef<TenantMessage>,
        key: StepKey,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        if self.tasks.contains_key(&key) {
            return;
        }
        let myself = myself.clone();
        let task = tokio::spawn(async move {
            task.await;
            let (run, step, attempt) = key;
            let _ = myself.send_message(TenantMessage::Performed { run, step, attempt });
        });
        self.tasks.insert(key, task.abort_handle());
    }

    fn admit(&mut self) -> AdmitReply {
        let Some(record) = self.runner.machine.record() else {
            return AdmitReply { refusal: Some(Refusal::TenantNotFound), rate: None };
        };
        let Some(limit) = record.quotas.limit(Quota::ApiRequestsPerMinute) else {
            return AdmitReply { refusal: None, rate: None };
        };
        let now = self.now_secs();
        match self.requests.admit(now, limit) {
            Ok(rate) => AdmitReply { refusal: None, rate: Some(rate) },
            Err(rate) => {
                let refusal = Refusal::QuotaExceeded {
                    quota: Quota::ApiRequestsPerMinute,
                    limit,
                    used: self.requests.used(now),
                    retry_after_secs: Some(rate.reset_secs),
                };
                AdmitReply { refusal: Some(refusal), rate: Some(rate) }
            }
        }
    }

    /// Makes what has changed durable, and goes to sleep when nothing is left to do.
    async fn flush_and_maybe_sleep(
        &mut self,
        myself: &ActorRef<TenantMessage>,
    ) -> Result<(), ActorProcessingErr> {
        self.runner.make_durable().await?;
        // Asleep it would hold the log, and on a full disk nothing would wake it when there is room.
        if !self.is_idle() || self.runner.is_dirty() {
            return Ok(());
        }
        self.runner.mark_idle().await?;
        self.activation.state.send_replace(ActivationState::Closing);
        // Whoever took a permit before this line is seen here; whoever takes one after it sees
        // that the actor is closing, and wakes it again.
        let is_called = self.activation.calls.available_permits() < TENANT_CALLS_MAX;
        if is_called || self.activation.queue.has_work() {
            self.activation.state.send_replace(ActivationState::Running(myself.clone()));
            return Ok(());
        }
        self.unlead();
        self.runner.close_files();
        self.activation.state.send_replace(ActivationState::Asleep);
        if self.activation.queue.has_work() {
            self.activation.wake();
        }
        myself.stop(None);
        Ok(())
    }

    /// Whether nothing would be lost by sleeping, the count of requests included.
    fn is_idle(&mut self) -> bool {
        let now = self.now_secs();
        let machine = &self.runner.machine;
        machine.runs().is_empty()
            && machine.locks().list("", None).next().is_none()
            && self.tasks.is_empty()
            && self.requests.used(now) == 0
    }

    async fn apply_test_hook(&mut self, hook: TestHook) {
        match hook {
            TestHook::Panic | TestHook::Fail => panic!("asked to panic, for a test"),
            TestHook::Stall => {
                let mut hooks = self.activation.test_hook.subscribe();
                // The sender lives in the activation, as long as this actor.
                let _ = hooks.wait_for(|hook| *hook == TestHook::Heal).await;
            }
            TestHook::Heal => {}
        }
    }

    /// Has the lock manager forget the tenant's locks; who waits for one is sent away.
    fn unlead(&mut self) {
        if let Some(space) = self.led_space.take() {
            self.deps.locks.unlead(space);
        }
    }

    fn stop_tasks(&mut self) {
        self.timers.clear_all();
        self.late.clear();
        for task in std::mem::take(&mut self.tasks).into_values() {
            task.abort();
        }
    }

    /// Seconds of the monotonic clock, for the per-minute quota.
    fn now_secs(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    fn space(&self) -> Option<Space> {
        let epoch = self.runner.machine.epoch()?;
        Some(Space { tenant: Some((self.activation.tenant, epoch)), group: self.activation.group })
    }

    /// What a task needs to act for this tenant, while this node leads its group.
    pub(super) fn link(&self) -> Option<Link> {
        Some(Link {
            deps: Arc::clone(&self.deps),
            group: self.activation.group,
            tenant: self.activation.tenant,
            epoch: self.runner.machine.epoch()?,
            term: self.leads?,
        })
    }
}

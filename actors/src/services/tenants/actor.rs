//! The actor of a tenant: the shell around the tenant's replica.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::message::{AdmitReply, TenantReader};
use super::rate::RateWindow;
use super::sleep::{first_housekeeping, keep_house};
use super::{Activation, ActivationState, TenantMessage, TestHook};
use crate::command::Refusal;
use crate::domain::ids::{RunId, StateMachineId};
use crate::domain::tenant::Quota;
use crate::ports::Leadership;
use crate::replica::{ReplicaDeps, ReplicaRunner};
use crate::services::executor::{ExecutorDeps, Link, StepEvent, StepTask, TenantSteps};
use crate::services::locks::{LockManager, Space};
use crate::state::tenant::{TenantEffect, TenantState};

/// Carries what every tenant's actor needs from outside.
pub struct TenantDeps {
    /// Log and files.
    pub part: ReplicaDeps,
    /// Keeps waiters and timers of locks.
    pub locks: LockManager,
    /// Performs steps.
    pub executor: Arc<ExecutorDeps>,
}

/// The actor of a tenant.
pub(super) struct TenantActor;

/// Holds the state of the actor.
pub(super) struct TenantShell {
    pub(super) activation: Arc<Activation>,
    deps: Arc<TenantDeps>,
    pub(super) runner: ReplicaRunner<TenantState>,
    leadership: watch::Receiver<Leadership>,
    /// The task that tells this actor of changes of leadership.
    watcher: AbortHandle,
    /// The term in which this node leads, once everything of earlier terms has been applied.
    leads: Option<u64>,
    /// The lock space that the lock manager was told to lead.
    led_space: Option<Space>,
    /// The steps that this node performs, with their timers.
    pub(super) steps: TenantSteps,
    /// Callers that wait for the end of a run.
    waiters: BTreeMap<RunId, Vec<oneshot::Sender<()>>>,
    pub(super) requests: RateWindow,
    pub(super) started: Instant,
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
        // Before files are opened that are about to be removed.
        if activation.is_given_up.load(Ordering::SeqCst) {
            return Err("this node has left the tenant's group".into());
        }
        assert!(*activation.test_hook.borrow() != TestHook::Fail, "asked to fail, for a test");
        let leadership = deps
            .executor
            .log
            .leadership(activation.group)
            .ok_or("the tenant's group is not here")?;
        let part = StateMachineId::Tenant(activation.tenant);
        let queue = Arc::clone(&activation.queue);
        let (files, group) = (deps.part.clone(), activation.group);
        let (runner, effects) = match activation.take_copy() {
            Some(copy) => ReplicaRunner::rebuild(files, group, part, queue, copy).await?,
            None => ReplicaRunner::<TenantState>::start(files, group, part, queue).await?,
        };
        let watcher = tokio::spawn(watch_leadership(myself.clone(), leadership.clone()));
        let tell = {
            let myself = myself.clone();
            move |event| myself.send_message(TenantMessage::Step(event)).is_ok()
        };
        let mut shell = TenantShell {
            activation: Arc::clone(&activation),
            deps,
            runner,
            leadership,
            watcher: watcher.abort_handle(),
            leads: None,
            led_space: None,
            steps: TenantSteps::new(Arc::new(tell)),
            waiters: BTreeMap::new(),
            requests: RateWindow::default(),
            started: Instant::now(),
        };
        // Not yet a leader: no step is performed, and no lock is told of. What an effect begins is
        // outstanding in the state, where `follow_leadership` finds it.
        for effect in effects {
            shell.perform(effect).await?;
        }
        let first = first_housekeeping(&shell.deps.executor.seams);
        tokio::spawn(keep_house(myself.clone(), first));
        // Before `Running`: a caller whose time is up after that is not told that descriptors are short.
        activation.exhausted.store(false, Ordering::Release);
        activation.state.send_replace(ActivationState::Running(myself.clone()));
        // After the state is `Running`: who gives the tenant up says so first and then looks for an actor
        // to stop. One of the two sees the other.
        if activation.is_given_up.load(Ordering::SeqCst) {
            return Err("this node has left the tenant's group".into());
        }
        // What was replayed, or came from another replica, may have events.
        activation.news.notify_waiters();
        // Entries that came before the state was `Running` woke nobody. From that line on they do.
        myself.send_message(TenantMessage::Drain)?;
        Ok(shell)
    }

    async fn handle(
        &self,
        myself: ActorRef<TenantMessage>,
        message: TenantMessage,
        shell: &mut TenantShell,
    ) -> Result<(), ActorProcessingErr> {
        // Before every message: a caller that has seen its command applied reads the state after it, and
        // a new term counts only once everything before it is applied.
        shell.drain().await?;
        match message {
            TenantMessage::Drain | TenantMessage::Leadership => {}
            TenantMessage::Admit(reply) => {
                let _ = reply.send(shell.admit());
            }
            TenantMessage::Read(read) => {
                // The files may have been closed for others since the last message.
                shell.runner.ensure_files().await?;
                let now = shell.now_secs();
                let requests = (shell.requests.used(now), shell.requests.reset_secs());
                let (state, rows) = (&shell.runner.machine, &shell.runner.rows);
                let mut reader = TenantReader { state, rows, requests, damage: None };
                read(&mut reader);
                let damage = reader.damage.take().or_else(|| shell.runner.failure());
                if let Some(error) = damage {
                    // The caller was told. The actor ends here, so that nobody else is served from
                    // these files.
                    return Err(error.into());
                }
            }
            TenantMessage::WaitRun(run, reply) => {
                if shell.runner.machine.runs().contains_key(&run) {
                    let waiters = shell.waiters.entry(run).or_default();
                    // Clients that poll leave waiters behind: bounded by those who still wait.
                    waiters.retain(|waiter| !waiter.is_closed());
                    waiters.push(reply);
                } else {
                    let _ = reply.send(());
                }
            }
            TenantMessage::Step(StepEvent::Due) => shell.steps.alarm_went_off(),
            TenantMessage::Step(StepEvent::Take(attempt, reply)) => {
                let _ = reply.send(StepTask::of(&shell.runner.machine, attempt));
            }
            TenantMessage::Step(StepEvent::Ended(attempt)) => shell.steps.ended(attempt),
            TenantMessage::Housekeeping => shell.flush_and_maybe_sleep(&myself).await?,
            TenantMessage::Replica(request) => {
                shell.runner.ensure_files().await?;
                shell.runner.serve_request(request).await?;
            }
            TenantMessage::Test(hook) => shell.apply_test_hook(hook).await,
        }
        // After every message: each may have applied commands that begin or end waits.
        let link = shell.link();
        shell.steps.follow(&mut shell.runner.machine, link);
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<TenantMessage>,
        shell: &mut TenantShell,
    ) -> Result<(), ActorProcessingErr> {
        shell.steps.stop_all();
        let is_current = match &*shell.activation.state.borrow() {
            ActivationState::Running(current) => current.get_id() == myself.get_id(),
            _ => false,
        };
        if !is_current {
            // The actor went to sleep, and may have a successor by now: queue and files are no longer
            // this actor's to touch.
            return Ok(());
        }
        shell.runner.drain().await?;
        shell.runner.make_durable().await?;
        // Last: the mark says of what is durable that it has no work.
        shell.runner.mark_idle().await?;
        Ok(())
    }
}

impl Drop for TenantShell {
    /// Ends tasks and timers, also when the actor panics: they must not go on beside those of its
    /// successor.
    fn drop(&mut self) {
        self.steps.stop_all();
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
    /// Applies what has been delivered, performs the effects, and follows leadership.
    async fn drain(&mut self) -> Result<(), ActorProcessingErr> {
        // Read before the queue is drained: the group stores a term after it has delivered everything of
        // earlier terms, so all of that is in the queue now, and applied below. Read afterwards, the
        // term might be newer than what was applied, and the leader would act on an old state.
        let delivered_term = self.activation.delivered_term();
        let (events, leads) = (self.runner.rows.events_total(), self.leads);
        for effect in self.runner.drain().await? {
            self.perform(effect).await?;
        }
        let begins_to_lead = self.follow_leadership(delivered_term);
        if events != self.runner.rows.events_total() || leads != self.leads {
            self.activation.news.notify_waiters();
        }
        if begins_to_lead {
            // What was applied again after a start need not be applied again after the next.
            self.runner.make_durable().await?;
        }
        Ok(())
    }

    /// Performs an effect of a command. On a node that does not lead only those count that end something
    /// here.
    async fn perform(&mut self, effect: TenantEffect) -> Result<(), ActorProcessingErr> {
        match effect {
            TenantEffect::PerformStep(attempt) => {
                if let Some(link) = self.link() {
                    self.steps.perform(&self.runner.machine, link, attempt);
                }
            }
            TenantEffect::StopStep(attempt) => self.steps.stop(attempt),
            TenantEffect::RunEnded(run) => {
                self.deps.executor.renderer.forget(run);
                for waiter in self.waiters.remove(&run).into_iter().flatten() {
                    let _ = waiter.send(());
                }
            }
            TenantEffect::Lock(notice) => {
                if let Some(space) = self.led_space {
                    self.deps.locks.notice(space, notice);
                }
            }
            TenantEffect::Frozen => {
                // What they would propose is refused from here on. Where the tenant goes on, its attempts are
                // repeated under the same numbers, as after the loss of a leader.
                self.steps.stop_all();
                // Their receivers ask again, where the tenant lives by then.
                self.waiters.clear();
                self.unlead();
            }
            // Whoever leads here takes the work over as a new leader does, once everything is applied.
            TenantEffect::Resumed => self.leads = None,
            TenantEffect::Deleted | TenantEffect::Gone => {
                self.steps.stop_all();
                // Their receivers see that the run is gone.
                self.waiters.clear();
                self.unlead();
                // Removes the files now, and not only at the next housekeeping.
                self.runner.make_durable().await?;
            }
        }
        Ok(())
    }

    /// Begins to lead, or stops, when leadership of the group has moved. Tells whether this node has
    /// begun to lead.
    fn follow_leadership(&mut self, delivered_term: u64) -> bool {
        let now = *self.leadership.borrow_and_update();
        // Both have to be of one term: elected, and everything of earlier terms delivered.
        let leads = (now.here && now.term == delivered_term).then_some(now.term);
        if leads == self.leads {
            return false;
        }
        // First everything of the old term ends, also when this node leads again: tasks carry the term
        // in which they began, and what they propose would do nothing.
        self.steps.stop_all();
        self.leads = leads;
        self.unlead();
        let Some(space) = self.space().filter(|_| leads.is_some()) else {
            return leads.is_some();
        };
        self.led_space = Some(space);
        self.deps.locks.lead(space, self.runner.machine.locks().list("", None).cloned().collect());
        if let Some(link) = self.link() {
            self.steps.take_over(&self.runner.machine, &link);
        }
        true
    }

    /// Decides whether a request is within the per-minute quota, and counts it if it is.
    fn admit(&mut self) -> AdmitReply {
        if self.runner.machine.is_elsewhere() {
            return AdmitReply { refusal: Some(Refusal::StaleEpoch), rate: None };
        }
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

    /// Misbehaves as a test asks.
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

    /// Tells the lock manager that this node does not lead the tenant's locks any more. Their waiters are
    /// sent away, and those of runs, who ask again where the tenant is led by then.
    pub(super) fn unlead(&mut self) {
        if let Some(space) = self.led_space.take() {
            self.deps.locks.unlead(space);
            self.waiters.clear();
        }
    }

    /// Returns the seconds since the start of the actor, for the per-minute quota.
    pub(super) fn now_secs(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Returns the tenant's lock space. `None` where there is no tenant.
    fn space(&self) -> Option<Space> {
        let epoch = self.runner.machine.epoch()?;
        Some(Space { tenant: Some((self.activation.tenant, epoch)), group: self.activation.group })
    }

    /// Makes what a task needs to act for this tenant. `None` while this node does not lead its group.
    fn link(&self) -> Option<Link> {
        Some(Link {
            deps: Arc::clone(&self.deps.executor),
            group: self.activation.group,
            tenant: self.activation.tenant,
            epoch: self.runner.machine.epoch()?,
            term: self.leads?,
        })
    }
}

//! A tenant on this node at run time: its queue, and whether its actor runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::{SupervisorMessage, TenantMessage, TestHook};
use crate::domain::ids::{GroupId, Position, TenantId};
use crate::ports::Staged;
use crate::ports::error::CallError;
use crate::replica::{ApplyQueue, DigestCursor, QueueBytes};

/// Calls to one tenant that may be under way at once, of all its clients.
pub const TENANT_CALLS_MAX: usize = 1024;

/// Followers of one tenant's events that may look at them at a time.
const FOLLOWERS_LOOK_MAX: usize = 16;

/// Calls about one tenant's replica that may be under way at once: snapshots, and comparisons. Counted apart
/// from those of its clients, who could otherwise keep the other replicas of their group from catching up.
const REPLICA_CALLS_MAX: usize = 16;

/// Says whether the tenant's actor runs.
#[derive(Debug, Clone)]
pub enum ActivationState {
    /// No actor runs, and the files are closed.
    Asleep,
    /// An actor opens the files, or is about to.
    Starting,
    /// The actor runs.
    Running(ActorRef<TenantMessage>),
    /// The actor closes the files. It may change its mind.
    Closing,
    /// The actor failed again and again, and is tried again in a while.
    Quarantined {
        /// What clients are told.
        reason: String,
    },
    /// The files are damaged. Another attempt would find them as they are.
    Damaged {
        /// What clients are told.
        reason: String,
        /// Whether what another replica holds can take their place: not that of files which a later
        /// version of the program wrote.
        is_replaceable: bool,
    },
}

/// Holds what the node keeps of a tenant also while it sleeps.
#[derive(Debug)]
pub struct Activation {
    /// The tenant.
    pub tenant: TenantId,
    /// The tenant's group.
    pub group: GroupId,
    /// What the group's log delivered.
    pub queue: Arc<ApplyQueue>,
    /// The newest term whose first entry the group has delivered.
    pub(super) delivered_term: Arc<AtomicU64>,
    pub(super) state: watch::Sender<ActivationState>,
    calls: Arc<Semaphore>,
    replica_calls: Arc<Semaphore>,
    pub(super) test_hook: watch::Sender<TestHook>,
    /// Wakes who follows the tenant's events: there are more, or the tenant may be served no longer here.
    pub news: Arc<Notify>,
    /// Bounds how many followers look at the events at a time. Each event wakes all of them, and the tenant's
    /// clients need the mailbox, too.
    pub followers_look: Semaphore,
    /// Whether the last command that starts something was refused for a quota: the next one is looked at
    /// before it is proposed, for it would take room in the log only to be refused.
    pub quota_refused: AtomicBool,
    /// Whether the last attempt to start the actor found no file descriptor.
    pub(super) exhausted: AtomicBool,
    /// Whether the files of the damaged tenant are being removed or replaced: one at a time may.
    are_files_claimed: AtomicBool,
    /// Whether this node has left the tenant's group: no actor is started any more.
    pub(super) is_given_up: AtomicBool,
    /// Whether the supervisor asks other replicas for what the damaged files held.
    pub(super) is_asking: AtomicBool,
    /// What another replica has sent to take the place of the damaged files, for the actor that starts.
    copy: Mutex<Option<Staged>>,
    /// What the replica held where it was compared last, as far as that is hashed.
    digest: Mutex<Option<DigestCursor>>,
    /// When that was.
    compared: Mutex<Option<Instant>>,
    supervisor: ActorRef<SupervisorMessage>,
}

impl Activation {
    pub(super) fn new(
        tenant: TenantId,
        group: GroupId,
        delivered_term: Arc<AtomicU64>,
        queued: Arc<QueueBytes>,
        supervisor: ActorRef<SupervisorMessage>,
    ) -> Arc<Self> {
        let activation = Arc::new(Self {
            tenant,
            group,
            queue: Arc::new(ApplyQueue::sharing(queued)),
            delivered_term,
            state: watch::Sender::new(ActivationState::Asleep),
            calls: Arc::new(Semaphore::new(TENANT_CALLS_MAX)),
            replica_calls: Arc::new(Semaphore::new(REPLICA_CALLS_MAX)),
            test_hook: watch::Sender::new(TestHook::Heal),
            news: Arc::default(),
            followers_look: Semaphore::new(FOLLOWERS_LOOK_MAX),
            quota_refused: AtomicBool::new(false),
            exhausted: AtomicBool::new(false),
            are_files_claimed: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            is_asking: AtomicBool::new(false),
            copy: Mutex::default(),
            digest: Mutex::default(),
            compared: Mutex::default(),
            supervisor,
        });
        // Weak: the queue is owned by the activation that it wakes.
        let weak = Arc::downgrade(&activation);
        activation.queue.set_wake(move || {
            if let Some(activation) = weak.upgrade() {
                activation.wake();
            }
        });
        activation
    }

    /// Has the actor look at its queue, and starts it if the tenant sleeps.
    pub fn wake(self: &Arc<Self>) {
        // Look and change are one step, under the lock of the channel: of two that wake a sleeping
        // tenant only one starts an actor. `Starting` and `Closing` need nothing: the actor looks at the
        // queue after it has said `Running` or `Asleep`.
        let mut must_start = false;
        self.state.send_if_modified(|state| {
            if let ActivationState::Running(actor) = state {
                let _ = actor.send_message(TenantMessage::Drain);
            }
            must_start = matches!(state, ActivationState::Asleep);
            if must_start {
                *state = ActivationState::Starting;
            }
            must_start
        });
        if must_start {
            let _ = self.supervisor.send_message(SupervisorMessage::Start(Arc::clone(self)));
        }
    }

    /// Tells the supervisor that the tenant was deleted, if its files are damaged.
    pub(in crate::services) fn remove_if_damaged(self: &Arc<Self>) {
        if matches!(&*self.state.borrow(), ActivationState::Damaged { .. }) {
            let _ =
                self.supervisor.send_message(SupervisorMessage::RemoveDeleted(Arc::clone(self)));
        }
    }

    /// Claims the files of the damaged tenant. Tells whether the caller may remove or replace them: not
    /// while another does.
    pub(super) fn claim_files(&self) -> bool {
        // Two looks, and nothing comes in between: the supervisor alone calls this, and it alone has a
        // tenant leave `Damaged`.
        let is_damaged = matches!(&*self.state.borrow(), ActivationState::Damaged { .. });
        is_damaged && !self.are_files_claimed.swap(true, Ordering::AcqRel)
    }

    /// Gives the claim back, for another attempt.
    pub(super) fn release_files(&self) {
        self.are_files_claimed.store(false, Ordering::Release);
    }

    /// Tells whether the files are damaged, and what another replica holds can take their place.
    pub(super) fn is_replaceable(&self) -> bool {
        matches!(&*self.state.borrow(), ActivationState::Damaged { is_replaceable: true, .. })
    }

    /// Keeps what another replica has sent for the actor that starts next.
    pub(super) fn put_copy(&self, staged: Staged) {
        // Of what is replaced: nobody is to judge the copy by it.
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.copy.lock().unwrap_or_else(PoisonError::into_inner) = Some(staged);
    }

    /// Takes what another replica has sent, if anything.
    pub(super) fn take_copy(&self) -> Option<Staged> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Returns what the replica held at a position, as far as that is hashed.
    pub(super) fn digest(&self, at: Position) -> Option<DigestCursor> {
        let digest = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        digest.clone().filter(|digest| digest.position == at)
    }

    /// Keeps what the replica held at a position, also while the tenant sleeps.
    pub(super) fn put_digest(&self, digest: DigestCursor) {
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
    }

    /// Notes that the replica takes part in a comparison now.
    pub(super) fn note_comparison(&self) {
        *self.compared.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Tells whether the last comparison that this node knows of is so long ago, or there was none.
    pub(super) fn is_to_be_compared(&self, every: Duration) -> bool {
        let compared = *self.compared.lock().unwrap_or_else(PoisonError::into_inner);
        compared.is_none_or(|compared| compared.elapsed() >= every)
    }

    /// Sends the actor a message, if it runs.
    pub(super) fn tell_if_running(&self, message: TenantMessage) {
        if let ActivationState::Running(actor) = &*self.state.borrow() {
            let _ = actor.send_message(message);
        }
    }

    /// Has the actor look at its queue and at the term, if it runs.
    pub(super) fn wake_if_running(&self) {
        self.tell_if_running(TenantMessage::Drain);
    }

    /// Has the actor make durable what has changed, if it runs. Another has nothing that is not.
    pub(super) fn write_if_running(&self) {
        self.tell_if_running(TenantMessage::Housekeeping);
    }

    /// Takes a place in the tenant's mailbox.
    ///
    /// # Errors
    /// [`CallError::Busy`] when all are taken.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, CallError> {
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_| CallError::Busy)
    }

    /// Takes a place for a call about the replica.
    ///
    /// # Errors
    /// [`CallError::Busy`] when all are taken.
    pub(super) fn replica_permit(&self) -> Result<OwnedSemaphorePermit, CallError> {
        Arc::clone(&self.replica_calls).try_acquire_owned().map_err(|_| CallError::Busy)
    }

    /// Tells whether somebody holds a permit.
    pub(super) fn is_called(&self) -> bool {
        self.calls.available_permits() < TENANT_CALLS_MAX
            || self.replica_calls.available_permits() < REPLICA_CALLS_MAX
    }

    /// Returns the running actor, and wakes the tenant if it sleeps. The caller must hold a permit: taken
    /// before this looks at the state, it keeps the actor from going to sleep.
    ///
    /// # Errors
    /// When the tenant is quarantined, did not start by `deadline`, or is not started any more: this node has
    /// left its group, or stops. Without a permit also when it has started and gone to sleep again meanwhile.
    pub async fn actor(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<ActorRef<TenantMessage>, CallError> {
        if let ActivationState::Running(actor) = &*self.state.borrow() {
            return Ok(actor.clone());
        }
        // Subscribed before the state is looked at, so that no change between look and wait is missed.
        let mut states = self.state.subscribe();
        let mut is_asked = false;
        loop {
            let state = states.borrow_and_update().clone();
            match state {
                ActivationState::Running(actor) => return Ok(actor),
                ActivationState::Quarantined { reason }
                | ActivationState::Damaged { reason, .. } => {
                    return Err(CallError::Quarantined { reason });
                }
                // The supervisor does not start it. Asked again it would say the same at once: the two would keep
                // a processor busy until the deadline.
                ActivationState::Asleep if is_asked => {
                    return Err(CallError::Starting { what: "the tenant" });
                }
                ActivationState::Asleep => {
                    self.wake();
                    is_asked = true;
                }
                // `Closing` becomes `Running` or `Asleep`: both are seen below.
                ActivationState::Starting | ActivationState::Closing => {}
            }
            match timeout_at(deadline, states.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) if self.exhausted.load(Ordering::Acquire) => {
                    return Err(CallError::NodeBusy);
                }
                Ok(Err(_)) | Err(_) => return Err(CallError::Starting { what: "the tenant" }),
            }
        }
    }

    /// Returns why the tenant is out of service, if it is.
    pub fn quarantined(&self) -> Option<String> {
        match &*self.state.borrow() {
            ActivationState::Quarantined { reason } | ActivationState::Damaged { reason, .. } => {
                Some(reason.clone())
            }
            _ => None,
        }
    }

    /// Returns the newest term whose first entry the group has delivered.
    pub(super) fn delivered_term(&self) -> u64 {
        self.delivered_term.load(Ordering::Acquire)
    }

    /// Sets how the actor is to misbehave, for tests.
    pub fn set_test_hook(self: &Arc<Self>, hook: TestHook) {
        self.test_hook.send_replace(hook);
        if let ActivationState::Running(actor) = &*self.state.borrow() {
            let _ = actor.send_message(TenantMessage::Test(hook));
        }
        if hook == TestHook::Heal {
            let _ = self.supervisor.send_message(SupervisorMessage::TryAgain(Arc::clone(self)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::puppet::puppet;
    use crate::testing::tenant;

    /// As a supervisor does that stops.
    #[tokio::test]
    async fn a_tenant_that_is_not_started_any_more_is_asked_for_once() {
        let starts = Arc::new(AtomicU64::new(0));
        let supervisor = puppet(Arc::clone(&starts), |starts, message| {
            let SupervisorMessage::Start(activation) = message else { return };
            starts.fetch_add(1, Ordering::Relaxed);
            activation.state.send_replace(ActivationState::Asleep);
        });
        let (term, queued) = (Arc::default(), Arc::default());
        let activation = Activation::new(tenant(1), GroupId(1), term, queued, supervisor.await);
        // Long enough for the two to ask and refuse each other many times.
        let asked = activation.actor(Instant::now() + Duration::from_secs(2)).await;
        assert!(matches!(asked, Err(CallError::Starting { .. })), "{asked:?}");
        assert_eq!(starts.load(Ordering::Relaxed), 1);
    }
}

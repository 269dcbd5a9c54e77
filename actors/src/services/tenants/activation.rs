//! The place of one tenant on this node: its queue, and whether its actor runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ractor::ActorRef;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::{SupervisorMessage, TenantMessage, TestHook};
use crate::domain::ids::{GroupId, TenantId};
use crate::ports::error::CallError;
use crate::replica::{ApplyQueue, QueueBytes};

/// Calls to one tenant that may be under way at once.
pub const TENANT_CALLS_MAX: usize = 1024;

/// Whether the tenant's actor runs.
#[derive(Debug, Clone)]
pub enum ActivationState {
    /// It does not; its files are closed.
    Asleep,
    /// It opens its files.
    Starting,
    /// It runs.
    Running(ActorRef<TenantMessage>),
    /// It closes its files.
    Closing,
    /// It failed again and again.
    Quarantined {
        /// Why.
        reason: String,
    },
    /// Its files are damaged: another attempt finds them as they are.
    Damaged {
        /// What clients are told.
        reason: String,
    },
}

/// One tenant's place.
#[derive(Debug)]
pub struct Activation {
    /// Whose.
    pub tenant: TenantId,
    /// Its group.
    pub group: GroupId,
    /// What the group's log handed over.
    pub queue: Arc<ApplyQueue>,
    /// The newest term whose first entry the group has handed over.
    pub(super) delivered_term: Arc<AtomicU64>,
    pub(super) state: watch::Sender<ActivationState>,
    pub(super) calls: Arc<Semaphore>,
    pub(super) test_hook: watch::Sender<TestHook>,
    /// Whether the last attempt to start the actor found no file descriptor.
    pub(super) exhausted: AtomicBool,
    /// Whether the files of the tenant, damaged and deleted, are being removed.
    is_buried: AtomicBool,
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
            test_hook: watch::Sender::new(TestHook::Heal),
            exhausted: AtomicBool::new(false),
            is_buried: AtomicBool::new(false),
            supervisor,
        });
        let weak = Arc::downgrade(&activation);
        activation.queue.set_wake(move || {
            if let Some(activation) = weak.upgrade() {
                activation.wake();
            }
        });
        activation
    }

    /// Has the actor look at its queue, starting it if it sleeps.
    pub fn wake(self: &Arc<Self>) {
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

    /// Has the supervisor look at a tenant that is out of service and has just been deleted.
    pub(super) fn bury(self: &Arc<Self>) {
        if matches!(&*self.state.borrow(), ActivationState::Damaged { .. }) {
            let _ = self.supervisor.send_message(SupervisorMessage::Bury(Arc::clone(self)));
        }
    }

    /// Whether the files of the damaged tenant are to be removed now: not while they already are.
    pub(super) fn begin_burial(&self) -> bool {
        let is_damaged = matches!(&*self.state.borrow(), ActivationState::Damaged { .. });
        is_damaged && !self.is_buried.swap(true, Ordering::AcqRel)
    }

    /// Allows another attempt to remove the files.
    pub(super) fn end_burial(&self) {
        self.is_buried.store(false, Ordering::Release);
    }

    /// Has the actor look around, if it runs.
    pub(super) fn wake_if_running(&self) {
        if let ActivationState::Running(actor) = &*self.state.borrow() {
            let _ = actor.send_message(TenantMessage::Drain);
        }
    }

    /// A place in the tenant's mailbox.
    ///
    /// # Errors
    /// [`CallError::Busy`] when all are taken.
    pub fn permit(&self) -> Result<OwnedSemaphorePermit, CallError> {
        Arc::clone(&self.calls).try_acquire_owned().map_err(|_| CallError::Busy)
    }

    /// The running actor, waking it if it sleeps. The caller must hold a permit, which keeps the
    /// actor from going to sleep.
    ///
    /// # Errors
    /// When the tenant is quarantined, or did not start by `deadline`.
    pub async fn actor(
        self: &Arc<Self>,
        deadline: Instant,
    ) -> Result<ActorRef<TenantMessage>, CallError> {
        if let ActivationState::Running(actor) = &*self.state.borrow() {
            return Ok(actor.clone());
        }
        let mut states = self.state.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            match state {
                ActivationState::Running(actor) => return Ok(actor),
                ActivationState::Quarantined { reason } | ActivationState::Damaged { reason } => {
                    return Err(CallError::Quarantined { reason });
                }
                ActivationState::Asleep => self.wake(),
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

    /// Why the tenant is out of service, if it is.
    pub fn quarantined(&self) -> Option<String> {
        match &*self.state.borrow() {
            ActivationState::Quarantined { reason } | ActivationState::Damaged { reason } => {
                Some(reason.clone())
            }
            _ => None,
        }
    }

    /// The newest term whose first entry the group has handed over.
    pub(super) fn delivered_term(&self) -> u64 {
        self.delivered_term.load(Ordering::Acquire)
    }

    /// Sets how the actor misbehaves, for tests.
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

//! The messages to a tenant's actor, and to the supervisor of all.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Activation;
use super::supervisor::Failure;
use crate::command::Refusal;
use crate::domain::ids::{GroupId, RunId};
use crate::domain::views::RateLimit;
use crate::ports::{Staged, StoreError};
use crate::replica::ReplicaRequest;
use crate::services::executor::StepEvent;
use crate::state::RowBuffer;
use crate::state::tenant::TenantState;

/// Reads the state and answers its caller.
pub type ReadTenant = Box<dyn FnOnce(&mut TenantReader<'_>) + Send>;

/// Shows a read the state of the tenant.
pub struct TenantReader<'a> {
    /// The state machine.
    pub state: &'a TenantState,
    /// The rows: ended runs and jobs.
    pub rows: &'a RowBuffer,
    /// Requests admitted in the last minute, and the seconds until the oldest of them does not count.
    pub requests: (u64, u64),
    /// Set by a read that found the files damaged. The tenant is out of service then.
    pub damage: Option<StoreError>,
}

impl TenantReader<'_> {
    /// Notes that the files are damaged, if the error of a read says so.
    pub fn note_damage(&mut self, error: &StoreError) {
        // That there is no room to open the files is no damage.
        if !matches!(error, StoreError::Full) {
            self.damage.get_or_insert_with(|| error.clone());
        }
    }
}

/// Says whether a request is admitted.
#[derive(Debug)]
pub struct AdmitReply {
    /// Why the request is refused, if it is.
    pub refusal: Option<Refusal>,
    /// The state of the per-minute quota; `None` where there is no limit.
    pub rate: Option<RateLimit>,
}

/// A message to a tenant's actor.
pub enum TenantMessage {
    /// Applies what the queue has, and looks whether a new term has begun.
    Drain,
    /// Tells that leadership of the group may have changed.
    Leadership,
    /// Asks whether a request is admitted.
    Admit(oneshot::Sender<AdmitReply>),
    /// Reads the state.
    Read(ReadTenant),
    /// Asks to be answered when the run is not live any more.
    WaitRun(RunId, oneshot::Sender<()>),
    /// Brings an event of the tenant's steps.
    Step(StepEvent),
    /// Makes durable what has changed, and sleeps when there is nothing to do.
    Housekeeping,
    /// Gives or takes what replicas send to each other, or looks for damage.
    Replica(ReplicaRequest),
    /// Misbehaves, for tests.
    Test(TestHook),
}

/// Says how a tenant's actor is to misbehave. Reachable on nodes started with `--test-hooks` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestHook {
    /// Panic once.
    Panic,
    /// Panic now and at every start.
    Fail,
    /// Do nothing any more.
    Stall,
    /// Behave again.
    Heal,
}

/// A message to the tenant supervisor.
#[derive(Debug)]
pub enum SupervisorMessage {
    /// Starts the tenant's actor. Its state is `Starting` already.
    Start(Arc<Activation>),
    /// Tells that the actor could not be started.
    StartFailed(Arc<Activation>, Failure),
    /// Tells that a damaged tenant was deleted.
    RemoveDeleted(Arc<Activation>),
    /// Asks the leader of a damaged tenant's group for what it holds, and does so again after a pause.
    AskForCopy(Arc<Activation>, Duration),
    /// Starts a damaged tenant from what another replica holds. Answers whether the start has begun.
    Rebuild(Arc<Activation>, Staged, oneshot::Sender<bool>),
    /// Tells that the actor failed for lack of file descriptors only.
    Exhausted(Arc<Activation>),
    /// Tries a tenant again: its quarantine is over, its files were removed, or a test heals it.
    TryAgain(Arc<Activation>),
    /// Starts the group's tenants that have work, or may have: a new term has begun.
    LookForWork(GroupId),
    /// Stops the actors of a group that this node has left, and answers when they have stopped.
    Leave(GroupId, oneshot::Sender<()>),
    /// Stops all tenants' actors, and answers when they have stopped.
    StopAll(oneshot::Sender<()>),
}

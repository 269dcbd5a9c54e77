//! What a tenant's actor is told and asked.

use tokio::sync::oneshot;

use super::steps::StepTask;
use crate::command::Refusal;
use crate::domain::ids::RunId;
use crate::domain::views::RateLimit;
use crate::ports::StoreError;
use crate::state::RowBuffer;
use crate::state::tenant::TenantState;

/// Reads the state and answers.
pub type ReadTenant = Box<dyn FnOnce(&mut TenantReader<'_>) + Send>;

/// What a read sees.
pub struct TenantReader<'a> {
    /// The state.
    pub state: &'a TenantState,
    /// The rows: ended runs, jobs.
    pub rows: &'a RowBuffer,
    /// Requests admitted in the last minute, and the seconds until some of it is free again.
    pub requests: (u64, u64),
    /// Set by a read that found the files damaged: the tenant is out of service then.
    pub damage: Option<StoreError>,
}

/// Whether a request is let in.
#[derive(Debug)]
pub struct AdmitReply {
    /// Why not, if not.
    pub refusal: Option<Refusal>,
    /// State of the per-minute quota; `None` where it is unlimited.
    pub rate: Option<RateLimit>,
}

/// A message to a tenant's actor.
pub enum TenantMessage {
    /// The queue has entries, or a new term has begun.
    Drain,
    /// Leadership of the group may have changed.
    Leadership,
    /// Let a request in?
    Admit(oneshot::Sender<AdmitReply>),
    /// Read the state.
    Read(ReadTenant),
    /// Answer when the run has ended, or is not live.
    WaitRun(RunId, oneshot::Sender<()>),
    /// A moment has come that steps waited for.
    Due,
    /// What an attempt is to do, for its task whose turn has come; nothing when it is not under way
    /// any more.
    Take {
        /// Run.
        run: RunId,
        /// Index of the step.
        step: u16,
        /// Attempt.
        attempt: u32,
        /// Where to tell it.
        reply: oneshot::Sender<Option<StepTask>>,
    },
    /// A step's task has ended.
    Performed {
        /// Run.
        run: RunId,
        /// Index of the step.
        step: u16,
        /// Attempt.
        attempt: u32,
    },
    /// Make what has changed durable; sleep when there is nothing to do.
    Housekeeping,
    /// Misbehave, for tests.
    Test(TestHook),
}

/// How a tenant's actor is to misbehave. Reachable on nodes started with `--test-hooks` only.
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

//! The executor: performs the steps of runs on the node that leads the tenant's group.
//!
//! `apply` performs nothing. It records that an attempt of a step is to be made, and gives that as an
//! effect to the leader. The executor makes the attempt (a call, a template, a wait) and proposes the
//! result as a command; `apply` records it once and begins the steps that depend on it.
//!
//! # Who performs
//!
//! Only the leader of the tenant's group, and only after everything of earlier terms has been applied.
//! A new leader asks the state what is outstanding and performs all of it under the same attempt
//! numbers. Two nodes may therefore make one attempt: the old leader whose call is still open, and the
//! new one. Each proposes with the term in which it leads, a command of another term does nothing, and
//! a second result of one attempt does nothing either. What a service sees twice carries the same
//! `idempotency-key` (`run/step`). So: *at least once* for the call, *once* for the result.
//!
//! # One attempt
//!
//! ```text
//! effect PerformStep ─> task ─> turn ─> journal: deaths? ─> take the task ─> prepare ─> call ─> propose
//!                              (fair)        3 or more: fail     (actor)     (templates)
//! ```
//!
//! 1. [`TenantSteps`] spawns one task for each attempt. A run may have a thousand ready steps, so the
//!    task holds only a key and a reference to the step's definition while it waits.
//! 2. The task waits for its turn. Steps that call a service and steps that end by themselves wait at
//!    different gates ([`StepLimits`]). Within a gate the *tenants* take turns
//!    ([`fair_semaphore`]), so a tenant with many steps waits behind its own.
//! 3. With its turn it asks the actor for the values (`Take`). The actor gives none if the attempt is
//!    not under way any more: it was cancelled, or its result came from another leader.
//! 4. A step with templates, or a long one, is prepared on a worker's thread ([`rendering`]): an
//!    expression may take seconds, and the runtime's threads serve everybody. A short step without
//!    templates is prepared where its task runs; handing it over would take longer.
//! 5. The result is proposed until it has an outcome, or the node has lost the lead. The turn is kept
//!    until then, so that results that wait are bounded as well.
//!
//! # Steps that end the process
//!
//! A template engine can overflow a stack, and no `catch_unwind` sees it. Such a step is outstanding,
//! so it would end the process again at each start. `under_way.bin` (`AttemptJournal`) says which
//! attempts are under way. Its counts of *deaths in a row* decide:
//!
//! - after 2, the attempt is performed alone, so that no neighbour is suspected with it;
//! - after 3, it is not performed here any more: it fails and says so.
//!
//! An attempt that has gone on for 5 s is not what ends the process and is taken off the list. A plain
//! value cannot end the process and is never on it. The file is a hint: it is not synced, and a node
//! starts whatever is in it.
//!
//! # Waits
//!
//! `wait secs` and the pause before a retry are durations. They run on the monotonic clock of the
//! leader, from when it learned of them; to set the wall clock neither shortens nor lengthens them.
//! After a restart or a change of leader the rest is computed from the wall clock, and is never longer
//! than the whole. The end of a `wait until` is a moment of the wall clock; it is compared with the
//! clock every 30 s, because the clock may be set. When the moment has come the executor proposes
//! `StepDue`; the log decides.
//!
//! # Trying again
//!
//! A failure that another attempt may better is tried again up to `max_attempts` (1 where the step does
//! not say). The pause after attempt n is the step's back-off (1 s), doubled n - 1 times, an hour at
//! most; chance takes away up to a half, so that steps that failed together do not come back together.
//! Chance is no matter for `apply`: the pause is drawn here and travels with the result. `apply` decides
//! whether there is another attempt at all: not in a run that is failing.
//!
//! # Invariants
//!
//! - An attempt has at most one task in a tenant's actor. Tasks end with the actor, also when it
//!   panics: they never go on beside those of its successor.
//! - A task that waits for its turn holds no values, no connection and no worker.
//! - Whatever happens in an attempt, a panic included, comes to a result that is proposed, unless the
//!   lead is lost.
//!
//! Decision 15 has the history of these choices, decision 3 the one command per result.

mod attempt;
mod fair_semaphore;
mod http_step;
mod prepare;
mod rendering;
mod steps;
mod timers;

use std::sync::Arc;

use tokio::sync::oneshot;

pub use self::attempt::StepLimits;
pub(super) use self::prepare::StepTask;
pub use self::rendering::Renderer;
pub(super) use self::steps::TenantSteps;
use crate::domain::ids::{Epoch, GroupId, TenantId};
use crate::domain::run::StepAttempt;
use crate::ports::seams::Seams;
use crate::ports::{AttemptJournal, HttpCaller, Proposals};

/// Carries what the executor needs from outside.
pub struct ExecutorDeps {
    /// Takes the results, and tells who leads.
    pub log: Arc<dyn Proposals>,
    /// Time and chance.
    pub seams: Seams,
    /// Sends the requests of `http` steps.
    pub http: Arc<dyn HttpCaller>,
    /// Fills templates in, away from the runtime's threads.
    pub renderer: Arc<Renderer>,
    /// Bounds how many steps are performed at once.
    pub step_limits: StepLimits,
    /// Remembers which attempts were under way when the process died.
    pub under_way: Arc<dyn AttemptJournal>,
}

/// Lets a task act for a tenant whose group this node leads.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) deps: Arc<ExecutorDeps>,
    pub(super) group: GroupId,
    pub(super) tenant: TenantId,
    pub(super) epoch: Epoch,
    /// The term in which this node leads. What a task proposes does nothing in another term.
    pub(super) term: u64,
}

/// What a task tells or asks the actor of its tenant.
pub enum StepEvent {
    /// Asks what an attempt is to do, because its turn has come. `None` when the attempt is not under
    /// way any more.
    Take(StepAttempt, oneshot::Sender<Option<StepTask>>),
    /// Tells that the task of an attempt has ended.
    Ended(StepAttempt),
    /// Tells that a moment has come for which a step waited.
    Due,
}

/// Brings an event to the actor of the tenant. Returns whether the actor still runs.
pub(super) type TellActor = Arc<dyn Fn(StepEvent) -> bool + Send + Sync>;

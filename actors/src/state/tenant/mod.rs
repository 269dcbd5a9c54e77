//! One tenant's state machine: its record, quota counters, workflows, runs, jobs and locks. Pure;
//! the tenant's group replicates it.
//!
//! # The life of a run
//!
//! ```text
//! run   StartRun ──> Running ── every step Completed ────────────────────> Completed
//!                       ├────── a step Failed, no attempt under way ───> Failed
//!                       └────── CancelRun, at once ──────────────────────> Cancelled
//!
//! step  Pending ── all it needs is Completed ──> Running, attempt 1
//!       Running ── StepResult Succeeded ──────────────────────────────────> Completed
//!               ── StepResult Failed, for good ───────────────────────────> Failed
//!               ── StepResult WaitsUntil ──> Timer ── StepDue ────────────> Completed
//!               ── StepResult Failed, to be tried again ──> Retry ── StepDue ──> attempt + 1
//!                                where the tenant is not active: Resume ── Set ──> attempt + 1
//!       Pending, or waiting ── the run fails ─────────────────────────────> Skipped
//!       not ended ── the run is cancelled ────────────────────────────────> Skipped
//! ```
//!
//! `Timer`, `Retry` and `Resume` are what a step waits for ([`Waiting`]); it is `Running`
//! meanwhile. Two functions move everything: `begin` (`start`) lets a run in, `advance`
//! (`progress`) begins what is ready and ends what is done.
//!
//! - *Once.* A result names run, step and attempt, and counts only while that attempt is under way.
//!   A second one, of an earlier leader or after a cancellation, does nothing.
//! - *Failing.* The first step that fails for good sets the run's `error`. From then on nothing
//!   begins and nothing is tried again; attempts under way finish and are recorded; then the run
//!   has failed.
//! - *Not active.* A tenant that is suspended or disabled begins nothing: no run, no step, no
//!   attempt. What is under way goes on and is recorded. The `Set` that activates it goes on with
//!   every run.
//! - *Bounded.* What a run holds (workflow, input, outputs), and what all live runs and named workflows of
//!   the tenant hold together, is in the memory of every replica. A run or a workflow that would be more
//!   than that is refused; a step whose output would be, fails.
//! - *Ended.* A run that has ended leaves this state: its row and its events tell the rest.
//!
//! # Quotas
//!
//! | quota | counts | refuses with |
//! |---|---|---|
//! | `max_concurrent_workflows` | runs that have not ended | 429 |
//! | `max_workflows_per_day` | runs accepted since 00:00 UTC, by the time of the commands | 429 |
//! | `max_storage_bytes` | events, inputs, outputs, definitions, jobs, metadata of locks | 507 |
//!
//! A quota is used up when the count has reached the limit. Storage refuses what starts something and never
//! what carries accepted work on, so that it may be passed by that work. What is held in memory has a limit
//! of its own (429 `memory_limit`). `check_quota` (`start`) decides.
//!
//! # Effects
//!
//! The state says what is to be done, and the tenant's actor (`services/tenants/`) has it done:
//!
//! | effect | where it counts | who performs it |
//! |---|---|---|
//! | `PerformStep` | the leader | the executor: a task, whose result is proposed as `StepResult` |
//! | `StopStep` | the leader, where the task is | the executor aborts the task |
//! | `RunEnded` | every node | the actor answers callers that wait for the run |
//! | `Lock` | the leader | the lock manager: leases, waiters |
//! | `Deleted`, `Gone` | every node | the actor stops all steps, and the files are removed |
//! | `Frozen` | every node | the actor stops all steps and leads no locks: the tenant is about to move |
//! | `Resumed` | the leader | the actor goes on as a new leader does |
//!
//! No effect is stored. A new leader asks for [`TenantState::outstanding`], every attempt that is
//! under way and waits for nothing, and for [`TenantState::waits`], and so goes on under the same
//! numbers.
//!
//! Invariants:
//! - only `apply` lets a run in, so that no race and no failover can pass a limit; a refused command changes
//!   nothing but the clock and what is remembered of earlier calls. The leader may refuse earlier what
//!   `apply` would refuse at that moment (`quota_refusal_now`). Requests a minute are counted by the
//!   leader, in memory;
//! - fencing tokens of an epoch are above all those of the epochs before;
//! - a wall clock that was wrong for a while does no lasting harm: `clock.rs`, `day.rs`;
//! - events are a function of the commands: the same bytes on every replica.

mod cut_events;
mod day;
mod definitions;
mod due;
mod event_log;
mod events;
mod moving;
mod progress;
mod rows;
mod rules;
mod run;
mod run_rows;
mod start;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use day::DayCount;
pub use definitions::{Job, NamedWorkflow};
pub use due::Wait;
pub use event_log::{EventPage, EventPlace};
pub use events::checked_event;
use moving::Presence;
pub use rows::is_of_presence;
pub use run::{EventSpan, Run, StepState, StepStatus, Waiting};
pub use start::Starts;
pub use view::{job_view, run_view};

use crate::command::{Envelope, Outcome};
use crate::domain::ids::{Epoch, JobId, Position, RunId};
use crate::domain::lock::FencingToken;
use crate::domain::run::StepAttempt;
use crate::domain::tenant::{Quota, TenantRecord};
use crate::domain::time::Timestamp;
use crate::ports::{Row, StoreError};
use crate::state::machine;
use crate::state::tables::completion_records::CompletionRecords;
use crate::state::tables::idempotency::IdempotencyTable;
use crate::state::tables::lock_table::{LockNotice, LockTable};
use crate::state::{RowBuffer, StateClock, StateMachine};

/// What a creating call on a tenant made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CreatedResource {
    /// A run.
    Run(RunId),
    /// A job, with the run started with it.
    Job(JobId, Option<RunId>),
}

/// What a node does after a command is applied. What acts on the world (steps, leases) only the leader does;
/// what ends something on a node every node does.
#[derive(Debug, Clone, PartialEq)]
pub enum TenantEffect {
    /// Perform one attempt of a step.
    PerformStep(StepAttempt),
    /// Stop performing this attempt: it has been settled.
    StopStep(StepAttempt),
    /// A run has ended: tell who waits for it.
    RunEnded(RunId),
    /// A lock changed.
    Lock(LockNotice),
    /// The tenant was deleted: nothing is to be performed for it any more.
    Deleted,
    /// The tenant moved to another group: nothing is to be performed for it here any more.
    Gone,
    /// The tenant stands still, for it is about to move.
    Frozen,
    /// The tenant goes on, here or after it came here.
    Resumed,
}

/// What of the state is more than its collections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    epoch: Epoch,
    version: u64,
    record: Option<TenantRecord>,
    /// Time of the last command, as `TenantState::time` makes it steady; stamps records and events.
    last_at: Timestamp,
    /// A copy of `TenantState::days`, for older versions, which do not read its row.
    day: i64,
    runs_today: u64,
    next_run_seq: u64,
    next_job_seq: u64,
    next_event_seq: u64,
    events_bytes: u64,
    last_lock_token: FencingToken,
}

/// A tenant.
#[derive(Debug, Default)]
pub struct TenantState {
    meta: Meta,
    time: StateClock,
    days: DayCount,
    /// Bytes of the inputs and outputs of all stored runs, of named workflows and of jobs.
    payload_bytes: u64,
    /// Whether the last command is judged by a quota that includes `payload_bytes`: not one of an older
    /// version, whose replay must come to what it came to then.
    counts_payloads: bool,
    /// The same of the metadata of locks.
    counts_locks: bool,
    /// The same of `held_bytes`.
    bounds_held_bytes: bool,
    /// Whether a run that the last command starts has rows for its parts.
    lays_in_parts: bool,
    /// Runs that have not ended.
    runs: BTreeMap<RunId, Run>,
    /// Bytes of their workflows, inputs and outputs, and of named workflows: what memory holds of them.
    held_bytes: u64,
    /// When steps that wait for a moment are due.
    due: due::DueSet,
    workflows: BTreeMap<String, NamedWorkflow>,
    locks: LockTable,
    calls: IdempotencyTable<CreatedResource>,
    completions: CompletionRecords,
    presence: Presence,
    /// Whether what was written before is of an earlier life, and the replica has not been told yet.
    has_reset: bool,
    /// Whether the command at hand wakes what was taken in from another group.
    has_arrived: bool,
    /// Whether the events of the command that is applied have checksums.
    checks_events: bool,
    /// Lines not yet taken by the actor.
    events: Vec<u8>,
    /// Rows that do not change any more, of runs and jobs, not yet taken by the actor.
    settled: Vec<Row>,
    dirty: Dirty,
}

#[derive(Debug, Default)]
struct Dirty {
    meta: bool,
    presence: bool,
    payload_bytes: bool,
    runs: BTreeSet<RunId>,
    workflows: BTreeSet<String>,
}

impl TenantState {
    /// What group 0 said about the tenant last; `None` before and after its life.
    pub const fn record(&self) -> Option<&TenantRecord> {
        self.meta.record.as_ref()
    }

    /// The epoch of its placement; `None` while it does not exist, or stands still to be moved.
    pub fn epoch(&self) -> Option<Epoch> {
        let is_here = !self.is_elsewhere();
        self.meta.record.as_ref().filter(|_| is_here).map(|_| self.meta.epoch)
    }

    /// Runs that have not ended.
    pub const fn runs(&self) -> &BTreeMap<RunId, Run> {
        &self.runs
    }

    /// Its named workflows.
    pub const fn workflows(&self) -> &BTreeMap<String, NamedWorkflow> {
        &self.workflows
    }

    /// Its locks.
    pub const fn locks(&self) -> &LockTable {
        &self.locks
    }

    /// What the tenant's last command said the time was.
    pub const fn last_told(&self) -> Timestamp {
        self.time.own()
    }

    /// What steps wait for that is a moment, the next first.
    pub fn waits(&self) -> impl Iterator<Item = Wait> {
        self.due.iter()
    }

    /// The waits that have begun since this was asked last.
    pub fn take_new_waits(&mut self) -> Vec<Wait> {
        self.due.take_new()
    }

    /// Bytes of the inputs and outputs of all stored runs, of named workflows and of jobs.
    pub const fn payload_bytes(&self) -> u64 {
        self.payload_bytes
    }

    fn add_payload(&mut self, bytes: u64) {
        self.payload_bytes += bytes;
        self.dirty.payload_bytes = true;
    }

    fn remove_payload(&mut self, bytes: u64) {
        self.payload_bytes = self.payload_bytes.saturating_sub(bytes);
        self.dirty.payload_bytes = true;
    }

    /// What is used of a quota as the replicated state counts it, at time `now`.
    pub fn used(&self, quota: Quota, now: Timestamp) -> u64 {
        match quota {
            Quota::ConcurrentWorkflows => self.runs.len() as u64,
            Quota::WorkflowsPerDay => self.days.used(now.day()),
            Quota::StorageBytes => {
                self.meta.events_bytes + self.payload_bytes + self.locks.metadata_bytes()
            }
            // Routines cannot be defined yet; requests are counted by the leader in memory, not replicated.
            Quota::Routines | Quota::ApiRequestsPerMinute => 0,
        }
    }

    /// The effects a new leader performs: what earlier leaders may have left undone.
    pub fn outstanding(&self) -> Vec<TenantEffect> {
        let mut effects = Vec::new();
        for run in self.runs.values() {
            for (index, step) in (0_u16..).zip(&run.steps) {
                if step.status == StepStatus::Running && step.waiting == Waiting::Nothing {
                    effects.push(TenantEffect::PerformStep(run.attempt(index)));
                }
            }
        }
        effects
    }
}

impl StateMachine for TenantState {
    type Effect = TenantEffect;

    fn load(rows: &RowBuffer) -> Result<Self, StoreError> {
        rows::load(rows)
    }

    fn apply(&mut self, position: Position, envelope: &Envelope) -> (Outcome, Vec<TenantEffect>) {
        machine::apply(self, position, envelope)
    }

    fn check_events(bytes: &[u8], is_sealed: &mut bool) -> Result<usize, usize> {
        events::check_lines(bytes, is_sealed)
    }

    fn take_events(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.events)
    }

    fn take_final_rows(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.settled)
    }

    fn take_dirty_rows(&mut self) -> Vec<Row> {
        rows::take_dirty(self)
    }

    fn needs_files(&self) -> bool {
        self.meta.record.is_some() || self.is_arriving()
    }

    fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.has_reset)
    }

    fn is_loaded_by(&self, envelope: &Envelope) -> bool {
        self.is_woken_by(envelope)
    }

    fn load_for(rows: &RowBuffer, position: Position) -> Result<Self, StoreError> {
        let mut state = rows::load_whole(rows)?;
        state.arrive(position.index);
        Ok(state)
    }

    fn has_work(&self) -> bool {
        !self.runs.is_empty() || self.locks.list("", None).next().is_some()
    }
}

#[cfg(test)]
mod tests;

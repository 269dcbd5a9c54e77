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

mod day;
mod definitions;
mod due;
mod events;
mod forget;
mod moving;
mod progress;
mod rows;
mod run;
mod run_rows;
mod start;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use day::DayCount;
pub use definitions::{Job, NamedWorkflow};
pub use due::Wait;
pub use events::checked_event;
use moving::Presence;
pub use rows::is_of_presence;
pub use run::{EventSpan, Run, StepState, StepStatus, Waiting};
pub use start::Starts;
pub use view::{job_view, run_view};

use crate::command::{
    BOUNDS_HELD_BYTES_FROM, COUNTS_LOCKS_FROM, COUNTS_PAYLOADS_FROM, CancelRun, Cause, Command,
    DeleteWorkflow, EVENTS_CHECKED_FROM, Envelope, LAYS_IN_PARTS_FROM, LockCommand, Outcome,
    PutWorkflow, RecordStepResult, Refusal, StepDue, TenantCommand,
};
use crate::domain::ids::{Epoch, JobId, Position, RunId};
use crate::domain::json::Json;
use crate::domain::lock::FENCING_STEP;
use crate::domain::run::StepAttempt;
use crate::domain::tenant::{Quota, TenantRecord, TenantStatus};
use crate::domain::time::Timestamp;
use crate::ports::{Row, StoreError};
use crate::state::machine::{self, Rules};
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
    last_lock_token: u64,
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

    /// The next moment a step waits for.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, ..)| *at)
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

    fn apply_command(
        &mut self,
        command: &TenantCommand,
        cause: Option<&Cause>,
    ) -> (Outcome, Vec<TenantEffect>) {
        let mut effects = Vec::new();
        let outcome = match command {
            // `takes` and `execute` see to them.
            TenantCommand::Set(_) | TenantCommand::Compare | TenantCommand::Move(_) => {
                Ok(Outcome::Ignored)
            }
            TenantCommand::TimePassed(_) => Ok(Outcome::Done),
            TenantCommand::StartRun(_) | TenantCommand::CreateJob(_) => {
                self.start(command, cause, &mut effects)
            }
            TenantCommand::CancelRun(CancelRun { run, reason }) => {
                self.cancel_run(*run, reason.as_deref(), cause, &mut effects)
            }
            TenantCommand::PutWorkflow(PutWorkflow { name, workflow, if_version }) => {
                self.put_workflow(name, workflow, *if_version, cause)
            }
            TenantCommand::DeleteWorkflow(DeleteWorkflow { name, if_version }) => {
                self.delete_workflow(name, *if_version, cause)
            }
            TenantCommand::StepResult(RecordStepResult { attempt, result }) => {
                Ok(self.step_result(*attempt, result, &mut effects))
            }
            TenantCommand::StepDue(StepDue { attempt }) => {
                Ok(self.step_due(*attempt, &mut effects))
            }
            TenantCommand::Lock(command) => self.allowed_to_lock(command).map(|()| {
                let (outcome, notice) = self.locks.apply(command, self.meta.last_at);
                effects.extend(notice.map(TenantEffect::Lock));
                outcome
            }),
        };
        (outcome.unwrap_or_else(Outcome::Refused), effects)
    }

    /// Taking a lock starts work; renewal and release wind it down. Metadata is stored as inputs are, so
    /// that it needs room; a lock without any is a few bytes, and is not refused for them.
    fn allowed_to_lock(&self, command: &LockCommand) -> Result<(), Refusal> {
        let LockCommand::Acquire { key, metadata, .. } = command else { return Ok(()) };
        self.may_start()?;
        let held = self.locks.get(key).map_or(0, |lock| lock.metadata.as_str().len());
        let grows = metadata.as_str().len() > held.max(Json::null().as_str().len());
        if grows && self.counts_locks { self.check_quota(Quota::StorageBytes) } else { Ok(()) }
    }

    /// Whether the tenant's status allows new work.
    fn may_start(&self) -> Result<(), Refusal> {
        match self.meta.record.as_ref().map(|record| record.status) {
            Some(TenantStatus::Active) => Ok(()),
            Some(TenantStatus::Suspended) => Err(Refusal::TenantSuspended),
            Some(TenantStatus::Disabled) => Err(Refusal::TenantDisabled),
            None => Err(Refusal::StaleEpoch),
        }
    }

    fn is_active(&self) -> bool {
        self.may_start().is_ok()
    }

    /// Takes over what group 0 decided, which is newer than what is known here.
    fn set(
        &mut self,
        epoch: Epoch,
        version: u64,
        record: Option<&TenantRecord>,
    ) -> (Outcome, Vec<TenantEffect>) {
        // Whoever gave tokens in an earlier epoch may have given more than are known here.
        let epochs = epoch.0.saturating_sub(self.meta.epoch.0.max(1));
        if epochs > 0 {
            self.locks.raise_tokens(epochs.saturating_mul(FENCING_STEP));
        }
        let before = self.meta.record.take();
        let is_new = before.is_none();
        let has_arrived = std::mem::take(&mut self.has_arrived);
        let goes_on = has_arrived || self.is_elsewhere();
        if self.is_elsewhere() {
            self.presence = Presence::Here { fence: epoch };
            self.dirty.presence = true;
        }
        self.meta.epoch = epoch;
        self.meta.version = version;
        self.meta.record = record.cloned();
        if is_new {
            self.meta.next_run_seq = self.meta.next_run_seq.max(1);
            self.meta.next_job_seq = self.meta.next_job_seq.max(1);
            self.meta.next_event_seq = self.meta.next_event_seq.max(1);
            self.dirty.payload_bytes = true;
        }
        let mut effects = Vec::new();
        match record {
            None => {
                effects.extend(self.runs.keys().map(|run| TenantEffect::RunEnded(*run)));
                // Its files go, and with them everything but what came with this command: whoever
                // loads it again must not differ from whoever did not.
                let meta = Meta { epoch, version, ..Meta::default() };
                *self = Self { meta, has_reset: true, ..Self::default() };
                effects.push(TenantEffect::Deleted);
            }
            Some(record) => {
                if goes_on {
                    // All of its work, and not only what this command lets go on.
                    effects.push(TenantEffect::Resumed);
                }
                self.tenant_event(before.as_ref(), record);
                self.resume(&mut effects);
            }
        }
        (Outcome::Done, effects)
    }
}

impl Rules for TenantState {
    type Effect = TenantEffect;

    fn takes(&self, envelope: &Envelope) -> Result<(), Outcome> {
        let Command::Tenant { epoch, command, .. } = &envelope.command else {
            return Err(Outcome::Ignored);
        };
        match command {
            TenantCommand::Set(set)
                if (*epoch, set.version) <= (self.meta.epoch, self.meta.version) =>
            {
                Err(Outcome::Done)
            }
            TenantCommand::Set(set) if self.may_be_set(*epoch, set) => Ok(()),
            TenantCommand::Set(_) => Err(Outcome::Refused(Refusal::StaleEpoch)),
            TenantCommand::Move(_) => Ok(()),
            _ if self.is_elsewhere() => Err(Outcome::Refused(Refusal::StaleEpoch)),
            // Before anything changes: a tenant that does not exist has no files to remember it in.
            _ if self.meta.record.is_none() || *epoch != self.meta.epoch => {
                Err(Outcome::Refused(Refusal::StaleEpoch))
            }
            // Looks at the state only: what it changed would be compared, too.
            TenantCommand::Compare => Err(Outcome::Done),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, envelope: &Envelope) {
        self.checks_events = envelope.version >= EVENTS_CHECKED_FROM;
        self.counts_payloads = envelope.version >= COUNTS_PAYLOADS_FROM;
        self.counts_locks = envelope.version >= COUNTS_LOCKS_FROM;
        self.bounds_held_bytes = envelope.version >= BOUNDS_HELD_BYTES_FROM;
        self.lays_in_parts = envelope.version >= LAYS_IN_PARTS_FROM;
        if matches!(envelope.command, Command::Tenant { command: TenantCommand::Move(_), .. }) {
            return;
        }
        self.time.tell(envelope.at, envelope.pause());
        self.meta.last_at = self.time.now();
        self.dirty.meta = true;
        // What group 0 says is no work of the tenant's day.
        if !matches!(envelope.command, Command::Tenant { command: TenantCommand::Set(_), .. }) {
            self.days.turn_to(self.meta.last_at.day());
        }
    }

    fn completions(&mut self) -> &mut CompletionRecords {
        &mut self.completions
    }

    fn execute(&mut self, _: u64, envelope: &Envelope) -> (Outcome, Vec<TenantEffect>) {
        match &envelope.command {
            Command::Tenant { epoch, command: TenantCommand::Set(set), .. } => {
                self.set(*epoch, set.version, set.record.as_ref())
            }
            Command::Tenant { epoch, command: TenantCommand::Move(step), .. } => {
                self.step_of_move(*epoch, step)
            }
            Command::Tenant { command, .. } => self.apply_command(command, envelope.cause.as_ref()),
            Command::System(_) => (Outcome::Ignored, Vec::new()),
        }
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

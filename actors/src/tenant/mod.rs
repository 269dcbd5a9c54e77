//! One tenant's state machine: its record, quota counters, workflows, runs, jobs and locks. Pure;
//! the tenant's group replicates it.
//!
//! Invariants:
//! - refusals (quotas, status, duplicates) are decided here and nowhere else, so that no race and
//!   no failover can pass a limit; a refused command changes nothing but the latest time seen;
//! - time never goes back, and days only advance;
//! - a run that has ended leaves this state: its row and its events tell the rest;
//! - events are a function of the commands: the same bytes on every replica.

mod definitions;
mod events;
mod progress;
mod rows;
mod run;
mod start;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use definitions::{Job, NamedWorkflow};
pub use run::{EventSpan, Run, StepState, StepStatus, Waiting};
pub use view::{job_view, run_view};

use crate::answered::{Answered, Known};
use crate::command::{COUNTS_PAYLOADS_FROM, Cause, Command, Envelope, TenantCommand};
use crate::idempotency::IdempotencyTable;
use crate::ids::{Epoch, JobId, Position, RunId, TenantId};
use crate::lock_table::{LockNotice, LockTable};
use crate::outcome::{Outcome, Refusal};
use crate::part::{Machine, Overlay};
use crate::ports::{Row, StoreError};
use crate::seams::Timestamp;
use crate::tenant_record::{Quota, TenantRecord, TenantStatus};

/// What a creating call on a tenant made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Made {
    /// A run.
    Run(RunId),
    /// A job, with the run started with it.
    Job(JobId, Option<RunId>),
}

/// What the leader is to do after a command.
#[derive(Debug, Clone, PartialEq)]
pub enum TenantEffect {
    /// Perform one attempt of a step.
    PerformStep {
        /// Run.
        run: RunId,
        /// Index of the step.
        step: u16,
        /// Attempt, from 1.
        attempt: u32,
    },
    /// Stop performing this attempt: it has been settled.
    StopStep {
        /// Run.
        run: RunId,
        /// Index of the step.
        step: u16,
        /// Attempt, from 1.
        attempt: u32,
    },
    /// A run has ended: tell who waits for it.
    RunEnded(RunId),
    /// A lock changed.
    Lock(LockNotice),
    /// The tenant was deleted: nothing is to be performed for it any more.
    Deleted,
}

/// What of the state is more than its collections.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    epoch: Epoch,
    version: u64,
    record: Option<TenantRecord>,
    last_at: Timestamp,
    /// The day `runs_today` counts, in days since 1970.
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
    id: Option<TenantId>,
    meta: Meta,
    /// Bytes of the inputs and outputs of all stored runs, of named workflows and of jobs.
    payload_bytes: u64,
    /// Whether the command at hand is judged by a quota that includes `payload_bytes`.
    counts_payloads: bool,
    /// Runs that have not ended.
    runs: BTreeMap<RunId, Run>,
    /// When steps that wait for a moment are due.
    due: BTreeSet<(Timestamp, RunId, u16, u32)>,
    workflows: BTreeMap<String, NamedWorkflow>,
    locks: LockTable,
    calls: IdempotencyTable<Made>,
    answered: Answered,
    /// Lines not yet taken by the actor.
    events: Vec<u8>,
    /// Rows of ended runs and jobs not yet taken by the actor.
    settled: Vec<Row>,
    dirty: Dirty,
}

#[derive(Debug, Default)]
struct Dirty {
    meta: bool,
    payload_bytes: bool,
    runs: BTreeSet<RunId>,
    workflows: BTreeSet<String>,
}

impl TenantState {
    /// What group 0 said about the tenant last; `None` before and after its life.
    pub const fn record(&self) -> Option<&TenantRecord> {
        self.meta.record.as_ref()
    }

    /// The epoch of its placement; `None` while it does not exist.
    pub fn epoch(&self) -> Option<Epoch> {
        self.meta.record.as_ref().map(|_| self.meta.epoch)
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

    /// The next moment a step waits for.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, ..)| *at)
    }

    /// The steps whose moment has come by `now`.
    pub fn due_by(&self, now: Timestamp) -> impl Iterator<Item = (RunId, u16, u32)> {
        self.due
            .iter()
            .take_while(move |(at, ..)| *at <= now)
            .map(|(_, run, step, attempt)| (*run, *step, *attempt))
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
            Quota::WorkflowsPerDay if now.day() > self.meta.day => 0,
            Quota::WorkflowsPerDay => self.meta.runs_today,
            Quota::StorageBytes => self.meta.events_bytes + self.payload_bytes,
            // Routines cannot be defined yet; requests are counted by the owner, not replicated.
            Quota::Routines | Quota::ApiRequestsPerMinute => 0,
        }
    }

    /// The effects a new leader performs: what earlier leaders may have left undone.
    pub fn outstanding(&self) -> Vec<TenantEffect> {
        let mut effects = Vec::new();
        for (id, run) in &self.runs {
            for (index, step) in (0_u16..).zip(&run.steps) {
                if step.status == StepStatus::Running && step.waiting == Waiting::Nothing {
                    effects.push(TenantEffect::PerformStep {
                        run: *id,
                        step: index,
                        attempt: step.attempt,
                    });
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
            TenantCommand::Set { .. } => Ok(Outcome::Ignored),
            TenantCommand::StartRun { .. } | TenantCommand::CreateJob { .. } => {
                self.start(command, cause, &mut effects)
            }
            TenantCommand::CancelRun { run, reason } => {
                self.cancel_run(*run, reason.as_deref(), cause, &mut effects)
            }
            TenantCommand::PutWorkflow { name, workflow, if_version } => {
                self.put_workflow(name, workflow, *if_version, cause)
            }
            TenantCommand::DeleteWorkflow { name, if_version } => {
                self.delete_workflow(name, *if_version, cause)
            }
            TenantCommand::StepResult { run, step, attempt, result } => {
                Ok(self.step_result(*run, *step, *attempt, result, &mut effects))
            }
            TenantCommand::StepDue { run, step, attempt } => {
                Ok(self.step_due(*run, *step, *attempt, &mut effects))
            }
            TenantCommand::Lock(command) => self.allowed_to_lock(command).map(|()| {
                let (outcome, notice) = self.locks.apply(command, self.meta.last_at);
                effects.extend(notice.map(TenantEffect::Lock));
                outcome
            }),
        };
        (outcome.unwrap_or_else(Outcome::Refused), effects)
    }

    /// Taking a lock starts work; renewal and release wind it down.
    fn allowed_to_lock(&self, command: &crate::command::LockCommand) -> Result<(), Refusal> {
        match command {
            crate::command::LockCommand::Acquire { .. } => self.may_start(),
            _ => Ok(()),
        }
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

    /// Takes over what group 0 decided.
    fn set(
        &mut self,
        tenant: TenantId,
        epoch: Epoch,
        version: u64,
        record: Option<&TenantRecord>,
    ) -> (Outcome, Vec<TenantEffect>) {
        if (epoch, version) <= (self.meta.epoch, self.meta.version) {
            return (Outcome::Done, Vec::new());
        }
        let before = self.meta.record.take();
        let is_new = before.is_none();
        self.id = Some(tenant);
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
                *self = Self {
                    id: self.id,
                    meta: Meta { epoch, version, last_at: self.meta.last_at, ..Meta::default() },
                    ..Self::default()
                };
                effects.push(TenantEffect::Deleted);
            }
            Some(record) => {
                self.tenant_event(before.as_ref(), record);
                self.resume(&mut effects);
            }
        }
        (Outcome::Done, effects)
    }
}

impl Machine for TenantState {
    type Effect = TenantEffect;

    fn load(rows: &Overlay) -> Result<Self, StoreError> {
        rows::load(rows)
    }

    fn apply(&mut self, position: Position, envelope: &Envelope) -> (Outcome, Vec<TenantEffect>) {
        let Command::Tenant { tenant, epoch, command } = &envelope.command else {
            return (Outcome::Ignored, Vec::new());
        };
        if envelope.term.is_some_and(|term| term != position.term) {
            return (Outcome::Ignored, Vec::new());
        }
        self.counts_payloads = envelope.version >= COUNTS_PAYLOADS_FROM;
        let at = self.meta.last_at.max(envelope.at);
        self.meta.last_at = at;
        self.dirty.meta = true;
        if let TenantCommand::Set { version, record } = command {
            return self.set(*tenant, *epoch, *version, record.as_ref());
        }
        if self.meta.record.is_none() || *epoch != self.meta.epoch {
            return (Outcome::Refused(Refusal::StaleEpoch), Vec::new());
        }
        if at.day() > self.meta.day {
            self.meta.day = at.day();
            self.meta.runs_today = 0;
        }
        let Some(origin) = &envelope.origin else {
            return self.apply_command(command, envelope.cause.as_ref());
        };
        match self.answered.check(origin, position.index) {
            Known::New => {}
            Known::Done(outcome) => return (outcome, Vec::new()),
            Known::Answered => return (Outcome::Ignored, Vec::new()),
        }
        let (outcome, effects) = self.apply_command(command, envelope.cause.as_ref());
        self.answered.remember(origin, position.index, &outcome);
        (outcome, effects)
    }

    fn take_events(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.events)
    }

    fn take_settled_rows(&mut self) -> Vec<Row> {
        std::mem::take(&mut self.settled)
    }

    fn take_dirty_rows(&mut self) -> Vec<Row> {
        rows::take_dirty(self)
    }

    fn needs_files(&self) -> bool {
        self.meta.record.is_some()
    }

    fn has_work(&self) -> bool {
        !self.runs.is_empty() || self.locks.list("", None).next().is_some()
    }
}

#[cfg(test)]
mod tests;

//! Which commands are taken, and what each changes.

use super::moving::Presence;
use super::{Meta, TenantEffect, TenantState};
use crate::command::{
    BOUNDS_HELD_BYTES_FROM, COUNTS_LOCKS_FROM, COUNTS_PAYLOADS_FROM, CancelRun, Cause, Command,
    DeleteWorkflow, EVENTS_CHECKED_FROM, Envelope, LAYS_IN_PARTS_FROM, LockCommand, Outcome,
    PutWorkflow, RecordStepResult, Refusal, StepDue, TenantCommand,
};
use crate::domain::ids::Epoch;
use crate::domain::json::Json;
use crate::domain::lock::FENCING_STEP;
use crate::domain::tenant::{Quota, TenantRecord, TenantStatus};
use crate::state::machine::Rules;
use crate::state::tables::completion_records::CompletionRecords;

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

impl TenantState {
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
    pub(super) fn may_start(&self) -> Result<(), Refusal> {
        match self.meta.record.as_ref().map(|record| record.status) {
            Some(TenantStatus::Active) => Ok(()),
            Some(TenantStatus::Suspended) => Err(Refusal::TenantSuspended),
            Some(TenantStatus::Disabled) => Err(Refusal::TenantDisabled),
            None => Err(Refusal::StaleEpoch),
        }
    }

    pub(super) fn is_active(&self) -> bool {
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

//! Starts runs: the one place where a run is let in.

use std::sync::Arc;

use super::definitions::definition_bytes;
use super::events::Fields;
use super::run::held_bytes;
use super::{CreatedResource, Job, Run, StepState, TenantEffect, TenantState, rows, run_rows};
use crate::command::{
    Cause, CreateJob, Idempotency, JobCreated, Outcome, Refusal, RunStarted, StartRun,
    TenantCommand, WorkflowSource,
};
use crate::domain::ids::RunId;
use crate::domain::json::Json;
use crate::domain::run::RunStatus;
use crate::domain::tenant::Quota;
use crate::domain::workflow::Workflow;
use crate::mutants::{self, Mutant};

/// What a command starts that quotas may leave no room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Starts {
    /// A run of a workflow that the command brings along.
    Run,
    /// A run of the workflow with this name.
    NamedRun(String),
    /// Something that is stored and does not run.
    Definition,
}

/// A run to be started.
struct NewRun {
    id: RunId,
    work_item: String,
    workflow: Arc<Workflow>,
    workflow_name: Option<String>,
    input: Json,
}

impl TenantState {
    /// Applies the commands that start runs.
    pub(super) fn start(
        &mut self,
        command: &TenantCommand,
        cause: Option<&Cause>,
        effects: &mut Vec<TenantEffect>,
    ) -> Result<Outcome, Refusal> {
        match command {
            TenantCommand::StartRun(StartRun { run, work_item, workflow, input, idempotency }) => {
                // Before all refusals: what was done under the key stays done, whatever has become
                // of the tenant since.
                if let Some(outcome) = self.replayed(idempotency.as_ref())? {
                    return Ok(outcome);
                }
                self.may_start()?;
                let (workflow, workflow_name) = self.resolve(workflow)?;
                let run = NewRun {
                    id: *run,
                    work_item: work_item.clone(),
                    workflow,
                    workflow_name,
                    input: input.clone(),
                };
                let id = run.id;
                self.room_to_store()?;
                self.begin(run, cause, effects)?;
                // After everything that can refuse: a refused call may come again under its key.
                self.calls.remember(
                    idempotency.as_ref(),
                    self.time.aged(),
                    CreatedResource::Run(id),
                );
                Ok(Outcome::Run(RunStarted { run: id, replayed: false }))
            }
            TenantCommand::CreateJob(CreateJob { idempotency, .. }) => {
                if let Some(outcome) = self.replayed(idempotency.as_ref())? {
                    return Ok(outcome);
                }
                self.may_start()?;
                self.create_job(command, cause, effects)
            }
            _ => Ok(Outcome::Ignored),
        }
    }

    /// Tells why a command that starts something would be refused for a quota now, if it would be: the
    /// refusal that `apply` would come to. What `apply` looks at before the quotas is left to it, and so
    /// are quotas that time resets, for the state does not know the time.
    pub fn quota_refusal_now(
        &self,
        starts: &Starts,
        call: Option<&Idempotency>,
    ) -> Option<Refusal> {
        let is_unknown =
            matches!(starts, Starts::NamedRun(name) if !self.workflows.contains_key(name));
        if is_unknown || self.calls.knows(call) || self.may_start().is_err() {
            return None;
        }
        let quotas: &[Quota] = match starts {
            Starts::Run | Starts::NamedRun(_) => &[Quota::StorageBytes, Quota::ConcurrentWorkflows],
            Starts::Definition => &[Quota::StorageBytes],
        };
        let refused = quotas.iter().find_map(|quota| self.check_quota(*quota).err());
        match starts {
            // Nothing is started that holds nothing.
            Starts::Run | Starts::NamedRun(_) => refused.or_else(|| self.room_to_hold(1).err()),
            Starts::Definition => refused,
        }
    }

    /// What [`Self::begin`] decides, for the mutant that decides it before.
    #[cfg(feature = "mutants")]
    pub(crate) fn may_begin(&self, call: Option<&Idempotency>) -> Result<(), Refusal> {
        if self.calls.knows(call) { Ok(()) } else { self.check_run_quotas() }
    }

    /// What the call made when it was done before.
    fn replayed(&mut self, call: Option<&Idempotency>) -> Result<Option<Outcome>, Refusal> {
        let made = self.calls.check(call, self.time.aged())?;
        Ok(made.map(|made| match made {
            CreatedResource::Run(run) => Outcome::Run(RunStarted { run, replayed: true }),
            CreatedResource::Job(job, run) => Outcome::Job(JobCreated { job, run, replayed: true }),
        }))
    }

    fn resolve(&self, source: &WorkflowSource) -> Result<(Arc<Workflow>, Option<String>), Refusal> {
        match source {
            WorkflowSource::Inline(workflow) => Ok((Arc::clone(workflow), None)),
            WorkflowSource::Named(name) => match self.workflows.get(name) {
                Some(named) => Ok((Arc::clone(&named.workflow), Some(name.clone()))),
                None => Err(Refusal::UnknownWorkflow { name: name.clone() }),
            },
        }
    }

    fn create_job(
        &mut self,
        command: &TenantCommand,
        cause: Option<&Cause>,
        effects: &mut Vec<TenantEffect>,
    ) -> Result<Outcome, Refusal> {
        let TenantCommand::CreateJob(CreateJob {
            job,
            name,
            description,
            created_by,
            workflow,
            run,
            idempotency,
        }) = command
        else {
            return Ok(Outcome::Ignored);
        };
        self.room_to_store()?;
        if let Some(run) = run {
            let new = NewRun {
                id: *run,
                work_item: job.to_string(),
                workflow: Arc::clone(workflow),
                workflow_name: None,
                input: Json::null(),
            };
            self.begin(new, cause, effects)?;
        }
        let record = Job {
            id: *job,
            name: name.clone(),
            description: description.clone(),
            created_by: created_by.clone(),
            created_at: self.meta.last_at,
            workflow: Arc::clone(workflow),
            run: *run,
        };
        self.add_payload(definition_bytes(&record.workflow));
        self.settled.extend(rows::job(self.meta.next_job_seq, &record));
        self.meta.next_job_seq += 1;
        self.audit(cause, "job_created", &job.to_string(), None);
        let call = idempotency.as_ref().filter(|_| !mutants::is(Mutant::JobsWithoutKeys));
        self.calls.remember(call, self.time.aged(), CreatedResource::Job(*job, *run));
        Ok(Outcome::Job(JobCreated { job: *job, run: *run, replayed: false }))
    }

    /// Lets a run in if the quotas on runs allow it, and begins it.
    fn begin(
        &mut self,
        new: NewRun,
        cause: Option<&Cause>,
        effects: &mut Vec<TenantEffect>,
    ) -> Result<(), Refusal> {
        if !mutants::is(Mutant::QuotaBeforeApply) {
            self.check_run_quotas()?;
        }
        let input_bytes = new.input.as_str().len() as u64;
        self.room_to_hold(input_bytes + definition_bytes(&new.workflow))?;
        self.days.runs += 1;
        let (id, work_item) = (new.id, new.work_item.clone());
        let spec = new.workflow.json();
        let run = Run {
            id,
            seq: self.meta.next_run_seq,
            work_item: new.work_item,
            steps: vec![StepState::pending(); new.workflow.steps.len()],
            workflow: new.workflow,
            workflow_name: new.workflow_name,
            status: RunStatus::Running,
            started_at: self.meta.last_at,
            completed_at: None,
            payload_bytes: input_bytes,
            input: new.input,
            error: None,
            events: Vec::new(),
            is_in_parts: self.lays_in_parts,
        };
        self.meta.next_run_seq += 1;
        self.add_payload(run.payload_bytes);
        self.held_bytes += held_bytes(&run);
        self.settled.push(rows::run_seq(id, run.seq));
        self.settled.extend(run_rows::given(&run));
        // Before its first event: the run remembers where its events are.
        self.runs.insert(id, run);
        let fields = Fields::new("run_started")
            .text("work_item_id", &work_item)
            .json("workflow_spec", spec.as_str());
        self.run_event(id, fields);
        self.audit(cause, "run_started", &id.to_string(), Some(id));
        self.advance(id, effects);
        Ok(())
    }

    /// Refuses a run for which the quotas on runs leave no room.
    fn check_run_quotas(&self) -> Result<(), Refusal> {
        self.check_quota(Quota::ConcurrentWorkflows)?;
        self.check_quota(Quota::WorkflowsPerDay)
    }

    /// Refuses what would hold more than a tenant may hold in memory: it would have every output of its
    /// live runs fail.
    pub(super) fn room_to_hold(&self, bytes: u64) -> Result<(), Refusal> {
        let (used, limit) = (self.held_bytes, self.held_limit());
        if !self.bounds_held_bytes || used + bytes <= limit {
            return Ok(());
        }
        Err(Refusal::MemoryLimit { limit, used })
    }

    /// Refuses what starts something when the stored bytes have reached the quota.
    pub(super) fn room_to_store(&self) -> Result<(), Refusal> {
        self.check_quota(Quota::StorageBytes)
    }

    pub(super) fn check_quota(&self, quota: Quota) -> Result<(), Refusal> {
        let now = self.meta.last_at;
        let Some(limit) = self.meta.record.as_ref().and_then(|record| record.quotas.limit(quota))
        else {
            return Ok(());
        };
        let used = match quota {
            Quota::StorageBytes if !self.counts_payloads => self.meta.events_bytes,
            Quota::StorageBytes if !self.counts_locks => {
                self.meta.events_bytes + self.payload_bytes
            }
            _ => self.used(quota, now),
        };
        if used < limit {
            return Ok(());
        }
        let retry_after_secs =
            (quota == Quota::WorkflowsPerDay).then(|| now.next_day().ms_since(now).div_ceil(1000));
        Err(Refusal::QuotaExceeded { quota, limit, used, retry_after_secs })
    }
}

//! One tenant's own resources.

use std::sync::Arc;
use std::time::Duration;

use crate::command::WorkflowSource;
use crate::error::CallError;
use crate::handles::{Call, Created};
use crate::ids::{JobId, RunId};
use crate::json::Json;
use crate::outcome::RunStatus;
use crate::views::{JobView, Page, PageRequest, RunView, WorkflowView};
use crate::workflow::Workflow;

/// Handle to one tenant, for one admitted request.
#[derive(Debug)]
pub struct TenantHandle {}

/// What a new run is made of.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its workflow.
    pub workflow: WorkflowSource,
    /// Its input.
    pub input: Json,
}

/// What a new job is made of.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// Name shown.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Its workflow.
    pub workflow: Arc<Workflow>,
    /// Who makes it, as the client says.
    pub created_by: Option<String>,
    /// Whether a run is started at once.
    pub execute: bool,
}

impl TenantHandle {
    /// Starts a run.
    pub async fn start_run(&self, _: &Call, _: NewRun) -> Result<Created<RunView>, CallError> {
        todo!()
    }
    /// One run.
    pub async fn run(&self, _: &Call, _: RunId) -> Result<RunView, CallError> {
        todo!()
    }
    /// One run, once it has ended or `wait` is over.
    pub async fn wait_run(
        &self,
        _: &Call,
        _: RunId,
        _wait: Duration,
    ) -> Result<RunView, CallError> {
        todo!()
    }
    /// Runs, newest first.
    pub async fn runs(
        &self,
        _: &Call,
        _status: Option<RunStatus>,
        _: PageRequest,
    ) -> Result<Page<RunView>, CallError> {
        todo!()
    }
    /// The events of a run, each one JSON object as it stands in `events.jsonl`.
    pub async fn run_events(
        &self,
        _: &Call,
        _: RunId,
        _: PageRequest,
    ) -> Result<Page<Json>, CallError> {
        todo!()
    }
    /// Stops a run.
    pub async fn cancel_run(
        &self,
        _: &Call,
        _: RunId,
        _reason: Option<String>,
    ) -> Result<RunView, CallError> {
        todo!()
    }
    /// Writes a named workflow (version 1 means it is new).
    pub async fn put_workflow(
        &self,
        _: &Call,
        _name: String,
        _: Arc<Workflow>,
        _if_version: Option<u64>,
    ) -> Result<WorkflowView, CallError> {
        todo!()
    }
    /// One named workflow.
    pub async fn workflow(&self, _: &Call, _name: &str) -> Result<WorkflowView, CallError> {
        todo!()
    }
    /// Named workflows, by name.
    pub async fn workflows(
        &self,
        _: &Call,
        _: PageRequest,
    ) -> Result<Page<WorkflowView>, CallError> {
        todo!()
    }
    /// Forgets a named workflow.
    pub async fn delete_workflow(
        &self,
        _: &Call,
        _name: &str,
        _if_version: Option<u64>,
    ) -> Result<(), CallError> {
        todo!()
    }
    /// Creates a job.
    pub async fn create_job(&self, _: &Call, _: NewJob) -> Result<Created<JobView>, CallError> {
        todo!()
    }
    /// One job.
    pub async fn job(&self, _: &Call, _: JobId) -> Result<JobView, CallError> {
        todo!()
    }
    /// Jobs, by creation.
    pub async fn jobs(&self, _: &Call, _: PageRequest) -> Result<Page<JobView>, CallError> {
        todo!()
    }
}

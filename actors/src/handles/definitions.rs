//! A tenant's named workflows and jobs.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use crate::command::{
    CreateJob, DeleteWorkflow, JobCreated, PutWorkflow, Refusal, WorkflowWritten,
};
use crate::domain::ids::{JobId, RunId};
use crate::domain::page::{Page, PageBudget, PageRequest};
use crate::domain::views::{JobView, WorkflowView};
use crate::domain::workflow::Workflow;
use crate::handles::TenantHandle;
use crate::ports::error::CallError;
use crate::services::{Call, Created};
use crate::state::tenant::{NamedWorkflow, job_view};

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
    /// Writes a named workflow (version 1 means it is new).
    ///
    /// # Errors
    /// When the tenant may not, it is at another version than `if_version`, or it came to no
    /// outcome by the deadline.
    pub async fn put_workflow(
        &self,
        call: &Call,
        name: String,
        workflow: Arc<Workflow>,
        if_version: Option<u64>,
    ) -> Result<WorkflowView, CallError> {
        let spec = workflow.json();
        let command = PutWorkflow { name: name.clone(), workflow, if_version };
        let WorkflowWritten { version, created_at } = self.ask_to_start(call, command).await?;
        Ok(WorkflowView { name, version, spec, created_at })
    }

    /// One named workflow.
    ///
    /// # Errors
    /// When there is none with this name, or no answer came by the deadline.
    pub async fn workflow(&self, call: &Call, name: &str) -> Result<WorkflowView, CallError> {
        self.catch_up(call).await?;
        let wanted = name.to_owned();
        let found = self
            .read(call, move |reader| {
                reader.state.workflows().get(&wanted).map(|named| workflow_view(&wanted, named))
            })
            .await?;
        Ok(found.ok_or_else(|| Refusal::WorkflowNotFound { name: name.to_owned() })?)
    }

    /// Named workflows, by name.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn workflows(
        &self,
        call: &Call,
        page: PageRequest,
    ) -> Result<Page<WorkflowView>, CallError> {
        self.catch_up(call).await?;
        let (items, more) = self
            .read(call, move |reader| {
                let after = page.cursor.unwrap_or_default();
                let later = reader.state.workflows().range((Excluded(after), Unbounded));
                let views = later.map(|(name, named)| workflow_view(name, named));
                PageBudget::new(page.limit).fill(views)
            })
            .await?;
        let next_cursor = items.last().filter(|_| more).map(|last| last.name.clone());
        Ok(Page { items, next_cursor })
    }

    /// Forgets a named workflow.
    ///
    /// # Errors
    /// When there is none with this name, it is at another version than `if_version`, or it came
    /// to no outcome by the deadline.
    pub async fn delete_workflow(
        &self,
        call: &Call,
        name: &str,
        if_version: Option<u64>,
    ) -> Result<(), CallError> {
        self.ask(call, DeleteWorkflow { name: name.to_owned(), if_version }).await
    }

    /// Creates a job.
    ///
    /// # Errors
    /// When the tenant may not, a quota is used up, or it came to no outcome by the deadline.
    pub async fn create_job(
        &self,
        call: &Call,
        new: NewJob,
    ) -> Result<Created<JobView>, CallError> {
        let command = CreateJob {
            job: JobId::from_uuid(self.seams.uuid()),
            name: new.name,
            description: new.description,
            created_by: new.created_by,
            workflow: new.workflow,
            run: new.execute.then(|| RunId::from_uuid(self.seams.uuid())),
            idempotency: call.idempotency,
        };
        let JobCreated { job, replayed, .. } = self.ask_to_start(call, command).await?;
        let resource = self.view_job(call, job).await.map_err(CallError::after_write)?;
        Ok(Created { resource, replayed })
    }

    /// One job.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn job(&self, call: &Call, id: JobId) -> Result<JobView, CallError> {
        self.catch_up(call).await?;
        self.view_job(call, id).await
    }

    /// Jobs, by creation.
    ///
    /// # Errors
    /// When the tenant's files cannot be read, or no answer came by the deadline.
    pub async fn jobs(&self, call: &Call, page: PageRequest) -> Result<Page<JobView>, CallError> {
        self.catch_up(call).await?;
        let after = page.cursor.as_deref().and_then(|at| at.parse().ok()).unwrap_or(0);
        let (items, next) = self
            .read(call, move |reader| {
                reader.state.jobs_after(reader.rows, after, page.limit, job_view)
            })
            .await??;
        Ok(Page { items, next_cursor: next.map(|seq| seq.to_string()) })
    }

    async fn view_job(&self, call: &Call, id: JobId) -> Result<JobView, CallError> {
        let found = self.read(call, move |reader| reader.state.job(reader.rows, id)).await??;
        Ok(found.as_ref().map(job_view).ok_or(Refusal::JobNotFound)?)
    }
}

fn workflow_view(name: &str, named: &NamedWorkflow) -> WorkflowView {
    WorkflowView {
        name: name.to_owned(),
        version: named.version,
        spec: named.workflow.json(),
        created_at: named.created_at,
    }
}

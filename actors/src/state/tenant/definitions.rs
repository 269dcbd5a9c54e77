//! Named workflows, and jobs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::TenantState;
use crate::command::{Cause, Outcome, Refusal, WorkflowWritten};
use crate::domain::ids::{JobId, RunId};
use crate::domain::time::Timestamp;
use crate::domain::workflow::Workflow;

/// Most named workflows of a tenant.
const WORKFLOWS_MAX: usize = 1000;

/// A named workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedWorkflow {
    /// Counts its changes, from 1.
    pub version: u64,
    /// When this version was written.
    pub created_at: Timestamp,
    /// The spec.
    pub workflow: Arc<Workflow>,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Who made it, as the client said.
    pub created_by: Option<String>,
    /// When.
    pub created_at: Timestamp,
    /// Its workflow.
    pub workflow: Arc<Workflow>,
    /// The run started with it.
    pub run: Option<RunId>,
}

/// What a stored workflow counts as storage, bytes: what clients read of it.
pub(super) fn definition_bytes(workflow: &Workflow) -> u64 {
    workflow.json().as_str().len() as u64
}

impl TenantState {
    pub(super) fn put_workflow(
        &mut self,
        name: &str,
        workflow: &Arc<Workflow>,
        if_version: Option<u64>,
        cause: Option<&Cause>,
    ) -> Result<Outcome, Refusal> {
        self.may_start()?;
        self.room_to_store()?;
        let current = self.workflows.get(name).map_or(0, |named| named.version);
        if if_version.is_some_and(|version| version != current) {
            return Err(Refusal::PreconditionFailed { current });
        }
        if current == 0 && self.workflows.len() >= WORKFLOWS_MAX {
            let limit = WORKFLOWS_MAX as u64;
            return Err(Refusal::TooMany { what: "workflows".to_owned(), limit });
        }
        let bytes = definition_bytes(workflow);
        let bytes_before =
            self.workflows.get(name).map_or(0, |before| definition_bytes(&before.workflow));
        self.room_to_hold(bytes.saturating_sub(bytes_before))?;
        let created_at = self.meta.last_at;
        let version = current + 1;
        let named = NamedWorkflow { version, created_at, workflow: Arc::clone(workflow) };
        self.workflows.insert(name.to_owned(), named);
        self.add_payload(bytes);
        self.remove_payload(bytes_before);
        self.held_bytes = self.held_bytes + bytes - bytes_before;
        self.dirty.workflows.insert(name.to_owned());
        self.audit(cause, "workflow_put", name, None);
        Ok(Outcome::Workflow(WorkflowWritten { version, created_at }))
    }

    pub(super) fn delete_workflow(
        &mut self,
        name: &str,
        if_version: Option<u64>,
        cause: Option<&Cause>,
    ) -> Result<Outcome, Refusal> {
        self.may_start()?;
        let not_found = || Refusal::WorkflowNotFound { name: name.to_owned() };
        let current = self.workflows.get(name).ok_or_else(not_found)?.version;
        if if_version.is_some_and(|version| version != current) {
            return Err(Refusal::PreconditionFailed { current });
        }
        if let Some(before) = self.workflows.remove(name) {
            let bytes = definition_bytes(&before.workflow);
            self.remove_payload(bytes);
            self.held_bytes -= bytes;
        }
        self.dirty.workflows.insert(name.to_owned());
        self.audit(cause, "workflow_deleted", name, None);
        Ok(Outcome::Done)
    }
}

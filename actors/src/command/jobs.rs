//! Commands about jobs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::Idempotency;
use crate::domain::ids::{JobId, RunId};
use crate::domain::workflow::Workflow;

/// Keeps a named workflow with its run as a job.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateJob {
    /// Its new id.
    pub job: JobId,
    /// Name shown.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Who made it, as the client says.
    pub created_by: Option<String>,
    /// Its workflow.
    pub workflow: Arc<Workflow>,
    /// The run to start with it, if it is to be executed.
    pub run: Option<RunId>,
    /// Remembers the call.
    pub idempotency: Option<Idempotency>,
}

/// A job was created or found under its idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCreated {
    /// Which.
    pub job: JobId,
    /// The run started with it.
    pub run: Option<RunId>,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

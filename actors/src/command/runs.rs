//! Commands that start and stop runs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::command::Idempotency;
use crate::domain::ids::RunId;
use crate::domain::json::Json;
use crate::domain::workflow::Workflow;

/// Where a run's workflow comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WorkflowSource {
    /// Given with the call.
    Inline(Arc<Workflow>),
    /// The present version of a named one.
    Named(String),
}

/// Starts a run.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct StartRun {
    /// Its new id.
    pub run: RunId,
    /// What the run works on: a job's id, or an id of its own.
    pub work_item: String,
    /// Its workflow.
    pub workflow: WorkflowSource,
    /// Its input.
    pub input: Json,
    /// Remembers the call.
    pub idempotency: Option<Idempotency>,
}

/// Stops a run.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CancelRun {
    /// Which.
    pub run: RunId,
    /// Why, as the client says.
    pub reason: Option<String>,
}

/// A run was started or found under its idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStarted {
    /// Which.
    pub run: RunId,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

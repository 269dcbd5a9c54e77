//! Commands about named workflows.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::domain::time::Timestamp;
use crate::domain::workflow::Workflow;

/// A named workflow, new or in a new version.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PutWorkflow {
    /// Its name.
    pub name: String,
    /// Its spec.
    pub workflow: Arc<Workflow>,
    /// The version the client saw (`If-Match`).
    pub if_version: Option<u64>,
}

/// Forgets a named workflow; runs keep the version they started with.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DeleteWorkflow {
    /// Its name.
    pub name: String,
    /// The version the client saw (`If-Match`).
    pub if_version: Option<u64>,
}

/// A named workflow was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowWritten {
    /// Its version now.
    pub version: u64,
    /// When this version was written.
    pub created_at: Timestamp,
}

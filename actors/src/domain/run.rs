//! Where runs stand.

use serde::{Deserialize, Serialize};

use crate::domain::ids::RunId;

/// Names one attempt of one step of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepAttempt {
    /// Run.
    pub run: RunId,
    /// Index of the step in the workflow.
    pub step: u16,
    /// Number of the attempt, from 1.
    pub number: u32,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Accepted, nothing has begun.
    Pending,
    /// Under way.
    Running,
    /// Every step is completed.
    Completed,
    /// A step failed for good.
    Failed,
    /// Stopped by a client, or with its tenant.
    Cancelled,
}

impl RunStatus {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled];

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing can change any more.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl std::fmt::Display for RunStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

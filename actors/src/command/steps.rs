//! Commands about steps: what an attempt came to, and moments that have come.

use serde::{Deserialize, Serialize};

use crate::domain::json::Json;
use crate::domain::run::StepAttempt;
use crate::domain::time::Timestamp;

/// What one attempt of a step came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StepResult {
    /// Done, with its output.
    Succeeded {
        /// Output of the step.
        output: Json,
    },
    /// Failed.
    Failed {
        /// Why, for a person.
        error: String,
        /// Whether another attempt may help, and how long to wait before it, milliseconds (the
        /// leader's backoff with jitter; `apply` rolls no dice).
        retry_in_ms: Option<u64>,
    },
    /// A `wait` step learned when it is over.
    WaitsUntil {
        /// When.
        due_at: Timestamp,
    },
}

/// What became of one attempt of a step. Recorded once: a second result does nothing.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordStepResult {
    /// The attempt.
    pub attempt: StepAttempt,
    /// What it came to.
    pub result: StepResult,
}

/// The moment a step waited for has come: its wait is over, or its retry is due.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct StepDue {
    /// The attempt that waited.
    pub attempt: StepAttempt,
}

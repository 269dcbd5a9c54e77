//! Reads and checks what clients send as a workflow.
//!
//! These types have the shape of the API's JSON; they never enter the codec. [`parse`] turns them
//! into a [`Workflow`], or says which step is wrong and why.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{STEPS_MAX, Step, Workflow};
use crate::json::Json;

/// Longest step id, characters.
pub const STEP_ID_CHARS_MAX: usize = 200;
/// Longest time for one attempt, seconds: a year.
pub const TIMEOUT_SECS_MAX: f64 = 31_536_000.0;
/// Most attempts of a step.
pub const ATTEMPTS_MAX: u32 = 1000;
/// Longest wait between attempts, seconds: the cap of the backoff.
pub const BACKOFF_SECS_MAX: f64 = 3600.0;
/// Longest `wait`, seconds: ten years.
pub const WAIT_SECS_MAX: f64 = 315_360_000.0;

/// A workflow as clients send it.
#[derive(Debug, Clone, Deserialize)]
pub struct WorkflowSpec {
    /// Its steps.
    pub steps: Vec<StepSpec>,
    /// What each step needs, by id.
    #[serde(default)]
    pub dependencies: Option<BTreeMap<String, Vec<String>>>,
}

/// A step as clients send it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StepSpec {
    /// Unique in the workflow.
    pub id: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Names the queue of `agent_task` and `tool_sequence`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// What to do.
    pub action: Action,
    /// Ids of steps that come first.
    #[serde(default, skip_serializing)]
    pub depends_on: Option<Vec<String>>,
    /// Time for one attempt, seconds.
    #[serde(default = "default_timeout_secs")]
    pub timeout_secs: f64,
    /// When and how often to try again.
    #[serde(default)]
    pub retry_policy: RetryPolicy,
    /// Not supported yet by this version: only `false` or nothing.
    #[serde(default, skip_serializing)]
    pub requires_approval: Option<Value>,
}

/// How often an attempt is repeated.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts in all.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// Wait before the second attempt, seconds; doubled for each one after, with jitter.
    #[serde(default = "default_backoff_secs")]
    pub backoff_secs: f64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { max_attempts: default_max_attempts(), backoff_secs: default_backoff_secs() }
    }
}

const fn default_timeout_secs() -> f64 {
    300.0
}
const fn default_max_attempts() -> u32 {
    1
}
const fn default_backoff_secs() -> f64 {
    1.0
}

/// What a step does.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Action {
    /// Gives its output at once.
    Set {
        /// The output; strings in it are templates.
        output: Value,
    },
    /// Calls an HTTP service.
    Http {
        /// Method.
        method: String,
        /// URL, a template.
        url: String,
        /// Headers, values are templates.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<String, String>,
        /// Body: a string as it is, anything else as JSON; strings are templates.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        body: Option<Value>,
    },
    /// Waits.
    Wait {
        /// For this long, seconds: a number, or a template that gives one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secs: Option<Value>,
        /// Until this moment: RFC 3339, or a template that gives one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<String>,
    },
}

/// What is wrong with a workflow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidWorkflow {
    /// The step at fault, if one is.
    pub step: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Checks a workflow.
///
/// # Errors
/// Says which step is wrong and why.
pub fn parse(_spec: WorkflowSpec) -> Result<Workflow, InvalidWorkflow> {
    todo!()
}

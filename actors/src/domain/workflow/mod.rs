//! Workflows: a directed acyclic graph of steps.
//!
//! [`Workflow`] is what state machines work with: ids, dependencies as indices, limits. What a
//! step does stays JSON ([`Step::json`]) until the leader performs it: `apply` never needs it, and
//! events copy it byte for byte. [`spec`] reads and checks what clients send; [`template`] renders
//! the strings in it.

pub mod spec;
pub mod template;

use serde::{Deserialize, Serialize};

use crate::domain::json::Json;

/// The most steps a workflow may have.
pub const STEPS_MAX: usize = 1000;

/// A checked workflow: at least one step, ids unique, dependencies known, no cycle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workflow {
    /// In the order they were given.
    pub steps: Vec<Step>,
}

/// One step, as far as `apply` needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Unique in its workflow.
    pub id: String,
    /// Indices of the steps that must be completed first; ascending, each once.
    pub needs: Vec<u16>,
    /// Time for one attempt, milliseconds. Does not bound a `wait`.
    pub timeout_ms: u64,
    /// Attempts before the step fails for good, at least 1.
    pub max_attempts: u32,
    /// Wait before the second attempt, milliseconds; doubled for each one after.
    pub backoff_ms: u64,
    /// The step spec as a client may send it, defaults filled in, without its dependencies.
    pub json: Json,
}

impl Workflow {
    /// The whole spec as JSON: what clients read, and what `run_started` records.
    pub fn json(&self) -> Json {
        let mut text = String::from(r#"{"steps":["#);
        for (index, step) in self.steps.iter().enumerate() {
            if index > 0 {
                text.push(',');
            }
            text.push_str(step.json.as_str());
        }
        text.push_str(r#"],"dependencies":"#);
        let dependencies: std::collections::BTreeMap<&str, Vec<&str>> = self
            .steps
            .iter()
            .filter(|step| !step.needs.is_empty())
            .map(|step| (step.id.as_str(), step.needs.iter().map(|n| self.id(*n)).collect()))
            .collect();
        text.push_str(&serde_json::to_string(&dependencies).unwrap_or_default());
        text.push('}');
        Json::from_text(text)
    }

    /// The id of a step.
    pub fn id(&self, step: u16) -> &str {
        &self.steps[usize::from(step)].id
    }
}

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
    /// Runs a program on the node: refused, nodes of this version run none.
    Script {},
    /// A type that this version does not know.
    #[serde(other)]
    Unknown,
}

/// What is wrong with a workflow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidWorkflow {
    /// The step at fault, if one is.
    pub step: Option<String>,
    /// What is wrong and what would be right.
    pub message: String,
    /// Whether the workflow is right, but not for this node.
    pub not_allowed_here: bool,
}

impl InvalidWorkflow {
    fn of(step: &str, message: impl Into<String>) -> Self {
        Self { step: Some(step.to_owned()), message: message.into(), not_allowed_here: false }
    }
}

/// Checks a workflow.
///
/// # Errors
/// Says which step is wrong and why.
pub fn parse(spec: WorkflowSpec) -> Result<Workflow, InvalidWorkflow> {
    let WorkflowSpec { steps, dependencies } = spec;
    if steps.is_empty() || steps.len() > STEPS_MAX {
        let message =
            format!("a workflow has 1 to {STEPS_MAX} steps; this one has {}", steps.len());
        return Err(InvalidWorkflow { step: None, message, not_allowed_here: false });
    }
    let mut index = BTreeMap::new();
    for (position, step) in (0_u16..).zip(&steps) {
        check_step(step)?;
        if index.insert(step.id.clone(), position).is_some() {
            return Err(InvalidWorkflow::of(
                &step.id,
                format!("step id {:?} is used twice", step.id),
            ));
        }
    }
    let mut needs = vec![BTreeSet::new(); steps.len()];
    let inline = steps.iter().filter_map(|step| Some((&step.id, step.depends_on.as_ref()?)));
    for (id, wanted) in inline.chain(dependencies.iter().flatten()) {
        let unknown = |name: &str| {
            InvalidWorkflow::of(
                id,
                format!("dependencies of {id:?} name {name:?}, which is no step"),
            )
        };
        let step = *index.get(id).ok_or_else(|| unknown(id))?;
        for need in wanted {
            let need = *index.get(need).ok_or_else(|| unknown(need))?;
            needs[usize::from(step)].insert(need);
        }
    }
    let steps = steps.into_iter().zip(needs).map(|(step, needs)| finish(step, needs));
    let workflow = Workflow { steps: steps.collect() };
    match step_on_a_cycle(&workflow) {
        None => Ok(workflow),
        Some(id) => {
            Err(InvalidWorkflow::of(id, format!("step {id:?} depends on itself, by a cycle")))
        }
    }
}

fn check_step(step: &StepSpec) -> Result<(), InvalidWorkflow> {
    let wrong = |message: String| Err(InvalidWorkflow::of(&step.id, message));
    let id_chars = step.id.chars().count();
    if id_chars == 0 || id_chars > STEP_ID_CHARS_MAX || step.id.chars().any(char::is_control) {
        return wrong(format!(
            "a step id has 1 to {STEP_ID_CHARS_MAX} characters and no control characters"
        ));
    }
    let id = &step.id;
    if !(step.timeout_secs > 0.0 && step.timeout_secs <= TIMEOUT_SECS_MAX) {
        return wrong(format!(
            "{id:?}: timeout_secs must be above 0 and at most {TIMEOUT_SECS_MAX}"
        ));
    }
    let retry = step.retry_policy;
    if !(1..=ATTEMPTS_MAX).contains(&retry.max_attempts) {
        return wrong(format!("{id:?}: retry_policy.max_attempts must be 1 to {ATTEMPTS_MAX}"));
    }
    if !(0.0..=BACKOFF_SECS_MAX).contains(&retry.backoff_secs) {
        return wrong(format!("{id:?}: retry_policy.backoff_secs must be 0 to {BACKOFF_SECS_MAX}"));
    }
    if !matches!(step.requires_approval, None | Some(Value::Null | Value::Bool(false))) {
        return wrong(format!("{id:?}: requires_approval is not available in this version"));
    }
    check_action(id, &step.action)
}

fn check_action(id: &str, action: &Action) -> Result<(), InvalidWorkflow> {
    let wrong = |message: String| Err(InvalidWorkflow::of(id, message));
    match action {
        Action::Set { .. } => Ok(()),
        Action::Script {} => Err(InvalidWorkflow {
            step: Some(id.to_owned()),
            message: format!("{id:?}: script steps are not allowed on this node"),
            not_allowed_here: true,
        }),
        Action::Unknown => {
            wrong(format!("{id:?}: action.type must be \"set\", \"http\" or \"wait\""))
        }
        Action::Http { method, url, .. } => {
            let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            if method.is_empty() || method.len() > 32 || !method.chars().all(token) {
                return wrong(format!("{id:?}: action.method is no HTTP method"));
            }
            let absolute = url.starts_with("http://") || url.starts_with("https://");
            if !absolute && !url.contains("{{") {
                return wrong(format!("{id:?}: action.url must begin with http:// or https://"));
            }
            Ok(())
        }
        Action::Wait { secs, until } => match (secs, until) {
            (Some(Value::Number(secs)), None) => {
                if secs.as_f64().is_some_and(|secs| (0.0..=WAIT_SECS_MAX).contains(&secs)) {
                    Ok(())
                } else {
                    wrong(format!("{id:?}: action.secs must be 0 to {WAIT_SECS_MAX}"))
                }
            }
            (Some(Value::String(_)), None) | (None, Some(_)) => Ok(()),
            _ => wrong(format!("{id:?}: a wait has either secs (a number) or until (a time)")),
        },
    }
}

/// The step as state machines keep it. Its numbers have been checked.
fn finish(step: StepSpec, needs: BTreeSet<u16>) -> Step {
    let json = serde_json::to_value(&step).unwrap_or_default();
    Step {
        json: Json::from_value(&json),
        needs: needs.into_iter().collect(),
        timeout_ms: millis(step.timeout_secs).max(1),
        max_attempts: step.retry_policy.max_attempts,
        backoff_ms: millis(step.retry_policy.backoff_secs),
        id: step.id,
    }
}

/// Whole milliseconds of a number of seconds that has been checked to be small and not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked by the caller"
)]
pub(crate) fn millis(secs: f64) -> u64 {
    (secs * 1000.0).round() as u64
}

/// A step that can never start, if there is one: what Kahn's topological sort leaves over.
fn step_on_a_cycle(workflow: &Workflow) -> Option<&str> {
    let steps = &workflow.steps;
    let mut missing: Vec<usize> = steps.iter().map(|step| step.needs.len()).collect();
    let mut dependents = vec![Vec::new(); steps.len()];
    for (index, step) in steps.iter().enumerate() {
        for need in &step.needs {
            dependents[usize::from(*need)].push(index);
        }
    }
    let mut ready: Vec<usize> = (0..steps.len()).filter(|index| missing[*index] == 0).collect();
    while let Some(done) = ready.pop() {
        for dependent in &dependents[done] {
            missing[*dependent] -= 1;
            if missing[*dependent] == 0 {
                ready.push(*dependent);
            }
        }
    }
    missing.iter().position(|count| *count > 0).map(|index| steps[index].id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Workflow, InvalidWorkflow> {
        parse(serde_json::from_str(text).unwrap())
    }

    #[test]
    fn a_graph_is_read_from_both_ways_of_naming_dependencies() {
        let workflow = parse_text(
            r#"{"steps":[{"id":"a","action":{"type":"set","output":1}},
                {"id":"b","action":{"type":"set","output":"{{ input.x }}"},"depends_on":["a"]},
                {"id":"c","action":{"type":"wait","secs":0.5},"timeout_secs":2}],
               "dependencies":{"c":["b","a"]}}"#,
        )
        .unwrap();
        assert_eq!(workflow.steps[1].needs, [0]);
        assert_eq!(workflow.steps[2].needs, [0, 1]);
        assert_eq!(workflow.steps[2].timeout_ms, 2000);
        let json = workflow.json().to_value();
        assert_eq!(json["dependencies"]["c"], serde_json::json!(["a", "b"]));
        let again = parse(serde_json::from_value(json).unwrap()).unwrap();
        assert_eq!(again, workflow);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_step() {
        let set = r#""action":{"type":"set","output":1}"#;
        let cases = [
            (r#"{"steps":[]}"#.to_owned(), None, "1 to 1000 steps"),
            (format!(r#"{{"steps":[{{"id":"a",{set}}},{{"id":"a",{set}}}]}}"#), Some("a"), "twice"),
            (
                format!(r#"{{"steps":[{{"id":"a",{set},"depends_on":["x"]}}]}}"#),
                Some("a"),
                "no step",
            ),
            (
                format!(r#"{{"steps":[{{"id":"a",{set}}}],"dependencies":{{"y":["a"]}}}}"#),
                Some("y"),
                "no step",
            ),
            (format!(r#"{{"steps":[{{"id":"a",{set},"depends_on":["a"]}}]}}"#), Some("a"), "cycle"),
            (
                format!(
                    r#"{{"steps":[{{"id":"a",{set},"depends_on":["b"]}},{{"id":"b",{set},"depends_on":["a"]}}]}}"#
                ),
                Some("a"),
                "cycle",
            ),
            (format!(r#"{{"steps":[{{"id":"a",{set},"timeout_secs":0}}]}}"#), Some("a"), "timeout"),
            (
                r#"{"steps":[{"id":"a","action":{"type":"wait"}}]}"#.to_owned(),
                Some("a"),
                "either secs",
            ),
            (
                r#"{"steps":[{"id":"a","action":{"type":"http","method":"GET","url":"ftp://x"}}]}"#
                    .to_owned(),
                Some("a"),
                "http://",
            ),
        ];
        for (text, step, message) in cases {
            let error = parse_text(&text).unwrap_err();
            assert_eq!(error.step.as_deref(), step, "{text}");
            assert!(error.message.contains(message), "{text}: {error}");
        }
    }
}

//! Reads and checks what clients send as a workflow.
//!
//! These types have the shape of the API's JSON; they never enter the codec. [`parse`] turns them
//! into a [`Workflow`], or says which step is wrong and why.

mod graph;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::graph::Graph;
use self::shape::{Object, count, or_default, seconds, whole};
use super::template::Templates;
use super::{STEPS_MAX, Step, Workflow};
use crate::domain::json::Json;
use crate::domain::time::Timestamp;

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
/// The queue of tasks that name none.
const DEFAULT_ROLE: &str = "default";

/// The engine that templates are checked with.
static TEMPLATES: LazyLock<Templates> = LazyLock::new(Templates::default);

/// A workflow as clients send it.
#[derive(Debug, Clone)]
pub struct WorkflowSpec {
    /// Its steps.
    pub steps: Vec<StepSpec>,
    /// What each step needs, by id.
    pub dependencies: Option<BTreeMap<String, Vec<String>>>,
}

/// A step as clients send it, and, with what they left out filled in, as it is stored.
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
    #[serde(deserialize_with = "Object::value")]
    pub action: Action,
    /// Ids of steps that come first.
    #[serde(default, skip_serializing)]
    pub depends_on: Option<Vec<String>>,
    /// Time for one attempt, seconds.
    #[serde(default, deserialize_with = "seconds", serialize_with = "whole")]
    pub timeout_secs: Option<f64>,
    /// When and how often to try again.
    #[serde(default, deserialize_with = "Object::option")]
    pub retry_policy: Option<RetryPolicy>,
    /// Not supported yet by this version: only `false` or nothing.
    #[serde(default)]
    pub requires_approval: Option<Value>,
}

/// How often an attempt is repeated.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Attempts in all.
    #[serde(default, deserialize_with = "count")]
    pub max_attempts: Option<u32>,
    /// Wait before the second attempt, seconds; doubled for each one after, with jitter.
    #[serde(default, deserialize_with = "seconds", serialize_with = "whole")]
    pub backoff_secs: Option<f64>,
}

/// Time for one attempt where none is given, seconds.
const DEFAULT_TIMEOUT_SECS: f64 = 300.0;
/// Attempts where no number is given.
const DEFAULT_ATTEMPTS: u32 = 1;
/// Wait before the second attempt where none is given, seconds.
const DEFAULT_BACKOFF_SECS: f64 = 1.0;

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
        #[serde(
            default,
            deserialize_with = "or_default",
            skip_serializing_if = "BTreeMap::is_empty"
        )]
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
    let actions: Vec<Value> = steps.iter().map(|step| action_json(&step.action)).collect();
    let steps = steps.into_iter().zip(needs).map(|(step, needs)| finish(step, needs));
    let workflow = Workflow { steps: steps.collect() };
    let graph = Graph::of(&workflow).map_err(|id| {
        InvalidWorkflow::of(id, format!("step {id:?} depends on itself, by a cycle"))
    })?;
    for (index, action) in actions.iter().enumerate() {
        let id = &workflow.steps[index].id;
        TEMPLATES.check(action, "action", &graph.before(index)).map_err(|(place, error)| {
            InvalidWorkflow::of(id, format!("{id:?}: {place}: {error}"))
        })?;
    }
    Ok(workflow)
}

fn action_json(action: &Action) -> Value {
    // An action is JSON that was read; only its shape changes.
    serde_json::to_value(action).unwrap_or_default()
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
    let timeout = step.timeout_secs.unwrap_or(DEFAULT_TIMEOUT_SECS);
    if !(timeout > 0.0 && timeout <= TIMEOUT_SECS_MAX) {
        return wrong(format!(
            "{id:?}: timeout_secs must be above 0 and at most {TIMEOUT_SECS_MAX}; it is {timeout}"
        ));
    }
    let retry = step.retry_policy.unwrap_or_default();
    let attempts = retry.max_attempts.unwrap_or(DEFAULT_ATTEMPTS);
    if !(1..=ATTEMPTS_MAX).contains(&attempts) {
        return wrong(format!(
            "{id:?}: retry_policy.max_attempts must be 1 to {ATTEMPTS_MAX}; it is {attempts}"
        ));
    }
    let backoff = retry.backoff_secs.unwrap_or(DEFAULT_BACKOFF_SECS);
    if !(0.0..=BACKOFF_SECS_MAX).contains(&backoff) {
        return wrong(format!(
            "{id:?}: retry_policy.backoff_secs must be 0 to {BACKOFF_SECS_MAX}; it is {backoff}"
        ));
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
        Action::Wait { secs, until } => check_wait(id, secs.as_ref(), until.as_deref()),
    }
}

fn check_wait(id: &str, secs: Option<&Value>, until: Option<&str>) -> Result<(), InvalidWorkflow> {
    let wrong = |message: String| Err(InvalidWorkflow::of(id, message));
    let is_fixed = |text: &str| !text.contains("{{");
    match (secs, until) {
        (Some(Value::String(text)), None) if !is_fixed(text) => Ok(()),
        (Some(secs @ (Value::Number(_) | Value::String(_))), None) => match wait_secs(secs) {
            Some(_) => Ok(()),
            None => {
                wrong(format!("{id:?}: action.secs must be 0 to {WAIT_SECS_MAX}; it is {secs}"))
            }
        },
        (None, Some(until)) if is_fixed(until) && Timestamp::parse_rfc3339(until).is_none() => {
            wrong(format!(
                "{id:?}: action.until must be a time as RFC 3339 has it, such as \
                 2030-01-31T12:00:00Z; it is {until:?}"
            ))
        }
        (None, Some(_)) => Ok(()),
        _ => wrong(format!("{id:?}: a wait has either secs (a number) or until (a time)")),
    }
}

/// The length of a `wait`, seconds, where it is one; text may hold it as well.
pub(crate) fn wait_secs(secs: &Value) -> Option<f64> {
    let secs: f64 = match secs {
        Value::Number(secs) => secs.as_f64()?,
        Value::String(secs) => secs.trim().parse().ok()?,
        _ => return None,
    };
    (0.0..=WAIT_SECS_MAX).contains(&secs).then_some(secs)
}

/// The step as state machines keep it, with everything filled in. Its numbers have been checked.
fn finish(mut step: StepSpec, needs: BTreeSet<u16>) -> Step {
    let RetryPolicy { max_attempts, backoff_secs } = step.retry_policy.unwrap_or_default();
    let timeout_secs = step.timeout_secs.unwrap_or(DEFAULT_TIMEOUT_SECS);
    let max_attempts = max_attempts.unwrap_or(DEFAULT_ATTEMPTS);
    let backoff_secs = backoff_secs.unwrap_or(DEFAULT_BACKOFF_SECS);
    step.name.get_or_insert_with(|| step.id.clone());
    step.role.get_or_insert_with(|| DEFAULT_ROLE.to_owned());
    step.requires_approval = Some(Value::Bool(false));
    step.timeout_secs = Some(timeout_secs);
    step.retry_policy =
        Some(RetryPolicy { max_attempts: Some(max_attempts), backoff_secs: Some(backoff_secs) });
    let json = serde_json::to_value(&step).unwrap_or_default();
    Step {
        json: Json::from_value(&json),
        needs: needs.into_iter().collect(),
        timeout_ms: millis(timeout_secs).max(1),
        max_attempts,
        backoff_ms: millis(backoff_secs),
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

//! What an attempt is to do: the step's definition with its templates filled in.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::Link;
use super::attempt::{Failure, READ_HERE_BYTES_MAX, not_performed};
use super::http_step::request;
use super::rendering::Tools;
use crate::command::StepResult;
use crate::domain::ids::{RunId, TenantId};
use crate::domain::json::{self, Json};
use crate::domain::run::StepAttempt;
use crate::domain::time::Timestamp;
use crate::domain::workflow::spec::{Action, StepSpec, WAIT_SECS_MAX, millis, wait_secs};
use crate::domain::workflow::template::{Context, Offer, has_templates, is_template};
use crate::ports::{Attempt, HttpRequest};
use crate::state::tenant::{StepStatus, TenantState};

/// Longest output of a step, bytes.
const OUTPUT_BYTES_MAX: usize = 2 << 20;

/// Carries the values of one attempt of a step.
#[derive(Debug)]
pub struct StepTask {
    run: RunId,
    pub(super) attempt: u32,
    step_id: String,
    pub(super) spec: Json,
    pub(super) timeout_ms: u64,
    pub(super) max_attempts: u32,
    pub(super) backoff_ms: u64,
    input: Json,
    /// Outputs of completed steps, by id, with their indices. Empty where no template can name one.
    outputs: BTreeMap<String, (u16, Json)>,
    /// Whether the step is short and has no templates.
    pub(super) is_plain: bool,
}

impl StepTask {
    /// Takes the values of an attempt that is under way in `state`. `None` when it is not.
    pub(in crate::services) fn of(
        state: &TenantState,
        StepAttempt { run, step, number }: StepAttempt,
    ) -> Option<Self> {
        let live = state.runs().get(&run)?;
        let index = usize::from(step);
        let (spec, now) = (live.workflow.steps.get(index)?, live.steps.get(index)?);
        if now.attempt != number || now.status != StepStatus::Running {
            return None;
        }
        let completed = (0_u16..).zip(live.workflow.steps.iter().zip(&live.steps));
        let outputs = completed.filter_map(|(index, (spec, state))| {
            Some((spec.id.clone(), (index, state.output.clone()?)))
        });
        let has_templates = is_template(spec.json.as_str());
        Some(Self {
            run,
            attempt: number,
            step_id: spec.id.clone(),
            spec: spec.json.clone(),
            timeout_ms: spec.timeout_ms,
            max_attempts: spec.max_attempts,
            backoff_ms: spec.backoff_ms,
            input: live.input.clone(),
            outputs: if has_templates { outputs.collect() } else { BTreeMap::new() },
            is_plain: !has_templates && spec.json.as_str().len() <= READ_HERE_BYTES_MAX,
        })
    }
}

/// Says what an attempt comes to before a service is called.
pub(super) enum Prepared {
    /// The result: no service has to be called.
    Done(StepResult),
    /// The request to send.
    Call(HttpRequest),
}

/// Prepares a step without templates where its task runs.
pub(super) fn prepare_plain(
    link: &Link,
    task: &StepTask,
    key: &Attempt,
) -> Result<Prepared, Failure> {
    let action = read_spec(task)?.action;
    let now = link.deps.seams.clock.now();
    let prepared = prepared(link.tenant, (task.run, &task.step_id), action, now)?;
    // Written down before the call is sent. A plain value or a wait is not: it cannot end the process.
    if matches!(prepared, Prepared::Call(_)) {
        link.deps.under_way.begin(key);
    }
    Ok(prepared)
}

/// Fills templates in on a worker's thread, in the tenant's turn.
pub(super) async fn prepare_elsewhere(
    link: &Link,
    task: StepTask,
    key: Attempt,
) -> Result<Prepared, Failure> {
    let (under_way, seams) = (Arc::clone(&link.deps.under_way), link.deps.seams.clone());
    let tenant = link.tenant;
    let prepare = move |tools: Tools| {
        // Written down before anything that may end the process.
        under_way.begin(&key);
        if tools.limits.is_cancelled() {
            // The task was aborted while this work waited for a thread. Its note may have ended before
            // this beginning, and would not end it again.
            under_way.end(&key);
            return Err(not_performed());
        }
        let action = read_spec(&task)?.action;
        let (run, step_id) = (task.run, task.step_id.clone());
        let action = render(task, tools, action)?;
        // The time is read after the turn and the templates: a wait begins when it is known.
        prepared(tenant, (run, &step_id), action, seams.clock.now())
    };
    link.deps.renderer.run(tenant, prepare).await.unwrap_or_else(|| Err(not_performed()))
}

/// Reads the definition of a step.
fn read_spec(task: &StepTask) -> Result<StepSpec, Failure> {
    serde_json::from_str(task.spec.as_str())
        .map_err(|error| Failure::fatal(format!("the step cannot be read: {error}")))
}

/// Says what an action without templates comes to.
fn prepared(
    tenant: TenantId,
    (run, step_id): (RunId, &str),
    action: Action,
    now: Timestamp,
) -> Result<Prepared, Failure> {
    Ok(match action {
        Action::Set { output } => Prepared::Done(succeeded(&output)?),
        Action::Script {} | Action::Unknown => {
            return Err(Failure::fatal("this node cannot perform this type of action"));
        }
        Action::Wait { secs, until } => {
            let due_at = wait_until(now, secs, until).map_err(Failure::fatal)?;
            Prepared::Done(StepResult::WaitsUntil { due_at })
        }
        Action::Http { method, url, headers, body } => {
            let too_deep = |body: &Value| json::depth(body) > json::DEPTH_MAX;
            if body.as_ref().is_some_and(too_deep) {
                return Err(Failure::fatal(format!(
                    "the body is nested deeper than {} levels",
                    json::DEPTH_MAX
                )));
            }
            Prepared::Call(request(tenant, (run, step_id), method, url, headers, body))
        }
    })
}

/// Makes the result of a step that gave an output, if the output may be kept.
pub(super) fn succeeded(output: &Value) -> Result<StepResult, Failure> {
    if json::depth(output) > json::DEPTH_MAX {
        return Err(Failure::fatal(format!(
            "the output is nested deeper than {} levels",
            json::DEPTH_MAX
        )));
    }
    let output = Json::from_value(output);
    if output.as_str().len() > OUTPUT_BYTES_MAX {
        return Err(Failure::fatal(format!("the output is longer than {OUTPUT_BYTES_MAX} bytes")));
    }
    Ok(StepResult::Succeeded { output })
}

/// Fills the templates of an action in.
fn render(task: StepTask, tools: Tools, action: Action) -> Result<Action, Failure> {
    let value = serde_json::to_value(&action).map_err(|error| Failure::fatal(error.to_string()))?;
    if !has_templates(&value) {
        return Ok(action);
    }
    let StepTask { run, input, outputs, .. } = task;
    let context = Context::new(Offer { run, input, outputs }, tools.parsed, tools.limits);
    let rendered = tools.templates.render(value, &context);
    let mut rendered = rendered
        .map_err(|error| Failure { error: error.to_string(), retryable: error.out_of_time })?;
    make_texts(&mut rendered)?;
    serde_json::from_value(rendered)
        .map_err(|error| Failure::fatal(format!("after templates: {error}")))
}

/// Turns numbers and truth values that templates gave into text, where an action needs text.
fn make_texts(action: &mut Value) -> Result<(), Failure> {
    for place in ["method", "url", "until"] {
        if let Some(value) = action.get_mut(place) {
            make_text(value, place)?;
        }
    }
    if let Some(Value::Object(headers)) = action.get_mut("headers") {
        for (name, value) in headers {
            make_text(value, &format!("headers.{name}"))?;
        }
    }
    Ok(())
}

/// Turns one value into text.
fn make_text(value: &mut Value, place: &str) -> Result<(), Failure> {
    let what = match value {
        Value::String(_) => return Ok(()),
        Value::Number(_) | Value::Bool(_) => {
            *value = Value::String(value.to_string());
            return Ok(());
        }
        Value::Null => "null",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    let error = format!("after templates: action.{place} is {what}, where a text is needed");
    Err(Failure::fatal(error))
}

/// Computes when a `wait` that begins at `from` is over.
fn wait_until(
    from: Timestamp,
    secs: Option<Value>,
    until: Option<String>,
) -> Result<Timestamp, String> {
    if let Some(until) = until {
        return Timestamp::parse_rfc3339(&until)
            .ok_or_else(|| format!("until: {until:?} is no RFC 3339 time"));
    }
    let secs = secs.unwrap_or_default();
    match wait_secs(&secs) {
        Some(secs) => Ok(from.plus_ms(millis(secs))),
        None => Err(format!("secs: {secs} is no number from 0 to {WAIT_SECS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_become_text_where_text_is_needed_and_nothing_else_does() {
        let mut action = json!({"type": "http", "method": "GET", "url": 7, "headers": {"a": true}});
        make_texts(&mut action).unwrap();
        assert_eq!(action["url"], "7");
        assert_eq!(action["headers"]["a"], "true");
        for (action, said) in [
            (json!({"url": null}), "action.url is null"),
            (json!({"headers": {"x-a": [1]}}), "action.headers.x-a is a list"),
            (json!({"until": {}}), "action.until is a map"),
        ] {
            let error = make_texts(&mut action.clone()).unwrap_err().error;
            assert!(error.contains(said), "{error}");
        }
    }
}

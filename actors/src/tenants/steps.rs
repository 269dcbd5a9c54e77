//! Performs steps: the leader's side of a workflow. A task a step attempt; what comes of it is
//! proposed, and recorded once however often it was performed.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Map, Value, json};

use super::TenantDeps;
use crate::command::{Command, StepResult, TenantCommand};
use crate::ids::{Epoch, GroupId, RunId, TenantId};
use crate::json::Json;
use crate::mailbox::born;
use crate::ports::{HttpCallError, HttpRequest, HttpResponse, ProposeError};
use crate::seams::Timestamp;
use crate::tenant::{StepStatus, TenantState};
use crate::workflow::spec::{Action, BACKOFF_SECS_MAX, StepSpec, WAIT_SECS_MAX, millis};
use crate::workflow::template::{Context, Limits, Offer, has_templates};

/// First wait before a result is proposed again; doubled each time.
const PROPOSE_RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest wait before a result is proposed again.
const PROPOSE_RETRY_MAX: Duration = Duration::from_secs(1);
/// Statuses of an `http` step that another attempt may better.
const RETRYABLE_STATUSES: [u16; 3] = [408, 425, 429];
/// Longest output of a step, bytes.
const OUTPUT_BYTES_MAX: usize = 2 << 20;

/// What a task needs to act for a tenant.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) deps: Arc<TenantDeps>,
    pub(super) group: GroupId,
    pub(super) tenant: TenantId,
    pub(super) epoch: Epoch,
    /// The term in which this node leads; what the task proposes counts in no other.
    pub(super) term: u64,
}

/// One attempt of a step.
pub(super) struct StepTask {
    run: RunId,
    step: u16,
    attempt: u32,
    attempt_at: Timestamp,
    step_id: String,
    spec: Json,
    timeout_ms: u64,
    max_attempts: u32,
    backoff_ms: u64,
    input: Json,
    /// Outputs of completed steps, by id.
    outputs: Vec<(String, Json)>,
}

/// Why an attempt failed.
#[derive(Debug)]
struct Failure {
    error: String,
    retryable: bool,
}

impl StepTask {
    /// The task for an attempt that is under way in `state`.
    pub(super) fn of(state: &TenantState, run: RunId, step: u16, attempt: u32) -> Option<Self> {
        let live = state.runs().get(&run)?;
        let index = usize::from(step);
        let (spec, now) = (live.workflow.steps.get(index)?, live.steps.get(index)?);
        if now.attempt != attempt || now.status != StepStatus::Running {
            return None;
        }
        let completed = live.workflow.steps.iter().zip(&live.steps);
        let outputs =
            completed.filter_map(|(spec, state)| Some((spec.id.clone(), state.output.clone()?)));
        let has_templates = spec.json.as_str().contains("{{");
        Some(Self {
            run,
            step,
            attempt,
            attempt_at: now.attempt_at?,
            step_id: spec.id.clone(),
            spec: spec.json.clone(),
            timeout_ms: spec.timeout_ms,
            max_attempts: spec.max_attempts,
            backoff_ms: spec.backoff_ms,
            input: live.input.clone(),
            outputs: if has_templates { outputs.collect() } else { Vec::new() },
        })
    }
}

/// Performs an attempt and proposes what came of it.
pub(super) async fn perform(link: Link, task: StepTask) {
    // A panic here must not leave the step running for ever.
    let attempt = AssertUnwindSafe(attempt(&link, &task)).catch_unwind().await;
    let attempt = attempt.unwrap_or_else(|_| {
        tracing::error!(tenant = %link.tenant, run = %task.run, "a step's task has panicked");
        let error = "the node failed to perform the step".to_owned();
        Err(Failure { error, retryable: true })
    });
    let result = match attempt {
        Ok(result) => result,
        Err(failure) => StepResult::Failed {
            retry_in_ms: (failure.retryable && task.attempt < task.max_attempts)
                .then(|| retry_delay_ms(&link, &task)),
            error: failure.error,
        },
    };
    let StepTask { run, step, attempt, .. } = task;
    propose(&link, TenantCommand::StepResult { run, step, attempt, result }).await;
}

/// Proposes that the moment a step waited for has come.
pub(super) async fn tell_due(link: Link, run: RunId, step: u16, attempt: u32) {
    propose(&link, TenantCommand::StepDue { run, step, attempt }).await;
}

/// Proposes a command until it has come to an outcome. Repeating it is safe: a second result of
/// the same attempt does nothing. Whoever loses the lead stops.
async fn propose(link: &Link, command: TenantCommand) {
    let mut wait = PROPOSE_RETRY_MIN;
    loop {
        let command =
            Command::Tenant { tenant: link.tenant, epoch: link.epoch, command: command.clone() };
        let envelope = born(&link.deps.seams, Some(link.term), command);
        match link.deps.part.ledger.propose(link.group, envelope).await {
            Ok(_) | Err(ProposeError::NotLeader | ProposeError::Stopping) => return,
            Err(error) => tracing::debug!(tenant = %link.tenant, %error, "proposing again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(PROPOSE_RETRY_MAX);
    }
}

/// Exponential backoff with jitter: between half and the whole of it.
fn retry_delay_ms(link: &Link, task: &StepTask) -> u64 {
    let doublings = (task.attempt - 1).min(32);
    let whole = task.backoff_ms.saturating_mul(1 << doublings).min(millis(BACKOFF_SECS_MAX));
    whole / 2 + link.deps.seams.below(whole / 2 + 1)
}

async fn attempt(link: &Link, task: &StepTask) -> Result<StepResult, Failure> {
    let fatal = |error: String| Failure { error, retryable: false };
    let spec: StepSpec = serde_json::from_str(task.spec.as_str())
        .map_err(|error| fatal(format!("the step cannot be read: {error}")))?;
    let action = render(link, task, spec.action).map_err(fatal)?;
    let output = match action {
        Action::Set { output } => output,
        Action::Script {} | Action::Unknown => {
            return Err(fatal("this node cannot perform this type of action".to_owned()));
        }
        Action::Wait { secs, until } => {
            let due_at = wait_until(task.attempt_at, secs, until).map_err(fatal)?;
            return Ok(StepResult::WaitsUntil { due_at });
        }
        Action::Http { method, url, headers, body } => {
            let request = request(link.tenant, task, method, url, headers, body);
            let spent = link.deps.seams.clock.now().ms_since(task.attempt_at);
            let left = Duration::from_millis(task.timeout_ms.saturating_sub(spent).max(1));
            match tokio::time::timeout(left, link.deps.http.call(request)).await {
                Ok(answer) => output_of(answer)?,
                Err(_) => {
                    let secs = Duration::from_millis(task.timeout_ms).as_secs_f64();
                    return Err(Failure {
                        error: format!("timed out after {secs} s"),
                        retryable: true,
                    });
                }
            }
        }
    };
    let output = Json::from_value(&output);
    if output.as_str().len() > OUTPUT_BYTES_MAX {
        return Err(fatal(format!("the output is longer than {OUTPUT_BYTES_MAX} bytes")));
    }
    Ok(StepResult::Succeeded { output })
}

/// The action with its templates filled in.
fn render(link: &Link, task: &StepTask, action: Action) -> Result<Action, String> {
    let value = serde_json::to_value(&action).map_err(|error| error.to_string())?;
    if !has_templates(&value) {
        return Ok(action);
    }
    let outputs = (0_u16..).zip(&task.outputs);
    let outputs = outputs.map(|(step, (id, output))| (id.clone(), (step, output.clone())));
    let offer = Offer { run: task.run, input: task.input.clone(), outputs: outputs.collect() };
    let context = Context::new(offer, Arc::default(), Limits::default());
    let rendered =
        link.deps.templates.render(value, &context).map_err(|error| error.to_string())?;
    serde_json::from_value(rendered).map_err(|error| format!("after templates: {error}"))
}

/// When a `wait` that began at `from` is over.
fn wait_until(
    from: Timestamp,
    secs: Option<Value>,
    until: Option<String>,
) -> Result<Timestamp, String> {
    if let Some(until) = until {
        return Timestamp::parse_rfc3339(&until)
            .ok_or_else(|| format!("until: {until:?} is no RFC 3339 time"));
    }
    let secs = match secs {
        Some(Value::Number(secs)) => secs.as_f64(),
        Some(Value::String(secs)) => secs.trim().parse().ok(),
        _ => None,
    };
    match secs {
        Some(secs) if (0.0..=WAIT_SECS_MAX).contains(&secs) => Ok(from.plus_ms(millis(secs))),
        _ => Err(format!("secs: not a number from 0 to {WAIT_SECS_MAX}")),
    }
}

fn request(
    tenant: TenantId,
    task: &StepTask,
    method: String,
    url: String,
    headers: std::collections::BTreeMap<String, String>,
    body: Option<Value>,
) -> HttpRequest {
    let mut headers: Vec<(String, String)> = headers.into_iter().collect();
    let has = |headers: &[(String, String)], name: &str| {
        headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name))
    };
    if !has(&headers, "idempotency-key") {
        let key = format!("{}/{}", task.run, task.step_id);
        // A header takes visible ASCII only; an id with anything else is written as JSON escapes.
        let key = if key.is_ascii() { key } else { key.escape_default().to_string() };
        headers.push(("idempotency-key".to_owned(), key));
    }
    let body = match body {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => text.into_bytes(),
        Some(value) => {
            if !has(&headers, "content-type") {
                headers.push(("content-type".to_owned(), "application/json".to_owned()));
            }
            value.to_string().into_bytes()
        }
    };
    HttpRequest { tenant, method: method.to_ascii_uppercase(), url, headers, body }
}

fn output_of(answer: Result<HttpResponse, HttpCallError>) -> Result<Value, Failure> {
    let response = match answer {
        Ok(response) => response,
        Err(HttpCallError::Unsendable(error)) => return Err(Failure { error, retryable: false }),
        Err(HttpCallError::Failed(error)) => return Err(Failure { error, retryable: true }),
    };
    let status = response.status;
    if !(200..300).contains(&status) {
        let retryable = RETRYABLE_STATUSES.contains(&status) || (500..600).contains(&status);
        return Err(Failure { error: format!("the service answered {status}"), retryable });
    }
    let is_json = response
        .headers
        .iter()
        .any(|(name, value)| name == "content-type" && value.to_ascii_lowercase().contains("json"));
    let text = || Value::String(String::from_utf8_lossy(&response.body).into_owned());
    let body = if is_json {
        serde_json::from_slice(&response.body).unwrap_or_else(|_| text())
    } else {
        text()
    };
    let headers: Map<String, Value> =
        response.headers.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    Ok(json!({ "status": status, "headers": headers, "body": body }))
}

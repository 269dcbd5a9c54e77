//! Performs steps: the leader's side of a workflow. A task a step attempt; what comes of it is
//! proposed, and recorded once however often it was performed.
//!
//! A task first waits for its turn ([`StepLimits`]) and holds nothing meanwhile; then it takes what
//! the attempt is to do from the tenant's actor. An attempt that was under way at the last deaths of
//! the process is performed alone, so that no other is suspected with it, and after
//! [`DEATHS_MAX`] of them not at all.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use ractor::ActorRef;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::rendering::Tools;
use super::{TenantDeps, TenantMessage};
use crate::command::{Command, RecordStepResult, StepDue, StepResult, TenantCommand};
use crate::domain::ids::{Epoch, GroupId, RunId, TenantId};
use crate::domain::json::{self, Json};
use crate::domain::time::Timestamp;
use crate::domain::workflow::spec::{
    Action, BACKOFF_SECS_MAX, StepSpec, WAIT_SECS_MAX, millis, wait_secs,
};
use crate::domain::workflow::template::{Context, Offer, has_templates, is_template};
use crate::ports::{Attempt, DEATHS_MAX, HttpCallError, HttpRequest, HttpResponse, ProposeError};
use crate::services::mailbox::internal_envelope;
use crate::services::tenants::fair_semaphore::FairSemaphore;
use crate::state::tenant::{StepStatus, TenantState};

/// Other steps of one tenant that may be performed at once.
const LOCAL_PER_TENANT_MAX: usize = 64;
/// Other steps that may be performed at once.
const LOCAL_MAX: usize = 512;
/// Deaths of the process after which an attempt that was under way is performed alone.
const SUSPECTED_DEATHS: u32 = 2;
/// An attempt that has gone on for so long is not what ends the process.
const HARMLESS_AFTER: Duration = Duration::from_secs(5);
/// Longest step, and longest answer of a service, that are read where the task runs, bytes: handing them
/// to another thread and back would take longer.
const READ_HERE_BYTES_MAX: usize = 64 << 10;
/// First wait before a result is proposed again; doubled each time.
const PROPOSE_RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest wait before a result is proposed again.
const PROPOSE_RETRY_MAX: Duration = Duration::from_secs(1);
/// Statuses of an `http` step that another attempt may better.
const RETRYABLE_STATUSES: [u16; 3] = [408, 425, 429];
/// Longest output of a step, bytes.
const OUTPUT_BYTES_MAX: usize = 2 << 20;

/// A step's attempt: run, index of the step, attempt.
pub(super) type StepKey = (RunId, u16, u32);

/// How many steps are performed at once: the others wait, tenants in turn.
#[derive(Debug)]
pub struct StepLimits {
    /// Steps that hold a connection, for as long as a service takes.
    calls: FairSemaphore,
    /// Steps that end by themselves.
    local: FairSemaphore,
    /// Attempts that are suspected of ending the process, one at a time.
    suspects: Semaphore,
}

impl StepLimits {
    /// `calls` may be open at once on this node, `tenant_calls` of them of one tenant.
    pub fn new(calls: usize, tenant_calls: usize) -> Self {
        Self {
            calls: FairSemaphore::new(calls, tenant_calls),
            local: FairSemaphore::new(LOCAL_MAX, LOCAL_PER_TENANT_MAX),
            suspects: Semaphore::new(1),
        }
    }
}

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
#[derive(Debug)]
pub struct StepTask {
    run: RunId,
    attempt: u32,
    step_id: String,
    spec: Json,
    timeout_ms: u64,
    max_attempts: u32,
    backoff_ms: u64,
    input: Json,
    /// Outputs of completed steps, by id, with their indices.
    outputs: BTreeMap<String, (u16, Json)>,
    /// Whether it is short and nothing is to be filled in.
    is_plain: bool,
}

/// Why an attempt failed.
#[derive(Debug)]
struct Failure {
    error: String,
    retryable: bool,
}

impl Failure {
    fn fatal(error: impl Into<String>) -> Self {
        Self { error: error.into(), retryable: false }
    }
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
        let completed = (0_u16..).zip(live.workflow.steps.iter().zip(&live.steps));
        let outputs = completed.filter_map(|(index, (spec, state))| {
            Some((spec.id.clone(), (index, state.output.clone()?)))
        });
        let has_templates = is_template(spec.json.as_str());
        Some(Self {
            run,
            attempt,
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

/// Performs an attempt in its turn and proposes what came of it.
pub(super) async fn perform(
    link: Link,
    (run, step, attempt): StepKey,
    spec: Json,
    actor: ActorRef<TenantMessage>,
) {
    let step_limits = &link.deps.step_limits;
    let gate = if is_call(&spec) { &step_limits.calls } else { &step_limits.local };
    // Held until the result is recorded: results that wait are bounded, too.
    let _pass = gate.enter(link.tenant).await;
    let key = Attempt { tenant: link.tenant, run, step, attempt };
    let deaths = link.deps.under_way.deaths(&key);
    let result = if deaths >= DEATHS_MAX {
        let error = format!(
            "the node died {deaths} times in a row while this attempt was under way, and does not \
             perform it again"
        );
        StepResult::Failed { error, retry_in_ms: None }
    } else {
        let (reply, task) = oneshot::channel();
        let take = TenantMessage::Take { run, step, attempt, reply };
        if actor.send_message(take).is_err() {
            return;
        }
        let Ok(Some(task)) = task.await else { return };
        guarded(&link, task, key, deaths).await
    };
    propose(&link, TenantCommand::StepResult(RecordStepResult { run, step, attempt, result }))
        .await;
    if deaths > 0 {
        // Its result is recorded, or another node's: it is not performed here again.
        forget(&link, key);
    }
}

/// Has the attempt forgotten that was, or may have been, written down.
fn forget(link: &Link, key: Attempt) {
    let under_way = Arc::clone(&link.deps.under_way);
    link.deps.renderer.run_detached(move || under_way.end(&key));
}

/// Performs an attempt, such that neither a panic nor the death of the process leaves it running
/// for ever.
async fn guarded(link: &Link, task: StepTask, key: Attempt, deaths: u32) -> StepResult {
    let mut alone = None;
    if deaths >= SUSPECTED_DEATHS {
        alone = link.deps.step_limits.suspects.acquire().await.ok();
    }
    let (number, max_attempts, backoff_ms) = (task.attempt, task.max_attempts, task.backoff_ms);
    // What only says a value cannot end the process.
    let note = (!task.is_plain || is_call(&task.spec)).then(|| UnderWayNote {
        link,
        key,
        is_here: task.is_plain,
    });
    let mut attempting = std::pin::pin!(AssertUnwindSafe(attempt(link, task, key)).catch_unwind());
    let done = match tokio::time::timeout(HARMLESS_AFTER, &mut attempting).await {
        Ok(done) => done,
        Err(_) => {
            drop(alone.take());
            forget(link, key);
            attempting.await
        }
    };
    drop(note);
    let done = done.unwrap_or_else(|_| {
        tracing::error!(tenant = %link.tenant, run = %key.run, "a step's task has panicked");
        Err(not_performed())
    });
    match done {
        Ok(result) => result,
        Err(failure) => StepResult::Failed {
            retry_in_ms: (failure.retryable && number < max_attempts)
                .then(|| retry_delay_ms(link, number, backoff_ms)),
            error: failure.error,
        },
    }
}

fn not_performed() -> Failure {
    let error = "the node failed to perform the step".to_owned();
    Failure { error, retryable: true }
}

/// What was written down of an attempt; forgotten when it ends, however it does.
struct UnderWayNote<'l> {
    link: &'l Link,
    key: Attempt,
    /// Whether it was written where the task runs, and not by a worker that may be about to.
    is_here: bool,
}

impl Drop for UnderWayNote<'_> {
    fn drop(&mut self) {
        if self.is_here {
            self.link.deps.under_way.end(&self.key);
        } else {
            forget(self.link, self.key);
        }
    }
}

/// Whether a step calls a service.
fn is_call(spec: &Json) -> bool {
    #[derive(Deserialize)]
    struct Spec {
        action: Kind,
    }
    #[derive(Deserialize)]
    struct Kind {
        r#type: String,
    }
    serde_json::from_str::<Spec>(spec.as_str()).is_ok_and(|spec| spec.action.r#type == "http")
}

/// Proposes that the moment a step waited for has come.
pub(super) async fn tell_due(link: Link, run: RunId, step: u16, attempt: u32) {
    propose(&link, TenantCommand::StepDue(StepDue { run, step, attempt })).await;
}

/// Proposes a command until it has come to an outcome. Repeating it is safe: a second result of
/// the same attempt does nothing. Whoever loses the lead stops.
async fn propose(link: &Link, command: TenantCommand) {
    let mut wait = PROPOSE_RETRY_MIN;
    loop {
        let command =
            Command::Tenant { tenant: link.tenant, epoch: link.epoch, command: command.clone() };
        let envelope = internal_envelope(&link.deps.seams, Some(link.term), command);
        match link.deps.part.log.propose(link.group, envelope).await {
            Ok(_) | Err(ProposeError::NotLeader | ProposeError::Stopping) => return,
            Err(error) => tracing::debug!(tenant = %link.tenant, %error, "proposing again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(PROPOSE_RETRY_MAX);
    }
}

/// Exponential backoff with jitter: between half and the whole of it.
fn retry_delay_ms(link: &Link, attempt: u32, backoff_ms: u64) -> u64 {
    let doublings = attempt.saturating_sub(1).min(32);
    let whole = backoff_ms.saturating_mul(1 << doublings).min(millis(BACKOFF_SECS_MAX));
    whole / 2 + link.deps.seams.below(whole / 2 + 1)
}

/// What an attempt comes to before anybody else is asked.
enum Prepared {
    Done(StepResult),
    Call(HttpRequest),
}

async fn attempt(link: &Link, task: StepTask, key: Attempt) -> Result<StepResult, Failure> {
    let timeout = Duration::from_millis(task.timeout_ms);
    let prepared = if task.is_plain {
        prepare_plain(link, &task, &key)
    } else {
        prepare_elsewhere(link, task, key).await
    };
    let request = match prepared? {
        Prepared::Done(result) => return Ok(result),
        Prepared::Call(request) => request,
    };
    // The whole time from when it is sent, also when it is sent again after a crash.
    let Ok(answer) = tokio::time::timeout(timeout, link.deps.http.call(request)).await else {
        let error = format!("timed out after {} s", timeout.as_secs_f64());
        return Err(Failure { error, retryable: true });
    };
    let response = accepted(answer)?;
    if response.body.len() <= READ_HERE_BYTES_MAX {
        return succeeded(&output_of(response)?);
    }
    let read = link.deps.renderer.run(link.tenant, move |_| succeeded(&output_of(response)?)).await;
    read.unwrap_or_else(|| Err(not_performed()))
}

/// Prepares a step in which nothing is to be filled in.
fn prepare_plain(link: &Link, task: &StepTask, key: &Attempt) -> Result<Prepared, Failure> {
    let action = read_spec(task)?.action;
    let now = link.deps.seams.clock.now();
    let prepared = prepared(link.tenant, (task.run, &task.step_id), action, now)?;
    if matches!(prepared, Prepared::Call(_)) {
        link.deps.under_way.begin(key);
    }
    Ok(prepared)
}

/// Fills templates in on a worker's thread, in the tenant's turn.
async fn prepare_elsewhere(link: &Link, task: StepTask, key: Attempt) -> Result<Prepared, Failure> {
    let (under_way, seams) = (Arc::clone(&link.deps.under_way), link.deps.seams.clone());
    let tenant = link.tenant;
    let prepare = move |tools: Tools| {
        // Before anything that may end the process.
        under_way.begin(&key);
        if tools.limits.is_cancelled() {
            // Whoever gave the attempt up may have noted its end before this beginning.
            under_way.end(&key);
            return Err(not_performed());
        }
        let action = read_spec(&task)?.action;
        let (run, step_id) = (task.run, task.step_id.clone());
        let action = render(task, tools, action)?;
        // After the turn was waited for: the wall clock may have been set meanwhile.
        prepared(tenant, (run, &step_id), action, seams.clock.now())
    };
    link.deps.renderer.run(tenant, prepare).await.unwrap_or_else(|| Err(not_performed()))
}

fn read_spec(task: &StepTask) -> Result<StepSpec, Failure> {
    serde_json::from_str(task.spec.as_str())
        .map_err(|error| Failure::fatal(format!("the step cannot be read: {error}")))
}

/// What an action without templates comes to.
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

/// The result of a step that gave an output.
fn succeeded(output: &Value) -> Result<StepResult, Failure> {
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

/// The action with its templates filled in.
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

/// Makes texts of the numbers that templates gave where an action needs text.
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

/// When a `wait` that begins at `from` is over.
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

fn request(
    tenant: TenantId,
    (run, step_id): (RunId, &str),
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
        let key = format!("{run}/{step_id}");
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

/// The answer, where it means that the step has succeeded.
fn accepted(answer: Result<HttpResponse, HttpCallError>) -> Result<HttpResponse, Failure> {
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
    Ok(response)
}

/// The output that an answer is. A body that says it is JSON and is none is text.
fn output_of(response: HttpResponse) -> Result<Value, Failure> {
    let status = response.status;
    let is_json = response
        .headers
        .iter()
        .any(|(name, value)| name == "content-type" && value.to_ascii_lowercase().contains("json"));
    let text = || Value::String(String::from_utf8_lossy(&response.body).into_owned());
    let body = if is_json {
        json::check_exact(&response.body)
            .map_err(|why| Failure::fatal(format!("the answer cannot be kept as it is: {why}")))?;
        serde_json::from_slice(&response.body).unwrap_or_else(|_| text())
    } else {
        text()
    };
    let headers: Map<String, Value> =
        response.headers.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    Ok(json!({ "status": status, "headers": headers, "body": body }))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn an_answer_is_kept_as_it_is_or_fails_the_step() {
        let answer = |body: &str| {
            let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
            output_of(HttpResponse { status: 200, headers, body: body.as_bytes().to_vec() })
        };
        assert_eq!(answer(r#"{"id":18446744073709551615}"#).unwrap()["body"]["id"], u64::MAX);
        assert_eq!(answer("no JSON").unwrap()["body"], "no JSON");
        let error = answer(r#"{"id":18446744073709551616}"#).unwrap_err();
        assert!(error.error.contains("64 bits") && !error.retryable, "{}", error.error);
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert!(answer(&deep).unwrap_err().error.contains("64 levels"));
        // With what is around it, a body may be one level too deep.
        let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert!(succeeded(&answer(&deep).unwrap()).is_err());
    }
}

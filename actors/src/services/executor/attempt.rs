//! One attempt of a step, from its turn to the proposal of its result.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::Deserialize;
use tokio::sync::{Semaphore, oneshot};

use super::fair_semaphore::FairSemaphore;
use super::http_step::{accepted, output_of};
use super::prepare::{Prepared, StepTask, prepare_elsewhere, prepare_plain, succeeded};
use super::{Link, StepEvent, TellActor};
use crate::command::{Command, RecordStepResult, StepDue, StepResult, TenantCommand};
use crate::domain::json::Json;
use crate::domain::run::StepAttempt;
use crate::domain::workflow::spec::{BACKOFF_SECS_MAX, millis};
use crate::ports::{Attempt, DEATHS_MAX, ProposeError};
use crate::services::mailbox::internal_envelope;

/// Steps of one tenant without a call that may be performed at once.
const LOCAL_PER_TENANT_MAX: usize = 64;
/// Steps without a call that may be performed at once on this node.
const LOCAL_MAX: usize = 512;
/// Deaths of the process after which an attempt that was under way is performed alone.
const SUSPECTED_DEATHS: u32 = 2;
/// Time after which an attempt is not suspected of ending the process.
const HARMLESS_AFTER: Duration = Duration::from_secs(5);
/// Longest step, and longest answer of a service, that are read where the task runs, bytes. To hand
/// them to another thread and back would take longer.
pub(super) const READ_HERE_BYTES_MAX: usize = 64 << 10;
/// First wait before a result is proposed again. Doubled each time.
const PROPOSE_RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest wait before a result is proposed again.
const PROPOSE_RETRY_MAX: Duration = Duration::from_secs(1);

/// Bounds how many steps are performed at once. The others wait, and tenants take turns.
#[derive(Debug)]
pub struct StepLimits {
    /// The gate of steps that hold a connection, for as long as a service takes.
    calls: FairSemaphore,
    /// The gate of steps that end by themselves.
    local: FairSemaphore,
    /// Lets attempts that are suspected of ending the process in, one at a time.
    suspects: Semaphore,
}

impl StepLimits {
    /// Lets `calls` be open at once on this node, `tenant_calls` of them of one tenant.
    pub fn new(calls: usize, tenant_calls: usize) -> Self {
        Self {
            calls: FairSemaphore::new(calls, tenant_calls),
            local: FairSemaphore::new(LOCAL_MAX, LOCAL_PER_TENANT_MAX),
            suspects: Semaphore::new(1),
        }
    }
}

/// Says why an attempt failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: String,
    /// Whether another attempt may do better.
    pub(super) retryable: bool,
}

impl Failure {
    /// Makes a failure that no other attempt will better.
    pub(super) fn fatal(error: impl Into<String>) -> Self {
        Self { error: error.into(), retryable: false }
    }
}

/// Waits for an attempt's turn, then performs the attempt and proposes its result.
pub(super) async fn perform(link: Link, key: StepAttempt, spec: Json, tell: TellActor) {
    let step_limits = &link.deps.step_limits;
    let gate = if is_call(&spec) { &step_limits.calls } else { &step_limits.local };
    // Held until the result is recorded: results that wait to be proposed are bounded, too.
    let _pass = gate.enter(link.tenant).await;
    drop(spec);
    // Apart, on the heap: tens of thousands of steps of one tenant may wait for their turn, and a task
    // has room for everything that it may ever hold from its beginning.
    Box::pin(perform_now(&link, key, tell)).await;
}

/// Performs an attempt whose turn has come, and proposes its result.
async fn perform_now(link: &Link, attempt: StepAttempt, tell: TellActor) {
    let key = Attempt { tenant: link.tenant, of: attempt };
    let deaths = link.deps.under_way.deaths(&key);
    let result = if deaths >= DEATHS_MAX {
        let error = format!(
            "the node died {deaths} times in a row while this attempt was under way, and does not \
             perform it again"
        );
        StepResult::Failed { error, retry_in_ms: None }
    } else {
        let (reply, task) = oneshot::channel();
        if !tell(StepEvent::Take(attempt, reply)) {
            return;
        }
        // Nothing: the attempt was cancelled or recorded meanwhile, and is not to be performed.
        let Ok(Some(task)) = task.await else { return };
        guarded(link, task, key, deaths).await
    };
    propose(link, TenantCommand::StepResult(RecordStepResult { attempt, result })).await;
    if deaths > 0 {
        // The result is recorded, this one or another node's: the attempt is not performed here again.
        // Not earlier: with its deaths forgotten and no result, a poison step would begin anew.
        forget(link, key);
    }
}

/// Takes an attempt out of the journal, where it is or may be, on a worker's thread: the journal
/// blocks.
fn forget(link: &Link, key: Attempt) {
    let under_way = Arc::clone(&link.deps.under_way);
    link.deps.renderer.run_detached(move || under_way.end(&key));
}

/// Performs an attempt such that it comes to a result, whatever it does: a panic fails it, and an
/// attempt that ends the process is found by the journal.
async fn guarded(link: &Link, task: StepTask, key: Attempt, deaths: u32) -> StepResult {
    // Two attempts under way at a death are both suspected. Alone, the guilty one is told from its
    // neighbours.
    let mut alone = None;
    if deaths >= SUSPECTED_DEATHS {
        alone = link.deps.step_limits.suspects.acquire().await.ok();
    }
    let (number, max_attempts, backoff_ms) = (task.attempt, task.max_attempts, task.backoff_ms);
    // A plain value cannot end the process: it is never written down.
    let note = (!task.is_plain || is_call(&task.spec)).then(|| UnderWayNote {
        link,
        key,
        is_here: task.is_plain,
    });
    let mut attempting = std::pin::pin!(AssertUnwindSafe(attempt(link, task, key)).catch_unwind());
    let done = match tokio::time::timeout(HARMLESS_AFTER, &mut attempting).await {
        Ok(done) => done,
        Err(_) => {
            // The attempt goes on, and cannot be what ends the process: the next suspect may begin, and
            // a later death does not count against this attempt.
            drop(alone.take());
            forget(link, key);
            attempting.await
        }
    };
    // Before the result is proposed: the attempt has ended, and a death from now on is not its doing.
    drop(note);
    let done = done.unwrap_or_else(|_| {
        tracing::error!(tenant = %link.tenant, run = %key.of.run, "a step's task has panicked");
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

/// Makes the failure of an attempt that the node itself could not finish.
pub(super) fn not_performed() -> Failure {
    let error = "the node failed to perform the step".to_owned();
    Failure { error, retryable: true }
}

/// Takes an attempt out of the journal when it ends, however it ends: by a result, a panic or an abort.
struct UnderWayNote<'l> {
    link: &'l Link,
    key: Attempt,
    /// Whether the task itself wrote the attempt down. Otherwise a worker does, perhaps only now: then
    /// the end is noted by a worker as well, and the worker that begins looks whether it is cancelled.
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

/// Tells whether a step calls a service.
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

/// Proposes that the moment has come for which a step waited.
pub(super) async fn tell_due(link: Link, attempt: StepAttempt) {
    propose(&link, TenantCommand::StepDue(StepDue { attempt })).await;
}

/// Proposes a command until it has an outcome, or this node has lost the lead. To propose it again is
/// safe: a second result of the same attempt does nothing.
async fn propose(link: &Link, command: TenantCommand) {
    let mut wait = PROPOSE_RETRY_MIN;
    loop {
        let command =
            Command::Tenant { tenant: link.tenant, epoch: link.epoch, command: command.clone() };
        let envelope = internal_envelope(&link.deps.seams, Some(link.term), command);
        match link.deps.log.propose(link.group, envelope).await {
            Ok(_) | Err(ProposeError::NotLeader | ProposeError::Stopping) => return,
            Err(error) => tracing::debug!(tenant = %link.tenant, %error, "proposing again"),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(PROPOSE_RETRY_MAX);
    }
}

/// Computes the pause before the next attempt: doubled with each attempt, with jitter between half and
/// the whole.
fn retry_delay_ms(link: &Link, attempt: u32, backoff_ms: u64) -> u64 {
    let doublings = attempt.saturating_sub(1).min(32);
    let whole = backoff_ms.saturating_mul(1 << doublings).min(millis(BACKOFF_SECS_MAX));
    whole / 2 + link.deps.seams.below(whole / 2 + 1)
}

/// Makes one attempt: prepares it, calls the service if it is a call, and reads the answer.
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
    // The time-out covers the call alone, from when it is sent: waiting for a turn or a worker does not
    // count. An attempt that is made again after a crash has the whole time again.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the task of a step that waits for its turn may take, bytes.
    const WAITING_BYTES_MAX: usize = 768;

    fn bytes_of<A, B, C, D, F: Future>(_: impl Fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_step_that_waits_for_its_turn_takes_little() {
        let bytes = bytes_of(perform);
        assert!(bytes <= WAITING_BYTES_MAX, "{bytes} bytes");
    }
}

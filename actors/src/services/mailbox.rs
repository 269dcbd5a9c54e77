//! What all actors share: calls with a deadline, and stamped envelopes.

use std::cmp::Reverse;
use std::time::Duration;

use ractor::{ActorCell, ActorRef, Message};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::command::{Answer, COMMAND_VERSION, Cause, Command, Envelope, Outcome, RpcId};
use crate::domain::ids::GroupId;
use crate::ports::Proposals;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;

/// Sends a message that carries a reply channel, and waits for the reply until `deadline`.
///
/// # Errors
/// [`CallError::DeadlineExceeded`] when no reply came in time; [`CallError::Unknown`] when the
/// actor died with the question.
pub async fn call<M: Message, T>(
    actor: &ActorRef<M>,
    deadline: Instant,
    message: impl FnOnce(oneshot::Sender<T>) -> M,
) -> Result<T, CallError> {
    let (reply, answer) = oneshot::channel();
    let died = || CallError::Unknown { why: "the actor that was asked has stopped".to_owned() };
    actor.send_message(message(reply)).map_err(|_| died())?;
    match timeout_at(deadline, answer).await {
        Ok(answer) => answer.map_err(|_| died()),
        Err(_) => Err(CallError::DeadlineExceeded),
    }
}

/// Waits for an outcome until `deadline`. A write that takes longer may still be done.
///
/// # Errors
/// What the call itself fails with, or [`CallError::Unknown`] at the deadline.
pub async fn until<T, E: Into<CallError>>(
    deadline: Instant,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, CallError> {
    match timeout_at(deadline, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(CallError::Unknown { why: "no answer within the deadline".to_owned() }),
    }
}

/// Waits until what was committed in a group before now is handed over here.
///
/// # Errors
/// When there is no quorum, or it took longer than until `deadline`.
pub async fn catch_up(
    log: &dyn Proposals,
    group: GroupId,
    deadline: Instant,
) -> Result<(), CallError> {
    match timeout_at(deadline, log.read_index(group)).await {
        Ok(ready) => Ok(ready?),
        Err(_) => Err(CallError::DeadlineExceeded),
    }
}

/// Reads the answer to a request from its outcome.
///
/// # Errors
/// When it was refused; [`CallError::Unknown`] when the outcome does not belong to the request, as
/// that of an entry which did nothing by the rules of commands.
pub fn answer<A: Answer>(outcome: Outcome) -> Result<A, CallError> {
    if let Outcome::Refused(refusal) = outcome {
        return Err(refusal.into());
    }
    // Its kind alone: outcomes hold what tenants keep to themselves.
    let kind: &'static str = (&outcome).into();
    A::read(outcome).ok_or_else(|| {
        tracing::error!(kind, wanted = std::any::type_name::<A>(), "an outcome of another request");
        CallError::Unknown { why: "unknown outcome".to_owned() }
    })
}

/// Sends an actor a message now, and again whenever `watched` changes, until either is gone. Changes
/// that follow each other closely may be told as one.
pub fn tell_changes<M: Message, T: Send + Sync + 'static>(
    actor: ActorRef<M>,
    mut watched: watch::Receiver<T>,
    message: impl Fn() -> M + Send + 'static,
) {
    tokio::spawn(async move {
        while actor.send_message(message()).is_ok() {
            if watched.changed().await.is_err() {
                return;
            }
        }
    });
}

/// Stops the actors under `supervisor`, the youngest first, each within `limit`. Left alone they would be
/// ended in no order at all, and a run that was simulated again would be another.
pub async fn stop_children(supervisor: &ActorCell, limit: Duration) {
    let mut children = supervisor.get_children();
    children.sort_by_key(|child| Reverse(child.get_id()));
    for child in children {
        if let Err(error) = child.stop_and_wait(None, Some(limit)).await {
            tracing::debug!(%error, "an actor did not stop in time");
        }
    }
}

/// A command a client asked for, stamped with the time.
pub fn client_envelope(
    seams: &Seams,
    cause: &Cause,
    rpc_id: Option<RpcId>,
    command: Command,
) -> Envelope {
    Envelope {
        version: COMMAND_VERSION,
        at: seams.clock.now(),
        term: None,
        cause: Some(cause.clone()),
        rpc_id,
        command,
    }
}

/// A command the leader of `term` brings up by itself, stamped with the time.
pub fn internal_envelope(seams: &Seams, term: Option<u64>, command: Command) -> Envelope {
    Envelope {
        version: COMMAND_VERSION,
        at: seams.clock.now(),
        term,
        cause: None,
        rpc_id: None,
        command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{Refusal, RunStarted, TokenCreated};
    use crate::domain::ids::{RunId, TokenId};
    use uuid::Uuid;

    #[test]
    fn an_outcome_of_another_request_is_no_answer_and_is_not_shown() {
        let started = RunStarted { run: RunId::from_uuid(Uuid::from_u128(77)), replayed: false };
        assert_eq!(answer::<RunStarted>(Outcome::Run(started)).unwrap(), started);
        let refused = answer::<RunStarted>(Outcome::Refused(Refusal::RunNotFound)).unwrap_err();
        assert!(matches!(refused, CallError::Refused(Refusal::RunNotFound)));
        let token = TokenCreated { token: TokenId::from_uuid(Uuid::from_u128(77)), replayed: true };
        for foreign in [Outcome::Ignored, Outcome::Done, Outcome::Token(token)] {
            let shown = answer::<RunStarted>(foreign).unwrap_err().to_string();
            assert_eq!(shown, "the outcome is unknown: unknown outcome");
        }
    }
}

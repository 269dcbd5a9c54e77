//! What all actors share: calls with a deadline, and stamped envelopes.

use ractor::{ActorRef, Message};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::command::{COMMAND_VERSION, Cause, Command, Envelope, RpcId};
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

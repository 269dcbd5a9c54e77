//! The actor of the lock manager: the shell around [`LockQueues`].

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::message::{AcquireRequest, LockMessage, RenewRequest};
use super::state::{Admission, ExpiredLease, LockQueues};
use crate::command::{LockCommand, Outcome};
use crate::domain::lock::{Holder, LockView};
use crate::domain::time::Timestamp;
use crate::domain::views::Acquired;
use crate::mutants::{self, Mutant};
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::ports::{Proposals, ProposeError};
use crate::services::mailbox::{self, client_envelope, internal_envelope, until};
use crate::state::tables::lock_table::LockNotice;

/// First wait before an expiry is proposed again. Doubled each time.
const EXPIRE_RETRY_MIN: Duration = Duration::from_millis(50);
/// Longest wait before an expiry is proposed again.
const EXPIRE_RETRY_MAX: Duration = Duration::from_secs(5);
/// Longest time to give back a lock that was granted to a client that has gone.
const GIVE_BACK_DEADLINE: Duration = Duration::from_secs(5);

/// The actor of the lock manager.
pub struct LockActor;

/// Carries what the lock manager starts with.
pub struct LockArguments {
    /// The replicated log.
    pub log: Arc<dyn Proposals>,
    /// Time and chance.
    pub seams: Seams,
}

/// Holds the state of the actor.
pub struct LockState {
    queues: LockQueues,
    arguments: Arc<LockArguments>,
    /// For when the next tick is set, and the task that sends it.
    armed: Option<(Instant, AbortHandle)>,
}

impl Actor for LockActor {
    type Msg = LockMessage;
    type State = LockState;
    type Arguments = LockArguments;

    async fn pre_start(
        &self,
        _: ActorRef<LockMessage>,
        arguments: LockArguments,
    ) -> Result<LockState, ActorProcessingErr> {
        let arguments = Arc::new(arguments);
        Ok(LockState { queues: LockQueues::default(), arguments, armed: None })
    }

    async fn handle(
        &self,
        myself: ActorRef<LockMessage>,
        message: LockMessage,
        state: &mut LockState,
    ) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        match message {
            LockMessage::Acquire(request) => state.admit(&myself, request, false),
            LockMessage::Renew(request) => state.renew(request),
            LockMessage::Settled { request, was_first, result } => {
                state.settled(&myself, request, was_first, result);
            }
            LockMessage::Notice { space, notice } => {
                let held = match &notice {
                    LockNotice::Held(lock) => Some(lock.key.clone()),
                    LockNotice::Freed { .. } => None,
                };
                if let Some(first) = state.queues.notice(space, notice, now) {
                    state.attempt(&myself, first, true);
                }
                // After the notice, which has begun the lease that these waiters now share.
                if let Some(key) = held {
                    for own in state.queues.take_own(space, &key) {
                        state.attempt(&myself, own, false);
                    }
                }
            }
            LockMessage::Lead { space, mut locks } => {
                let wall = state.arguments.seams.clock.now();
                if mutants::is(Mutant::TermsByWallClock) {
                    locks.iter_mut().for_each(|lock| lock.ttl_ms = lock.expires_at.ms_since(wall));
                }
                // Each lease begins anew here: what the table says of its end was said by another leader.
                locks.iter_mut().for_each(|lock| lock.expires_at = wall.plus_ms(lock.ttl_ms));
                // Twice in a row it may lead, in two terms: waiters of the first saw another table.
                send_away(state.queues.unlead(space));
                state.queues.lead(space, locks, now);
            }
            LockMessage::Unlead { space } => send_away(state.queues.unlead(space)),
            LockMessage::Tick => state.tick(now),
            LockMessage::Look { space, locks, reply } => {
                let looks = locks.into_iter().map(|lock| state.queues.look(space, lock)).collect();
                let _ = reply.send(looks);
            }
        }
        state.arm(&myself);
        Ok(())
    }
}

impl LockState {
    /// Decides about a request, and does it.
    fn admit(&mut self, myself: &ActorRef<LockMessage>, request: AcquireRequest, found: bool) {
        match self.queues.admit(request, found) {
            Admission::Attempt(request) => self.attempt(myself, request, false),
            Admission::Queued => {}
            Admission::Held(request, holder, expires_at) => held(request, holder, expires_at),
            Admission::NotLed(request) => send_away(vec![request]),
            Admission::Full(request) => {
                let _ = request.reply.send(Err(CallError::Busy));
            }
        }
    }

    /// Proposes to acquire the lock, in a task of its own. Comes back as `Settled` when the queue has to
    /// hear of the outcome; otherwise the task answers the client.
    fn attempt(&self, myself: &ActorRef<LockMessage>, request: AcquireRequest, was_first: bool) {
        let command = LockCommand::Acquire {
            key: request.key.clone(),
            holder: request.holder.clone(),
            ttl_ms: request.ttl_ms,
            metadata: request.metadata.clone(),
        };
        let envelope = client_envelope(
            &self.arguments.seams,
            &request.cause,
            None,
            request.space.command(command),
        );
        let (arguments, myself) = (Arc::clone(&self.arguments), myself.clone());
        tokio::spawn(async move {
            let deadline = request.deadline.max(request.wait_until.unwrap_or(request.deadline));
            let result =
                until(deadline, arguments.log.propose(request.space.group, envelope)).await;
            let goes_on = was_first || matches!(&result, Ok(Outcome::HeldByOther(_)));
            if goes_on {
                let _ = myself.send_message(LockMessage::Settled { request, was_first, result });
            } else {
                answer(&arguments, request, result).await;
            }
        });
    }

    /// Notes the outcome of an attempt, and attempts the next waiter.
    fn settled(
        &mut self,
        myself: &ActorRef<LockMessage>,
        request: AcquireRequest,
        was_first: bool,
        result: Result<Outcome, CallError>,
    ) {
        if let (Ok(Outcome::HeldByOther(lock)), false, None) =
            (&result, was_first, request.wait_until)
        {
            let LockView { holder, expires_at, .. } =
                self.queues.shown(request.space, lock.clone());
            return held(request, holder, expires_at);
        }
        let is_held = matches!(result, Ok(Outcome::HeldByOther(_)));
        // It has asked the table and may wait: from here on it stands in the queue.
        if !was_first {
            return self.admit(myself, request, true);
        }
        let now = Instant::now();
        let next = if is_held {
            self.queues.put_back(request, now)
        } else {
            let next = self.queues.served(request.space, &request.key, now);
            let arguments = Arc::clone(&self.arguments);
            // In a task: the client may have gone, and to give the lock back takes a proposal.
            tokio::spawn(async move { answer(&arguments, request, result).await });
            next
        };
        if let Some(next) = next {
            self.attempt(myself, next, true);
        }
    }

    /// Proposes a renewal, whatever the timers say: the log decides whether it was in time.
    fn renew(&self, request: RenewRequest) {
        let command = LockCommand::Renew {
            key: request.key,
            holder: request.holder,
            token: request.token,
            ttl_ms: request.ttl_ms,
        };
        let envelope = client_envelope(
            &self.arguments.seams,
            &request.cause,
            None,
            request.space.command(command),
        );
        let arguments = Arc::clone(&self.arguments);
        tokio::spawn(async move {
            let propose = arguments.log.propose(request.space.group, envelope);
            let result = until(request.deadline, propose).await;
            let _ = request.reply.send(result.and_then(mailbox::answer));
        });
    }

    /// Ends the waits and the leases that are over.
    fn tick(&mut self, now: Instant) {
        self.armed = None;
        for (request, holder, expires_at) in self.queues.expire_waits(now) {
            held(request, holder, expires_at);
        }
        for over in self.queues.expired(now) {
            tokio::spawn(expire(Arc::clone(&self.arguments), over));
        }
    }

    /// Sets the next tick, if none is set for an earlier moment.
    fn arm(&mut self, myself: &ActorRef<LockMessage>) {
        let Some(next) = self.queues.next_moment() else { return };
        match &self.armed {
            Some((armed, _)) if *armed <= next => return,
            Some((_, later)) => later.abort(),
            None => {}
        }
        let myself = myself.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(next).await;
            let _ = myself.send_message(LockMessage::Tick);
        });
        self.armed = Some((next, timer.abort_handle()));
    }
}

/// Proposes `Expire` until it has an outcome, or this node has lost the lead: the next leader has timers
/// of its own.
async fn expire(arguments: Arc<LockArguments>, over: ExpiredLease) {
    // Read once: an expiry that was armed in one term does nothing in another, where the lock has got a
    // full lease again.
    let term = arguments.log.leadership(over.space.group).map(|lead| lead.borrow().term);
    let command = LockCommand::Expire { key: over.key, token: over.token, renewal: over.renewal };
    let mut wait = EXPIRE_RETRY_MIN;
    loop {
        let envelope =
            internal_envelope(&arguments.seams, term, over.space.command(command.clone()));
        // Without a deadline: to propose again what only waits would fill the log.
        match arguments.log.propose(over.space.group, envelope).await {
            Ok(_) | Err(ProposeError::NotLeader | ProposeError::Stopping) => return,
            Err(_) => tokio::time::sleep(wait).await,
        }
        wait = (wait * 2).min(EXPIRE_RETRY_MAX);
    }
}

/// Answers the client. A lock that was granted to a client that has gone is given back.
async fn answer(
    arguments: &LockArguments,
    request: AcquireRequest,
    result: Result<Outcome, CallError>,
) {
    let answer = match result {
        Ok(Outcome::HeldByOther(lock)) => {
            Ok(Acquired::HeldByOther { holder: lock.holder, expires_at: lock.expires_at })
        }
        other => other.and_then(mailbox::answer).map(Acquired::Yes),
    };
    let unheard = request.reply.send(answer);
    if let Err(Ok(Acquired::Yes(lock))) = unheard {
        give_back(arguments, request.space, lock).await;
    }
}

/// Ends a lease of which no client was told.
async fn give_back(arguments: &LockArguments, space: super::Space, lock: LockView) {
    let LockView { key, token, renewal, .. } = lock;
    // Only the first lease of a grant: of a renewed one the holder may have been told before.
    if renewal > 0 {
        return;
    }
    let term = arguments.log.leadership(space.group).map(|lead| lead.borrow().term);
    // An expiry, not a release: if the holder has asked again meanwhile, its renewal counts.
    let command = LockCommand::Expire { key, token, renewal };
    let envelope = internal_envelope(&arguments.seams, term, space.command(command));
    let propose = arguments.log.propose(space.group, envelope);
    if let Err(error) = until(Instant::now() + GIVE_BACK_DEADLINE, propose).await {
        tracing::debug!(%error, "a lock of a client that has gone will run out by itself");
    }
}

/// Tells waiters that this node cannot serve them at the moment.
fn send_away(waiters: Vec<AcquireRequest>) {
    for waiter in waiters {
        let _ = waiter.reply.send(Err(CallError::NoLeader));
    }
}

/// Tells a client who holds the lock.
fn held(request: AcquireRequest, holder: Holder, expires_at: Timestamp) {
    let _ = request.reply.send(Ok(Acquired::HeldByOther { holder, expires_at }));
}

//! Locks: fought over, prolonged, released; what is held for certain is held.

use std::time::Duration;

use outside::checks::locks::{LockEvent, LockFact};
use outside::ensure;
use rand::Rng as _;
use serde_json::json;

use super::client::Call;
use super::session::Session;
use crate::checks::linear::Seen;
use crate::checks::lock_spec::{LockAnswer, LockOp, LockVerb};
use crate::checks::{Checked, Violation};
use crate::env::trace;
use crate::facts::Reply;

/// Keys in each of the two key spaces.
const KEYS: u64 = 2;
/// The TTL of every lock, ms: some run out while the node is away, some do not.
const TTL_MS_MIN: u64 = 500;
const TTL_MS_MAX: u64 = 6000;
/// How long an acquisition waits in the queue at most, ms.
const WAIT_MS_MAX: u64 = 1500;
/// How often a token is used again that was given back, and that the lock has come back since.
const USES_SPENT: f64 = 0.25;
/// How often a lock is prolonged at the last moment, when that is not far.
const RENEWS_LATE: f64 = 0.4;
/// How far it may be.
const LATE_WITHIN: Duration = Duration::from_millis(1500);
/// The last moment is so long before or after the end of what is certain, ms: the node counts from
/// a little later, and has to have decided by then.
const LATE_BEFORE_MS_MAX: u64 = 14;
const LATE_AFTER_MS_MAX: u64 = 4;

/// A key space and a key in it.
pub(super) type LockName = (String, String);

/// A lock that this client was granted.
#[derive(Debug, Clone)]
pub struct Held {
    space: String,
    key: String,
    token: u64,
    ttl: Duration,
    /// It is held for certain up to here.
    until: Duration,
}

impl Session {
    /// Acquires a lock where it has none; else prolongs or releases the one it has.
    pub(super) async fn use_lock(&mut self) -> Checked {
        match self.held.pop() {
            Some(held) if self.rng.random_bool(0.6) => {
                self.show_token(&held)?;
                self.use_spent_token(&held).await?;
                self.wait_for_last_moment(&held).await;
                self.renew(held).await
            }
            Some(held) => self.release(held).await,
            None => self.acquire().await,
        }
    }

    /// Shows the token to what the lock guards, which refuses one that is older than it has seen: as
    /// long as the lock is held for certain there is none.
    fn show_token(&self, held: &Held) -> Checked {
        let mut fences = self.board.fences.borrow_mut();
        let seen = fences.entry((held.space.clone(), held.key.clone())).or_default();
        let is_certain = trace::now() < held.until;
        ensure!(
            !is_certain || held.token >= *seen,
            "{} holds {held:?} and is refused because of token {seen}",
            self.name
        );
        *seen = held.token.max(*seen);
        Ok(())
    }

    /// Uses the token under which it had the same lock before: whoever holds it now, the token is
    /// worth nothing.
    async fn use_spent_token(&mut self, held: &Held) -> Checked {
        let Held { space, key, ttl, .. } = held;
        let name = (space.clone(), key.clone());
        let Some(&token) = self.spent.get(&name).filter(|token| **token < held.token) else {
            return Ok(());
        };
        if !self.rng.random_bool(USES_SPENT) {
            return Ok(());
        }
        if self.rng.random_bool(0.5) {
            let body =
                json!({ "holder": self.name, "token": token, "ttl_secs": ttl.as_secs_f64() });
            let reply = self.client.settle(Call::post(path(space, key, "renew"), body)).await;
            ensure!(reply.code() == "lock_lost", "token {token} of {held:?} was spent: {reply}");
        } else {
            let body = json!({ "holder": self.name, "token": token });
            let reply = self.client.settle(Call::post(path(space, key, "release"), body)).await;
            let refused = reply.status == 200 && reply.body["released"] == false;
            ensure!(refused, "token {token} of {held:?} was spent: {reply}");
        }
        Ok(())
    }

    /// Waits until the term is about to end, now and then: a renewal that comes first wins.
    async fn wait_for_last_moment(&mut self, held: &Held) {
        let left = held.until.saturating_sub(trace::now());
        let (before, after) = (LATE_BEFORE_MS_MAX, LATE_AFTER_MS_MAX);
        if left > LATE_WITHIN || left.is_zero() || !self.rng.random_bool(RENEWS_LATE) {
            return;
        }
        let late = Duration::from_millis(self.rng.random_range(0..=before + after));
        tokio::time::sleep((left + late).saturating_sub(Duration::from_millis(before))).await;
    }

    /// Writes down what was done with a lock.
    fn note(&self, space: &str, key: &str, verb: LockVerb, reply: &Reply, answer: LockAnswer) {
        let Reply { first_sent_at, sent_at, retried, .. } = *reply;
        let (holder, answered_at) = (self.name.clone(), trace::now());
        let op = LockOp { holder: holder.clone(), verb, sent_at, answered_at, retried };
        let answer = Some((answered_at, answer));
        let seen = Seen { client: holder, from: first_sent_at, answer, op };
        let mut ops = self.board.lock_ops.borrow_mut();
        ops.entry((space.to_owned(), key.to_owned())).or_default().push(seen);
    }

    async fn acquire(&mut self) -> Checked {
        let space = if self.rng.random_bool(0.5) { "cluster" } else { self.shared.id.as_str() };
        let (space, key) = (space.to_owned(), format!("k{}", self.rng.random_range(0..KEYS)));
        let ttl = Duration::from_millis(self.rng.random_range(TTL_MS_MIN..=TTL_MS_MAX));
        let wait_ms = self.rng.random_range(0..=WAIT_MS_MAX);
        let wait = if wait_ms % 2 == 0 { Duration::ZERO } else { Duration::from_millis(wait_ms) };
        let body = json!({
            "holder": self.name,
            "ttl_secs": ttl.as_secs_f64(),
            "wait_secs": wait.as_secs_f64(),
        });
        let call = Call::post(path(&space, &key, "acquire"), body).waiting(wait);
        let reply = self.client.settle(call).await;
        ensure!(reply.status == 200, "an acquisition was neither granted nor refused: {reply}");
        if reply.body["acquired"] == false {
            let holder = reply.body["holder"].as_str().unwrap_or_default();
            ensure!(holder != self.name, "refused to its own holder: {reply}");
            return Ok(());
        }
        if let Some(token) = reply.body["token"].as_u64() {
            let verb = LockVerb::Acquire { ttl };
            self.note(&space, &key, verb, &reply, LockAnswer::Held(token));
        }
        self.keep(space, key, ttl, &reply)
    }

    async fn renew(&mut self, held: Held) -> Checked {
        let body = json!({
            "holder": self.name,
            "token": held.token,
            "ttl_secs": held.ttl.as_secs_f64(),
        });
        let reply =
            self.client.settle(Call::post(path(&held.space, &held.key, "renew"), body)).await;
        let verb = LockVerb::Renew { token: held.token, ttl: held.ttl };
        let kept = reply.body["token"].as_u64().filter(|_| reply.status == 200);
        let answer = kept.map_or(LockAnswer::Lost, LockAnswer::Held);
        self.note(&held.space, &held.key, verb, &reply, answer);
        if reply.status == 200 {
            ensure!(reply.body["token"] == held.token, "renewed under another token: {reply}");
            return self.keep(held.space, held.key, held.ttl, &reply);
        }
        ensure!(reply.code() == "lock_lost", "a lock was neither renewed nor lost: {reply}");
        ensure!(trace::now() >= held.until, "a term was cut short: {held:?}, but {reply}");
        Ok(())
    }

    async fn release(&mut self, held: Held) -> Checked {
        let Held { space, key, token, until, .. } = held;
        let sent_at = trace::now();
        let what = LockEvent::Releasing;
        self.learn(&space, &key, token, (sent_at, sent_at), what);
        let body = json!({ "holder": self.name, "token": token });
        let reply = self.client.settle(Call::post(path(&space, &key, "release"), body)).await;
        ensure!(reply.status == 200, "a lock was not released: {reply}");
        self.spent.insert((space.clone(), key.clone()), token);
        let answer = LockAnswer::Released(reply.body["released"] == true);
        self.note(&space, &key, LockVerb::Release { token }, &reply, answer);
        let lost = reply.body["released"] == false && !reply.retried && trace::now() < until;
        ensure!(!lost, "a lock was lost before its time: {reply}");
        Ok(())
    }

    fn keep(&mut self, space: String, key: String, ttl: Duration, reply: &Reply) -> Checked {
        let token = reply.body["token"].as_u64();
        let token = token.ok_or_else(|| Violation(format!("a grant without a token: {reply}")))?;
        let sent = (reply.first_sent_at, reply.sent_at);
        let what = LockEvent::Held { answered_at: trace::now(), ttl };
        self.learn(&space, &key, token, sent, what);
        let until = reply.sent_at + ttl;
        self.held.push(Held { space, key, token, ttl, until });
        Ok(())
    }

    /// Writes down a fact about a lock, with when the request was first sent and when the call that was
    /// answered was.
    fn learn(
        &self,
        space: &str,
        key: &str,
        token: u64,
        (first_sent_at, sent_at): (Duration, Duration),
        what: LockEvent,
    ) {
        let (space, key, holder) = (space.to_owned(), key.to_owned(), self.name.clone());
        self.board.learn(LockFact { space, key, holder, token, first_sent_at, sent_at, what });
    }
}

fn path(space: &str, key: &str, verb: &str) -> String {
    match space {
        "cluster" => format!("/api/locks/{key}/{verb}"),
        tenant => format!("/api/tenants/{tenant}/locks/{key}/{verb}"),
    }
}

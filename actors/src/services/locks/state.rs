//! Who holds, who waits, and when what is over. Pure: moments go in, decisions come out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{AcquireRequest, Space};
use crate::domain::lock::LockView;
use crate::domain::time::Timestamp;
use crate::mutants::{self, Mutant};
use crate::state::tables::lock_table::LockNotice;

/// Most waiters on this node. Below the long polls that one node takes in (see
/// [`DescriptorBudget`](crate::ports::descriptors::DescriptorBudget)), so that waiting for locks alone
/// does not keep out who waits for runs.
pub(super) const WAITERS_MAX: usize = 5_000;

type Key = (Space, String);

/// A term under way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    holder: String,
    token: u64,
    renewal: u64,
    ends: Instant,
    /// When it ends, as shown to clients.
    expires_at: Timestamp,
    /// Its timer has fired; the table has not been told yet, or not answered.
    is_over: bool,
}

/// The key's queue.
#[derive(Debug, Default)]
struct Line {
    waiters: VecDeque<AcquireRequest>,
    /// Whose attempt is under way: the first one's.
    serving: Option<String>,
    /// When the term before ended, as shown to clients.
    last_term_ended_at: Timestamp,
}

/// What is to be done about an attempt to take a lock.
#[derive(Debug)]
pub(super) enum Admission {
    /// Propose it.
    Attempt(AcquireRequest),
    /// It has been queued.
    Queued,
    /// Tell the client that another holds the lock.
    Held(AcquireRequest, String, Timestamp),
    /// It would have to wait, and this node does not lead the space.
    NotLed(AcquireRequest),
    /// Too many wait.
    Full(AcquireRequest),
}

/// A term whose time is over: to be proposed as `Expire`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Over {
    pub(super) space: Space,
    pub(super) key: String,
    pub(super) token: u64,
    pub(super) renewal: u64,
}

/// The lock manager's state.
#[derive(Debug, Default)]
pub(super) struct LockQueues {
    led: BTreeSet<Space>,
    terms: BTreeMap<Key, Term>,
    ends: BTreeSet<(Instant, Key)>,
    lines: BTreeMap<Key, Line>,
    waiting: usize,
    /// No waiter's time is up before this moment.
    first_wait_ends: Option<Instant>,
}

impl LockQueues {
    /// Takes over the locks of a space that this node leads now: each a full term.
    pub(super) fn lead(&mut self, space: Space, locks: Vec<LockView>, now: Instant) {
        self.led.insert(space);
        for mut lock in locks {
            if mutants::is(Mutant::ForgetTerms) {
                lock.ttl_ms = 0;
            }
            self.begin(space, &lock, now);
        }
    }

    /// Forgets a space; its waiters are returned to be sent away.
    pub(super) fn unlead(&mut self, space: Space) -> Vec<AcquireRequest> {
        self.led.remove(&space);
        self.terms.retain(|(of, _), _| *of != space);
        self.ends.retain(|(_, (of, _))| *of != space);
        let lines = std::mem::take(&mut self.lines);
        let (gone, kept) = lines.into_iter().partition(|((of, _), _)| *of == space);
        self.lines = kept;
        let gone: BTreeMap<Key, Line> = gone;
        let gone: Vec<_> = gone.into_values().flat_map(|line| line.waiters).collect();
        self.waiting -= gone.len();
        gone
    }

    /// Learns a change of a table. A freed key's first waiter is to be attempted.
    pub(super) fn notice(
        &mut self,
        space: Space,
        notice: LockNotice,
        now: Instant,
    ) -> Option<AcquireRequest> {
        if !self.led.contains(&space) {
            return None;
        }
        match notice {
            LockNotice::Held(lock) => {
                self.begin(space, &lock, now);
                None
            }
            LockNotice::Freed { key } => {
                let key = (space, key);
                let ended = self.end(&key);
                if let (Some(line), Some(ended)) = (self.lines.get_mut(&key), ended) {
                    line.last_term_ended_at = ended.expires_at;
                }
                self.next(&key, now)
            }
        }
    }

    /// Takes the waiters of a key that wait for what their own holder was just granted, such as one
    /// that asked twice: they get the same term, not an answer that it is held.
    pub(super) fn take_own(&mut self, space: Space, key: &str) -> Vec<AcquireRequest> {
        let key = (space, key.to_owned());
        let (Some(term), Some(line)) = (self.terms.get(&key), self.lines.get_mut(&key)) else {
            return Vec::new();
        };
        let waiters = std::mem::take(&mut line.waiters);
        let (own, others): (VecDeque<_>, VecDeque<_>) =
            waiters.into_iter().partition(|waiter| waiter.holder == term.holder);
        line.waiters = others;
        self.waiting -= own.len();
        self.tidy(&key);
        own.into_iter().filter(|waiter| !waiter.reply.is_closed()).collect()
    }

    /// Decides about an attempt: a new one, or (`found_held`) one that the table has just refused
    /// and that is willing to wait.
    pub(super) fn admit(&mut self, mut request: AcquireRequest, found_held: bool) -> Admission {
        let key = (request.space, request.key.clone());
        let has_line = self.lines.contains_key(&key);
        match self.terms.get(&key) {
            Some(term) if term.holder == request.holder => {
                if !term.is_over {
                    return Admission::Attempt(request);
                }
                // Its own term is running out at this moment: it gets a new one, not a renewal.
                request.wait_until.get_or_insert(request.deadline);
            }
            None if !has_line && (!found_held || self.led.contains(&request.space)) => {
                return Admission::Attempt(request);
            }
            Some(_) if !has_line && request.wait_until.is_none() => {
                return Admission::Attempt(request);
            }
            _ => {}
        }
        if !self.led.contains(&request.space) {
            return Admission::NotLed(request);
        }
        if request.wait_until.is_none() {
            let (holder, expires_at) = self.seen_holder(&key, &request);
            return Admission::Held(request, holder, expires_at);
        }
        if self.waiting >= WAITERS_MAX {
            self.forget_gone();
        }
        if self.waiting >= WAITERS_MAX {
            return Admission::Full(request);
        }
        self.push(key, request, false);
        Admission::Queued
    }

    /// The attempt of a first waiter has come to its end; the next is to be attempted if the key
    /// is free.
    pub(super) fn served(
        &mut self,
        space: Space,
        key: &str,
        now: Instant,
    ) -> Option<AcquireRequest> {
        let key = (space, key.to_owned());
        if let Some(line) = self.lines.get_mut(&key) {
            line.serving = None;
        }
        if self.terms.contains_key(&key) {
            self.tidy(&key);
            return None;
        }
        self.next(&key, now)
    }

    /// Puts a waiter back to the front: the lock was taken by another after all. If it has become
    /// free since, the waiter is returned to be attempted again.
    pub(super) fn put_back(
        &mut self,
        request: AcquireRequest,
        now: Instant,
    ) -> Option<AcquireRequest> {
        let (space, key) = (request.space, request.key.clone());
        self.push((space, key.clone()), request, true);
        self.served(space, &key, now)
    }

    /// How many wait for a key.
    pub(super) fn waiters(&self, space: Space, key: &str) -> u64 {
        let line = self.lines.get(&(space, key.to_owned()));
        line.map_or(0, |line| {
            line.waiters.iter().filter(|waiter| !waiter.reply.is_closed()).count() as u64
        })
    }

    /// The terms that are over by `now`, each once.
    pub(super) fn over(&mut self, now: Instant) -> Vec<Over> {
        let mut over = Vec::new();
        while let Some((ends, _)) = self.ends.first()
            && *ends <= now
        {
            let Some((_, key)) = self.ends.pop_first() else { break };
            if let Some(term) = self.terms.get_mut(&key) {
                term.is_over = true;
                let (space, key) = key;
                over.push(Over { space, key, token: term.token, renewal: term.renewal });
            }
        }
        over
    }

    /// The waiters whose time is up by `now`, or whose client has gone, with whom holds the lock.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<(AcquireRequest, String, Timestamp)> {
        let mut given_up = Vec::new();
        if self.first_wait_ends.is_none_or(|first| first > now) {
            return given_up;
        }
        let keys: Vec<Key> = self.lines.keys().cloned().collect();
        for key in keys {
            let Some(line) = self.lines.get_mut(&key) else { continue };
            let waiters = std::mem::take(&mut line.waiters);
            let (done, kept): (VecDeque<_>, VecDeque<_>) =
                waiters.into_iter().partition(|waiter| {
                    waiter.reply.is_closed() || waiter.wait_until.is_none_or(|until| until <= now)
                });
            line.waiters = kept;
            self.waiting -= done.len();
            for request in done {
                let (holder, expires_at) = self.seen_holder(&key, &request);
                given_up.push((request, holder, expires_at));
            }
            self.tidy(&key);
        }
        let waiting = self.lines.values().flat_map(|line| &line.waiters);
        self.first_wait_ends = waiting.filter_map(|waiter| waiter.wait_until).min();
        given_up
    }

    /// Makes room: clients that have gone wait no more.
    fn forget_gone(&mut self) {
        for line in self.lines.values_mut() {
            line.waiters.retain(|waiter| !waiter.reply.is_closed());
        }
        self.waiting = self.lines.values().map(|line| line.waiters.len()).sum();
    }

    /// The next moment something is over.
    pub(super) fn next_moment(&self) -> Option<Instant> {
        let ends = self.ends.first().map(|(ends, _)| *ends);
        ends.into_iter().chain(self.first_wait_ends).min()
    }

    fn push(&mut self, key: Key, request: AcquireRequest, in_front: bool) {
        self.waiting += 1;
        self.first_wait_ends = self.first_wait_ends.into_iter().chain(request.wait_until).min();
        let waiters = &mut self.lines.entry(key).or_default().waiters;
        let is_before = |waiter: &AcquireRequest| {
            waiter.since < request.since || (waiter.since == request.since && !in_front)
        };
        let place = waiters.partition_point(is_before);
        waiters.insert(place, request);
    }

    /// Takes the first waiter of a free key, if its attempt is not under way.
    fn next(&mut self, key: &Key, now: Instant) -> Option<AcquireRequest> {
        let line = self.lines.get_mut(key)?;
        if line.serving.is_some() {
            return None;
        }
        while let Some(waiter) = line.waiters.pop_front() {
            self.waiting -= 1;
            if !waiter.reply.is_closed() && waiter.wait_until.is_some_and(|until| until > now) {
                line.serving = Some(waiter.holder.clone());
                return Some(waiter);
            }
        }
        self.lines.remove(key);
        None
    }

    fn tidy(&mut self, key: &Key) {
        if self.lines.get(key).is_some_and(|line| line.waiters.is_empty() && line.serving.is_none())
        {
            self.lines.remove(key);
        }
    }

    fn begin(&mut self, space: Space, lock: &LockView, now: Instant) {
        let key = (space, lock.key.clone());
        self.end(&key);
        let ends = now + Duration::from_millis(lock.ttl_ms);
        self.ends.insert((ends, key.clone()));
        let term = Term {
            holder: lock.holder.clone(),
            token: lock.token,
            renewal: lock.renewal,
            ends,
            expires_at: lock.expires_at,
            is_over: false,
        };
        self.terms.insert(key, term);
    }

    fn end(&mut self, key: &Key) -> Option<Term> {
        let term = self.terms.remove(key)?;
        self.ends.remove(&(term.ends, key.clone()));
        Some(term)
    }

    /// Whom to name as holder: the present one, or the waiter that is next.
    fn seen_holder(&self, key: &Key, asking: &AcquireRequest) -> (String, Timestamp) {
        match self.terms.get(key) {
            Some(term) => (term.holder.clone(), term.expires_at),
            None => {
                let line = self.lines.get(key);
                let next = line.and_then(|line| {
                    let first = line.waiters.front().map(|first| &first.holder);
                    line.serving.as_ref().or(first)
                });
                let ended_at = line.map(|line| line.last_term_ended_at);
                (next.unwrap_or(&asking.holder).clone(), ended_at.unwrap_or_default())
            }
        }
    }
}

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
/// [`DescriptorBudget`](crate::ports::descriptors::DescriptorBudget)), so that waiting for locks
/// alone does not keep out who waits for runs.
pub(super) const WAITERS_MAX: usize = 5_000;

type Key = (Space, String);

/// A lease under way.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    holder: String,
    token: u64,
    renewal: u64,
    ends: Instant,
    /// When it ends, as shown to clients.
    expires_at: Timestamp,
    /// Its timer has fired; the table has not been told yet, or not answered.
    is_expired: bool,
}

/// The key's queue.
#[derive(Debug, Default)]
struct WaitQueue {
    waiters: VecDeque<AcquireRequest>,
    /// Whose attempt is under way: the first one's.
    in_flight_holder: Option<String>,
    /// When the lease before ended, as shown to clients.
    last_lease_ended_at: Timestamp,
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

/// A lease whose time is over: to be proposed as `Expire`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExpiredLease {
    pub(super) space: Space,
    pub(super) key: String,
    pub(super) token: u64,
    pub(super) renewal: u64,
}

/// The lock manager's state.
#[derive(Debug, Default)]
pub(super) struct LockQueues {
    led: BTreeSet<Space>,
    leases: BTreeMap<Key, Lease>,
    ends: BTreeSet<(Instant, Key)>,
    queues: BTreeMap<Key, WaitQueue>,
    waiting: usize,
    /// No waiter's time is up before this moment.
    first_wait_ends: Option<Instant>,
}

impl LockQueues {
    /// Takes over the locks of a space that this node leads now: each a full lease.
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
        self.leases.retain(|(of, _), _| *of != space);
        self.ends.retain(|(_, (of, _))| *of != space);
        let queues = std::mem::take(&mut self.queues);
        let (gone, kept) = queues.into_iter().partition(|((of, _), _)| *of == space);
        self.queues = kept;
        let gone: BTreeMap<Key, WaitQueue> = gone;
        let gone: Vec<_> = gone.into_values().flat_map(|queue| queue.waiters).collect();
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
                if let (Some(queue), Some(ended)) = (self.queues.get_mut(&key), ended) {
                    queue.last_lease_ended_at = ended.expires_at;
                }
                self.next(&key, now)
            }
        }
    }

    /// Takes the waiters of a key that wait for what their own holder was just granted, such as one
    /// that asked twice: they get the same lease, not an answer that it is held.
    pub(super) fn take_own(&mut self, space: Space, key: &str) -> Vec<AcquireRequest> {
        let key = (space, key.to_owned());
        let (Some(lease), Some(queue)) = (self.leases.get(&key), self.queues.get_mut(&key)) else {
            return Vec::new();
        };
        let waiters = std::mem::take(&mut queue.waiters);
        let (own, others): (VecDeque<_>, VecDeque<_>) =
            waiters.into_iter().partition(|waiter| waiter.holder == lease.holder);
        queue.waiters = others;
        self.waiting -= own.len();
        self.tidy(&key);
        own.into_iter().filter(|waiter| !waiter.reply.is_closed()).collect()
    }

    /// Decides about an attempt: a new one, or (`found_held`) one that the table has just refused
    /// and that is willing to wait.
    pub(super) fn admit(&mut self, mut request: AcquireRequest, found_held: bool) -> Admission {
        let key = (request.space, request.key.clone());
        let has_queue = self.queues.contains_key(&key);
        match self.leases.get(&key) {
            Some(lease) if lease.holder == request.holder => {
                if !lease.is_expired {
                    return Admission::Attempt(request);
                }
                // Its own lease is running out at this moment: it gets a new one, not a renewal.
                request.wait_until.get_or_insert(request.deadline);
            }
            None if !has_queue && (!found_held || self.led.contains(&request.space)) => {
                return Admission::Attempt(request);
            }
            Some(_) if !has_queue && request.wait_until.is_none() => {
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
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.in_flight_holder = None;
        }
        if self.leases.contains_key(&key) {
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
        let queue = self.queues.get(&(space, key.to_owned()));
        queue.map_or(0, |queue| {
            queue.waiters.iter().filter(|waiter| !waiter.reply.is_closed()).count() as u64
        })
    }

    /// The leases that are over by `now`, each once.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<ExpiredLease> {
        let mut over = Vec::new();
        while let Some((ends, _)) = self.ends.first()
            && *ends <= now
        {
            let Some((_, key)) = self.ends.pop_first() else { break };
            if let Some(lease) = self.leases.get_mut(&key) {
                lease.is_expired = true;
                let (space, key) = key;
                over.push(ExpiredLease { space, key, token: lease.token, renewal: lease.renewal });
            }
        }
        over
    }

    /// The waiters whose time is up by `now`, or whose client has gone, with whom holds the lock.
    pub(super) fn expire_waits(
        &mut self,
        now: Instant,
    ) -> Vec<(AcquireRequest, String, Timestamp)> {
        let mut given_up = Vec::new();
        if self.first_wait_ends.is_none_or(|first| first > now) {
            return given_up;
        }
        let keys: Vec<Key> = self.queues.keys().cloned().collect();
        for key in keys {
            let Some(queue) = self.queues.get_mut(&key) else { continue };
            let waiters = std::mem::take(&mut queue.waiters);
            let (done, kept): (VecDeque<_>, VecDeque<_>) =
                waiters.into_iter().partition(|waiter| {
                    waiter.reply.is_closed() || waiter.wait_until.is_none_or(|until| until <= now)
                });
            queue.waiters = kept;
            self.waiting -= done.len();
            for request in done {
                let (holder, expires_at) = self.seen_holder(&key, &request);
                given_up.push((request, holder, expires_at));
            }
            self.tidy(&key);
        }
        let waiting = self.queues.values().flat_map(|queue| &queue.waiters);
        self.first_wait_ends = waiting.filter_map(|waiter| waiter.wait_until).min();
        given_up
    }

    /// Makes room: clients that have gone wait no more.
    fn forget_gone(&mut self) {
        for queue in self.queues.values_mut() {
            queue.waiters.retain(|waiter| !waiter.reply.is_closed());
        }
        self.waiting = self.queues.values().map(|queue| queue.waiters.len()).sum();
    }

    /// The next moment something is over.
    pub(super) fn next_moment(&self) -> Option<Instant> {
        let ends = self.ends.first().map(|(ends, _)| *ends);
        ends.into_iter().chain(self.first_wait_ends).min()
    }

    fn push(&mut self, key: Key, request: AcquireRequest, in_front: bool) {
        self.waiting += 1;
        self.first_wait_ends = self.first_wait_ends.into_iter().chain(request.wait_until).min();
        let waiters = &mut self.queues.entry(key).or_default().waiters;
        let is_before = |waiter: &AcquireRequest| {
            waiter.since < request.since || (waiter.since == request.since && !in_front)
        };
        let place = waiters.partition_point(is_before);
        waiters.insert(place, request);
    }

    /// Takes the first waiter of a free key, if its attempt is not under way.
    fn next(&mut self, key: &Key, now: Instant) -> Option<AcquireRequest> {
        let queue = self.queues.get_mut(key)?;
        if queue.in_flight_holder.is_some() {
            return None;
        }
        while let Some(waiter) = queue.waiters.pop_front() {
            self.waiting -= 1;
            if !waiter.reply.is_closed() && waiter.wait_until.is_some_and(|until| until > now) {
                queue.in_flight_holder = Some(waiter.holder.clone());
                return Some(waiter);
            }
        }
        self.queues.remove(key);
        None
    }

    fn tidy(&mut self, key: &Key) {
        if self
            .queues
            .get(key)
            .is_some_and(|queue| queue.waiters.is_empty() && queue.in_flight_holder.is_none())
        {
            self.queues.remove(key);
        }
    }

    fn begin(&mut self, space: Space, lock: &LockView, now: Instant) {
        let key = (space, lock.key.clone());
        self.end(&key);
        let ends = now + Duration::from_millis(lock.ttl_ms);
        self.ends.insert((ends, key.clone()));
        let lease = Lease {
            holder: lock.holder.clone(),
            token: lock.token,
            renewal: lock.renewal,
            ends,
            expires_at: lock.expires_at,
            is_expired: false,
        };
        self.leases.insert(key, lease);
    }

    fn end(&mut self, key: &Key) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        self.ends.remove(&(lease.ends, key.clone()));
        Some(lease)
    }

    /// Whom to name as holder: the present one, or the waiter that is next.
    fn seen_holder(&self, key: &Key, asking: &AcquireRequest) -> (String, Timestamp) {
        match self.leases.get(key) {
            Some(lease) => (lease.holder.clone(), lease.expires_at),
            None => {
                let queue = self.queues.get(key);
                let next = queue.and_then(|queue| {
                    let first = queue.waiters.front().map(|first| &first.holder);
                    queue.in_flight_holder.as_ref().or(first)
                });
                let ended_at = queue.map(|queue| queue.last_lease_ended_at);
                (next.unwrap_or(&asking.holder).clone(), ended_at.unwrap_or_default())
            }
        }
    }
}

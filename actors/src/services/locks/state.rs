//! Leases and queues of the lock manager. Pure: moments go in, decisions come out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::{AcquireRequest, Space};
use crate::domain::lock::{FencingToken, Holder, LockKey, LockView};
use crate::domain::time::Timestamp;
use crate::mutants::{self, Mutant};
use crate::state::tables::lock_table::LockNotice;

/// Waiters on this node, at most. Below the long polls that one node takes in (see
/// [`DescriptorBudget`](crate::ports::descriptors::DescriptorBudget)), so that waiters
/// for locks alone do not keep out those who wait for runs.
pub(super) const WAITERS_MAX: usize = 5_000;

type Key = (Space, LockKey);

/// Follows a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    holder: Holder,
    token: FencingToken,
    renewal: u64,
    /// When the lease ends, by the monotonic clock of this node.
    ends: Instant,
    /// When the lease ends, as shown to clients.
    expires_at: Timestamp,
    /// Whether the timer has fired. The table has not been told yet, or has not answered.
    is_expired: bool,
}

/// Holds the waiters of a key, and who of them is being served.
#[derive(Debug, Default)]
struct WaitQueue {
    /// In the order in which the clients began to wait.
    waiters: VecDeque<AcquireRequest>,
    /// The holder whose attempt is under way. It has left `waiters`, and comes back if it loses.
    in_flight_holder: Option<Holder>,
    /// When the last lease ended, as shown to clients.
    last_lease_ended_at: Timestamp,
}

/// Says what is to be done about a request.
#[derive(Debug)]
pub(super) enum Admission {
    /// Propose the attempt.
    Attempt(AcquireRequest),
    /// Nothing: the request waits in the queue.
    Queued,
    /// Tell the client that another holds the lock.
    Held(AcquireRequest, Holder, Timestamp),
    /// Send the client away: the request would have to wait, and this node does not lead the table.
    NotLed(AcquireRequest),
    /// Refuse the request, because too many wait.
    Full(AcquireRequest),
}

/// Names a lease that is over, to be proposed as `Expire`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExpiredLease {
    pub(super) space: Space,
    pub(super) key: LockKey,
    pub(super) token: FencingToken,
    pub(super) renewal: u64,
}

/// Holds the leases and the waiters of all tables that this node leads.
#[derive(Debug, Default)]
pub(super) struct LockQueues {
    /// The tables that this node leads.
    led: BTreeSet<Space>,
    leases: BTreeMap<Key, Lease>,
    /// The ends of leases whose timer has not fired, by time.
    ends: BTreeSet<(Instant, Key)>,
    queues: BTreeMap<Key, WaitQueue>,
    /// Waiters in all queues.
    waiting: usize,
    /// A moment before which no wait is over. May be too early: then a look finds nothing.
    first_wait_ends: Option<Instant>,
}

impl LockQueues {
    /// Takes over the locks of a table that this node leads now. Each gets a full lease: how much of the
    /// last one has passed only the old leader's clock knows.
    pub(super) fn lead(&mut self, space: Space, locks: Vec<LockView>, now: Instant) {
        self.led.insert(space);
        for mut lock in locks {
            if mutants::is(Mutant::ForgetTerms) {
                lock.ttl_ms = 0;
            }
            self.begin(space, &lock, now);
        }
    }

    /// Forgets a table, and returns its waiters to be sent away.
    pub(super) fn unlead(&mut self, space: Space) -> Vec<AcquireRequest> {
        // The timers go with the leases: an expiry by a node that does not lead would do nothing, and
        // the next leader has timers of its own.
        self.led.remove(&space);
        self.leases.retain(|(of, _), _| *of != space);
        self.ends.retain(|(_, (of, _))| *of != space);
        let queues = self.queues.extract_if(.., |(of, _), _| *of == space);
        let gone: Vec<_> = queues.flat_map(|(_, queue)| queue.waiters).collect();
        self.waiting -= gone.len();
        gone
    }

    /// Notes a change of a table. Returns the first waiter of a key that was freed, to be attempted.
    pub(super) fn notice(
        &mut self,
        space: Space,
        notice: LockNotice,
        now: Instant,
    ) -> Option<AcquireRequest> {
        // A notice may still be on its way when the lead is lost: it must not begin a lease.
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

    /// Removes the waiters of a key whose holder has just been granted the lock, such as a client that
    /// tried again. They are attempted again, and get the same lease instead of 'held by another'.
    pub(super) fn take_own(&mut self, space: Space, key: &LockKey) -> Vec<AcquireRequest> {
        let key = (space, key.clone());
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

    /// Decides about a request: a new one, or (`found_held`) one that the table has just refused and that
    /// is willing to wait.
    ///
    /// | lease here | queue | request | then |
    /// |---|---|---|---|
    /// | its own, not over | any | any | attempt: it renews |
    /// | its own, over | any | any | waits for the expiry, and then for a new lease |
    /// | none | none | new | attempt |
    /// | none | none | found held | attempt on the leader: it was freed meanwhile |
    /// | another's | none | does not wait | attempt: the table names the holder |
    /// | any other | | waits | queue |
    /// | any other | | does not wait | told who is next |
    pub(super) fn admit(&mut self, mut request: AcquireRequest, found_held: bool) -> Admission {
        let key = (request.space, request.key.clone());
        let has_queue = self.queues.contains_key(&key);
        match self.leases.get(&key) {
            Some(lease) if lease.holder == request.holder => {
                if !lease.is_expired {
                    return Admission::Attempt(request);
                }
                // `Expire` is on its way. An attempt now could be applied before it, as a renewal of a
                // lease that is over, or after it, past the queue. The holder waits like everybody
                // else, also when it did not ask to, and gets a new lease.
                request.wait_until.get_or_insert(request.deadline);
            }
            // Without a lead nothing is known of leases: a request that was found held would be attempted
            // for ever, so it is sent away below. On the leader the lock was freed between the
            // refusal and this look, and the notice found nobody in the queue to attempt.
            None if !has_queue && (!found_held || self.led.contains(&request.space)) => {
                return Admission::Attempt(request);
            }
            // Who does not wait may ask the table; behind a queue it would barge.
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
        // Clients that have gone are looked for only now: each look goes through all queues.
        if self.waiting >= WAITERS_MAX {
            self.forget_gone();
        }
        if self.waiting >= WAITERS_MAX {
            return Admission::Full(request);
        }
        self.push(key, request, false);
        Admission::Queued
    }

    /// Notes that the attempt of a first waiter has ended. Returns the next waiter to be attempted, if the
    /// key is free.
    pub(super) fn served(
        &mut self,
        space: Space,
        key: &LockKey,
        now: Instant,
    ) -> Option<AcquireRequest> {
        let key = (space, key.clone());
        if let Some(queue) = self.queues.get_mut(&key) {
            queue.in_flight_holder = None;
        }
        // The notice of a grant may come before or after the end of its attempt. If it has come, the key
        // is held. If not, the next attempt is refused by the table and goes back to its place.
        if self.leases.contains_key(&key) {
            self.tidy(&key);
            return None;
        }
        self.next(&key, now)
    }

    /// Puts a waiter back to its place, because another has the lock after all. Returns the first waiter, to
    /// be attempted, if the lock has been freed since.
    pub(super) fn put_back(
        &mut self,
        request: AcquireRequest,
        now: Instant,
    ) -> Option<AcquireRequest> {
        let (space, key) = (request.space, request.key.clone());
        // First back into the queue, then served: it may be the one to be attempted.
        self.push((space, key.clone()), request, true);
        self.served(space, &key, now)
    }

    /// Returns a lock of a table as it is to be shown, and how many wait for it.
    pub(super) fn look(&self, space: Space, lock: LockView) -> (LockView, u64) {
        let waiters = self.waiters(space, &lock.key);
        (self.shown(space, lock), waiters)
    }

    /// Returns a lock as it is to be shown. Where this node measures the lock's present lease (the same token and
    /// renewal), `expires_at` is the end that it measures.
    pub(super) fn shown(&self, space: Space, lock: LockView) -> LockView {
        let lease = self.leases.get(&(space, lock.key.clone()));
        let is_same = |lease: &&Lease| (lease.token, lease.renewal) == (lock.token, lock.renewal);
        match lease.filter(is_same) {
            Some(lease) => LockView { expires_at: lease.expires_at, ..lock },
            None => lock,
        }
    }

    /// Counts the waiters of a key whose clients are still there.
    pub(super) fn waiters(&self, space: Space, key: &LockKey) -> u64 {
        let queue = self.queues.get(&(space, key.clone()));
        queue.map_or(0, |queue| {
            queue.waiters.iter().filter(|waiter| !waiter.reply.is_closed()).count() as u64
        })
    }

    /// Returns the leases that are over by `now`, each once.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<ExpiredLease> {
        let mut over = Vec::new();
        while let Some((ends, _)) = self.ends.first()
            && *ends <= now
        {
            let Some((_, key)) = self.ends.pop_first() else { break };
            if let Some(lease) = self.leases.get_mut(&key) {
                // The lease stays until the table says that the key is free: a renewal may come first.
                lease.is_expired = true;
                let (space, key) = key;
                over.push(ExpiredLease { space, key, token: lease.token, renewal: lease.renewal });
            }
        }
        over
    }

    /// Removes the waiters whose time is up by `now`, or whose client has gone. Returns each with the
    /// holder of the lock and the end of the lease.
    pub(super) fn expire_waits(
        &mut self,
        now: Instant,
    ) -> Vec<(AcquireRequest, Holder, Timestamp)> {
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

    /// Removes the waiters whose clients have gone.
    fn forget_gone(&mut self) {
        for queue in self.queues.values_mut() {
            queue.waiters.retain(|waiter| !waiter.reply.is_closed());
        }
        self.waiting = self.queues.values().map(|queue| queue.waiters.len()).sum();
    }

    /// Returns the next moment at which a lease or a wait may be over.
    pub(super) fn next_moment(&self) -> Option<Instant> {
        let ends = self.ends.first().map(|(ends, _)| *ends);
        ends.into_iter().chain(self.first_wait_ends).min()
    }

    /// Puts a request at its place: behind all that have waited longer. Of two that have waited equally
    /// long the one that was put back (`in_front`) is first.
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

    /// Takes the first waiter of a free key whose client still waits, if no attempt is under way.
    fn next(&mut self, key: &Key, now: Instant) -> Option<AcquireRequest> {
        let queue = self.queues.get_mut(key)?;
        // Two attempts at once could be applied in either order, and the second waiter might get the lock.
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

    /// Removes the queue of a key if nobody waits and no attempt is under way.
    fn tidy(&mut self, key: &Key) {
        let is_idle =
            |queue: &WaitQueue| queue.waiters.is_empty() && queue.in_flight_holder.is_none();
        if self.queues.get(key).is_some_and(is_idle) {
            self.queues.remove(key);
        }
    }

    /// Begins a lease, in place of an earlier one of the key.
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

    /// Ends a lease, with its timer.
    fn end(&mut self, key: &Key) -> Option<Lease> {
        let lease = self.leases.remove(key)?;
        self.ends.remove(&(lease.ends, key.clone()));
        Some(lease)
    }

    /// Names the holder of a lock to a client: the present one, or else the waiter that is next.
    fn seen_holder(&self, key: &Key, asking: &AcquireRequest) -> (Holder, Timestamp) {
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

//! Shares what requests take out of one pool, fairly between tenants: the bytes of bodies under way and
//! of large answers, the places of requests that wait on purpose, and those of requests that are
//! handed over.
//!
//! A body is in memory from its first byte to its answer. Each is small, and there may be as many
//! as connections: together they would be gigabytes. A tenant may take some multiple of what is left
//! (a dynamic threshold, as switches share their buffers). With the multiple 1, one greedy tenant
//! gets half of the pool, two get a third each, and as much is left for the next one as the
//! greediest has. With 3, one gets three quarters.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::handles::Owner;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, timeout_at};

/// Bytes of bodies under way, all together.
pub(crate) const BODIES_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of large answers that are made or wait for their clients, all together.
pub(crate) const ANSWERS_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How many times the places that are left a tenant's requests may have that wait or are handed over:
/// a place costs little, and a cluster may have one tenant only.
pub(crate) const PLACES_MULTIPLE: usize = 3;

/// The owner of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
    /// The cluster.
    Cluster,
    /// A tenant that the node knows.
    Tenant(TenantId),
    /// All tenants together that the node does not know. Ids cost nothing to invent: with a share for
    /// each, one client would have as many shares as it likes.
    Unknown,
}

impl Whose {
    /// Finds whose share a request takes from, by the owner of what the request is about.
    pub(crate) fn of(owner: Owner, is_known: impl FnOnce(TenantId) -> bool) -> Self {
        match owner {
            Owner::Cluster => Self::Cluster,
            Owner::Tenant(tenant) if is_known(tenant) => Self::Tenant(tenant),
            Owner::Tenant(_) => Self::Unknown,
        }
    }
}

/// A pool. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    size: usize,
    multiple: usize,
    taken: Arc<Mutex<Taken>>,
    /// Wakes those that wait for room.
    freed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<Whose, usize>,
}

/// The part of a pool that one request has taken. Dropping it gives the part back.
#[derive(Debug)]
pub(crate) struct Share {
    pool: Pool,
    whose: Whose,
    own: usize,
}

impl Pool {
    /// Makes a pool of `size` bytes or places. An owner may have up to `multiple` times what is left.
    pub(crate) fn new(size: usize, multiple: usize) -> Self {
        Self { size, multiple, taken: Arc::default(), freed: Arc::default() }
    }

    /// Makes the share of a request that has taken nothing yet.
    pub(crate) fn share(&self, whose: Whose) -> Share {
        Share { pool: self.clone(), whose, own: 0 }
    }

    /// Takes one place, if there is room for it.
    pub(crate) fn place(&self, whose: Whose) -> Option<Share> {
        let mut place = self.share(whose);
        place.take(1).then_some(place)
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, taken: &Taken, whose: Whose, more: usize) -> bool {
        let own = taken.by.get(&whose).copied().unwrap_or_default();
        let left = self.size - taken.all;
        more <= left && own.saturating_add(more) <= left.saturating_mul(self.multiple)
    }
}

impl Share {
    /// Tells whether this much more has room now. A race: it may be gone when it is taken.
    pub(crate) fn has_room(&self, more: u64) -> bool {
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        self.pool.has_room(&self.pool.taken(), self.whose, more)
    }

    /// Takes more if there is room, and tells whether there was.
    pub(crate) fn take(&mut self, more: usize) -> bool {
        let mut taken = self.pool.taken();
        if !self.pool.has_room(&taken, self.whose, more) {
            return false;
        }
        taken.all += more;
        *taken.by.entry(self.whose).or_default() += more;
        self.own += more;
        true
    }
}

impl Share {
    /// Takes more, once there is room, and tells whether there was within `patience`.
    pub(crate) async fn take_within(&mut self, more: usize, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let freed = Arc::clone(&self.pool.freed);
        loop {
            // Listens before it looks, so that what is freed in between wakes it.
            let mut is_freed = pin!(freed.notified());
            is_freed.as_mut().enable();
            if self.take(more) {
                return true;
            }
            if timeout_at(until, is_freed).await.is_err() {
                return false;
            }
        }
    }

    /// Gives back what is above `own`.
    pub(crate) fn shrink_to(&mut self, own: usize) {
        let less = self.own.saturating_sub(own);
        if less == 0 {
            return;
        }
        self.own -= less;
        let mut taken = self.pool.taken();
        taken.all -= less;
        if let Some(of_owner) = taken.by.get_mut(&self.whose) {
            *of_owner -= less;
            if *of_owner == 0 {
                taken.by.remove(&self.whose);
            }
        }
        drop(taken);
        self.pool.freed.notify_waiters();
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    fn id(number: u8) -> TenantId {
        format!("550e8400-e29b-41d4-a716-4466554400{number:02}").parse().unwrap()
    }

    fn tenant(number: u8) -> Whose {
        Whose::Tenant(id(number))
    }

    /// Bodies of 1 MiB until there is no room for another.
    fn greedy(bodies: &Pool, whose: Whose) -> Vec<Share> {
        let mut shares = Vec::new();
        loop {
            let mut share = bodies.share(whose);
            if !share.take(MIB) {
                return shares;
            }
            shares.push(share);
        }
    }

    #[test]
    fn whoever_comes_late_finds_as_much_as_the_greediest_has() {
        let bodies = Pool::new(BODIES_BYTES_MAX, 1);
        let first = greedy(&bodies, tenant(1));
        assert_eq!(first.len(), 32);
        assert_eq!(greedy(&bodies, Whose::Cluster).len(), 16);
        let second = greedy(&bodies, tenant(2));
        assert_eq!((second.len(), greedy(&bodies, tenant(3)).len()), (16, 8));
        let mut late = bodies.share(tenant(4));
        assert!(late.has_room(8 * MIB as u64) && !late.has_room(17 * MIB as u64));
        assert!(late.take(8 * MIB));
    }

    #[test]
    fn what_was_answered_takes_nothing() {
        let bodies = Pool::new(BODIES_BYTES_MAX, 1);
        drop(greedy(&bodies, tenant(1)));
        drop(bodies.share(Whose::Cluster));
        let taken = bodies.taken();
        assert_eq!((taken.all, taken.by.len()), (0, 0));
    }

    #[test]
    fn invented_ids_share_one_share() {
        let bodies = Pool::new(BODIES_BYTES_MAX, 1);
        let whose = |number| Whose::of(Owner::Tenant(id(number)), |known| known == id(0));
        let mut invented = Vec::new();
        for number in 1..=9 {
            invented.extend(greedy(&bodies, whose(number)));
        }
        assert_eq!(invented.len(), 32, "nine ids have what one has");
        assert_eq!(greedy(&bodies, whose(0)).len(), 16, "who is known has a share of its own");
        assert_eq!(Whose::of(Owner::Cluster, |_| false), Whose::Cluster);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_has_it_when_it_is_given_back() {
        let pool = Pool::new(4, 1);
        let mut first = pool.share(tenant(1));
        assert!(first.take(2));
        let mut second = pool.share(tenant(1));
        assert!(!second.take_within(1, Duration::from_secs(1)).await);
        let waiting = tokio::spawn(async move {
            let has_room = second.take_within(1, Duration::from_secs(1)).await;
            (has_room, second)
        });
        tokio::task::yield_now().await;
        first.shrink_to(1);
        assert!(waiting.await.unwrap().0);
        drop(first);
        assert_eq!(pool.taken().all, 0);
    }

    #[test]
    fn one_tenants_waiting_requests_leave_a_quarter_of_the_places() {
        let polls = Pool::new(48, PLACES_MULTIPLE);
        let waiting = |whose| std::iter::from_fn(|| polls.place(whose)).collect::<Vec<_>>();
        let first = waiting(tenant(1));
        assert_eq!(first.len(), 36);
        assert_eq!(waiting(tenant(2)).len(), 9);
        drop(first);
        assert_eq!(waiting(tenant(2)).len(), 36);
    }
}

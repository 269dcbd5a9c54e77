//! A semaphore in which tenants take turns: a tenant that asks for much waits behind its own requests.
//!
//! Invariants:
//! - a tenant holds at most `each_max` places, so that a place is left for others soon;
//! - free places go round among the tenants that wait, one each, in the order in which they began to
//!   wait; within a tenant the first come is the first served;
//! - a place is given to a caller that waits, or is free: no caller that has gone keeps one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::domain::ids::TenantId;

/// A semaphore that is fair among tenants. Clones share their places.
#[derive(Debug, Clone)]
pub struct FairSemaphore(Arc<Mutex<Gate>>);

#[derive(Debug)]
struct Gate {
    /// Places that are free.
    free: usize,
    /// Most places of one tenant.
    each_max: usize,
    tenants: BTreeMap<TenantId, Queue>,
    /// Tenants that wait and may have another place, in the order of their turns.
    turns: VecDeque<TenantId>,
}

#[derive(Debug, Default)]
struct Queue {
    held: usize,
    waiting: VecDeque<oneshot::Sender<FairPermit>>,
    has_turn: bool,
}

/// Holds a place, and gives it back when it is dropped.
#[derive(Debug)]
pub struct FairPermit {
    gate: FairSemaphore,
    tenant: TenantId,
}

impl FairSemaphore {
    /// Makes a semaphore with `places`, of which one tenant may have `each_max`.
    pub fn new(places: usize, each_max: usize) -> Self {
        let gate = Gate {
            free: places.max(1),
            each_max: each_max.max(1),
            tenants: BTreeMap::new(),
            turns: VecDeque::new(),
        };
        Self(Arc::new(Mutex::new(gate)))
    }

    /// Waits for a place. A caller that stops waiting loses its turn, and no place is lost with it.
    pub async fn enter(&self, tenant: TenantId) -> FairPermit {
        let (give, mut place) = oneshot::channel();
        self.change(|gate| {
            gate.tenants.entry(tenant).or_default().waiting.push_back(give);
            gate.take_turn(tenant);
        });
        // The gate keeps the sender until it gives a place.
        match (&mut place).await {
            Ok(pass) => pass,
            Err(_) => std::future::pending().await,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Gate)) {
        // A permit whose receiver has just gone is dropped here, and its `drop` takes the lock again:
        // so the permits outlive the guard.
        let _refused = {
            let mut gate = self.lock();
            change(&mut gate);
            gate.let_in(self)
        };
    }
}

impl Gate {
    /// Puts a tenant at the end of the line if it waits, is not in the line, and may have another place.
    fn take_turn(&mut self, tenant: TenantId) {
        let Some(queue) = self.tenants.get_mut(&tenant) else { return };
        if !queue.has_turn && !queue.waiting.is_empty() && queue.held < self.each_max {
            queue.has_turn = true;
            self.turns.push_back(tenant);
        }
    }

    /// Gives the free places, one to each tenant in turn.
    fn let_in(&mut self, gate: &FairSemaphore) -> Vec<FairPermit> {
        let mut refused = Vec::new();
        while self.free > 0
            && let Some(tenant) = self.turns.pop_front()
        {
            let Some(queue) = self.tenants.get_mut(&tenant) else { continue };
            queue.has_turn = false;
            // One place, then the next tenant. Callers that have gone are passed over.
            while let Some(waiter) = queue.waiting.pop_front() {
                if waiter.is_closed() {
                    continue;
                }
                queue.held += 1;
                self.free -= 1;
                if let Err(pass) = waiter.send(FairPermit { gate: gate.clone(), tenant }) {
                    refused.push(pass);
                }
                break;
            }
            self.take_turn(tenant);
            self.forget_if_idle(tenant);
        }
        refused
    }

    fn forget_if_idle(&mut self, tenant: TenantId) {
        let is_idle =
            |queue: &Queue| queue.held == 0 && queue.waiting.is_empty() && !queue.has_turn;
        if self.tenants.get(&tenant).is_some_and(is_idle) {
            self.tenants.remove(&tenant);
        }
    }
}

impl Drop for FairPermit {
    fn drop(&mut self) {
        let tenant = self.tenant;
        self.gate.change(|gate| {
            gate.free += 1;
            if let Some(queue) = gate.tenants.get_mut(&tenant) {
                queue.held -= 1;
            }
            gate.take_turn(tenant);
            gate.forget_if_idle(tenant);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tenant;
    use futures_util::FutureExt as _;

    #[tokio::test]
    async fn places_go_round_among_tenants_and_none_is_lost() {
        let gate = FairSemaphore::new(3, 2);
        let (first, second) = (gate.enter(tenant(1)).await, gate.enter(tenant(1)).await);
        // The third of the same tenant waits, though there is a place; another tenant has it.
        let mut third = Box::pin(gate.enter(tenant(1)));
        assert!((&mut third).now_or_never().is_none());
        let other = gate.enter(tenant(2)).await;
        let mut fourth = Box::pin(gate.enter(tenant(1)));
        let mut late = Box::pin(gate.enter(tenant(3)));
        assert!((&mut fourth).now_or_never().is_none());
        assert!((&mut late).now_or_never().is_none());
        // Tenant 1 has waited longer, but had its share: the one that has nothing goes first.
        drop(other);
        let late = late.now_or_never().expect("the free place is for tenant 3");
        drop(first);
        let third = third.now_or_never().expect("its turn");
        assert!((&mut fourth).now_or_never().is_none());
        // Whoever stops waiting, before or after it was given a place, leaves none taken.
        drop(second);
        drop(fourth);
        drop((third, late));
        let all = [gate.enter(tenant(4)).await, gate.enter(tenant(4)).await];
        let last = gate.enter(tenant(5)).await;
        drop((all, last));
        let gate = gate.lock();
        assert_eq!((gate.free, gate.tenants.len(), gate.turns.len()), (3, 0, 0));
    }
}

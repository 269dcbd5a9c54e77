//! Places that tenants share: bounded altogether, and for each tenant below that, so that one
//! tenant whose work does not end leaves places to the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use shiioo_actors::domain::ids::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places, and who has them.
#[derive(Debug)]
pub(crate) struct Shares {
    all: Arc<Semaphore>,
    of_tenant_max: usize,
    /// Only of tenants that have a place or wait for one.
    tenants: Mutex<BTreeMap<TenantId, Weak<Semaphore>>>,
}

/// A tenant's place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _of_tenant: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl Shares {
    /// `all` places, of which one tenant gets at most `of_tenant_max`.
    pub(crate) fn new(all: usize, of_tenant_max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), of_tenant_max, tenants: Mutex::default() }
    }

    /// Waits for a place. Whoever waits for its own tenant's share waits for nobody else: only who
    /// has that stands in the line that all share.
    pub(crate) async fn place(&self, tenant: TenantId) -> Place {
        // Neither semaphore is ever closed.
        let of_tenant = self.of_tenant(tenant).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Place { _of_tenant: of_tenant, _of_all: of_all }
    }

    fn of_tenant(&self, tenant: TenantId) -> Arc<Semaphore> {
        // Nothing that panics happens under the lock.
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return known;
        }
        tenants.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.of_tenant_max));
        tenants.insert(tenant, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn one_tenant_leaves_places_to_the_others() {
        let shares = Shares::new(3, 2);
        let [greedy, modest, late] = [1, 2, 3].map(crate::testing::tenant);
        let first = now(shares.place(greedy)).unwrap();
        let _second = now(shares.place(greedy)).unwrap();
        assert!(now(shares.place(greedy)).is_none());
        let _third = now(shares.place(modest)).unwrap();
        assert!(now(shares.place(late)).is_none(), "all are taken");
        drop(first);
        let fourth = now(shares.place(late)).unwrap();
        drop(fourth);
        let newest = crate::testing::tenant(4);
        drop(now(shares.place(newest)).unwrap());
        let known: Vec<_> = shares.tenants.lock().unwrap().keys().copied().collect();
        assert_eq!(known, [greedy, modest, newest], "who has nothing is forgotten");
    }
}

//! Permits that tenants share: bounded altogether, and for each tenant below that, so that one
//! tenant whose work does not end leaves permits to the others.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use shiioo_actors::domain::ids::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A bounded number of permits, of which each tenant gets a share.
#[derive(Debug)]
pub(crate) struct TenantShares {
    all: Arc<Semaphore>,
    tenant_max: usize,
    /// Holds only tenants that have a permit or wait for one.
    tenants: Mutex<BTreeMap<TenantId, Weak<Semaphore>>>,
}

/// Holds one permit until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _of_tenant: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

impl TenantShares {
    /// Makes `all` permits, of which one tenant gets at most `tenant_max`.
    pub(crate) fn new(all: usize, tenant_max: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), tenant_max, tenants: Mutex::default() }
    }

    /// Waits for a permit.
    pub(crate) async fn acquire(&self, tenant: TenantId) -> Permit {
        // The tenant's own share first: a tenant that waits for its own share must not stand in the
        // queue that all tenants share, where it would delay the others. Neither semaphore is ever
        // closed.
        let of_tenant = self.of_tenant(tenant).acquire_owned().await.ok();
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok();
        Permit { _of_tenant: of_tenant, _of_all: of_all }
    }

    fn of_tenant(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut tenants = self.tenants.lock();
        // Upgraded under the lock: two calls of one tenant never make two semaphores for it.
        if let Some(known) = tenants.get(&tenant).and_then(Weak::upgrade) {
            return known;
        }
        tenants.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Semaphore::new(self.tenant_max));
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
    fn one_tenant_leaves_permits_to_the_others() {
        let shares = TenantShares::new(3, 2);
        let [greedy, modest, late] = [1, 2, 3].map(crate::testing::tenant);
        let first = now(shares.acquire(greedy)).unwrap();
        let _second = now(shares.acquire(greedy)).unwrap();
        assert!(now(shares.acquire(greedy)).is_none());
        let _third = now(shares.acquire(modest)).unwrap();
        assert!(now(shares.acquire(late)).is_none(), "all permits are taken");
        drop(first);
        let fourth = now(shares.acquire(late)).unwrap();
        drop(fourth);
        let newest = crate::testing::tenant(4);
        drop(now(shares.acquire(newest)).unwrap());
        let known: Vec<_> = shares.tenants.lock().keys().copied().collect();
        assert_eq!(known, [greedy, modest, newest], "a tenant without a permit is forgotten");
    }
}

//! Bounds how many tenants have their files open, and picks who closes them for others.
//!
//! An open tenant holds two descriptors. Opening takes a permit. Where there is none, the tenant
//! that has used its files least recently is asked to close them, then the next, until a permit
//! comes back: a tenant that is asked may be stalled, or busy for a while.
//!
//! Invariants:
//! - A permit comes back only when the files are closed.
//! - A holder of a permit waits for no other permit: asking cannot end in a circle.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Tenants whose files are open at the same time, by default: half of the descriptors that a
/// process usually may have.
pub(crate) const OPEN_STORES_MAX: usize = 256;

/// Wait before the next holder of files is asked to close them.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// The permits, and who holds them.
pub(crate) struct OpenStores {
    permits: Arc<Semaphore>,
    /// A clock of uses, so that they can be compared.
    uses: AtomicU64,
    holders: Mutex<BTreeMap<u64, Arc<Holder>>>,
}

/// A tenant that has its files open.
struct Holder {
    used: AtomicU64,
    is_asked: AtomicBool,
    /// Asks the tenant to close its files; `None` until it says how.
    ask: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

/// The registration of a holder, which ends when it is dropped.
pub(crate) struct Registration {
    all: Arc<OpenStores>,
    id: u64,
    holder: Arc<Holder>,
}

impl fmt::Debug for OpenStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenStores").field("permits", &self.permits).finish_non_exhaustive()
    }
}

impl OpenStores {
    pub fn new(max: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(max.max(1)));
        Arc::new(Self { permits, uses: AtomicU64::new(0), holders: Mutex::default() })
    }

    /// Waits until one more tenant may be open. Asks others to close their files meanwhile.
    pub async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return permit;
        }
        // One place in the semaphore's queue for the whole wait: asking anew would go to its end.
        let acquire = permits.acquire_owned();
        tokio::pin!(acquire);
        loop {
            self.ask_least_recently_used();
            tokio::select! {
                biased;
                // The semaphore is never closed.
                Ok(permit) = &mut acquire => return permit,
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
    }

    /// Asks the tenant that has used its files least recently, of those not asked yet, to close
    /// them.
    pub fn ask_least_recently_used(&self) {
        let ask = {
            let holders = self.holders.lock();
            let can_be_asked = |holder: &&Arc<Holder>| {
                !holder.is_asked.load(Ordering::Acquire) && holder.ask.lock().is_some()
            };
            let least = holders.values().filter(can_be_asked);
            let Some(least) = least.min_by_key(|holder| holder.used.load(Ordering::Acquire)) else {
                return;
            };
            // Each is asked once: one that does not answer must not keep the others from being
            // asked.
            least.is_asked.store(true, Ordering::Release);
            least.ask.lock().clone()
        };
        // Not under the lock: it may drop files, which ends a registration and takes the lock.
        if let Some(ask) = ask {
            ask();
        }
    }

    /// Registers a tenant that has opened its files.
    pub fn register(self: &Arc<Self>) -> Registration {
        let id = self.next_use();
        let holder = Arc::new(Holder {
            used: AtomicU64::new(id),
            is_asked: AtomicBool::new(false),
            ask: Mutex::default(),
        });
        self.holders.lock().insert(id, Arc::clone(&holder));
        Registration { all: Arc::clone(self), id, holder }
    }

    fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::AcqRel)
    }
}

impl Registration {
    /// Notes that the files are used.
    pub fn touch(&self) {
        self.holder.used.store(self.all.next_use(), Ordering::Release);
    }

    /// Sets how the holder is asked to close its files.
    pub fn on_wanted(&self, ask: Box<dyn Fn() + Send + Sync>) {
        *self.holder.ask.lock() = Some(Arc::from(ask));
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.all.holders.lock().remove(&self.id);
    }
}

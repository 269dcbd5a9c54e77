//! How many tenants' files are open at once, and who closes his for others.
//!
//! An open tenant holds two descriptors. Who opens one takes a permit; where there is none, the
//! tenant that has used its files least recently is asked to close them, again and again until a
//! permit comes back: whoever is asked may be stalled, or may be busy for a while.
//!
//! Invariants:
//! - A permit comes back only when the files are closed.
//! - Who holds a permit waits for no other: asking cannot end in a circle.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Tenants whose files are open at the same time, where nobody says otherwise: half of the
/// descriptors that a process usually may have.
pub(crate) const OPEN_STORES_MAX: usize = 256;

/// Wait before the next holder of files is asked to close them.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// See the module.
#[derive(Debug)]
pub(crate) struct OpenStores {
    permits: Arc<Semaphore>,
    /// Counts uses, so that they can be compared.
    uses: AtomicU64,
    holders: Mutex<BTreeMap<u64, Arc<Holder>>>,
}

/// Who has files open.
struct Holder {
    used: AtomicU64,
    is_asked: AtomicBool,
    ask: Mutex<Option<Arc<dyn Fn() + Send + Sync>>>,
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").field("used", &self.used).finish_non_exhaustive()
    }
}

/// A holder's place in the list of those who can be asked. Leaves it when dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    all: Arc<OpenStores>,
    id: u64,
    holder: Arc<Holder>,
}

impl OpenStores {
    pub fn new(max: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(max.max(1)));
        Arc::new(Self { permits, uses: AtomicU64::new(0), holders: Mutex::default() })
    }

    /// Waits until one more may be open, asking others to close theirs.
    pub async fn permit(&self) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.permits);
        if let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
            return permit;
        }
        let acquire = permits.acquire_owned();
        tokio::pin!(acquire);
        loop {
            self.ask_one();
            tokio::select! {
                biased;
                // The semaphore is never closed.
                Ok(permit) = &mut acquire => return permit,
                () = tokio::time::sleep(ASK_AGAIN) => {}
            }
        }
    }

    /// Asks the one who has used his files least recently, of those not asked yet, to close them.
    pub fn ask_one(&self) {
        let ask = {
            let holders = self.holders();
            let can_be_asked = |holder: &&Arc<Holder>| {
                !holder.is_asked.load(Ordering::Acquire) && holder.ask().is_some()
            };
            let least = holders.values().filter(can_be_asked);
            let Some(least) = least.min_by_key(|holder| holder.used.load(Ordering::Acquire)) else {
                return;
            };
            least.is_asked.store(true, Ordering::Release);
            least.ask().clone()
        };
        // Not under the lock: it may drop files, which leaves the list.
        if let Some(ask) = ask {
            ask();
        }
    }

    /// Lists one who has opened files.
    pub fn list(self: &Arc<Self>) -> Listed {
        let id = self.next_use();
        let holder = Arc::new(Holder {
            used: AtomicU64::new(id),
            is_asked: AtomicBool::new(false),
            ask: Mutex::default(),
        });
        self.holders().insert(id, Arc::clone(&holder));
        Listed { all: Arc::clone(self), id, holder }
    }

    fn next_use(&self) -> u64 {
        self.uses.fetch_add(1, Ordering::AcqRel)
    }

    fn holders(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Holder>>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Holder {
    fn ask(&self) -> MutexGuard<'_, Option<Arc<dyn Fn() + Send + Sync>>> {
        self.ask.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listed {
    /// Notes that the files are used.
    pub fn touch(&self) {
        self.holder.used.store(self.all.next_use(), Ordering::Release);
    }

    /// Sets how the holder is asked.
    pub fn on_wanted(&self, ask: Box<dyn Fn() + Send + Sync>) {
        *self.holder.ask() = Some(Arc::from(ask));
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.all.holders().remove(&self.id);
    }
}

//! A mutex for each key.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

/// Lets one holder at a time work on a key. A key that nobody holds or waits for takes no memory.
#[derive(Debug)]
pub(crate) struct KeyedMutex<K>(Mutex<BTreeMap<K, Arc<tokio::sync::Mutex<()>>>>);

impl<K> Default for KeyedMutex<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord> KeyedMutex<K> {
    /// Waits until nobody else holds the key. Waiters come in the order in which they asked.
    pub async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        let mutex = {
            let mut all = self.0.lock();
            // A mutex whose only owner is the map is neither held nor waited for. Nobody can get
            // hold of it meanwhile, because that takes the lock of the map.
            all.retain(|_, mutex| Arc::strong_count(mutex) > 1);
            Arc::clone(all.entry(key).or_default())
        };
        mutex.lock_owned().await
    }
}

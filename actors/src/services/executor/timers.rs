//! A table of timers on the monotonic clock, one for each key.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;

/// Holds at most one timer for each key.
#[derive(Debug)]
pub(super) struct Timers<K> {
    at: BTreeMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Sets the timer of `key`, in place of an earlier one.
    pub(super) fn set(&mut self, key: K, at: Instant) {
        self.clear(key);
        self.at.insert(key, at);
        self.by_time.insert((at, key));
    }

    /// Removes the timer of `key`.
    pub(super) fn clear(&mut self, key: K) {
        if let Some(at) = self.at.remove(&key) {
            self.by_time.remove(&(at, key));
        }
    }

    /// Removes all timers.
    pub(super) fn clear_all(&mut self) {
        *self = Self::default();
    }

    /// Returns when the next timer goes off.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Removes one timer that has gone off by `now`, and returns its key.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<K> {
        let (at, key) = *self.by_time.first()?;
        if at > now {
            return None;
        }
        self.clear(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timers_go_off_in_order_and_once() {
        let now = Instant::now();
        let at = |secs| now + Duration::from_secs(secs);
        let mut timers = Timers::default();
        for (key, secs) in [(1, 3), (2, 1), (3, 2), (1, 2)] {
            timers.set(key, at(secs));
        }
        timers.clear(3);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.take_due(now), None);
        let taken: Vec<_> = std::iter::from_fn(|| timers.take_due(at(2))).collect();
        assert_eq!((taken, timers.next()), (vec![2, 1], None));
    }
}

//! The per-minute quota: a sliding window of one-second buckets that rounds against the caller.
//!
//! A token bucket would let nearly twice the limit through in some window of 60 s; here a request
//! counts from the beginning of its second to the end of that second a minute later.

use crate::domain::views::RateLimit;

/// Length of the window, seconds.
const WINDOW_SECS: u64 = 60;
/// Seconds that are counted: those of the window, and the one that has only begun.
const BUCKETS: usize = WINDOW_SECS as usize + 1;

/// Counts the admitted requests of the last minute.
#[derive(Debug, Clone)]
pub struct RateWindow {
    buckets: [u64; BUCKETS],
    /// The second of the newest bucket, by the owner's monotonic clock.
    now_secs: u64,
    total: u64,
}

impl Default for RateWindow {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], now_secs: 0, total: 0 }
    }
}

impl RateWindow {
    /// Admits a request and counts it, if `limit` allows it. A refused request does not count.
    ///
    /// # Errors
    /// When the limit is reached. The error tells when the next request may be admitted.
    pub fn admit(&mut self, now_secs: u64, limit: u64) -> Result<RateLimit, RateLimit> {
        self.advance(now_secs);
        if self.total >= limit {
            return Err(self.state(limit));
        }
        self.total += 1;
        self.buckets[bucket(self.now_secs)] += 1;
        Ok(self.state(limit))
    }

    /// Counts the requests admitted in the window.
    pub fn used(&mut self, now_secs: u64) -> u64 {
        self.advance(now_secs);
        self.total
    }

    /// Returns the seconds until the oldest counted request leaves the window; 0 when there is none.
    pub fn reset_secs(&self) -> u64 {
        (1..=BUCKETS as u64)
            .find(|age| self.buckets[bucket(self.now_secs + age)] > 0)
            .unwrap_or_default()
    }

    fn advance(&mut self, now_secs: u64) {
        // Each second that has begun since takes over the bucket of a minute ago. After a whole window
        // every bucket has been emptied once.
        for secs in (self.now_secs + 1..=now_secs).take(BUCKETS) {
            self.total -= std::mem::take(&mut self.buckets[bucket(secs)]);
        }
        self.now_secs = self.now_secs.max(now_secs);
        debug_assert_eq!(self.total, self.buckets.iter().sum::<u64>());
    }

    fn state(&self, limit: u64) -> RateLimit {
        RateLimit {
            limit,
            remaining: limit.saturating_sub(self.total),
            reset_secs: self.reset_secs().max(1),
        }
    }
}

const fn bucket(secs: u64) -> usize {
    (secs % BUCKETS as u64) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_limit_comes_back_when_the_oldest_second_has_left() {
        let mut window = RateWindow::default();
        assert_eq!(window.admit(10, 2).unwrap().remaining, 1);
        assert_eq!(window.admit(15, 2).unwrap().remaining, 0);
        let refused = window.admit(15, 2).unwrap_err();
        assert_eq!(refused.reset_secs, 56);
        assert!(window.admit(70, 2).is_err());
        assert!(window.admit(71, 2).is_ok());
    }

    #[test]
    fn nothing_is_let_in_without_a_limit_to_let_it_in() {
        let mut window = RateWindow::default();
        let refused = window.admit(5000, 0).unwrap_err();
        assert_eq!((refused.remaining, refused.reset_secs), (0, 1));
        // And it has not been counted.
        assert_eq!(window.used(5000), 0);
        assert_eq!(window.admit(5000, 1).unwrap().remaining, 0);
    }

    /// Time may pass without a request for any number of seconds, around the window's length too.
    #[test]
    fn a_pause_empties_exactly_the_seconds_that_have_left() {
        for gap in 0..=200 {
            let mut window = RateWindow::default();
            for secs in 100..=160 {
                window.admit(secs, 1000).unwrap();
            }
            // In the window of a second: itself and the sixty before.
            let expected = 61_u64.saturating_sub(gap);
            assert_eq!(window.used(160 + gap), expected, "after {gap} s");
        }
    }

    proptest! {
        #[test]
        fn no_window_of_a_minute_has_more_than_the_limit(
            steps in prop::collection::vec(0_u64..9, 1..400), limit in 1_u64..20,
        ) {
            let mut window = RateWindow::default();
            let (mut now, mut admitted) = (0, Vec::new());
            for step in steps {
                now += step;
                if window.admit(now, limit).is_ok() {
                    admitted.push(now);
                }
            }
            for from in &admitted {
                let count = admitted.iter().filter(|at| (*from..=from + 60).contains(at)).count();
                prop_assert!(count as u64 <= limit);
            }
        }
    }
}

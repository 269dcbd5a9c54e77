//! Decides how much is sent to a replica at once, and how long that may take. Pure.
//!
//! A deadline that does not know the size of its work is a livelock on a slow link: the same
//! entries are sent, dropped, and sent again. So the time allowed grows with the bytes, and the
//! bytes follow what the link has carried: halved after a loss, doubled after an answer that came
//! soon.
//!
//! A batch is kept to what the link carries in a fraction of an election timeout. Heartbeats share
//! the link with it, and may be sent first on this end but not overtake it on the way.

use std::time::Duration;

/// The slowest link that a replica is waited for on: 1 Mbit/s.
const RATE_FLOOR_BYTES_PER_SEC: u64 = 125_000;

/// Bytes of the first batch to a replica that nothing is known of.
const BATCH_BYTES_FIRST: usize = 256 << 10;
/// Bytes of the smallest batch; an entry that is larger by itself travels alone.
const BATCH_BYTES_MIN: usize = 16 << 10;
/// Bytes of the largest batch.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Gives the time that a message may take: `base` for the work, and the time that the slowest link
/// takes to carry it.
pub(crate) fn time_allowed(base: Duration, bytes: usize) -> Duration {
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    base.saturating_add(Duration::from_millis(
        bytes.saturating_mul(1_000) / RATE_FLOOR_BYTES_PER_SEC,
    ))
}

/// The bytes of entries that one replica is sent at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchLimit {
    bytes_max: usize,
}

impl Default for BatchLimit {
    fn default() -> Self {
        Self { bytes_max: BATCH_BYTES_FIRST }
    }
}

impl BatchLimit {
    /// Gives the bytes of entries in the next message.
    pub const fn bytes_max(self) -> usize {
        self.bytes_max
    }

    /// Notes that a message of so many bytes was answered after `took`. Only a full batch that came
    /// back `soon` shows that there is room for more.
    pub fn answered(&mut self, bytes: usize, took: Duration, soon: Duration) {
        if took <= soon && bytes > self.bytes_max / 2 {
            self.bytes_max = self.bytes_max.saturating_mul(2).min(BATCH_BYTES_MAX);
        }
    }

    /// Notes that a message was lost, or not answered in time.
    pub fn lost(&mut self) {
        self.bytes_max = (self.bytes_max / 2).max(BATCH_BYTES_MIN);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SOON: Duration = Duration::from_millis(100);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn time_grows_with_the_bytes() {
        for (bytes, expected) in
            [(0, 250), (124, 250), (125, 251), (125_000, 1_250), (4 << 20, 33_804)]
        {
            assert_eq!(time_allowed(ms(250), bytes), ms(expected), "{bytes} bytes");
        }
        assert!(time_allowed(ms(250), usize::MAX) > Duration::from_secs(1 << 30));
    }

    #[test]
    fn a_batch_doubles_while_answers_come_soon_and_halves_after_each_loss() {
        let mut batch = BatchLimit::default();
        let mut sizes = vec![batch.bytes_max() >> 10];
        for _ in 0..5 {
            batch.answered(batch.bytes_max(), SOON, SOON);
            sizes.push(batch.bytes_max() >> 10);
        }
        assert_eq!(sizes, [256, 512, 1024, 2048, 4096, 4096]);
        let mut sizes = Vec::new();
        for _ in 0..10 {
            batch.lost();
            sizes.push(batch.bytes_max() >> 10);
        }
        assert_eq!(sizes, [2048, 1024, 512, 256, 128, 64, 32, 16, 16, 16]);
    }

    #[test]
    fn what_was_slow_or_small_says_nothing_about_more() {
        let mut batch = BatchLimit::default();
        batch.answered(batch.bytes_max(), SOON + ms(1), SOON);
        batch.answered(batch.bytes_max() / 2, ms(1), SOON);
        batch.answered(0, ms(0), SOON);
        assert_eq!(batch, BatchLimit::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// On any link above that rate, whatever there is arrives: no batch is sent for ever. And a
        /// fast link comes to large batches.
        #[test]
        fn whatever_the_link_carries_arrives(rate in 130_u64..200_000, kib in 1_usize..20_000) {
            let (mut batch, mut left, mut tries) = (BatchLimit::default(), kib << 10, 0_u32);
            while left > 0 {
                tries += 1;
                prop_assert!(tries < 4_000);
                let bytes = batch.bytes_max().min(left);
                let took = ms(bytes as u64 / rate);
                if took > time_allowed(ms(250), bytes) {
                    batch.lost();
                } else {
                    left -= bytes;
                    batch.answered(bytes, took, SOON);
                }
            }
            prop_assert!(rate < 100_000 || kib < 8_192 || batch.bytes_max() == BATCH_BYTES_MAX);
        }
    }
}

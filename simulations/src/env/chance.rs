//! Wall time and entropy.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::SmallRng;
use rand::{RngCore as _, SeedableRng as _};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::seams::{Clock, Entropy};

use crate::env::trace;

/// The wall time at the start of every run, ms since 1970: 2030-01-01T10:00:00Z. A run is far
/// shorter than the rest of that day.
const START_MS: i64 = 1_893_492_000_000;

/// The moment at which every run starts, by the clocks that are right.
pub const fn start_of_time() -> Timestamp {
    Timestamp(START_MS)
}

/// A wall clock: virtual time, how far this host's clock is off, and how much it gains.
#[derive(Debug, Clone, Default)]
pub struct SimClock {
    offset_ms: Arc<AtomicI64>,
    drift_ppm: Arc<AtomicI64>,
}

impl SimClock {
    /// Sets how far the clock is off from now on, ms.
    pub fn set_offset_ms(&self, offset_ms: i64) {
        self.offset_ms.store(offset_ms, Ordering::Relaxed);
    }

    /// Sets how much the clock gains from the start of the run on, millionths.
    pub fn set_drift_ppm(&self, drift_ppm: i64) {
        self.drift_ppm.store(drift_ppm, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let elapsed_ms = i64::try_from(trace::now().as_millis()).unwrap_or(i64::MAX);
        let gained_ms = elapsed_ms * self.drift_ppm.load(Ordering::Relaxed) / 1_000_000;
        Timestamp(START_MS + elapsed_ms + gained_ms + self.offset_ms.load(Ordering::Relaxed))
    }
}

/// Random bytes of one incarnation of a node.
pub struct SeededEntropy(Mutex<SmallRng>);

impl SeededEntropy {
    /// The bytes of the `incarnation`-th start of a host in the run of `seed`.
    pub fn new(seed: u64, host: u64, incarnation: u64) -> Self {
        // Each through a generator of its own: neighbours must not begin alike.
        let mixed = [host, incarnation].into_iter().fold(seed, |mixed, number| {
            SmallRng::seed_from_u64(mixed ^ number.rotate_left(32)).next_u64()
        });
        Self(Mutex::new(SmallRng::seed_from_u64(mixed)))
    }
}

impl Entropy for SeededEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(buffer);
    }
}

impl fmt::Debug for SeededEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SeededEntropy")
    }
}

//! Many seeds, several at a time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::plan::{Outcome, Plan};
use crate::world::Fault;

/// What came of a sweep.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many runs there were.
    pub runs: u64,
    /// Their time, in their own time.
    pub simulated: Duration,
    /// How often each fault really happened.
    pub faults: BTreeMap<Fault, u64>,
    /// The runs in which a promise was broken.
    pub failures: Vec<Outcome>,
}

/// Runs the seeds, `jobs` at a time, and shows each outcome to `watch` as it comes.
pub fn sweep(
    plan: Plan,
    seeds: std::ops::Range<u64>,
    jobs: usize,
    watch: impl Fn(&Outcome) + Sync,
) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = Plan { seed, ..plan }.run();
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    watch(&outcome);
                    summary.add(outcome);
                }
            });
        }
    });
    summary.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        self.runs += 1;
        self.simulated += outcome.simulated;
        for (fault, times) in &outcome.faults {
            *self.faults.entry(*fault).or_default() += times;
        }
        if outcome.violation.is_some() {
            self.failures.push(outcome);
        }
    }
}

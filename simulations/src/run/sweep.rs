//! Many seeds, several at a time.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Outcome;
use crate::checks::matching::Compared;
use crate::plan::Plan;
use crate::world::Fault;

/// What came of a sweep.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// How many runs there were.
    pub runs: u64,
    /// Their time, in their own time.
    pub simulated: Duration,
    /// What came of each fault that really happened.
    pub faults: BTreeMap<Fault, Tally>,
    /// What was compared with what another node has.
    pub compared: Compared,
    /// The runs in which a promise was broken.
    pub failures: Vec<Outcome>,
}

/// How often a fault happened, and in how many runs of either verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Times in all.
    pub times: u64,
    /// Runs with it in which every promise was kept.
    pub kept: u64,
    /// Runs with it in which one was broken.
    pub broken: u64,
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

/// The trace's hash of every seed, `jobs` at a time.
pub fn hashes(
    plan: Plan,
    seeds: std::ops::Range<u64>,
    jobs: usize,
    watch: impl Fn(&Outcome) + Sync,
) -> BTreeMap<u64, String> {
    let hashes = Mutex::new(BTreeMap::new());
    sweep(plan, seeds, jobs, |outcome| {
        let mut hashes = hashes.lock().unwrap_or_else(PoisonError::into_inner);
        hashes.insert(outcome.plan.seed, outcome.trace.hash.clone());
        watch(outcome);
    });
    hashes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        self.runs += 1;
        self.simulated += outcome.simulated;
        self.compared += outcome.compared;
        for (fault, times) in &outcome.faults {
            let tally = self.faults.entry(*fault).or_default();
            tally.times += times;
            let happened = u64::from(*times > 0);
            match outcome.violation {
                None => tally.kept += happened,
                Some(_) => tally.broken += happened,
            }
        }
        if outcome.violation.is_some() {
            self.failures.push(outcome);
        }
    }
}

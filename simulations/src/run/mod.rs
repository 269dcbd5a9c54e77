//! A run from its plan to its outcome, one or many.

#[cfg(feature = "mutants")]
pub mod mutants;
pub mod sweep;

use std::collections::BTreeMap;
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::checks::matching::Compared;
use crate::env::trace::{self, Trace};
use crate::env::{det, heap};
use crate::plan::{Mix, Plan};
use crate::workload;
use crate::world::Fault;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The plan.
    pub plan: Plan,
    /// What happened.
    pub trace: Trace,
    /// The promise that was broken.
    pub violation: Option<String>,
    /// How long the run was in its own time.
    pub simulated: Duration,
    /// How long it took.
    pub took: Duration,
    /// How often each fault really happened.
    pub faults: BTreeMap<Fault, u64>,
    /// What was compared with what another node has.
    pub compared: Compared,
    /// The most that was on the heap at a time, bytes: all nodes, their disks, and the checks.
    pub heap_bytes: u64,
}

impl Plan {
    /// Runs it on a thread of its own.
    pub fn run(self) -> Outcome {
        Self::warm();
        self.run_here()
    }

    /// Has a first run where there was none yet. What lives as long as the process, such as the
    /// registries of ractor, is made by whoever needs it first and draws from that thread's chance:
    /// nobody's trace must have it.
    pub(crate) fn warm() {
        static WARM: Once = Once::new();
        WARM.call_once(|| drop(Self { secs: 1, faults: false, ..Self::new(0) }.run_here()));
    }

    // How long a run takes is shown to people and decides nothing.
    #[allow(clippy::disallowed_methods)]
    fn run_here(self) -> Outcome {
        let began = Instant::now();
        let ran = det::on_seeded_thread(self.seed, move || {
            #[cfg(feature = "mutants")]
            shiioo_actors::mutants::set(self.mutant);
            trace::begin(self.keep_lines);
            trace::freeze(Some(Duration::ZERO));
            let ending = workload::populated(&self).run(&self);
            (ending, trace::end(), heap::peak_bytes())
        });
        let took = began.elapsed();
        match ran {
            Ok((ending, trace, heap_bytes)) => Outcome {
                plan: self,
                trace,
                violation: ending.violation,
                simulated: ending.simulated,
                took,
                faults: ending.faults,
                compared: ending.compared,
                heap_bytes,
            },
            Err(panic) => Outcome {
                plan: self,
                trace: Trace::default(),
                violation: Some(format!("the run did not come to its end: {panic}")),
                simulated: Duration::ZERO,
                took,
                faults: BTreeMap::new(),
                compared: Compared::default(),
                heap_bytes: 0,
            },
        }
    }
}

impl Outcome {
    /// The line that runs it again.
    pub fn replay_line(&self) -> String {
        let Plan { seed, nodes, secs, mix, .. } = self.plan;
        let features = self.plan.features();
        let mut line = format!(
            "cargo run -p simulations{features} -- replay --seed {seed} --nodes {nodes} \
             --secs {secs} --trace"
        );
        if self.plan.regions > 1 {
            line.push_str(&format!(" --regions {}", self.plan.regions));
        }
        if !self.plan.faults {
            line.push_str(" --calm");
        }
        if mix != Mix::All {
            line.push_str(&format!(" --mix {mix}"));
        }
        if self.plan.hectic {
            line.push_str(" --hectic");
        }
        if self.plan.stale_cache {
            line.push_str(" --stale-cache");
        }
        if let Some(lying_disk) = self.plan.lying_disk {
            line.push_str(&format!(" --lying-disk {lying_disk}"));
        }
        #[cfg(feature = "mutants")]
        if let Some(mutant) = self.plan.mutant {
            line.push_str(&format!(" --mutant {mutant}"));
        }
        line
    }
}

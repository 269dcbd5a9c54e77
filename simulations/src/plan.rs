//! One run: what is to be done, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Once;
use std::time::{Duration, Instant};

#[cfg(feature = "mutants")]
use shiioo_actors::mutants::{self, Mutant};

use crate::checks::matching::Compared;
use crate::trace::{self, Trace};
use crate::world::{Fault, World};
use crate::{det, heap};

/// How long the clients work and faults happen, unless told otherwise, seconds.
pub const SECS_DEFAULT: u64 = 30;

/// How many nodes there are, unless told otherwise.
pub const NODES_DEFAULT: u64 = 3;

/// What to do in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// How many nodes there are.
    pub nodes: u64,
    /// How long the clients work and faults happen, seconds.
    pub secs: u64,
    /// Whether there are faults.
    pub faults: bool,
    /// Which faults there are.
    pub mix: Mix,
    /// Whether faults follow one another so fast that little gets done between them.
    pub hectic: bool,
    /// Whether a process that starts after syncs have failed can still read what they dropped.
    pub stale_cache: bool,
    /// Whether the story is kept as lines.
    pub keep_lines: bool,
    /// Which syncs the disks only say that they did.
    pub lying_disk: Option<LyingDisk>,
    /// The safety that the program lacks.
    #[cfg(feature = "mutants")]
    pub mutant: Option<Mutant>,
}

/// Which faults there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Mix {
    /// All of them.
    All,
    /// Ends of processes.
    Processes,
    /// Disks that are full or fail.
    Disks,
    /// Links, packets, pauses.
    Network,
    /// Wall clocks.
    Clocks,
}

/// Which syncs a disk says that it did and did not, to see that somebody notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LyingDisk {
    /// All.
    AllSyncs,
    /// Those of the replicated log.
    LogSyncs,
    /// Those of directories: names are never made durable.
    DirectorySyncs,
}

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
    /// The usual run of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: NODES_DEFAULT,
            secs: SECS_DEFAULT,
            faults: true,
            mix: Mix::All,
            hectic: false,
            stale_cache: false,
            keep_lines: false,
            lying_disk: None,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// What a build has to be given to run it.
    const fn features(&self) -> &'static str {
        #[cfg(feature = "mutants")]
        if self.mutant.is_some() {
            return " --features mutants";
        }
        ""
    }

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
            mutants::set(self.mutant);
            trace::begin(self.keep_lines);
            trace::freeze(Some(Duration::ZERO));
            let ending = World::new(&self).run(&self);
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
                violation: Some(format!("the world itself panicked: {panic}")),
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

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::All => "all",
            Self::Processes => "processes",
            Self::Disks => "disks",
            Self::Network => "network",
            Self::Clocks => "clocks",
        })
    }
}

impl fmt::Display for LyingDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AllSyncs => "all-syncs",
            Self::LogSyncs => "log-syncs",
            Self::DirectorySyncs => "directory-syncs",
        })
    }
}

//! What is to be done in a run, and who takes part in it.

use std::fmt;
use std::time::Duration;

#[cfg(feature = "mutants")]
use shiioo_actors::mutants::Mutant;

/// How many clients there are.
pub const CLIENTS: u64 = 4;
/// The host of who only looks.
pub const WATCHER: &str = "eye";
/// The host of the service that steps call.
pub const SERVICE: &str = "svc";
/// Where the service listens.
pub const SERVICE_PORT: u16 = 80;
/// Where a node's API listens.
pub const API_PORT: u16 = 3000;
/// How long a leader may be silent, as the program has it by default.
pub const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);

/// How long the clients work and faults happen, unless told otherwise, seconds.
pub const SECS_DEFAULT: u64 = 30;

/// How many nodes there are, unless told otherwise.
pub const NODES_DEFAULT: u64 = 3;

/// The regions that nodes may be in. The first node is in the first.
const REGIONS: [&str; 2] = ["default", "eu"];

/// How many regions there may be.
pub const REGIONS_MAX: u64 = REGIONS.len() as u64;

/// What to do in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// How many nodes there are.
    pub nodes: u64,
    /// How many regions they are in, in turn. Tenants move where there are several.
    pub regions: u64,
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

impl Plan {
    /// The usual run of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: NODES_DEFAULT,
            regions: 1,
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
    pub(crate) const fn features(&self) -> &'static str {
        #[cfg(feature = "mutants")]
        if self.mutant.is_some() {
            return " --features mutants";
        }
        ""
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

/// The regions of a run that has so many.
pub fn regions(count: u64) -> &'static [&'static str] {
    let count = usize::try_from(count).unwrap_or(1).clamp(1, REGIONS.len());
    REGIONS.split_at(count).0
}

/// The region of the `number`-th node, from 1, where there are so many regions.
pub fn region_of(number: u64, count: u64) -> &'static str {
    let at = usize::try_from(number.saturating_sub(1) % count.max(1)).unwrap_or(0);
    regions(count).get(at).copied().unwrap_or(REGIONS[0])
}

/// The host of the `number`-th node, from 1.
pub fn node_name(number: u64) -> String {
    format!("n{number}")
}

/// The host of the `number`-th client, from 1.
pub fn client_name(number: u64) -> String {
    format!("c{number}")
}

//! Mutants of the program, each without one safety: whether somebody notices, and how soon.
//!
//! A mutant is tried with one seed after the other until a run breaks a promise. That seed is then
//! run again with the program as it is, which has to keep them all: so it was the missing safety
//! that showed, and not the seed.

use clap::Args;
use shiioo_actors::mutants::Mutant;

use super::Outcome;
use super::sweep::sweep;
use crate::plan::{Mix, Plan};

/// Of a violation so much is shown, characters.
const SHOWN_CHARS: usize = 100;

/// What to try.
#[derive(Debug, Clone, Copy, Args)]
pub struct Hunt {
    /// How many seeds a mutant is tried with, at most
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// This mutant and no other
    #[arg(long)]
    only: Option<Mutant>,
    /// How many nodes, instead of what suits the mutant
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=5))]
    nodes: Option<u64>,
}

/// A run that noticed.
struct Caught {
    outcome: Outcome,
    /// What the whole program breaks with the same seed: nothing, as it should be.
    unmutated: Option<String>,
}

/// What provokes a mutant: short runs that are rich in what its safety is for.
fn provoking(mutant: Mutant) -> Plan {
    let plan = Plan { secs: 15, mutant: Some(mutant), ..Plan::new(0) };
    let processes = Plan { mix: Mix::Processes, hectic: true, ..plan };
    let network = Plan { mix: Mix::Network, hectic: true, ..plan };
    let disks = Plan { mix: Mix::Disks, hectic: true, ..plan };
    let clocks = Plan { secs: 20, mix: Mix::Clocks, ..plan };
    match mutant {
        // Power goes, and there is no other node that knows.
        Mutant::NoLogSync | Mutant::NoEventsSync => Plan { nodes: 1, ..processes },
        // What clients do suffices: spent tokens, renewals at the last moment, races for a quota.
        Mutant::NoFencing | Mutant::ExpireRenewed | Mutant::QuotaBeforeApply => plan,
        // The lead moves, for the second one to a node whose clock is wrong.
        Mutant::ForgetTerms => processes,
        Mutant::TermsByWallClock => Plan { secs: 20, hectic: true, ..plan },
        // The disk of who leads is full, so that others have what it lacks when it starts again.
        Mutant::RestoreLeader => disks,
        // Answers are lost on the way to clients and between nodes.
        Mutant::NoIdempotencyKeys | Mutant::NoRequestNames | Mutant::JobsWithoutKeys => network,
        // Somebody asks elsewhere about what was just written, or asks who has been replaced.
        Mutant::NoReadIndex => plan,
        Mutant::NoReadRound => Plan { secs: 30, ..network },
        // A node starts again in the middle of an election.
        Mutant::NoVoteOnDisk => Plan { secs: 30, ..processes },
        // A log is taken away where tenants are not, of which five nodes have more.
        Mutant::TrustMissingLog => Plan { nodes: 5, secs: 30, ..disks },
        // The folder of a tenant is lost, or an older copy.
        Mutant::TrustMissingFiles | Mutant::TrustOlderFiles => Plan { nodes: 1, secs: 30, ..disks },
        // A clock is ahead by days when something is asked again, begins to wait, or starts.
        Mutant::ForgetKeysByClock | Mutant::WaitsByWallClock => clocks,
        Mutant::DayRatchet => Plan { secs: 30, ..clocks },
        // A folder is lost that another replica gives back.
        Mutant::SnapshotWithoutEvents => Plan { secs: 30, ..disks },
        // A process is killed soon after it has applied something.
        Mutant::MarkTooEarly => Plan { nodes: 1, ..processes },
        // A tenant moves while clients write, and the source lets go late: its group has no quorum for a while.
        Mutant::TwoOwners => Plan { nodes: 4, regions: 2, secs: 30, ..network },
        // The folder of a deleted tenant is put back.
        Mutant::ForgetTombstones => Plan { secs: 30, ..disks },
        // The control plane has accepted what a tenant's group has no room for.
        Mutant::DenyAfterAccept => disks,
    }
}

impl Hunt {
    /// Tries the mutants and prints a table. Tells whether each was noticed.
    pub fn run(self) -> bool {
        println!("{:<20} {:>5} {:>6}  what was noticed", "mutant", "seed", "seeds");
        let wanted = |mutant: &Mutant| self.only.is_none_or(|only| only == *mutant);
        let mutants = Mutant::ALL.into_iter().filter(wanted);
        mutants.filter(|mutant| !self.try_one(*mutant)).count() == 0
    }

    fn try_one(self, mutant: Mutant) -> bool {
        let Some(Caught { outcome, unmutated }) = self.catch(mutant) else {
            println!("{mutant:<20} {:>5} {:>6}  NOBODY NOTICED", "-", self.seeds);
            return false;
        };
        let seed = outcome.plan.seed;
        let says = beginning(outcome.violation.as_deref().unwrap_or_default());
        println!("{mutant:<20} {seed:>5} {:>6}  {says}", seed - self.from + 1);
        println!("{:<33}  again: {}", "", outcome.replay_line());
        if let Some(violation) = &unmutated {
            println!("{:<33}  THE WHOLE PROGRAM BREAKS AS WELL: {violation}", "");
        }
        unmutated.is_none()
    }

    /// The first seed that notices.
    fn catch(self, mutant: Mutant) -> Option<Caught> {
        let plan = provoking(mutant);
        let plan = Plan { nodes: self.nodes.unwrap_or(plan.nodes), ..plan };
        let (end, jobs) = (self.from.saturating_add(self.seeds), self.jobs.max(1));
        let outcome = (self.from..end).step_by(jobs).find_map(|from| {
            let next = from.saturating_add(jobs as u64).min(end);
            let failures = sweep(plan, from..next, jobs, |_| ()).failures;
            failures.into_iter().min_by_key(|outcome| outcome.plan.seed)
        })?;
        let unmutated = Plan { mutant: None, ..outcome.plan }.run().violation;
        Some(Caught { outcome, unmutated })
    }
}

/// The beginning of a text, on one line.
fn beginning(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(SHOWN_CHARS).collect()
}

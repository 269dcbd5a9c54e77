//! The simulator as a tool: runs one seed, many, one again with its story, or one twice.

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
#[cfg(feature = "mutants")]
use shiioo_actors::mutants::Mutant;
#[cfg(feature = "mutants")]
use simulations::mutants;
use simulations::{LyingDisk, Mix, Outcome, Plan, Summary, sweep};

/// Runs the shipped node in a simulated world.
#[derive(Debug, Parser)]
#[command(name = "simulations")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs one seed and says how it went
    Run(One),
    /// Runs many seeds and sums up
    Sweep {
        /// How many seeds
        #[arg(long, default_value_t = 100)]
        seeds: u64,
        /// The first seed
        #[arg(long, default_value_t = 0)]
        from: u64,
        /// How many at a time
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        #[command(flatten)]
        how: How,
    },
    /// Runs one seed again, with its story
    Replay {
        #[command(flatten)]
        one: One,
        /// Print every packet, request, fault and disk operation with its time
        #[arg(long)]
        trace: bool,
        /// Log of the program itself, to stderr, as in RUST_LOG
        #[arg(long, value_name = "FILTER")]
        log: Option<String>,
    },
    /// Runs one seed twice and compares every byte of the two traces
    Meta(One),
    /// Takes one safety after the other away from the program, and looks who notices
    #[cfg(feature = "mutants")]
    Mutants(mutants::Hunt),
}

#[derive(Debug, Clone, Copy, Args)]
struct One {
    /// Decides everything
    #[arg(long)]
    seed: u64,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Clone, Copy, Args)]
struct How {
    /// How many nodes
    #[arg(long, default_value_t = simulations::NODES_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=5))]
    nodes: u64,
    /// Simulated seconds of work and faults
    #[arg(long, default_value_t = simulations::SECS_DEFAULT)]
    secs: u64,
    /// No faults
    #[arg(long)]
    calm: bool,
    /// Which faults
    #[arg(long, default_value = "all")]
    mix: Mix,
    /// Faults follow one another fast
    #[arg(long)]
    hectic: bool,
    /// A process that starts after syncs have failed can still read what they dropped
    #[arg(long)]
    stale_cache: bool,
    /// Syncs that the disks only say that they did
    #[arg(long)]
    lying_disk: Option<LyingDisk>,
    /// A safety that the program is to lack
    #[cfg(feature = "mutants")]
    #[arg(long)]
    mutant: Option<Mutant>,
}

impl How {
    fn plan(self, seed: u64) -> Plan {
        Plan {
            nodes: self.nodes,
            secs: self.secs,
            faults: !self.calm,
            mix: self.mix,
            hectic: self.hectic,
            stale_cache: self.stale_cache,
            lying_disk: self.lying_disk,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
            ..Plan::new(seed)
        }
    }
}

fn main() -> ExitCode {
    let good = match Cli::parse().command {
        Command::Run(One { seed, how }) => report(&how.plan(seed).run()),
        Command::Replay { one: One { seed, how }, trace, log } => {
            if let Some(filter) = log {
                log_to_stderr(&filter);
            }
            let outcome = Plan { keep_lines: trace, ..how.plan(seed) }.run();
            let mut stdout = io::stdout().lock();
            for line in &outcome.trace.lines {
                let _ = writeln!(stdout, "{line}");
            }
            report(&outcome)
        }
        Command::Sweep { seeds, from, jobs, how } => {
            many(how.plan(from), from..from.saturating_add(seeds), jobs)
        }
        Command::Meta(One { seed, how }) => twice(how.plan(seed)),
        #[cfg(feature = "mutants")]
        Command::Mutants(hunt) => hunt.run(),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn log_to_stderr(filter: &str) {
    let filter = tracing_subscriber::EnvFilter::new(filter);
    // The real time of a line says nothing here.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).without_time();
    let _ = lines.with_writer(io::stderr).try_init();
}

/// Says how a run went. Tells whether it went well.
fn report(outcome: &Outcome) -> bool {
    let Outcome { plan, trace, violation, simulated, took, faults } = outcome;
    println!(
        "seed {}: {:.1} s simulated in {:.1} s ({:.0} a second), {} events, trace {}",
        plan.seed,
        simulated.as_secs_f64(),
        took.as_secs_f64(),
        simulated.as_secs_f64() / took.as_secs_f64().max(f64::EPSILON),
        trace.events,
        trace.hash
    );
    for (fault, times) in faults {
        println!("  {times:>8}  {fault}");
    }
    match violation {
        None => println!("every promise was kept"),
        Some(violation) => println!("BROKEN: {violation}\n  again: {}", outcome.replay_line()),
    }
    violation.is_none()
}

// How long a sweep takes is shown to people and decides nothing.
#[allow(clippy::disallowed_methods)]
fn many(plan: Plan, seeds: std::ops::Range<u64>, jobs: usize) -> bool {
    let began = Instant::now();
    let total = seeds.end - seeds.start;
    let progress = Progress::new(total);
    let summary = sweep(plan, seeds, jobs, |outcome| progress.show(outcome));
    progress.clear();
    sum_up(&summary, began.elapsed());
    summary.failures.is_empty()
}

fn sum_up(summary: &Summary, took: Duration) {
    let Summary { runs, simulated, faults, failures } = summary;
    println!(
        "{runs} runs, {} with a broken promise; {:.0} s simulated in {:.0} s ({:.0} a second)",
        failures.len(),
        simulated.as_secs_f64(),
        took.as_secs_f64(),
        simulated.as_secs_f64() / took.as_secs_f64().max(f64::EPSILON)
    );
    for (fault, times) in faults {
        println!("  {times:>8}  {fault}");
    }
}

fn twice(plan: Plan) -> bool {
    let plan = Plan { keep_lines: true, ..plan };
    let (one, two) = (plan.run(), plan.run());
    if one.trace == two.trace {
        println!("seed {}: {} events, twice {}", plan.seed, one.trace.events, one.trace.hash);
        return true;
    }
    let (one, two) = (one.trace.lines, two.trace.lines);
    let same = one.iter().zip(&two).take_while(|(one, two)| one == two).count();
    println!("seed {}: the two runs differ after {same} events:", plan.seed);
    for lines in [&one, &two] {
        for line in lines.iter().skip(same.saturating_sub(3)).take(8) {
            println!("  {line}");
        }
        println!();
    }
    false
}

/// A line that is overwritten, on a terminal only.
struct Progress {
    total: u64,
    done: std::sync::atomic::AtomicU64,
    on_terminal: bool,
}

impl Progress {
    fn new(total: u64) -> Self {
        Self { total, done: 0.into(), on_terminal: io::stderr().is_terminal() }
    }

    fn show(&self, outcome: &Outcome) {
        let done = self.done.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
        if let Some(violation) = &outcome.violation {
            self.clear();
            println!("seed {}: {violation}\n  again: {}", outcome.plan.seed, outcome.replay_line());
        }
        if self.on_terminal {
            /// Width of the bar, characters.
            const WIDTH: u64 = 40;
            let full = usize::try_from(WIDTH * done / self.total.max(1)).unwrap_or(0);
            let bar = "#".repeat(full);
            let _ = write!(io::stderr(), "\r[{bar:<40}] {done} of {}", self.total);
        }
    }

    fn clear(&self) {
        if self.on_terminal {
            let _ = write!(io::stderr(), "\r{:60}\r", "");
        }
    }
}

//! The simulator as a tool: runs one seed, many, one again with its story, a script, and seeds
//! more than once to see that they repeat.

mod cli;

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Parser, Subcommand};
#[cfg(feature = "mutants")]
use shiioo_actors::mutants::Mutant;
#[cfg(feature = "mutants")]
use simulations::run::mutants;
use simulations::run::sweep;
use simulations::{LyingDisk, Mix, Plan};

use cli::{log, meta, report, stories};

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
    Sweep(Many),
    /// Runs one seed again, with its story
    Replay {
        #[command(flatten)]
        one: One,
        /// Print every packet, request, election, fault and disk operation with its time
        #[arg(long)]
        trace: bool,
        /// Only lines of these nodes and clients: n1, c2, all
        #[arg(long, value_delimiter = ',')]
        who: Vec<String>,
        /// Only lines of these kinds: node, raft, disk, udp, tcp, http, lock, fault, log
        #[arg(long, value_delimiter = ',')]
        kind: Vec<String>,
        /// Put the program's own log into the story, as in RUST_LOG
        #[arg(long, value_name = "FILTER")]
        log: Option<String>,
    },
    /// Runs one seed twice and compares every line; or many, in several ways
    Meta {
        /// The first seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// How many seeds: alone, several at a time, and in another process
        #[arg(long)]
        seeds: Option<u64>,
        /// How many at a time
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        #[command(flatten)]
        how: How,
    },
    /// Plays scripts and compares what came of them with the transcripts beside them
    Script {
        /// Files or folders of `.story` files
        #[arg(default_value = "simulations/scripts")]
        paths: Vec<PathBuf>,
        /// Write the transcripts instead of comparing them
        #[arg(long)]
        bless: bool,
        /// Print the story of each
        #[arg(long)]
        trace: bool,
        /// Put the program's own log into the story, as in RUST_LOG
        #[arg(long, value_name = "FILTER")]
        log: Option<String>,
    },
    /// Takes one safety after the other away from the program, and looks who notices
    #[cfg(feature = "mutants")]
    Mutants(mutants::Hunt),
    /// Says the hashes of the traces of many seeds
    #[command(hide = true)]
    Hashes(Many),
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
struct Many {
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
}

#[derive(Debug, Clone, Copy, Args)]
struct How {
    /// How many nodes
    #[arg(long, default_value_t = simulations::NODES_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=5))]
    nodes: u64,
    /// How many regions they are in, in turn: tenants move from one to the other
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=simulations::REGIONS_MAX))]
    regions: u64,
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
            regions: self.regions,
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

impl Many {
    fn range(self) -> std::ops::Range<u64> {
        self.from..self.from.saturating_add(self.seeds)
    }
}

/// Has the program end when nobody reads on, as in `replay --trace | head`, instead of panicking.
fn end_with_reader() {
    // SAFETY: the first thing the program does, with no other thread; the default is a valid handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

fn main() -> ExitCode {
    end_with_reader();
    let good = match Cli::parse().command {
        Command::Run(One { seed, how }) => report::one(&how.plan(seed).run()),
        Command::Sweep(many) => swept(many),
        Command::Replay { one, trace, who, kind, log } => {
            let told = trace || log.is_some() || !who.is_empty() || !kind.is_empty();
            replayed(one, told, &Wanted { who, kind }, log.as_deref())
        }
        Command::Meta { seed, seeds: None, how, .. } => meta::one(how.plan(seed)),
        Command::Meta { seed, seeds: Some(seeds), jobs, how } => {
            let many = Many { seeds, from: seed, jobs, how };
            // One more at a time than here: the number must not matter.
            let arguments = again(jobs.saturating_add(1));
            meta::many(how.plan(seed), many.range(), jobs, &arguments).unwrap_or_else(|error| {
                eprintln!("another process cannot be run: {error}");
                false
            })
        }
        Command::Script { paths, bless, trace, log } => {
            logs(log.as_deref()) && stories::play(&paths, bless, trace || log.is_some())
        }
        Command::Hashes(many) => {
            let hashes = sweep::hashes(many.how.plan(many.from), many.range(), many.jobs, |_| ());
            hashes.iter().for_each(|(seed, hash)| println!("{seed} {hash}"));
            true
        }
        #[cfg(feature = "mutants")]
        Command::Mutants(hunt) => hunt.run(),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The arguments of `meta`, as `hashes` takes them.
fn again(jobs: usize) -> Vec<String> {
    let mut arguments = vec!["hashes".to_owned()];
    let mut given = std::env::args().skip(2);
    while let Some(argument) = given.next() {
        match argument.split('=').next().unwrap_or_default() {
            "--jobs" if argument.contains('=') => {}
            "--jobs" => drop(given.next()),
            "--seed" => arguments.push(argument.replacen("--seed", "--from", 1)),
            _ => arguments.push(argument),
        }
    }
    arguments.extend(["--jobs".to_owned(), jobs.to_string()]);
    arguments
}

/// Which lines of a story are shown; all where nothing is named.
struct Wanted {
    who: Vec<String>,
    kind: Vec<String>,
}

impl Wanted {
    fn has(&self, line: &str) -> bool {
        let mut words = line.split_whitespace().skip(1);
        let named = |wanted: &[String], word: Option<&str>| {
            wanted.is_empty() || word.is_some_and(|word| wanted.iter().any(|name| name == word))
        };
        named(&self.who, words.next()) && named(&self.kind, words.next())
    }
}

fn replayed(one: One, trace: bool, wanted: &Wanted, log: Option<&str>) -> bool {
    if !logs(log) {
        return false;
    }
    let outcome = Plan { keep_lines: trace, ..one.how.plan(one.seed) }.run();
    let mut stdout = io::stdout().lock();
    for line in outcome.trace.lines.iter().filter(|line| wanted.has(line)) {
        // Who reads it may have seen enough.
        let _ = writeln!(stdout, "{line}");
    }
    drop(stdout);
    report::one(&outcome)
}

/// Puts the program's log into stories, where it is asked for. Tells whether it can be had.
fn logs(filter: Option<&str>) -> bool {
    match filter.map(log::into_story) {
        Some(Err(error)) => {
            eprintln!("the log cannot be had: {error}");
            false
        }
        Some(Ok(())) | None => true,
    }
}

// How long a sweep takes is shown to people and decides nothing.
#[allow(clippy::disallowed_methods)]
fn swept(many: Many) -> bool {
    let began = Instant::now();
    let progress = report::Progress::new(many.seeds);
    let plan = many.how.plan(many.from);
    let summary = sweep::sweep(plan, many.range(), many.jobs, |outcome| progress.show(outcome));
    progress.clear();
    report::many(&summary, began.elapsed())
}

//! What the tool says: of one run, of many, and while they are under way.

use std::time::Duration;

use clap::ValueEnum as _;
use indicatif::{ProgressBar, ProgressStyle};
use simulations::world::Fault;
use simulations::{Outcome, Summary};

/// Says how a run went. Tells whether it went well.
pub fn one(outcome: &Outcome) -> bool {
    let Outcome { plan, trace, violation, simulated, took, faults, compared, heap_bytes } = outcome;
    println!(
        "seed {}: {:.1} s simulated in {:.1} s ({:.0} a second), {} events, trace {}",
        plan.seed,
        simulated.as_secs_f64(),
        took.as_secs_f64(),
        per_second(*simulated, *took),
        trace.events,
        trace.hash
    );
    for (fault, times) in faults.iter().filter(|(_, times)| **times > 0) {
        println!("  {times:>8}  {fault}");
    }
    println!("  {:>8}  log entries compared between nodes", compared.entries);
    println!("  {:>8}  states compared between nodes", compared.states);
    println!("  {:>8}  tenants compared by the nodes themselves", compared.tenants);
    println!("  {:>8}  of them differed", compared.differing);
    println!("  {:>8}  MiB on the heap at most", heap_bytes >> 20);
    match violation {
        None => println!("every promise was kept"),
        Some(violation) => println!("BROKEN: {violation}\n  again: {}", outcome.replay_line()),
    }
    violation.is_none()
}

/// Sums up a sweep. Tells whether it went well.
pub fn many(summary: &Summary, took: Duration) -> bool {
    let Summary { runs, simulated, faults, compared, failures } = summary;
    println!("{:<36} {:>9} {:>10} {:>12}", "fault", "times", "runs kept", "runs broken");
    for fault in Fault::value_variants() {
        let tally = faults.get(fault).copied().unwrap_or_default();
        let never = if tally.times == 0 { "  never happened" } else { "" };
        let (times, kept, broken) = (tally.times, tally.kept, tally.broken);
        println!("{fault:<36} {times:>9} {kept:>10} {broken:>12}{never}");
    }
    println!(
        "{runs} runs, {} with a broken promise; {} log entries and {} states compared between \
         nodes, {} tenants by the nodes themselves, of which {} differed; {:.0} s simulated in {:.0} s ({:.0} a second)",
        failures.len(),
        compared.entries,
        compared.states,
        compared.tenants,
        compared.differing,
        simulated.as_secs_f64(),
        took.as_secs_f64(),
        per_second(*simulated, took)
    );
    for outcome in failures {
        println!("seed {}: again: {}", outcome.plan.seed, outcome.replay_line());
    }
    failures.is_empty()
}

fn per_second(simulated: Duration, took: Duration) -> f64 {
    simulated.as_secs_f64() / took.as_secs_f64().max(f64::EPSILON)
}

/// A bar on the terminal, and the broken promises as they are found.
pub struct Progress(ProgressBar);

impl Progress {
    /// For so many runs.
    pub fn new(total: u64) -> Self {
        const TEMPLATE: &str = "[{bar:40}] {pos} of {len}, {eta} left";
        let bar = ProgressBar::new(total);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style.progress_chars("##-"));
        }
        Self(bar)
    }

    /// Counts a run.
    pub fn show(&self, outcome: &Outcome) {
        if let Some(violation) = &outcome.violation {
            self.0.suspend(|| {
                let (seed, again) = (outcome.plan.seed, outcome.replay_line());
                println!("seed {seed}: {violation}\n  again: {again}");
            });
        }
        self.0.inc(1);
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        self.0.finish_and_clear();
    }
}

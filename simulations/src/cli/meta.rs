//! Runs seeds more than once and compares what happened: whatever differs is chance that leaked in.

use std::collections::BTreeMap;
use std::io;
use std::process::{Command, Stdio};

use simulations::Plan;
use simulations::run::sweep;

use super::report::Progress;

/// Lines before and after the first difference.
const LINES_BEFORE: usize = 3;
const LINES_AFTER: usize = 5;

/// Runs one seed twice and compares every line. Tells whether the two are the same.
pub fn one(plan: Plan) -> bool {
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
        let from = same.saturating_sub(LINES_BEFORE);
        for line in lines.iter().skip(from).take(LINES_BEFORE + LINES_AFTER) {
            println!("  {line}");
        }
        println!();
    }
    false
}

/// Runs many seeds three times: one after the other, several at a time, and in another process.
/// Tells whether all are the same.
///
/// # Errors
/// When the other process cannot be run.
pub fn many(
    plan: Plan,
    seeds: std::ops::Range<u64>,
    jobs: usize,
    arguments: &[String],
) -> io::Result<bool> {
    let progress = Progress::new(2 * (seeds.end - seeds.start));
    let alone = sweep::hashes(plan, seeds.clone(), 1, |outcome| progress.show(outcome));
    let abreast = sweep::hashes(plan, seeds.clone(), jobs, |outcome| progress.show(outcome));
    progress.clear();
    let elsewhere = in_another_process(arguments)?;
    let mut same = true;
    for seed in seeds.clone() {
        let [one, two, three] =
            [&alone, &abreast, &elsewhere].map(|hashes| hashes.get(&seed).map_or("-", |h| h));
        if one != two || one != three {
            same = false;
            println!("seed {seed}: alone {one}, {jobs} abreast {two}, in another process {three}");
        }
    }
    if same {
        let count = seeds.end - seeds.start;
        println!("{count} seeds: the same alone, {jobs} at a time, and in another process");
    }
    Ok(same)
}

/// Has this very program run the seeds again and say their hashes.
fn in_another_process(arguments: &[String]) -> io::Result<BTreeMap<u64, String>> {
    let mut program = Command::new(std::env::current_exe()?);
    let output = program.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let hash = |line: &str| {
        let (seed, hash) = line.split_once(' ')?;
        Some((seed.parse().ok()?, hash.to_owned()))
    };
    Ok(text.lines().filter_map(hash).collect())
}

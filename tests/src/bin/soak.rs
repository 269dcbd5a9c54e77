//! `cargo run --release -p tests --bin soak`: kills a node under load, again and again, and checks
//! after each restart that it kept its promises. With `failover`: takes the leader of a cluster
//! away, again and again, and measures how long it takes until others serve. With `hostile`: has one
//! tenant do everything at once that it can, and measures what its neighbour notices. With `cluster`:
//! kills and stops nodes of a cluster under load, and checks and measures what its tenants notice.
//! With `grow`: adds, removes and restarts nodes under load.

use clap::{Parser, Subcommand};
use tests::chaos::{self, Plan};
use tests::{cluster_chaos, failover, grow, hostile};

/// Kills a node under load, again and again, and checks that nothing acknowledged is lost.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// How many rounds end in a kill.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// How many clients write.
    #[arg(long, default_value_t = 6)]
    clients: usize,
    /// Chooses moments and operations; by default another one every time.
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Subcommand)]
enum Mode {
    /// Takes the leader away, by `kill -9` and by SIGSTOP, and measures.
    Failover(failover::Args),
    /// Has a hostile tenant hurt its neighbour, and measures.
    Hostile(hostile::Args),
    /// Kills and stops nodes of a cluster under load, checks, and measures.
    Cluster(cluster_chaos::Args),
    /// Adds, removes and restarts nodes under load, and checks and measures what clients see.
    Grow(grow::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Args { mode, kills, clients, seed } = Args::parse();
    match mode {
        Some(Mode::Failover(args)) => return failover::measure(&args).await,
        Some(Mode::Hostile(args)) => return hostile::soak(&args).await,
        Some(Mode::Cluster(args)) => return cluster_chaos::soak(&args).await,
        Some(Mode::Grow(args)) => return grow::soak(&args).await,
        None => {}
    }
    let seed = seed.unwrap_or_else(chaos::any_seed);
    let again = format!(
        "cargo run --release -p tests --bin soak -- --seed {seed} --kills {kills} --clients {clients}"
    );
    println!("{again}");
    let plan = Plan { seed, kills, clients, again, verbose: true };
    let summary = chaos::run(&plan).await;
    println!(
        "{} kills survived: {}; slowest recovery {:.1?}",
        summary.kills, summary.totals, summary.slowest_recovery
    );
}

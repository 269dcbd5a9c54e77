//! `cargo run --release -p tests --bin soak`: kills a node under load, again and again, and checks
//! after each restart that it kept its promises.

use clap::Parser;
use tests::chaos::{self, Plan};

/// Kills a node under load, again and again, and checks that nothing acknowledged is lost.
#[derive(Parser)]
struct Args {
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

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let Args { kills, clients, seed } = Args::parse();
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

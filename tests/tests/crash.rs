//! `kill -9` at random moments under load: what was acknowledged is there, what was begun ends.
//!
//! `cargo run --release -p tests --bin soak` does the same for longer.

use std::time::Duration;

use tests::chaos::{self, Plan, SEED_VARIABLE};

const KILLS: u32 = 10;
const CLIENTS: usize = 5;
const TIME_MAX: Duration = Duration::from_secs(600);
const SEED: u64 = 7;

#[tokio::test]
async fn kill_9_loses_nothing_acknowledged() {
    let seed = chaos::seed_or(SEED);
    let again = format!("{SEED_VARIABLE}={seed} cargo test -p tests --test crash");
    let plan = Plan { seed, kills: KILLS, clients: CLIENTS, again, verbose: true };
    let ran = tokio::time::timeout(TIME_MAX, chaos::run(&plan)).await;
    let summary = ran.unwrap_or_else(|_| panic!("longer than {TIME_MAX:?}: {}", plan.again));
    assert!(summary.kills >= KILLS);
    assert!(summary.totals.runs > 20, "there was load: {}", summary.totals);
}

//! Nodes that die and fall silent under load: tenants keep what was acknowledged, their quotas hold, and
//! their replicas are equal to the byte. How long they wait is not asserted.
//!
//! `cargo run --release -p tests --bin soak -- cluster` does the same for longer.

use std::time::Duration;

use tests::cluster_chaos::{self, Args};

const TIME_MAX: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn tenants_keep_what_was_acknowledged_whichever_node_is_taken_away() {
    let args =
        Args { nodes: 3, rounds: 3, tenants: 4, clients: 2, seed: Some(7), node_args: Vec::new() };
    let ran = tokio::time::timeout(TIME_MAX, cluster_chaos::trial(&args)).await;
    let report = ran.unwrap_or_else(|_| panic!("longer than {TIME_MAX:?}"));
    println!("{report}");
    assert!(report.runs > 50 && report.grants > 5, "there was load: {report}");
    assert!(report.refused > 0, "the quota was used up: {report}");
}

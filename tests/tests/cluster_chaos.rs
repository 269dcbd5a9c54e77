//! Nodes that die and fall silent under load: tenants keep what was acknowledged, their quotas hold, and
//! their replicas are equal to the byte. How long they wait is not asserted.
//!
//! `cargo run --release -p tests --bin soak -- cluster` does the same for longer.

use tests::cluster_chaos::{self, Args};

#[tokio::test(flavor = "multi_thread")]
async fn tenants_keep_what_was_acknowledged_whichever_node_is_taken_away() {
    let args =
        Args { nodes: 3, rounds: 3, tenants: 4, clients: 2, seed: Some(7), node_args: Vec::new() };
    let report = cluster_chaos::trial(&args).await;
    println!("{report}");
    assert!(report.runs > 50 && report.grants > 5, "there was load: {report}");
    assert!(report.refused > 0, "the quota was used up: {report}");
}

//! A hostile tenant hurts nobody: the trial of the soak, short, on one node, and without a look at the
//! clock. A burst of new connections may take all places for a moment, longer on a machine that does
//! other things: the neighbour tries again when it has to make way, and has to get in. What
//! has to hold on a quiet machine alone (latency, no refusal at all) the soak demands.

use tests::hostile::{self, Args};

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_tenant_ends_no_node_and_fails_no_run_of_its_neighbour() {
    let args = Args {
        nodes: 1,
        seconds: 10,
        alone_seconds: 2,
        rate: 5,
        patience_secs: 20,
        width: 2,
        descriptors: 256,
        // Above what the soak asks for: builds without optimisation take more.
        memory_mib: 1024,
        ..Args::default()
    };
    let report = hostile::trial(&args).await;
    println!("{report}");
    assert_eq!(report.beside.full(), 0, "the disk was full");
    let wrong = report.worst(&args);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

//! A hostile tenant hurts nobody: the trial of the soak, short, and without a look at the clock.

use tests::hostile::{self, Args};

async fn nobody_is_hurt(args: Args) {
    let report = hostile::trial(&args).await;
    println!("{report}");
    assert_eq!(report.beside.full(), 0, "the disk was full");
    let wrong = report.wrongs(&args);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn short(nodes: usize) -> Args {
    Args {
        nodes,
        seconds: 10,
        alone_seconds: 2,
        rate: 5,
        width: 2,
        descriptors: 256,
        ..Args::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_tenant_hurts_nobody_on_one_node() {
    nobody_is_hurt(short(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_tenant_hurts_nobody_on_three_nodes() {
    nobody_is_hurt(short(3)).await;
}

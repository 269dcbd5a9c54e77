//! A cluster that changes while it is used: a node joins, one is removed, each is started again, and clients see
//! nothing but time.
//!
//! `cargo run --release -p tests --bin soak -- grow` does the same for longer, and more.

use tests::grow::{Changes, changes};

#[tokio::test(flavor = "multi_thread")]
async fn no_client_sees_an_error_while_nodes_join_leave_and_start_again() {
    let plan = Changes { tenants: 6, clients: 1, removes: true, restarts: true, seed: 7 };
    let tally = changes(&plan).await;
    println!("{tally}");
    assert!(tally.errors().is_empty(), "{:#?}", tally.errors());
    assert!(tally.answers() > 50, "there was load: {tally}");
}

//! Requests that other nodes hand over, to a node whose actors do not run yet: it declines them,
//! which tells the other node that nothing was done.

mod support;

use std::time::Duration;

use tokio::time::Instant;

#[tokio::test]
async fn a_node_that_is_starting_declines_whatever_it_is_handed() {
    let api = support::api(None);
    for request in [vec![], vec![1, 2, 3], vec![255; 4096]] {
        let deadline = Instant::now() + Duration::from_secs(1);
        let declined = api.serve_forwarded(2, request, deadline).await.unwrap_err();
        assert_eq!(declined.0, "the node is starting");
    }
}

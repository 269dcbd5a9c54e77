//! Requests that other nodes hand over, to a node whose actors do not run yet: it says
//! that it has done nothing.

mod support;

use std::time::Duration;

use shiioo_actors::domain::ids::RaftId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::time::Instant;

#[tokio::test]
async fn a_node_that_is_starting_has_done_nothing_of_what_it_is_handed() {
    let api = support::api(None);
    let (mut asks, answers) = duplex(1 << 16);
    asks.write_all(b"POST /api/locks/k/acquire HTTP/1.1\r\n\r\n").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    api.serve_forwarded(RaftId(2), Box::new(answers), deadline).await;
    let mut answer = String::new();
    asks.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("x-shiioo-answer: not-done"), "{answer}");
}

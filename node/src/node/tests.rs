//! Start and stop over real files and sockets.

use std::net::SocketAddr;

use shiioo_storage::disk::read_small;

use super::data_dir::READY_FILE;
use super::*;
use crate::client_threads::ClientThreads;

fn anywhere(data_dir: &std::path::Path) -> (Config, NodeSeams) {
    let free: SocketAddr = ([127, 0, 0, 1], 0).into();
    let config = Config {
        api_addr: free,
        node_addr: free,
        data_dir: data_dir.to_owned(),
        ..Config::default()
    };
    (config, NodeSeams::real(data_dir, ClientThreads::Shared).unwrap())
}

async fn refused(config: Config, seams: NodeSeams) -> String {
    let error = Node::start(config, seams).await.err().unwrap().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[tokio::test]
async fn a_node_keeps_its_identity_and_says_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (config, seams) = anywhere(dir.path());
    let node = Node::start(config.clone(), seams.clone()).await.unwrap();
    let bytes = read_small(&*seams.disk, READY_FILE).unwrap().unwrap();
    let ready: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let expected = serde_json::json!({
        "node_id": node.identity().node_id.to_string(),
        "api_addr": node.api_addr().to_string(),
        "node_addr": node.node_addr().to_string(),
        "pid": std::process::id(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    assert_eq!(ready, expected);

    let identity = node.identity().clone();
    node.stop().await;
    assert!(!seams.disk.exists(READY_FILE).unwrap());
    let node = Node::start(config, seams).await.unwrap();
    // It knows by now who the members are.
    assert_eq!(Identity { peers: Vec::new(), ..node.identity().clone() }, identity);
    node.stop().await;
}

#[tokio::test]
async fn a_data_directory_has_one_node() {
    let dir = tempfile::tempdir().unwrap();
    let (config, seams) = anywhere(dir.path());
    let first = Node::start(config.clone(), seams.clone()).await.unwrap();
    let error = refused(config.clone(), seams.clone()).await;
    let named = format!("process {}, API at {}", std::process::id(), first.api_addr());
    assert!(error.contains(&named) && error.contains("--data-dir"), "{error}");
    assert!(seams.disk.exists(READY_FILE).unwrap(), "the loser leaves the winner's file alone");
    first.stop().await;
    Node::start(config, seams).await.unwrap().stop().await;
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_flag() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (config, seams) = anywhere(here.path());
    let first = Node::start(config, seams).await.unwrap();
    let (config, seams) = anywhere(there.path());

    let taken = Config { api_addr: first.api_addr(), ..config.clone() };
    let error = refused(taken, seams.clone()).await;
    assert!(error.contains(&first.api_addr().to_string()), "{error}");
    assert!(error.contains("another program") && error.contains("--api-addr"), "{error}");
    let taken = Config { node_addr: first.node_addr(), ..config.clone() };
    let error = refused(taken, seams.clone()).await;
    assert!(error.contains("--node-addr"), "{error}");

    Node::start(config, seams).await.unwrap().stop().await;
    first.stop().await;
}

#[tokio::test]
async fn clients_are_served_on_threads_of_their_own() {
    let mut own = tokio::runtime::Builder::new_multi_thread();
    let own = own.worker_threads(1).enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (config, seams) = anywhere(dir.path());
    let client_threads = ClientThreads::Own(own.handle().clone());
    let node = Node::start(config, NodeSeams { client_threads, ..seams }).await.unwrap();
    assert!(own.metrics().num_alive_tasks() > 0, "the API listens elsewhere");
    node.stop().await;
    own.shutdown_background();
}

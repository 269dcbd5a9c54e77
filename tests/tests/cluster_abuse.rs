//! What reaches the port between nodes and is none of them.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tests::chaos::seed_or;
use tests::flood::{Trap, flood};
use tests::{Client, Cluster, Launch, Server, eventually};
use tokio::time::Instant;

const FLOOD: Duration = Duration::from_secs(4);
/// Room for buffers and for the handshakes that a node bounds; a leak per datagram would be more.
const GROWTH_KIB_MAX: u64 = 128 * 1024;
const SEED: u64 = 1;

async fn locks_while<T>(client: Client, done: tokio::task::JoinHandle<T>) -> (T, Duration, u32) {
    let (mut slowest, mut cycles) = (Duration::ZERO, 0);
    while !done.is_finished() {
        let started = Instant::now();
        let body = json!({ "holder": "steady" });
        client.post("/api/locks/steady/acquire", body.clone()).await.expect(200);
        client.post("/api/locks/steady/release", body).await.expect(200);
        slowest = slowest.max(started.elapsed());
        cycles += 1;
    }
    (done.await.expect("it does not panic"), slowest, cycles)
}

#[tokio::test]
async fn a_flood_of_datagrams_costs_little_and_stops_nobody() {
    let mut cluster = Cluster::of(3, &[]).await;
    let (leader, term) = cluster.await_leader(&[]).await;
    let target = cluster.node_addr(leader).parse().expect("an address");
    // The beginnings of real connections, from a node that wants to join.
    let (trap, folder) = (Trap::set(), TempDir::new().expect("a temporary folder"));
    let args = vec!["--join".to_owned(), trap.addr().to_string()];
    let joiner = Launch::anywhere(folder.path(), args).start();
    let caught = trap.catch(8, Duration::from_secs(20)).await;
    drop(joiner);
    assert!(!caught.is_empty(), "a joiner dials");
    let before = cluster.server(leader).rss_kib();
    let seed = seed_or(SEED);
    println!("seed {seed}");
    let flooding = flood(target, caught, FLOOD, seed);
    let follower = cluster.client((leader + 1) % 3);
    let (sent, slowest, cycles) = locks_while(follower, flooding).await;
    let after = cluster.server(leader).rss_kib();
    println!(
        "{sent} datagrams: {before} KiB before, {after} KiB after; {cycles} lock cycles, {slowest:?}"
    );
    assert!(after < before + GROWTH_KIB_MAX, "{before} KiB before, {after} KiB after");
    assert!(cycles > 0, "nobody else was served meanwhile");
    cluster.whole().await;
    println!("term {term} before, {} after", cluster.await_leader(&[]).await.1);
    // Room for newcomers is left, or is there again soon.
    let launch = cluster.next_launch(&[]);
    cluster.add(launch).await;
    cluster.whole().await;
    let late = cluster.server(leader).rss_kib();
    println!("{late} KiB at last");
    assert!(late < before + GROWTH_KIB_MAX, "{before} KiB before, {late} KiB at last");
}

#[tokio::test]
async fn a_member_of_another_cluster_is_a_stranger_here() {
    // Of two clusters, each with its own authority: a node of one comes to stand where the other
    // one's member was, and is dialled by that one's leader with a certificate it does not know.
    let mut ours = Cluster::of(3, &[]).await;
    let victim = (ours.leader().await + 1) % 3;
    let place = ours.node_addr(victim);
    ours.kill9(victim);
    let folder = TempDir::new().expect("a temporary folder");
    let mut launch = Launch::anywhere(folder.path(), Vec::new());
    launch.node_addr = place.parse().expect("an address");
    let mut foreign = launch.start();
    foreign.await_ready().await.expect("a cluster of its own");
    let before = foreign.rss_kib();
    eventually("it turns the others away", async || {
        foreign.output().contains("a connection was refused").then_some(())
    })
    .await;
    let client = foreign.client();
    let (leader, survivor) = (ours.leader().await, ours.running()[0]);
    assert!(ours.running().contains(&leader), "nobody mistakes it for the member");
    eventually("its place is seen to be empty", async || {
        (ours.statuses(survivor).await?.get(ours.id(victim))? == "Unhealthy").then_some(())
    })
    .await;
    for _ in 0..20 {
        ours.client(survivor)
            .post("/api/locks/a/acquire", json!({ "holder": "h" }))
            .await
            .expect(200);
        client.post("/api/locks/b/acquire", json!({ "holder": "h" })).await.expect(200);
    }
    let nodes = client.get("/api/cluster/nodes").await.expect(200);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1), "{nodes:#}");
    client.get("/api/locks/a").await.problem(404, "not_found");
    let after = foreign.rss_kib();
    assert!(after < before + GROWTH_KIB_MAX, "{before} KiB before, {after} KiB after");
    let lines = foreign.output().matches("a connection was refused").count();
    assert!(lines < 50, "{lines} lines about the same: a log is no weapon");

    // When it is gone the member comes back to its place.
    drop(foreign);
    ours.restart(victim).await;
    ours.whole().await;
}

#[tokio::test]
async fn many_that_knock_with_a_wrong_token_stop_nobody() {
    const KNOCKERS: usize = 6;
    let cluster = Cluster::of(1, &["--join-token", "a-secret-of-the-tests"]).await;
    let (client, at) = (cluster.client(0), cluster.node_addr(0));
    let mut knocking = tokio::task::JoinSet::new();
    for number in 0..KNOCKERS {
        let at = at.clone();
        knocking.spawn(async move {
            let folder = TempDir::new().expect("a temporary folder");
            let secret = format!("not-the-secret-{number}");
            let args = ["--join", &at, "--join-token", &secret];
            let exit = Server::try_start(folder.path(), &args).await.err().expect("it is refused");
            assert_eq!(exit.code, Some(1), "{}", exit.output);
        });
    }
    let done = tokio::spawn(async move {
        while knocking.join_next().await.transpose().expect("refused").is_some() {}
    });
    let ((), slowest, cycles) = locks_while(client.clone(), done).await;
    println!("{cycles} lock cycles, the slowest took {slowest:?}");
    let health = client.get("/api/cluster/health").await.expect(200);
    assert_eq!(health["total_nodes"], 1);
}

//! Ready means ready: who says so can be relied on, and who is not says what it waits for.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Cluster, Tenant, eventually, spec};
use tokio::time::Instant;

/// Of the nodes whose time to notice a lost quorum is measured: so long that the seconds that a busy machine
/// adds do not count.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(5);
const ROUNDS: usize = 3;

/// Whether every node says of itself that it is ready and of all that they are healthy.
async fn all_are_ready(cluster: &Cluster) -> bool {
    for node in cluster.running() {
        let ready = cluster.poller(node).call("GET", "/readyz").try_send().await;
        let statuses = cluster.statuses(node).await.unwrap_or_default();
        let are_healthy = statuses.len() == 3 && statuses.values().all(|it| it == "Healthy");
        if !are_healthy || !ready.is_ok_and(|reply| reply.status == 200) {
            return false;
        }
    }
    true
}

async fn reasons(cluster: &Cluster, node: usize) -> Option<Vec<Value>> {
    let reply = cluster.poller(node).call("GET", "/readyz").try_send().await.ok()?;
    (reply.status == 503).then(|| reply.json()["reasons"].as_array().cloned())?
}

#[tokio::test]
async fn three_that_say_they_are_ready_can_lose_one_at_once() {
    for _ in 0..ROUNDS {
        let mut cluster = Cluster::of(1, &[]).await;
        for _ in 0..2 {
            let launch = cluster.next_launch(&[]);
            cluster.add(launch).await;
        }
        eventually("all are ready", async || all_are_ready(&cluster).await.then_some(())).await;
        let (leader, _) = cluster.await_leader(&[]).await;
        cluster.kill9(leader);
        cluster.await_leader(&[leader]).await;
        let client = cluster.client(cluster.running()[0]);
        let lock = json!({ "holder": "h" });
        let lock = client.post("/api/locks/after/acquire", lock).await.expect(200);
        assert_eq!(lock["acquired"], true, "{lock:#}");
    }
}

#[tokio::test]
async fn a_node_that_lost_its_quorum_says_so_in_time() {
    let timeout = format!("--election-timeout={}s", ELECTION_TIMEOUT.as_secs());
    let mut cluster = Cluster::of(3, &[&timeout]).await;
    let health = cluster.client(0).get("/api/cluster/health").await.expect(200);
    assert_eq!((&health["voters"], &health["quorum"]), (&json!(3), &json!(2)), "{health:#}");
    let followers = cluster.followers().await;
    let left = followers[0];
    for node in 0..3 {
        if node != left {
            cluster.kill9(node);
        }
    }
    let lost = Instant::now();
    eventually("it is not ready", async || reasons(&cluster, left).await).await;
    let took = lost.elapsed();
    assert!(took < 2 * ELECTION_TIMEOUT, "{took:?}");
    eventually("it counts who is left", async || {
        let reasons = reasons(&cluster, left).await?;
        (reasons == [json!("waits for a quorum: 1 of 3 members reachable")]).then_some(())
    })
    .await;
    let health = cluster.client(left).get("/api/cluster/health").await.expect(200);
    let expected = json!({ "total_nodes": 3, "healthy_nodes": 1, "has_leader": false,
        "leader_id": null, "voters": 3, "quorum": 2, "can_lose": 0 });
    assert_eq!(health, expected);
}

#[tokio::test]
async fn a_node_that_starts_alone_answers_from_its_own_disk() {
    let mut cluster = Cluster::of(3, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let alone = 2;
    eventually("the last node knows the tenant", async || {
        let known = cluster.client(alone).get("/api/tenants?consistency=stale").await.expect(200);
        known.to_string().contains(&tenant.id).then_some(())
    })
    .await;
    // Stopped in good order, so that its own files have all that it has heard of.
    cluster.term(alone).await;
    for node in 0..2 {
        cluster.kill9(node);
    }
    cluster.relaunch(alone);
    let waits = json!("waits for a quorum: 1 of 3 members reachable");
    eventually("it says what it waits for", async || {
        reasons(&cluster, alone).await.filter(|reasons| *reasons == [waits.clone()])
    })
    .await;
    let client = cluster.client(alone);
    client.get("/healthz").await.expect(200);
    let tenants = client.get("/api/tenants?consistency=stale").await;
    assert!(tenants.header("shiioo-applied-index").is_some(), "{:?}", tenants.headers);
    assert!(tenants.expect(200).to_string().contains(&tenant.id));
    let health = client.get("/api/cluster/health").await.expect(200);
    assert_eq!((&health["total_nodes"], &health["voters"]), (&json!(3), &json!(3)), "{health:#}");
    let leader = client.get("/api/cluster/leader").await.expect(200);
    assert_eq!(leader["leader"], Value::Null);
    let output = eventually("it tells its log", async || {
        let output = cluster.server(alone).output();
        output.contains("1 of 3 members reachable").then_some(output)
    })
    .await;
    assert!(!output.contains("panicked"), "{output}");
    for node in 0..2 {
        cluster.relaunch(node);
    }
    cluster.whole().await;
    client.get(&format!("/api/tenants/{}", tenant.id)).await.expect(200);
}

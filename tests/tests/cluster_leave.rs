//! Nodes that leave: removed alive, removed dead, and leaders that step down.

use serde_json::{Value, json};
use tests::{Cluster, Lead, Tenant, eventually, files, spec};

/// A removal is answered once the node has left all groups, or refused when the time of a request is over.
const PATIENT: [&str; 1] = ["--request-timeout=30s"];

async fn listed(cluster: &Cluster, at: usize) -> Vec<usize> {
    let nodes = cluster.client(at).get("/api/cluster/nodes").await.expect(200);
    let nodes = nodes["nodes"].as_array().expect("a list").clone();
    let mut places: Vec<_> =
        nodes.iter().map(|node| cluster.place_of(node["id"].as_str().expect("an id"))).collect();
    places.sort_unstable();
    places
}

#[tokio::test]
async fn a_removed_follower_is_drained_and_ends_with_a_clear_line() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let victim = cluster.followers().await.into_iter().find(|node| *node != 0).expect("one");
    let other = 3 - victim;
    let reply = cluster.client(other).delete(&cluster.path(victim)).await.expect(200);
    let message = format!("Node {} removed successfully", cluster.id(victim));
    assert_eq!(reply["message"], message);
    let exit = cluster.ended(victim).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    assert!(exit.output.contains("removed"), "{}", exit.output);
    assert!(!exit.output.contains("panicked"), "{}", exit.output);
    for trouble in [" ERROR ", " WARN shiioo_actors::node"] {
        assert!(!exit.output.contains(trouble), "nothing has failed: {}", exit.output);
    }
    for node in [0, other] {
        let mut left = vec![0, other];
        left.sort_unstable();
        assert_eq!(listed(&cluster, node).await, left);
        cluster.client(node).get(&cluster.path(victim)).await.problem(404, "not_found");
        cluster.client(node).delete(&cluster.path(victim)).await.problem(404, "not_found");
    }
    eventually("its replica is gone", async || {
        let groups = cluster.client(0).get("/api/cluster/groups").await.expect(200);
        let replicas = groups["groups"][0]["replicas"].as_array().map(Vec::len);
        (replicas == Some(2)).then_some(())
    })
    .await;
    Tenant::create(&cluster.client(other), spec::unlimited()).await;

    // What it has on disk lets it in nowhere; without, it is a new node.
    cluster.relaunch(victim);
    let exit = cluster.ended(victim).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    let line = exit.output.lines().rfind(|line| line.starts_with("error: ")).unwrap_or_default();
    for words in ["removed", "--join and an empty data directory", "--data-dir"] {
        assert!(line.contains(words), "no {words:?} in {}", exit.output);
    }
    assert!(!exit.output.contains(" ERROR "), "nothing has failed: {}", exit.output);
    let launch = cluster.server(victim).launch_mut().clone();
    files::remove(&launch.folder.join("data"));
    cluster.add(launch).await;
    cluster.whole().await;
}

#[tokio::test]
async fn the_node_that_performs_a_run_is_removed_and_the_run_goes_on() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let tenant = Tenant::create(&cluster.client(1), spec::unlimited()).await;
    let run = tenant.start(spec::inline([spec::wait("w", 4.0), spec::set("a", 1)])).await;
    let owner = eventually("a leader", async || {
        let placed = tenant.get("").await.expect(200)["placement"].clone();
        placed["leader"].as_str().map(|leader| cluster.place_of(leader))
    })
    .await;
    let other = (owner + 1) % 3;
    cluster.client(other).delete(&cluster.path(owner)).await.expect(200);
    let exit = cluster.ended(owner).await;
    assert!(exit.output.contains("removed"), "{}", exit.output);
    assert_eq!(listed(&cluster, other).await.len(), 2);
    let elsewhere = Tenant { id: tenant.id, client: cluster.client(other) };
    assert_eq!(elsewhere.ended(&run).await["status"], "completed");
    let placed = elsewhere.get("").await.expect(200)["placement"].clone();
    assert_eq!(placed["replicas"].as_array().map(Vec::len), Some(2), "{placed:#}");
    cluster.whole().await;
}

#[tokio::test]
async fn the_last_node_of_the_tenants_is_not_removed() {
    let cluster = Cluster::of(1, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let refused = cluster.client(0).delete(&cluster.path(0)).await;
    refused.problem(409, "would_lose_quorum");
    tenant.finished(spec::inline([spec::set("a", 1)])).await;
}

#[tokio::test]
async fn a_dead_follower_is_removed_as_it_is() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let victim = cluster.followers().await.into_iter().find(|node| *node != 0).expect("one");
    cluster.kill9(victim);
    eventually("it is seen to be dead", async || {
        (cluster.statuses(0).await?.get(cluster.id(victim))? == "Unhealthy").then_some(())
    })
    .await;
    // Of the two that are left none can go: one alone would not be a majority of what was agreed.
    let other = 3 - victim;
    let refused = cluster.client(0).delete(&cluster.path(other)).await;
    refused.problem(409, "would_lose_quorum");
    cluster.client(other).delete(&cluster.path(victim)).await.expect(200);
    assert_eq!(listed(&cluster, 0).await.len(), 2);
    cluster.whole().await;
    // Nobody keeps a connection for it any more, by which its log would learn of the removal.
    for node in [0, other] {
        cluster.kill9(node);
        cluster.restart(node).await;
    }
    cluster.relaunch(victim);
    let exit = cluster.ended(victim).await;
    assert!(exit.output.contains("what it has on disk lets it in nowhere"), "{}", exit.output);
}

#[tokio::test]
async fn who_was_removed_while_it_was_dead_is_told_when_it_comes_back() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let victim = cluster.followers().await.into_iter().find(|node| *node != 0).expect("one");
    cluster.kill9(victim);
    cluster.client(0).delete(&cluster.path(victim)).await.expect(200);
    cluster.relaunch(victim);
    let exit = cluster.ended(victim).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    assert!(exit.output.contains("removed"), "{}", exit.output);
}

#[tokio::test]
async fn a_removed_leader_lets_another_lead_first() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    // The tenants' node stays, so another has to lead.
    let leader = cluster.led_by_another_than(0).await;
    cluster.client(3 - leader).delete(&cluster.path(leader)).await.expect(200);
    let exit = cluster.ended(leader).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    cluster.await_leader(&[leader]).await;
    assert_eq!(listed(&cluster, 0).await.len(), 2);
    cluster.whole().await;
}

#[tokio::test]
async fn a_leader_that_is_told_to_remove_itself_goes() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let leader = cluster.led_by_another_than(0).await;
    // It is asked, hands over, and answers before it ends.
    cluster.client(leader).delete(&cluster.path(leader)).await.expect(200);
    let exit = cluster.ended(leader).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    assert!(exit.output.contains("removed"), "{}", exit.output);
    assert_eq!(listed(&cluster, 0).await.len(), 2);
    cluster.whole().await;
}

#[tokio::test]
async fn a_leader_steps_down_through_any_node() {
    let cluster = Cluster::of(3, &[]).await;
    for node in 0..3 {
        let (before, term) = cluster.await_leader(&[]).await;
        let client = cluster.client(node);
        let reply = client.post("/api/cluster/leader/step-down", Value::Null).await.expect(200);
        assert!(reply["message"].is_string(), "{reply:#}");
        // Nobody sees the old one lead from now on, in no later term.
        for asked in 0..3 {
            let answer = cluster.client(asked).get("/api/cluster/leader").await.expect(200);
            let lead = Lead::of(&answer);
            let is_before = lead.leader.as_deref() == Some(cluster.id(before)) && lead.term == term;
            assert!(!is_before || asked != node, "node {node} still says {answer:#}");
        }
        let (_, later) = cluster.await_leader(&[before]).await;
        assert!(later > term, "{term} -> {later}");
        // The lock that shows it is taken a moment later, as any lock is.
        eventually("the new leader holds its lock", async || {
            let after = cluster.leader().await;
            let held = client.get("/api/locks/cluster%2Fleader").await;
            (held.status == 200 && held.json()["holder"] == cluster.id(after)).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn removing_twice_at_once_removes_once() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let victim = cluster.followers().await.into_iter().find(|node| *node != 0).expect("one");
    let (one, two) = (cluster.client(0), cluster.client(3 - victim));
    let path = cluster.path(victim);
    let (one, two) = tokio::join!(one.delete(&path), two.delete(&path));
    for reply in [&one, &two] {
        assert!(matches!(reply.status, 200 | 404), "{reply}");
    }
    assert!(one.status == 200 || two.status == 200, "{one}, {two}");
    cluster.ended(victim).await;
    let health = cluster.client(0).get("/api/cluster/health").await.expect(200);
    assert_eq!(health["total_nodes"], 2);
}

#[tokio::test]
async fn a_registered_node_is_no_member_and_nobody_steps_down_for_it() {
    let cluster = Cluster::of(2, &[]).await;
    let body = json!({ "address": "http://10.0.0.9:3000" });
    let node = cluster.client(1).post("/api/cluster/nodes", body).await.expect(201);
    let path = format!("/api/cluster/nodes/{}", node["id"].as_str().expect("an id"));
    for at in 0..2 {
        cluster.client(at).post_empty(&format!("{path}/heartbeat")).await.expect(200);
        assert_eq!(cluster.client(at).get(&path).await.expect(200)["status"], "Healthy");
        let health = cluster.client(at).get("/api/cluster/health").await.expect(200);
        assert_eq!(health["total_nodes"], 3);
    }
    let voters = eventually("the voters", async || cluster.voters(0).await).await;
    assert_eq!(voters.len(), 2);
    cluster.client(1).delete(&path).await.expect(200);
    // A member's own heartbeat comes another way; one that is sent does no harm.
    cluster.client(1).post_empty(&format!("{}/heartbeat", cluster.path(0))).await.expect(200);
}

#[tokio::test]
async fn a_node_that_ends_as_asked_is_offline_until_it_is_back() {
    let mut cluster = Cluster::of(3, &[]).await;
    cluster.term(2).await;
    for node in 0..2 {
        eventually(&format!("node {node} knows it to be offline"), async || {
            (cluster.statuses(node).await?.get(cluster.id(2))? == "Offline").then_some(())
        })
        .await;
        eventually(&format!("node {node} counts the two that are left"), async || {
            let health = cluster.client(node).get("/api/cluster/health").await.expect(200);
            (health["total_nodes"] == 3 && health["healthy_nodes"] == 2).then_some(())
        })
        .await;
    }
    cluster.restart(2).await;
    cluster.whole().await;
}

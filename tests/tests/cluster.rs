//! A cluster of one: its nodes, leader, health, groups, and what operates it.

use serde_json::{Value, json};
use tests::{Client, Server, Tenant, eventually, spec};

async fn register(client: &Client, address: &str) -> Value {
    let body = json!({ "address": address, "region": "us-east-1", "metadata": { "type": "m5" } });
    client.post("/api/cluster/nodes", body).await.expect(201)
}

fn id(node: &Value) -> &str {
    node["id"].as_str().unwrap_or_else(|| panic!("an id in {node:#}"))
}

#[tokio::test]
async fn the_node_lists_itself_and_leads() {
    let server = Server::alone(&["--label", "rack=7"]).await;
    let client = server.client();
    let nodes = client.get("/api/cluster/nodes").await.expect(200);
    let me = &nodes["nodes"][0];
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1), "{nodes:#}");
    assert_eq!(me["id"], server.node_json()["node_id"]);
    assert!(id(me).starts_with("node-"), "{me:#}");
    assert_eq!((&me["status"], &me["role"]), (&json!("Healthy"), &json!("Leader")));
    assert_eq!(me["region"], "default");
    assert_eq!(me["metadata"]["rack"], "7");
    assert!(me["address"].as_str().is_some_and(|at| at.contains(&server.addr().to_string())));
    assert!(me["node_addr"].is_string(), "{me:#}");
    let read = client.get(&format!("/api/cluster/nodes/{}", id(me))).await.expect(200);
    assert_eq!(read["id"], me["id"]);

    let leader = client.get("/api/cluster/leader").await.expect(200);
    assert_eq!(leader["leader"]["id"], me["id"]);
    assert_eq!(leader["leader"]["role"], "Leader");
    assert!(leader["term"].as_u64() >= Some(1), "{leader:#}");
    let health = client.get("/api/cluster/health").await.expect(200);
    assert_eq!((&health["total_nodes"], &health["healthy_nodes"]), (&json!(1), &json!(1)));
    assert_eq!((&health["has_leader"], &health["leader_id"]), (&json!(true), &me["id"]));
}

#[tokio::test]
async fn a_lone_leader_has_nobody_to_step_down_for() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let step_down = async || client.post_empty("/api/cluster/leader/step-down").await;
    step_down().await.problem(409, "no_other_candidate");
    let null = client.post("/api/cluster/leader/step-down", Value::Null).await;
    null.problem(409, "no_other_candidate");
    // A node that heartbeats over HTTP has no vote and is no candidate.
    let node = register(&client, "http://10.0.0.1:3000").await;
    step_down().await.problem(409, "no_other_candidate");
    client.delete(&format!("/api/cluster/nodes/{}", id(&node))).await.expect(200);
    assert_eq!(client.get("/api/cluster/health").await.expect(200)["has_leader"], true);
}

#[tokio::test]
async fn the_last_member_cannot_be_removed() {
    let server = Server::alone(&[]).await;
    let client = server.client();
    let me = server.node_json()["node_id"].as_str().expect("an id").to_owned();
    let refused = client.delete(&format!("/api/cluster/nodes/{me}")).await;
    refused.problem(409, "would_lose_quorum");
    Tenant::create(&client, spec::unlimited()).await;
}

#[tokio::test]
async fn a_node_is_registered_heartbeats_and_is_removed() {
    let server = Server::alone(&[]).await;
    let client = server.client();
    let body =
        json!({ "address": "http://10.0.0.1:3000", "region": "eu", "metadata": { "a": "b" } });
    let reply = client.post("/api/cluster/nodes", body).await;
    let node = reply.expect(201);
    let path = format!("/api/cluster/nodes/{}", id(&node));
    assert_eq!(reply.header("location"), Some(path.as_str()));
    assert!(id(&node).starts_with("node-") && id(&node).len() == 41, "{node:#}");
    assert_eq!(node["address"], "http://10.0.0.1:3000");
    assert_eq!(node["region"], "eu");
    assert_eq!((&node["status"], &node["role"]), (&json!("Healthy"), &json!("Follower")));
    assert_eq!(node["metadata"], json!({ "a": "b" }));
    assert!(node["last_heartbeat"].is_string() && node["started_at"].is_string(), "{node:#}");
    assert_eq!(client.get(&path).await.expect(200), node);
    let health = client.get("/api/cluster/health").await.expect(200);
    assert_eq!((&health["total_nodes"], &health["healthy_nodes"]), (&json!(2), &json!(2)));

    let beat = client.post_empty(&format!("{path}/heartbeat")).await.expect(200);
    assert_eq!(beat["message"], "Heartbeat acknowledged");
    let after = client.get(&path).await.expect(200);
    assert!(after["last_heartbeat"].as_str() >= node["last_heartbeat"].as_str(), "{after:#}");

    let removed = client.delete(&path).await.expect(200);
    assert_eq!(removed["message"], format!("Node {} removed successfully", id(&node)));
    client.get(&path).await.problem(404, "not_found");
    client.delete(&path).await.problem(404, "not_found");
    client.post_empty(&format!("{path}/heartbeat")).await.problem(404, "not_found");
    assert_eq!(client.get("/api/cluster/health").await.expect(200)["total_nodes"], 1);
}

#[tokio::test]
async fn a_silent_registered_node_is_unhealthy_until_its_next_heartbeat() {
    let server = Server::alone(&["--unhealthy-after", "5s"]).await;
    let client = server.client();
    let silent = register(&client, "http://10.0.0.2:3000").await;
    let alive = register(&client, "http://10.0.0.3:3000").await;
    let status = async |node: &Value| {
        let path = format!("/api/cluster/nodes/{}", id(node));
        client.get(&path).await.expect(200)["status"].clone()
    };
    let beat = async |node: &Value| {
        let path = format!("/api/cluster/nodes/{}/heartbeat", id(node));
        let heard = client.post_empty(&path).await.expect(200);
        // Often enough that two may be lost.
        let told = heard["heartbeat_interval_secs"].as_f64().expect("a number");
        assert!((1.6..1.7).contains(&told), "{heard:#}");
    };
    eventually("the silent node is unhealthy", async || {
        beat(&alive).await;
        assert_eq!(status(&alive).await, "Healthy");
        (status(&silent).await == "Unhealthy").then_some(())
    })
    .await;
    let health = client.get("/api/cluster/health").await.expect(200);
    assert_eq!((&health["total_nodes"], &health["healthy_nodes"]), (&json!(3), &json!(2)));
    beat(&silent).await;
    assert_eq!(status(&silent).await, "Healthy");
}

#[tokio::test]
async fn registered_nodes_outlive_a_restart() {
    let mut server = Server::alone(&[]).await;
    let node = register(&server.client(), "http://10.0.0.4:3000").await;
    let before = server.node_json()["node_id"].clone();
    server.kill9();
    server.restart().await;
    assert_eq!(server.node_json()["node_id"], before, "a node keeps its id");
    let client = server.client();
    let read = client.get(&format!("/api/cluster/nodes/{}", id(&node))).await.expect(200);
    assert_eq!((&read["address"], &read["metadata"]), (&node["address"], &node["metadata"]));
    let nodes = client.get("/api/cluster/nodes").await.expect(200);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(2), "{nodes:#}");
}

#[tokio::test]
async fn unknown_nodes_are_404() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let unknown = "/api/cluster/nodes/node-00000000-0000-4000-8000-000000000000";
    for path in [unknown, "/api/cluster/nodes/nonsense"] {
        client.get(path).await.problem(404, "not_found");
        client.delete(path).await.problem(404, "not_found");
        client.post_empty(&format!("{path}/heartbeat")).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn registration_replays_by_its_idempotency_key() {
    let server = Server::alone(&[]).await;
    let client = server.client();
    let body = json!({ "address": "http://10.0.0.6:3000" });
    let send = async || {
        let call = client.call("POST", "/api/cluster/nodes").header("Idempotency-Key", "n");
        call.json(&body).send().await
    };
    let first = send().await.expect(201);
    let again = send().await;
    assert_eq!(again.expect(201)["id"], first["id"]);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(client.get("/api/cluster/health").await.expect(200)["total_nodes"], 2);
}

#[tokio::test]
async fn groups_account_for_every_tenant() {
    let server = Server::alone(&[]).await;
    let client = server.client();
    for _ in 0..12 {
        Tenant::create(&client, spec::unlimited()).await;
    }
    let groups = eventually("all has been applied", async || {
        let groups = client.get("/api/cluster/groups").await.expect(200);
        let groups = groups["groups"].as_array().expect("a list").clone();
        groups.iter().all(|group| group["replicas"][0]["lag"] == 0).then_some(groups)
    })
    .await;
    let me = server.node_json()["node_id"].clone();
    assert!(groups.len() > 1, "the system group and the tenants': {groups:#?}");
    let tenants: u64 = groups.iter().filter_map(|group| group["tenants"].as_u64()).sum();
    assert_eq!(tenants, 12);
    for group in &groups {
        assert_eq!(group["leader"], me, "{group:#}");
        assert!(group["term"].as_u64() >= Some(1), "{group:#}");
        let replica = &group["replicas"][0];
        assert_eq!(replica["node_id"], me);
        assert!(replica["applied"].is_u64(), "{group:#}");
    }
}

#[tokio::test]
async fn health_probes_and_metrics_answer() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    assert_eq!(client.get("/healthz").await.status, 200);
    assert_eq!(client.get("/readyz").await.status, 200);
    let health = client.get("/api/health").await.expect(200);
    assert_eq!(health["status"], "ok");
    assert_eq!(health["version"], server.node_json()["version"]);
    Tenant::create(&client, spec::unlimited()).await;
    let metrics = client.get("/metrics").await;
    assert_eq!(metrics.status, 200);
    let kind = metrics.header("content-type").expect("a content type");
    assert!(kind.starts_with("text/plain") || kind.starts_with("application/openmetrics-text"));
    let text = String::from_utf8(metrics.body.to_vec()).expect("text");
    let mut samples = 0;
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let value = line.rsplit(' ').next().expect("a value");
        assert!(value.parse::<f64>().is_ok(), "no sample: {line}");
        samples += 1;
    }
    assert!(samples > 5, "{text}");
}

//! The document that shiioo was ordered with, example by example: its paths and bodies as they
//! stand there, and the fields that it shows.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Server, eventually, files, spec};

const REGISTER_TENANT: &str = r#"{
    "name": "Acme Corporation",
    "description": "Enterprise customer with custom workflows",
    "quota": {
      "max_concurrent_workflows": 50,
      "max_workflows_per_day": 5000,
      "max_routines": 100,
      "max_storage_bytes": 53687091200,
      "max_api_requests_per_minute": 5000
    },
    "settings": {
      "data_retention_days": 365,
      "enable_audit_logging": true,
      "metadata": {
        "tier": "enterprise",
        "region": "us-east"
      }
    }
  }"#;
const UPDATE_TENANT: &str = r#"{
    "name": "Acme Corp (Updated)",
    "quota": {
      "max_concurrent_workflows": 100,
      "max_workflows_per_day": 10000,
      "max_routines": 200,
      "max_storage_bytes": 107374182400,
      "max_api_requests_per_minute": 10000
    }
  }"#;
const REGISTER_NODE: &str = r#"{
    "address": "http://node-1.example.com:3000",
    "region": "us-east-1",
    "metadata": {
      "instance_type": "m5.xlarge",
      "availability_zone": "us-east-1a"
    }
  }"#;

/// As curl sends `-X METHOD -H "Content-Type: application/json" -d BODY`.
async fn curl(client: &Client, method: &str, path: &str, body: &str) -> tests::Reply {
    let call = client.call(method, path).header("content-type", "application/json");
    call.body(body.to_owned()).send().await
}

async fn register(client: &Client) -> Value {
    curl(client, "POST", "/api/tenants", REGISTER_TENANT).await.expect(201)
}

fn path(tenant: &Value, rest: &str) -> String {
    format!("/api/tenants/{}{rest}", tenant["id"].as_str().expect("an id"))
}

fn is_timestamp(value: &Value) -> bool {
    value.as_str().is_some_and(|at| at.len() >= 20 && at.ends_with('Z') && &at[10..11] == "T")
}

#[tokio::test]
async fn register_a_new_tenant() {
    let server = Server::shared(&[]).await;
    let tenant = register(&server.client()).await;
    let sent: Value = serde_json::from_str(REGISTER_TENANT).expect("the document's JSON");
    for field in ["name", "description", "quota", "settings"] {
        assert_eq!(tenant[field], sent[field], "{field}");
    }
    assert_eq!(tenant["status"], "Active");
    assert!(is_timestamp(&tenant["created_at"]) && is_timestamp(&tenant["updated_at"]));
}

#[tokio::test]
async fn list_all_tenants() {
    let server = Server::alone(&[]).await;
    let client = server.client();
    let acme = register(&client).await;
    let beta = client.post("/api/tenants", json!({ "name": "Beta Industries" })).await.expect(201);
    client.post_empty(&path(&beta, "/suspend")).await.expect(200);
    let listed = client.get("/api/tenants").await.expect(200);
    let tenants = listed["tenants"].as_array().expect("tenants");
    assert_eq!(tenants.len(), 2);
    for (tenant, made, status) in
        [(&tenants[0], &acme, "Active"), (&tenants[1], &beta, "Suspended")]
    {
        assert_eq!((&tenant["id"], &tenant["name"]), (&made["id"], &made["name"]));
        assert_eq!(tenant["status"], status);
        assert!(is_timestamp(&tenant["created_at"]));
    }
}

#[tokio::test]
async fn get_and_update_a_tenant() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let tenant = register(&client).await;
    assert_eq!(client.get(&path(&tenant, "")).await.expect(200), tenant);
    let updated = curl(&client, "PUT", &path(&tenant, ""), UPDATE_TENANT).await.expect(200);
    let sent: Value = serde_json::from_str(UPDATE_TENANT).expect("the document's JSON");
    assert_eq!((&updated["name"], &updated["quota"]), (&sent["name"], &sent["quota"]));
    for kept in ["id", "description", "settings", "status", "created_at"] {
        assert_eq!(updated[kept], tenant[kept], "{kept}");
    }
}

#[tokio::test]
async fn suspend_activate_and_delete_a_tenant() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let tenant = register(&client).await;
    let suspended = client.post_empty(&path(&tenant, "/suspend")).await.expect(200);
    assert_eq!((&suspended["id"], &suspended["name"]), (&tenant["id"], &tenant["name"]));
    assert_eq!(suspended["status"], "Suspended");
    assert!(is_timestamp(&suspended["updated_at"]));
    let active = client.post_empty(&path(&tenant, "/activate")).await.expect(200);
    assert_eq!(active["status"], "Active");
    let deleted = client.delete(&path(&tenant, "")).await.expect(200);
    let id = tenant["id"].as_str().expect("an id");
    assert_eq!(deleted["message"], format!("Tenant {id} deleted successfully"));
}

#[tokio::test]
async fn quotas_have_the_documents_defaults_and_refusals() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let tenant = client.post("/api/tenants", json!({ "name": "Defaults" })).await.expect(201);
    let quota = &tenant["quota"];
    assert_eq!(quota["max_concurrent_workflows"], 10);
    assert_eq!(quota["max_workflows_per_day"], 1000);
    assert_eq!(quota["max_routines"], 50);
    assert_eq!(quota["max_storage_bytes"], 10_000_000_000_u64);
    assert_eq!(quota["max_api_requests_per_minute"], 1000);
    let run = spec::inline([spec::wait("w", 600.0)]);
    for (quota, status) in [
        ("max_concurrent_workflows", 429),
        ("max_workflows_per_day", 429),
        ("max_api_requests_per_minute", 429),
        ("max_storage_bytes", 507),
    ] {
        let none = json!({ "name": "None", "quota": { quota: 0 } });
        let none = client.post("/api/tenants", none).await.expect(201);
        let refused = client.post(&path(&none, "/runs"), run.clone()).await;
        assert_eq!(refused.problem(status, "quota_exceeded")["quota"], quota);
    }
}

#[tokio::test]
async fn tenant_data_lies_in_partitions() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    for _ in 0..2 {
        let tenant = register(&client).await;
        let run = spec::inline([spec::set("a", 1)]);
        client.post(&path(&tenant, "/runs?wait_secs=20"), run).await.expect(201);
        let folder = files::tenant(&server.data(), tenant["id"].as_str().expect("an id"));
        eventually("the partition of the document", async || {
            let whole = folder.join("blobs").is_dir()
                && folder.join("events.jsonl").is_file()
                && folder.join("index.redb").is_file();
            whole.then_some(())
        })
        .await;
        let stats = client.get(&path(&tenant, "/storage-stats")).await.expect(200);
        assert!(stats["total_bytes"].as_u64() > Some(0), "{stats:#}");
        assert!(stats["file_count"].as_u64() >= Some(2), "{stats:#}");
    }
}

#[tokio::test]
async fn register_list_and_heartbeat_a_cluster_node() {
    let server = Server::alone(&["--unhealthy-after", "5s"]).await;
    let client = server.client();
    let node = curl(&client, "POST", "/api/cluster/nodes", REGISTER_NODE).await.expect(201);
    let sent: Value = serde_json::from_str(REGISTER_NODE).expect("the document's JSON");
    for field in ["address", "region", "metadata"] {
        assert_eq!(node[field], sent[field], "{field}");
    }
    assert_eq!((&node["status"], &node["role"]), (&json!("Healthy"), &json!("Follower")));
    assert!(is_timestamp(&node["last_heartbeat"]) && is_timestamp(&node["started_at"]));
    let id = node["id"].as_str().expect("an id");
    assert!(id.starts_with("node-"), "{id}");

    let listed = client.get("/api/cluster/nodes").await.expect(200);
    let nodes = listed["nodes"].as_array().expect("nodes");
    let found = nodes.iter().find(|listed| listed["id"] == id).expect("the new node");
    for field in ["id", "address", "region", "status", "role", "last_heartbeat"] {
        assert!(found[field].is_string(), "{field} in {found:#}");
    }
    let own = format!("/api/cluster/nodes/{id}");
    let beat = client.post_empty(&format!("{own}/heartbeat")).await.expect(200);
    assert_eq!(beat["message"], "Heartbeat acknowledged");
    eventually("no heartbeat for longer than the threshold", async || {
        let read = client.get(&own).await.expect(200);
        (read["status"] == "Unhealthy").then_some(())
    })
    .await;
    client.post_empty(&format!("{own}/heartbeat")).await.expect(200);
    assert_eq!(client.get(&own).await.expect(200)["status"], "Healthy");
    assert_eq!(client.delete(&own).await.status, 200);
}

#[tokio::test]
async fn cluster_health_and_leader() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let health = eventually("a leader", async || {
        let health = client.get("/api/cluster/health").await.expect(200);
        (health["has_leader"] == true).then_some(health)
    })
    .await;
    assert!(health["total_nodes"].is_u64() && health["healthy_nodes"].is_u64(), "{health:#}");
    let leader = client.get("/api/cluster/leader").await.expect(200);
    let leader = &leader["leader"];
    assert_eq!(leader["id"], health["leader_id"]);
    for field in ["id", "address", "region", "status", "role", "last_heartbeat"] {
        assert!(leader[field].is_string(), "{field} in {leader:#}");
    }
    assert_eq!((&leader["status"], &leader["role"]), (&json!("Healthy"), &json!("Leader")));
}

/// `DistributedLock` of the document, as a client of the API uses it.
#[tokio::test]
async fn a_lock_coordinates_and_expires() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let acquire = async |holder: &str, ttl: f64| {
        let body = json!({ "holder": holder, "ttl_secs": ttl });
        let lock = client.post("/api/locks/workflow-scheduler/acquire", body).await.expect(200);
        lock["acquired"] == true
    };
    assert!(acquire("node-1", 60.0).await);
    assert!(!acquire("node-2", 60.0).await, "lock held by another node");
    let held = client.get("/api/locks/workflow-scheduler").await.expect(200);
    assert_eq!(held["holder"], "node-1");
    let release = json!({ "holder": "node-1" });
    client.post("/api/locks/workflow-scheduler/release", release).await.expect(200);
    assert!(acquire("node-2", 0.3).await);
    tests::pause(Duration::from_millis(300)).await;
    eventually("automatic expiration", async || acquire("node-1", 60.0).await.then_some(())).await;
}

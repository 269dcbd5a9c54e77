//! Tenants: made, read, changed, suspended, deleted; what they use; how they stay apart.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Server, Tenant, away_from_midnight, eventually, files, spec};

const UNKNOWN: &str = "00000000-0000-4000-8000-000000000000";

async fn create(client: &Client, body: Value) -> Value {
    client.post("/api/tenants", body).await.expect(201)
}

#[tokio::test]
async fn a_name_is_enough_and_the_rest_has_defaults() {
    let server = Server::shared(&[]).await;
    let reply = server.client().post("/api/tenants", json!({ "name": "Plain" })).await;
    let tenant = reply.expect(201);
    let id = tenant["id"].as_str().expect("an id");
    assert_eq!(reply.header("location"), Some(format!("/api/tenants/{id}").as_str()));
    assert_eq!((id.len(), id.matches('-').count()), (36, 4), "a UUID: {id}");
    assert_eq!(tenant["name"], "Plain");
    assert_eq!(tenant["status"], "Active");
    assert_eq!(
        tenant["quota"],
        json!({
            "max_concurrent_workflows": 10,
            "max_workflows_per_day": 1000,
            "max_routines": 50,
            "max_storage_bytes": 10_000_000_000_u64,
            "max_api_requests_per_minute": 1000,
        })
    );
    assert_eq!(
        tenant["settings"],
        json!({ "data_retention_days": 90, "enable_audit_logging": true, "metadata": {} })
    );
    assert_eq!(tenant["region"], "default");
    assert!(tenant["placement"]["replicas"].is_array(), "{tenant:#}");
    assert_eq!(tenant["created_at"], tenant["updated_at"]);
    assert!(tenant["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{tenant:#}");
    assert_eq!(server.client().get(&format!("/api/tenants/{id}")).await.expect(200), tenant);
}

#[tokio::test]
async fn the_list_shows_whole_tenants_by_creation_and_pages() {
    let server = Server::alone(&[]).await;
    let client = server.client();
    let mut made = Vec::new();
    for name in ["One", "Two", "Three", "Four", "Five"] {
        made.push(create(&client, json!({ "name": name })).await);
    }
    let all = client.get("/api/tenants").await.expect(200);
    assert_eq!(all["tenants"], json!(made));
    assert!(all["next_cursor"].is_null(), "{all:#}");

    let mut paged = Vec::new();
    let mut path = "/api/tenants?limit=2".to_owned();
    for _ in 0..5 {
        let page = client.get(&path).await.expect(200);
        let tenants = page["tenants"].as_array().expect("a list");
        assert!(tenants.len() <= 2, "{page:#}");
        paged.extend(tenants.clone());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/api/tenants?limit=2&cursor={cursor}");
    }
    assert_eq!(paged, made);

    let path = format!("/api/tenants/{}/suspend", made[1]["id"].as_str().expect("an id"));
    client.post_empty(&path).await.expect(200);
    let suspended = client.get("/api/tenants?status=Suspended").await.expect(200);
    assert_eq!(suspended["tenants"].as_array().map(Vec::len), Some(1), "{suspended:#}");
    assert_eq!(suspended["tenants"][0]["name"], "Two");
    for bad in ["status=Sleeping", "limit=0", "limit=10001", "limit=many", "cursor=%21"] {
        client.get(&format!("/api/tenants?{bad}")).await.problem(400, "invalid_parameter");
    }
}

#[tokio::test]
async fn unknown_tenants_are_404_on_every_path() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    for id in [UNKNOWN, "nonsense", "1"] {
        for rest in ["", "/usage", "/storage-stats", "/runs", "/workflows", "/locks", "/jobs"] {
            let path = format!("/api/tenants/{id}{rest}");
            client.get(&path).await.problem(404, "not_found");
        }
        let path = format!("/api/tenants/{id}");
        client.put(&path, json!({ "name": "New" })).await.problem(404, "not_found");
        client.delete(&path).await.problem(404, "not_found");
        client.post_empty(&format!("{path}/suspend")).await.problem(404, "not_found");
        let run = spec::inline([spec::set("a", 1)]);
        client.post(&format!("{path}/runs"), run).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn put_changes_what_is_given_and_nothing_else() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let made = create(
        &client,
        json!({
            "name": "Before", "description": "kept",
            "quota": { "max_routines": 7 },
            "settings": { "data_retention_days": 5, "metadata": { "tier": "gold" } },
        }),
    )
    .await;
    let path = format!("/api/tenants/{}", made["id"].as_str().expect("an id"));
    let change = json!({
        "name": "After",
        "quota": { "max_concurrent_workflows": 3, "max_workflows_per_day": null },
        "settings": { "enable_audit_logging": false },
    });
    let changed = client.put(&path, change).await.expect(200);
    assert_eq!(changed["name"], "After");
    assert_eq!(changed["description"], "kept");
    assert_eq!(changed["quota"]["max_concurrent_workflows"], 3);
    assert_eq!(changed["quota"]["max_workflows_per_day"], Value::Null);
    assert_eq!(changed["quota"]["max_routines"], 7);
    assert_eq!(changed["settings"]["data_retention_days"], 5);
    assert_eq!(changed["settings"]["enable_audit_logging"], false);
    assert_eq!(changed["settings"]["metadata"], json!({ "tier": "gold" }));
    assert_eq!(changed["created_at"], made["created_at"]);
    assert!(changed["updated_at"].as_str() >= made["updated_at"].as_str(), "{changed:#}");
    assert_eq!(client.get(&path).await.expect(200), changed);
    let refused = client.put(&path, json!({ "name": "" })).await.problem(422, "invalid_field");
    assert_eq!(refused["field"], "name");
    let refused = client.put(&path, json!({ "status": "Gone" })).await;
    assert_eq!(refused.problem(422, "invalid_field")["field"], "status");
}

#[tokio::test]
async fn if_match_guards_put_and_delete() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let tenant = Tenant::create(&client, spec::unlimited()).await;
    let path = tenant.path("");
    let read = client.get(&path).await;
    let first = read.header("etag").expect("an ETag").to_owned();
    let rename = json!({ "name": "Renamed" });
    let call = client.call("PUT", &path).header("If-Match", &first).json(&rename);
    let changed = call.send().await;
    changed.expect(200);
    assert_ne!(changed.header("etag"), Some(first.as_str()));
    let stale = client.call("PUT", &path).header("If-Match", &first).json(&rename).send().await;
    stale.problem(412, "precondition_failed");
    let stale = client.call("DELETE", &path).header("If-Match", &first).send().await;
    stale.problem(412, "precondition_failed");
    let now = client.get(&path).await.header("etag").expect("an ETag").to_owned();
    client.call("DELETE", &path).header("If-Match", &now).send().await.expect(200);
}

#[tokio::test]
async fn a_suspended_tenant_reads_and_winds_down_but_starts_nothing() {
    let (_server, tenant) = Tenant::on_shared().await;
    let waiting = tenant.start(spec::inline([spec::wait("long", 600.0)])).await;
    let held = tenant.post("/locks/k/acquire", json!({ "holder": "h" })).await.expect(200);

    for _ in 0..2 {
        let suspended = tenant.client.post_empty(&tenant.path("/suspend")).await.expect(200);
        assert_eq!(suspended["status"], "Suspended");
        assert_eq!(suspended["id"], tenant.id.as_str());
    }
    let run = spec::inline([spec::set("a", 1)]);
    tenant.post("/runs", run.clone()).await.problem(403, "tenant_suspended");
    tenant.put("/workflows/w", run["workflow"].clone()).await.problem(403, "tenant_suspended");
    let acquire = json!({ "holder": "other" });
    tenant.post("/locks/free/acquire", acquire).await.problem(403, "tenant_suspended");
    for rest in ["", "/runs", "/usage", "/workflows", "/locks"] {
        tenant.get(rest).await.expect(200);
    }
    let mine = json!({ "holder": "h", "token": held["token"] });
    tenant.post("/locks/k/renew", mine.clone()).await.expect(200);
    assert_eq!(tenant.post("/locks/k/release", mine).await.expect(200)["released"], true);
    let cancelled = tenant.post(&format!("/runs/{waiting}/cancel"), json!({})).await.expect(200);
    assert_eq!(cancelled["status"], "cancelled");

    for _ in 0..2 {
        let active = tenant.client.post_empty(&tenant.path("/activate")).await.expect(200);
        assert_eq!(active["status"], "Active");
    }
    assert_eq!(tenant.finished(run).await["status"], "completed");
}

#[tokio::test]
async fn a_disabled_tenant_is_suspended_under_another_name() {
    let (_server, tenant) = Tenant::on_shared().await;
    let disabled = tenant.put("", json!({ "status": "Disabled" })).await.expect(200);
    assert_eq!(disabled["status"], "Disabled");
    let run = spec::inline([spec::set("a", 1)]);
    tenant.post("/runs", run.clone()).await.problem(403, "tenant_disabled");
    tenant.get("/runs").await.expect(200);
    tenant.put("", json!({ "status": "Active" })).await.expect(200);
    assert_eq!(tenant.finished(run).await["status"], "completed");
}

#[tokio::test]
async fn a_deleted_tenant_is_gone_with_its_files_and_runs() {
    let (server, tenant) = Tenant::on_shared().await;
    let run = tenant.start(spec::inline([spec::wait("long", 600.0)])).await;
    let folder = files::tenant(&server.data(), &tenant.id);
    let events = folder.join("events.jsonl");
    eventually("the tenant's files", async || events.exists().then_some(())).await;
    let deleted = tenant.delete("").await.expect(200);
    assert_eq!(deleted["message"], format!("Tenant {} deleted successfully", tenant.id));
    tenant.get("").await.problem(404, "not_found");
    tenant.get(&format!("/runs/{run}")).await.problem(404, "not_found");
    tenant.delete("").await.problem(404, "not_found");
    let listed = tenant.client.get("/api/tenants?limit=10000").await.expect(200);
    let tenants = listed["tenants"].as_array().expect("a list");
    assert!(tenants.iter().all(|other| other["id"] != tenant.id.as_str()));
    eventually("the folder is removed", async || (!folder.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_deleted_tenant_whose_folder_comes_back_is_deleted_again() {
    let mut server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    tenant.finished(spec::inline([spec::set("a", 1)])).await;
    let folder = files::tenant(&server.data(), &tenant.id);
    server.term().await;
    let copy = files::keep(&folder);
    assert!(!copy.is_empty());
    server.restart().await;
    let path = tenant.path("");
    server.client().delete(&path).await.expect(200);
    eventually("the folder is removed", async || (!folder.exists()).then_some(())).await;
    server.term().await;
    files::put_back(&folder, &copy);
    server.restart().await;
    eventually("it is removed again", async || (!folder.exists()).then_some(())).await;
    server.client().get(&path).await.problem(404, "not_found");
}

#[tokio::test]
async fn storage_stats_are_those_of_the_files() {
    let (server, tenant) = Tenant::on_shared().await;
    tenant.finished(spec::inline([spec::set("a", "x".repeat(3000))])).await;
    let folder = files::tenant(&server.data(), &tenant.id);
    let stats = eventually("the statistics agree with the folder", async || {
        let stats = tenant.get("/storage-stats").await.expect(200);
        let found = files::walk(&folder);
        let bytes: u64 = found.iter().map(|(_, size)| size).sum();
        (stats["total_bytes"] == bytes && stats["file_count"] == found.len()).then_some(stats)
    })
    .await;
    assert!(stats["events_bytes"].as_u64() >= Some(3000), "{stats:#}");
    assert!(stats["index_bytes"].as_u64() > Some(0), "{stats:#}");
    assert_eq!(stats["blobs_bytes"], 0);
    // `null` as input, 3000 letters and two quotes as output.
    assert_eq!(stats["payload_bytes"], 4 + 3002);
}

#[tokio::test]
async fn an_idempotency_key_makes_one_tenant() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let key = "tenants-rs-key-1";
    let body = json!({ "name": "Once" });
    let send = async |body: &Value| {
        client.call("POST", "/api/tenants").header("Idempotency-Key", key).json(body).send().await
    };
    let first = send(&body).await;
    let made = first.expect(201);
    assert_eq!(first.header("idempotent-replayed"), None);
    let path = format!("/api/tenants/{}", made["id"].as_str().expect("an id"));
    let renamed = client.put(&path, json!({ "name": "Renamed" })).await.expect(200);
    let again = send(&body).await;
    // The first answer's status and resource, the resource as it is now.
    assert_eq!(again.expect(201), renamed);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    send(&json!({ "name": "Other" })).await.problem(422, "idempotency_key_reused");
    // A refused call is not remembered.
    let key = "tenants-rs-key-2";
    let send = async |body: Value| {
        client.call("POST", "/api/tenants").header("Idempotency-Key", key).json(&body).send().await
    };
    send(json!({ "name": "" })).await.problem(422, "invalid_field");
    send(json!({ "name": "Good" })).await.expect(201);
}

#[tokio::test]
async fn a_region_without_nodes_is_refused_unless_only_metadata_asks() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    for region in ["mars", "Not A Region", "../up", "tenants", "log", "identity", ""] {
        let body = json!({ "name": "Far", "region": region });
        let refused = client.post("/api/tenants", body).await.problem(422, "invalid_field");
        assert_eq!(refused["field"], "region", "{refused:#}");
    }
    let settings = json!({ "metadata": { "region": "mars" } });
    let placed = create(&client, json!({ "name": "Near", "settings": settings })).await;
    assert_eq!(placed["region"], "default");
    assert_eq!(placed["settings"]["metadata"]["region"], "mars");
}

#[tokio::test]
async fn a_tenant_in_a_region_of_its_own_lies_in_its_folder() {
    let server = Server::alone(&["--region", "us-east"]).await;
    let client = server.client();
    let settings = json!({ "metadata": { "region": "us-east" } });
    let by_field = json!({ "name": "Field", "region": "us-east" });
    let by_metadata = json!({ "name": "Metadata", "settings": settings });
    for body in [by_field, by_metadata, json!({ "name": "Asked" })] {
        let tenant = create(&client, body).await;
        assert_eq!(tenant["region"], "us-east", "{tenant:#}");
        let id = tenant["id"].as_str().expect("an id");
        let run = spec::inline([spec::set("a", 1)]);
        client.post(&format!("/api/tenants/{id}/runs?wait_secs=20"), run).await.expect(201);
        let folder = server.data().join("us-east").join(id);
        let events = folder.join("events.jsonl");
        assert!(events.is_file(), "{events:?} in {:#?}", files::walk(&server.data()));
    }
}

#[tokio::test]
async fn tenants_do_not_see_each_other() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let one = Tenant::create(&client, spec::unlimited()).await;
    let two = Tenant::create(&client, spec::unlimited()).await;
    let run = one.start(spec::inline([spec::set("a", 1)])).await;
    one.put("/workflows/w", spec::workflow([spec::set("a", 1)])).await.expect(201);
    one.post("/locks/k/acquire", json!({ "holder": "h" })).await.expect(200);
    two.get(&format!("/runs/{run}")).await.problem(404, "not_found");
    two.get(&format!("/runs/{run}/events")).await.problem(404, "not_found");
    two.post(&format!("/runs/{run}/cancel"), json!({})).await.problem(404, "not_found");
    two.get("/workflows/w").await.problem(404, "not_found");
    two.get("/locks/k").await.problem(404, "not_found");
    assert_eq!(two.get("/runs").await.expect(200)["runs"], json!([]));
    let acquired = two.post("/locks/k/acquire", json!({ "holder": "x" })).await.expect(200);
    assert_eq!(acquired["acquired"], true);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    away_from_midnight(Duration::from_secs(120)).await;
    let mut server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_routines", 3)).await;
    tenant.put("/workflows/w", spec::workflow([spec::set("a", 1)])).await.expect(201);
    let run = tenant.finished(json!({ "workflow_name": "w" })).await;
    let before = tenant.get("").await.expect(200);
    server.term().await;
    server.restart().await;
    let tenant = Tenant { client: server.client(), ..tenant };
    let mut after = tenant.get("").await.expect(200);
    // Who leads now may differ; the tenant does not.
    after["placement"] = before["placement"].clone();
    assert_eq!(after, before);
    assert_eq!(tenant.run(run["id"].as_str().expect("an id")).await, run);
    assert_eq!(tenant.get("/workflows/w").await.expect(200)["version"], 1);
    assert_eq!(tenant.used("max_workflows_per_day").await, 1);
}

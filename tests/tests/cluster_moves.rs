//! Tenants that move to another region while they work.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Cluster, Tenant, eventually, files, spec};
use tokio::time::Instant;

/// A cluster of `here` nodes in region `default` and `there` in region `eu`.
async fn two_regions(here: usize, there: usize) -> Cluster {
    let mut cluster = Cluster::of(here, &[]).await;
    for _ in 0..there {
        let launch = cluster.next_launch(&["--region", "eu"]);
        cluster.add(launch).await;
    }
    cluster
}

/// Where a node of region `eu` has a tenant.
fn in_eu(cluster: &mut Cluster, node: usize, id: &str) -> PathBuf {
    cluster.server(node).data().join("eu").join(id)
}

fn here(cluster: &mut Cluster, node: usize, id: &str) -> PathBuf {
    files::tenant(&cluster.server(node).data(), id)
}

async fn moved_to(tenant: &Tenant, region: &str) -> Value {
    let moved = tenant.put("", json!({ "region": region })).await.expect(200);
    assert_eq!(moved["region"], region, "{moved:#}");
    assert!(moved["placement"]["moving_to"].is_null(), "{moved:#}");
    moved
}

/// Waits until the folder is gone: the source lets go after the tenant lives elsewhere.
async fn gone(folder: PathBuf) {
    eventually(&format!("{folder:?} is gone"), async || (!folder.exists()).then_some(())).await;
}

/// The events in a folder, once they are all in the file.
async fn events_in(folder: PathBuf) -> Vec<Value> {
    let file = folder.join("events.jsonl");
    eventually("whole events", async || files::events(&file).unwrap_or_else(|why| panic!("{why}")))
        .await
}

#[tokio::test]
async fn a_tenant_takes_along_all_that_it_has() {
    let mut cluster = two_regions(1, 1).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    tenant.put("/workflows/w", spec::workflow([spec::set("a", 1)])).await.expect(201);
    let ended = tenant.finished(json!({ "workflow_name": "w" })).await;
    let keyed = async |client: &Client| {
        let path = tenant.path("/runs");
        let call = client.call("POST", &path).header("Idempotency-Key", "k");
        call.json(&spec::inline([spec::set("once", 1)])).send().await
    };
    let once = keyed(&tenant.client).await.expect(201);
    let held = json!({ "holder": "h", "ttl_secs": 60 });
    let lock = tenant.post("/locks/l/acquire", held.clone()).await.expect(200);
    let waits = tenant.start(spec::inline([spec::wait("w", 2.0), spec::set("done", 1)])).await;
    let used = tenant.used("max_workflows_per_day").await;

    let moved = moved_to(&tenant, "eu").await;
    assert_eq!(moved["placement"]["replicas"], json!([cluster.id(1)]));
    assert_eq!(tenant.used("max_workflows_per_day").await, used);
    assert_eq!(tenant.run(ended["id"].as_str().expect("an id")).await["output"], ended["output"]);
    tenant.get("/workflows/w").await.expect(200);
    assert_eq!(keyed(&cluster.client(1)).await.expect(201)["id"], once["id"], "done once");
    let shown = tenant.get("/locks/l").await.expect(200);
    assert_eq!((&shown["token"], &shown["holder"]), (&lock["token"], &json!("h")), "{shown:#}");
    let other = json!({ "holder": "other", "ttl_secs": 60 });
    let refused = tenant.post("/locks/l/acquire", other).await.expect(200);
    assert_eq!(refused["acquired"], false, "{refused:#}");
    let next = tenant.post("/locks/m/acquire", held).await.expect(200);
    assert!(next["token"].as_u64() > lock["token"].as_u64(), "{next:#}");
    assert_eq!(tenant.ended(&waits).await["status"], "completed", "its wait came along");
    gone(here(&mut cluster, 0, &tenant.id)).await;

    // Back, to the group that it came from, and once more: nothing of an earlier stay is in the way.
    for region in ["default", "eu", "default"] {
        moved_to(&tenant, region).await;
        tenant.finished(json!({ "workflow_name": "w" })).await;
    }
    gone(in_eu(&mut cluster, 1, &tenant.id)).await;
    let folder = here(&mut cluster, 0, &tenant.id);
    cluster.term(0).await;
    let events = events_in(folder).await;
    let started = events.iter().filter(|event| event["event_type"]["type"] == "run_started");
    assert_eq!(started.count(), 6, "each run once, before and after");
}

#[tokio::test]
async fn a_region_without_nodes_is_refused() {
    let mut cluster = two_regions(1, 1).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let refused = tenant.put("", json!({ "region": "mars", "name": "Other" })).await;
    assert_eq!(refused.problem(422, "invalid_field")["field"], "region");
    let shown = tenant.get("").await.expect(200);
    assert_eq!((&shown["region"], &shown["name"]), (&json!("default"), &json!("Test")));
    moved_to(&tenant, "default").await;
    // Nobody in the other region answers: the tenant goes on, and the move can be called off.
    cluster.kill9(1);
}

/// Whoever writes is held up for a moment, and nothing that was acknowledged is lost or done twice.
#[tokio::test]
async fn a_tenant_works_on_while_it_moves() {
    let mut cluster = two_regions(3, 3).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|node| {
            let (over, client) = (Arc::clone(&over), cluster.client(node));
            let tenant = Tenant { client, ..tenant.clone() };
            tokio::spawn(async move {
                let (mut runs, mut longest) = (Vec::new(), Duration::ZERO);
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    runs.push(tenant.start(spec::inline([spec::set("a", node)])).await);
                    longest = longest.max(began.elapsed());
                }
                (runs, longest)
            })
        })
        .collect();
    for region in ["eu", "default", "eu"] {
        moved_to(&tenant, region).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut runs = Vec::new();
    for writer in writers {
        let (own, longest) = writer.await.expect("a writer");
        println!("{} runs, the slowest in {longest:?}", own.len());
        runs.extend(own);
    }
    tenant.idle().await;
    let mut listed: Vec<_> = tenant.all_runs().await;
    assert!(listed.iter().all(|run| run["status"] == "completed"));
    let mut listed: Vec<_> =
        listed.drain(..).map(|run| run["id"].as_str().expect("an id").to_owned()).collect();
    listed.sort();
    runs.sort();
    assert_eq!(listed, runs, "each that was acknowledged, once");
    for node in 0..3 {
        gone(here(&mut cluster, node, &tenant.id)).await;
    }
    let folders: Vec<_> = (3..6).map(|node| in_eu(&mut cluster, node, &tenant.id)).collect();
    for node in 0..6 {
        cluster.term(node).await;
    }
    let mut all = Vec::new();
    for folder in folders {
        all.push(events_in(folder).await);
    }
    assert_eq!(all[0], all[1]);
    assert_eq!(all[0], all[2]);
}

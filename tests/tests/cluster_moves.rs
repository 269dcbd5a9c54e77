//! Tenants that move to another region while they work.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Cluster, Tenant, eventually, files, pause, spec};
use tokio::time::Instant;

/// A cluster of `here` nodes in region `default` and `there` in region `eu`.
async fn two_regions(here: usize, there: usize, election_timeout: &str) -> Cluster {
    let mut cluster = Cluster::of(here, &[election_timeout]).await;
    for _ in 0..there {
        let launch = cluster.next_launch(&["--region", "eu", election_timeout]);
        cluster.add(launch).await;
    }
    cluster
}

/// Nodes die here, and others have to take over soon, on a busy machine too.
const QUICK: &str = "--election-timeout=1s";

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
    let mut cluster = two_regions(1, 1, Cluster::STEADY).await;
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
    let cluster = two_regions(1, 1, Cluster::STEADY).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let refused = tenant.put("", json!({ "region": "mars", "name": "Other" })).await;
    assert_eq!(refused.problem(422, "invalid_field")["field"], "region");
    let shown = tenant.get("").await.expect(200);
    assert_eq!((&shown["region"], &shown["name"]), (&json!("default"), &json!("Test")));
    moved_to(&tenant, "default").await;
}

/// Nobody in the other region answers: the tenant works on, and the move can be called off.
#[tokio::test]
async fn a_move_that_does_not_come_to_its_end_can_be_called_off() {
    let mut cluster = two_regions(3, 1, Cluster::STEADY).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    cluster.led_by_another_than(3).await;
    cluster.kill9(3);
    let on_its_way = tenant.put("", json!({ "region": "eu" })).await.expect(202);
    assert_eq!(on_its_way["region"], "default", "{on_its_way:#}");
    assert_eq!(on_its_way["placement"]["moving_to"], "eu", "{on_its_way:#}");
    tenant.finished(spec::inline([spec::set("a", 1)])).await;
    tenant.put("", json!({ "region": "default", "name": "Stays" })).await.expect(200);
    cluster.restart(3).await;
    eventually("the move is over", async || {
        let shown = tenant.put("", json!({ "region": "eu" })).await;
        (shown.status == 200 && shown.json()["region"] == "eu").then_some(())
    })
    .await;
    assert_eq!(tenant.get("").await.expect(200)["name"], "Stays");
    tenant.delete("").await.expect(200);
    for folder in [in_eu(&mut cluster, 3, &tenant.id), here(&mut cluster, 0, &tenant.id)] {
        gone(folder).await;
    }
}

/// Waits until nothing is under way in a tenant that ended up in the region of the second three nodes. Each run that
/// was acknowledged is there once and has ended, the replicas tell the same, and there are files nowhere else.
async fn all_is_in_eu(mut cluster: Cluster, tenant: &Tenant, mut acknowledged: Vec<String>) {
    tenant.idle().await;
    let listed = tenant.all_runs().await;
    assert!(listed.iter().all(|run| run["status"] == "completed"));
    let ids = listed.iter().map(|run| run["id"].as_str().expect("an id").to_owned());
    let mut ids: Vec<_> = ids.collect();
    ids.sort();
    acknowledged.sort();
    assert_eq!(ids, acknowledged, "each that was acknowledged, once");
    for node in 0..3 {
        gone(here(&mut cluster, node, &tenant.id)).await;
    }
    let folders: Vec<_> = (3..6).map(|node| in_eu(&mut cluster, node, &tenant.id)).collect();
    for node in 0..6 {
        cluster.term(node).await;
    }
    let first = events_in(folders[0].clone()).await;
    for folder in &folders[1..] {
        assert_eq!(events_in(folder.clone()).await, first);
    }
}

/// Whoever writes is held up for a moment, and nothing that was acknowledged is lost or done twice.
#[tokio::test]
async fn a_tenant_works_on_while_it_moves() {
    let cluster = two_regions(3, 3, Cluster::STEADY).await;
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
    all_is_in_eu(cluster, &tenant, runs).await;
}

/// Starts a run under a key until somebody says that it is started, whatever dies meanwhile.
async fn start_surely(clients: &[Client], at: usize, tenant: &Tenant, key: &str) -> String {
    let body = spec::inline([spec::set("a", key), spec::after(spec::wait("w", 0.1), &["a"])]);
    let path = tenant.path("/runs");
    let began = Instant::now();
    for client in clients.iter().cycle().skip(at) {
        let call = client.call("POST", &path).header("Idempotency-Key", key).json(&body);
        let answer = call.within(Duration::from_secs(4)).try_send().await;
        if let Ok(reply) = answer {
            if reply.status == 201 {
                return reply.json()["id"].as_str().expect("an id").to_owned();
            }
            assert!(reply.status >= 500, "{reply:?}");
        }
        assert!(began.elapsed() < Duration::from_secs(60), "run {key} is not started");
        pause(Duration::from_millis(20)).await;
    }
    unreachable!("the clients are asked in turn for ever")
}

/// Whichever node is killed at whatever moment: each run that was asked for is there once and ends, and the tenant is
/// in one region, with files nowhere else.
#[tokio::test]
async fn a_move_survives_the_death_of_any_node() {
    /// Moments of the kill after the move was asked for, and the node that is killed, by its place. The first three
    /// nodes are in one region, the others in the other.
    const KILLS: [(u64, usize); 8] =
        [(0, 0), (20, 3), (40, 1), (60, 4), (90, 2), (130, 5), (10, 0), (30, 3)];
    let mut cluster = two_regions(3, 3, QUICK).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let clients: Vec<Client> = (0..6).map(|node| cluster.client(node)).collect();
    let over = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..3)
        .map(|writer| {
            let (over, clients, tenant) = (Arc::clone(&over), clients.clone(), tenant.clone());
            tokio::spawn(async move {
                let mut runs = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let key = format!("{writer}-{}", runs.len());
                    runs.push(start_surely(&clients, runs.len(), &tenant, &key).await);
                }
                runs
            })
        })
        .collect();
    for (round, (after, victim)) in KILLS.into_iter().enumerate() {
        let region = ["eu", "default"][round % 2];
        let asked = clients[(victim + 1) % 6].clone();
        let path = tenant.path("");
        let moving = tokio::spawn(async move {
            let call = asked.call("PUT", &path).json(&json!({ "region": region }));
            let answer = call.within(Duration::from_secs(8)).try_send().await;
            println!("moved to {region}: {:?}", answer.map(|reply| reply.status));
        });
        pause(Duration::from_millis(after)).await;
        cluster.kill9(victim);
        moving.await.expect("the move is answered");
        cluster.restart(victim).await;
    }
    over.store(true, Ordering::Relaxed);
    let mut runs = Vec::new();
    for writer in writers {
        runs.extend(writer.await.expect("a writer"));
    }
    let region = eventually("the last move is over", async || {
        let moved = tenant.put("", json!({ "region": "eu" })).await;
        (moved.status == 200).then(|| moved.json()["region"].as_str().map(str::to_owned))?
    })
    .await;
    assert_eq!(region, "eu");
    all_is_in_eu(cluster, &tenant, runs).await;
}

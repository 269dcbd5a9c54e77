//! A disk that is full to the last byte: reads go on, writes are refused and say so, nobody is put
//! aside, and all is well when there is room. Skipped, with a line that says so, where a file system
//! cannot be mounted.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Client, Server, SmallDisk, Tenant, eventually, pause};
use tokio::time::Instant;

const MEBIBYTES: u32 = 24;
/// Longer than tenants wait before they make durable what has changed, and then some.
const FULL_FOR: Duration = Duration::from_secs(7);

fn disk(folder: &TempDir) -> Option<SmallDisk> {
    match SmallDisk::mount(&folder.path().join("data"), MEBIBYTES) {
        Ok(disk) => Some(disk),
        Err(error) => {
            println!("SKIPPED: no file system can be mounted here: {error}");
            None
        }
    }
}

fn set(output: &str) -> Value {
    json!({ "workflow": { "steps": [{ "id": "a", "action": { "type": "set", "output": output } }] } })
}

/// Writes until the disk is known to be full; gives the runs that were accepted.
async fn until_refused(tenant: &Tenant) -> Vec<String> {
    let mut accepted = Vec::new();
    eventually("a write that is refused for lack of room", async || {
        let reply = tenant.post("/runs", set("late")).await;
        match reply.status {
            201 => {
                accepted.push(reply.json()["id"].as_str()?.to_owned());
                None
            }
            507 => {
                let body = reply.json();
                assert_eq!(body["code"], "disk_full", "{body:#}");
                assert_eq!(body["applied"], false, "{body:#}");
                assert_eq!(body["retryable"], true, "{body:#}");
                Some(())
            }
            _ => panic!("neither taken nor refused for lack of room: {reply:?}"),
        }
    })
    .await;
    accepted
}

async fn reads_work(tenant: &Tenant, run: &str, events: &[Value]) {
    assert_eq!(tenant.run(run).await["status"], "completed");
    tenant.get("/runs").await.expect(200);
    tenant.get("/usage").await.expect(200);
    tenant.get("/storage-stats").await.expect(200);
    assert_eq!(tenant.events(run).await, events);
    tenant.client.get(&tenant.path("")).await.expect(200);
}

async fn is_seen_to_be(status: &str, client: &Client) {
    eventually(&format!("the node is {status}"), async || {
        let nodes = client.get("/api/cluster/nodes").await.expect(200);
        (nodes["nodes"][0]["status"] == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_goes_on_with_reads() {
    let folder = TempDir::new().unwrap();
    let Some(disk) = disk(&folder) else { return };
    let mut server = Server::start(&folder, &[]).await;
    let client = server.client();
    let busy = Tenant::create(&client, json!({})).await;
    let idle = Tenant::create(&client, json!({})).await;
    let (run, old) = (busy.finished(set("early")).await, idle.finished(set("early")).await);
    let (run, old) = (run["id"].as_str().unwrap(), old["id"].as_str().unwrap());
    let (events, old_events) = (busy.events(run).await, idle.events(old).await);
    is_seen_to_be("Healthy", &client).await;

    disk.fill();
    let mut accepted = until_refused(&busy).await;
    is_seen_to_be("Degraded", &client).await;
    for _ in 0..2 {
        reads_work(&busy, run, &events).await;
        reads_work(&idle, old, &old_events).await;
        for refused in [
            idle.post("/runs", set("late")).await,
            client.post("/api/tenants", json!({ "name": "late" })).await,
        ] {
            assert_eq!(refused.json()["code"], "disk_full", "{refused:?}");
        }
        // What came while the disk was full has long been tried to be made durable.
        pause(FULL_FOR).await;
    }

    // A node that starts on a full disk has a leader, and reads.
    for _ in 0..2 {
        server.kill9();
        server.restart().await;
        let client = server.client();
        let at = |tenant: &Tenant| Tenant { id: tenant.id.clone(), client: client.clone() };
        reads_work(&at(&busy), run, &events).await;
        reads_work(&at(&idle), old, &old_events).await;
        accepted.extend(until_refused(&at(&busy)).await);
    }

    let client = server.client();
    let (busy, idle) = (Tenant { client: client.clone(), ..busy }, Tenant { client, ..idle });
    disk.free(12 << 20);
    let freed = Instant::now();
    eventually("writes again", async || {
        let written = idle.post("/runs", set("again")).await.status == 201;
        (written && busy.post("/runs", set("again")).await.status == 201).then_some(())
    })
    .await;
    // Two seconds are promised, of a machine that does nothing else.
    println!("writes again after {:?}", freed.elapsed());
    is_seen_to_be("Healthy", &server.client()).await;
    for id in &accepted {
        assert_eq!(busy.ended(id).await["status"], "completed", "{id}");
    }

    server.kill9();
    server.restart().await;
    let busy = Tenant { client: server.client(), ..busy };
    reads_work(&busy, run, &events).await;
    for id in &accepted {
        assert_eq!(busy.ended(id).await["status"], "completed", "{id}");
    }
}

/// Runs of 512 KiB each that a tenant has, to be worth deleting.
const LARGE_RUNS: usize = 3;

/// Who deletes a tenant to make room is not refused for lack of it, whether or not the tenant is awake.
#[tokio::test]
async fn on_a_full_disk_a_tenant_can_be_deleted_and_its_room_comes_back() {
    let folder = TempDir::new().unwrap();
    let Some(disk) = disk(&folder) else { return };
    let mut server = Server::start(&folder, &[]).await;
    let client = server.client();
    let (kept, gone) =
        (Tenant::create(&client, json!({})).await, Tenant::create(&client, json!({})).await);
    for _ in 0..LARGE_RUNS {
        gone.finished(set(&"x".repeat(512 << 10))).await;
    }
    for is_awake in [false, true] {
        // What was written is in files by then, and everybody sleeps.
        server.term().await;
        server.restart().await;
        let client = server.client();
        let at = |tenant: &Tenant| Tenant { id: tenant.id.clone(), client: client.clone() };
        let (kept, mut gone) = (at(&kept), at(&gone));
        if is_awake {
            gone = Tenant::create(&client, json!({})).await;
            gone.finished(set(&"x".repeat(512 << 10))).await;
            gone.finished(set(&"y".repeat(512 << 10))).await;
            pause(FULL_FOR).await;
        }
        disk.fill();
        until_refused(&kept).await;
        let deleted = gone.delete("").await;
        assert_eq!(deleted.status, 200, "{deleted:?}");
        let freed = Instant::now();
        eventually("writes again", async || {
            (kept.post("/runs", set("again")).await.status == 201).then_some(())
        })
        .await;
        // Two seconds are promised, of a machine that does nothing else.
        println!("writes again after {:?}", freed.elapsed());
        gone.get("").await.expect(404);
        is_seen_to_be("Healthy", &client).await;
        disk.free(12 << 20);
    }
}

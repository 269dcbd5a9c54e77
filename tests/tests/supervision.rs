//! One tenant's trouble is its own: a panic, a tenant that cannot start, one that stalls.
//!
//! The hidden flag `--test-hooks` lets a test break a tenant: `/panic` (its actor panics once),
//! `/fail` (every start of it fails) and `/stall` (it does nothing) until `/heal`.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Server, Tenant, eventually, spec};
use tokio::task::JoinSet;
use tokio::time::Instant;

const HOOKS: [&str; 1] = ["--test-hooks"];
/// For tests in which nobody waits for a request in vain.
const PATIENT_HOOKS: [&str; 2] = ["--test-hooks", "--request-timeout=30s"];
/// Neighbours, at least.
const NEIGHBOURS: usize = 16;
/// Tenants are spread over groups by chance: by now one shares the group of the one in trouble.
const NEIGHBOURS_MAX: usize = 300;
/// A neighbour must not notice: far below that time-out, above a busy machine's hiccup.
const PROMPT: Duration = Duration::from_secs(15);

async fn hook(tenant: &Tenant, act: &str) {
    let path = format!("/test/tenants/{}/{act}", tenant.id);
    let reply = tenant.client.post_empty(&path).await;
    assert!((200..300).contains(&reply.status), "{reply}");
}

async fn village(server: &Server) -> (Tenant, Vec<Tenant>) {
    let client = server.client();
    let troubled = Tenant::create(&client, spec::unlimited()).await;
    let group = |tenant: Value| tenant["placement"]["group"].clone();
    let own = group(troubled.get("").await.expect(200));
    let mut neighbours = Vec::new();
    let mut is_shared = false;
    while neighbours.len() < NEIGHBOURS || !is_shared {
        assert!(neighbours.len() < NEIGHBOURS_MAX, "no neighbour in group {own}");
        let neighbour = Tenant::create(&client, spec::unlimited()).await;
        is_shared |= group(neighbour.get("").await.expect(200)) == own;
        neighbours.push(neighbour);
    }
    (troubled, neighbours)
}

/// All of them start and finish a run promptly.
async fn assert_untouched(neighbours: &[Tenant]) {
    for neighbour in neighbours {
        let started = Instant::now();
        let run = neighbour.finished(spec::inline([spec::set("a", 1)])).await;
        assert_eq!(run["status"], "completed");
        assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
        let lock = neighbour.post("/locks/k/acquire", json!({ "holder": "h" })).await.expect(200);
        assert_eq!(lock["acquired"], true);
    }
}

#[tokio::test]
async fn a_tenant_that_panics_is_back_with_all_its_data() {
    let server = Server::alone(&PATIENT_HOOKS).await;
    let (troubled, neighbours) = village(&server).await;
    let run = troubled.finished(spec::inline([spec::set("a", 1)])).await;
    let steps = [spec::wait("w", 1.0), spec::after(spec::set("end", 1), &["w"])];
    let unfinished = troubled.start(spec::inline(steps)).await;
    let lock = troubled.post("/locks/k/acquire", json!({ "holder": "h" })).await.expect(200);
    hook(&troubled, "panic").await;
    eventually("it answers again", async || {
        let path = troubled.path("/runs");
        let reply = troubled.client.get(&path).await;
        assert!(matches!(reply.status, 200 | 503), "{reply}");
        (reply.status == 200).then_some(())
    })
    .await;
    assert_eq!(troubled.run(run["id"].as_str().expect("an id")).await, run);
    let held = troubled.get("/locks/k").await.expect(200);
    assert_eq!((&held["holder"], &held["token"]), (&json!("h"), &lock["token"]));
    assert_eq!(troubled.ended(&unfinished).await["status"], "completed");
    assert_untouched(&neighbours).await;
    assert_eq!(server.client().get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_tenant_that_keeps_failing_is_quarantined_until_healed() {
    let server = Server::alone(&PATIENT_HOOKS).await;
    let (troubled, neighbours) = village(&server).await;
    let run = troubled.finished(spec::inline([spec::set("a", 1)])).await;
    hook(&troubled, "fail").await;
    let quarantined = eventually("it is quarantined, with the reason", async || {
        let reply = troubled.get("/runs").await;
        assert!(matches!(reply.status, 200 | 503), "{reply}");
        let reason = reply.json()["detail"].as_str().unwrap_or_default().to_lowercase();
        (reply.status == 503 && reason.contains("quarantine")).then_some(reply)
    })
    .await;
    assert!(quarantined.json()["code"].is_string(), "{quarantined}");
    assert_untouched(&neighbours).await;
    let client = server.client();
    assert_eq!(client.get("/readyz").await.status, 200, "the node itself is well");
    assert_eq!(client.get("/api/tenants").await.status, 200);

    // A change of the tenant itself is refused before it is decided, and not waited for in vain.
    let path = format!("/api/tenants/{}/suspend", troubled.id);
    let asked = Instant::now();
    let reply = client.post_empty(&path).await;
    assert!(asked.elapsed() < PROMPT, "{:?}", asked.elapsed());
    let body = reply.json();
    assert_eq!((reply.status, &body["code"]), (503, &json!("internal")), "{reply}");
    assert!(body["detail"].as_str().unwrap().contains("quarantined"), "{reply}");
    assert_eq!(body["applied"], false, "{reply}");
    let ready = client.get("/readyz").await.expect(200);
    let warning = ready["warnings"][0].as_str().unwrap();
    assert!(warning.contains(&troubled.id.to_string()), "{ready}");
    let metrics = client.get("/metrics").await;
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    assert!(metrics.contains("shiioo_tenants_quarantined 1\n"), "{metrics}");

    hook(&troubled, "heal").await;
    let path = format!("/api/tenants/{}/activate", troubled.id);
    eventually("it is active again", async || {
        (client.post_empty(&path).await.status == 200).then_some(())
    })
    .await;
    eventually("it answers again", async || {
        (troubled.get("/runs").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(troubled.run(run["id"].as_str().expect("an id")).await, run);
    let next = troubled.finished(spec::inline([spec::set("a", 1)])).await;
    assert_eq!(next["status"], "completed");
}

#[tokio::test]
async fn a_stalled_tenant_fills_its_own_mailbox_only() {
    let server = Server::alone(&HOOKS).await;
    let (troubled, neighbours) = village(&server).await;
    hook(&troubled, "stall").await;
    let mut flood = JoinSet::new();
    for _ in 0..200 {
        let troubled = troubled.clone();
        flood.spawn(async move { troubled.post("/runs", spec::inline([spec::set("a", 1)])).await });
    }
    assert_untouched(&neighbours).await;
    for reply in flood.join_all().await {
        assert_eq!(reply.status, 503, "{reply}");
        assert!(reply.header("retry-after").is_some(), "{reply}");
        assert_eq!(reply.json()["retryable"], true, "{reply}");
    }
    hook(&troubled, "heal").await;
    eventually("it answers again", async || {
        (troubled.get("/runs").await.status == 200).then_some(())
    })
    .await;
    let run = troubled.finished(spec::inline([spec::set("a", 1)])).await;
    assert_eq!(run["status"], "completed");
}

#[tokio::test]
async fn without_the_flag_there_are_no_hooks() {
    let (_server, tenant) = Tenant::on_shared().await;
    for act in ["panic", "fail", "stall", "heal"] {
        let path = format!("/test/tenants/{}/{act}", tenant.id);
        tenant.client.post_empty(&path).await.problem(404, "not_found");
    }
    tenant.get("/runs").await.expect(200);
}

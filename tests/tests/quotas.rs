//! Quotas: exact under races, refused with the facts, and no bother to anybody else.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Reply, Server, Tenant, away_from_midnight, eventually, pause, spec};
use tokio::task::JoinSet;
use tokio::time::Instant;

const STARTS: usize = 64;
/// No test here that counts by the day takes longer.
const LONGEST: Duration = Duration::from_secs(45);

/// Sends the same start many times at once and gives all answers.
async fn start_together(tenant: &Tenant, body: &Value) -> Vec<Reply> {
    let mut calls = JoinSet::new();
    for _ in 0..STARTS {
        let (tenant, body) = (tenant.clone(), body.clone());
        calls.spawn(async move { tenant.post("/runs", body).await });
    }
    calls.join_all().await
}

fn accepted(replies: &[Reply]) -> usize {
    replies.iter().filter(|reply| reply.status == 201).count()
}

/// Every answer but 201 is the refusal of this quota.
fn assert_refused_by(replies: &[Reply], quota: &str, limit: u64) {
    for reply in replies.iter().filter(|reply| reply.status != 201) {
        let refused = reply.problem(429, "quota_exceeded");
        assert_eq!(refused["quota"], quota, "{reply}");
        assert_eq!(refused["limit"], limit, "{reply}");
        assert_eq!(refused["used"], limit, "{reply}");
    }
}

/// How many entries the groups of tenants have applied.
async fn applied(server: &Server) -> u64 {
    let metrics = server.client().get("/metrics").await;
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    let of_tenants = text.lines().filter(|line| {
        line.starts_with("shiioo_group_applied_index{") && !line.contains("group=\"0\"")
    });
    of_tenants.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok()).sum()
}

#[tokio::test]
async fn who_goes_on_when_a_quota_is_used_up_takes_no_room_in_the_log() {
    let server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_concurrent_workflows", 1)).await;
    let id = tenant.start(spec::inline([spec::wait("long", 600.0)])).await;
    let one = spec::inline([spec::set("a", 1)]);
    assert_refused_by(&[tenant.post("/runs", one.clone()).await], "max_concurrent_workflows", 1);
    let before = applied(&server).await;
    assert!(before > 0, "the metrics tell it");
    let replies = start_together(&tenant, &one).await;
    assert_eq!(accepted(&replies), 0);
    assert_refused_by(&replies, "max_concurrent_workflows", 1);
    // The node itself may have written an entry meanwhile, and the cluster's own are counted with them.
    let grown = applied(&server).await - before;
    assert!(grown < STARTS as u64 / 4, "{grown} entries: each refusal was an entry of the log");
    // Room is noticed at once.
    tenant.post(&format!("/runs/{id}/cancel"), json!({})).await.expect(200);
    assert_eq!(tenant.finished(one).await["status"], "completed");
}

#[tokio::test]
async fn concurrent_runs_never_exceed_their_limit() {
    away_from_midnight(LONGEST).await;
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_concurrent_workflows", 5)).await;
    let body = spec::inline([spec::wait("long", 600.0)]);
    let replies = start_together(&tenant, &body).await;
    assert_eq!(accepted(&replies), 5);
    assert_refused_by(&replies, "max_concurrent_workflows", 5);
    assert_eq!(tenant.used("max_concurrent_workflows").await, 5);
    let runs = tenant.get("/runs").await.expect(200);
    assert_eq!(runs["runs"].as_array().map(Vec::len), Some(5), "a refusal leaves nothing behind");
    assert_eq!(tenant.used("max_workflows_per_day").await, 5);

    let first = runs["runs"][0]["id"].as_str().expect("an id");
    tenant.post(&format!("/runs/{first}/cancel"), json!({})).await.expect(200);
    let replies = start_together(&tenant, &body).await;
    assert_eq!(accepted(&replies), 1, "the room of a cancelled run is for one other");
}

#[tokio::test]
async fn short_runs_churn_below_the_concurrent_limit() {
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_concurrent_workflows", 5)).await;
    let mut starters = JoinSet::new();
    for _ in 0..8 {
        let tenant = tenant.clone();
        starters.spawn(async move {
            let body = spec::inline([spec::wait("short", 0.05)]);
            let mut accepted = 0;
            for _ in 0..20 {
                let reply = tenant.post("/runs", body.clone()).await;
                accepted += u32::from(reply.status == 201);
                let used = tenant.used("max_concurrent_workflows").await;
                assert!(used <= 5, "{used} runs at once");
            }
            accepted
        });
    }
    let accepted: u32 = starters.join_all().await.into_iter().sum();
    assert!(accepted > 5, "ended runs make room: only {accepted} were accepted");
    eventually("all runs have ended", async || {
        (tenant.used("max_concurrent_workflows").await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn runs_a_day_are_exact() {
    away_from_midnight(LONGEST).await;
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_workflows_per_day", 20)).await;
    let replies = start_together(&tenant, &spec::inline([spec::set("a", 1)])).await;
    assert_eq!(accepted(&replies), 20);
    assert_refused_by(&replies, "max_workflows_per_day", 20);
    for refused in replies.iter().filter(|reply| reply.status == 429) {
        let secs = refused.header("retry-after").expect("Retry-After").parse::<u64>();
        assert!(secs.is_ok_and(|secs| (1..=86_400).contains(&secs)), "{refused}");
    }
    // Whatever became of them: an ended run still counts.
    eventually("all runs have ended", async || {
        (tenant.used("max_concurrent_workflows").await == 0).then_some(())
    })
    .await;
    let usage = tenant.usage("max_workflows_per_day").await;
    assert_eq!((&usage["used"], &usage["limit"]), (&json!(20), &json!(20)));
    let runs = tenant.get("/runs").await.expect(200);
    assert_eq!(runs["runs"].as_array().map(Vec::len), Some(20));
}

#[tokio::test]
async fn zero_means_none_and_null_means_unlimited() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let body = spec::inline([spec::set("a", 1)]);
    for quota in ["max_concurrent_workflows", "max_workflows_per_day"] {
        let none = Tenant::create(&client, spec::only(quota, 0)).await;
        let refused = none.post("/runs", body.clone()).await.problem(429, "quota_exceeded");
        assert_eq!((&refused["quota"], &refused["used"]), (&json!(quota), &json!(0)));
        none.put("", json!({ "quota": { quota: null } })).await.expect(200);
        assert_eq!(none.finished(body.clone()).await["status"], "completed");
    }
}

#[tokio::test]
async fn a_raised_quota_works_at_once_and_a_lowered_one_takes_nothing_away() {
    away_from_midnight(LONGEST).await;
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_concurrent_workflows", 2)).await;
    let body = spec::inline([spec::wait("long", 600.0)]);
    for limit in 3..6 {
        while tenant.post("/runs", body.clone()).await.status == 201 {}
        assert_eq!(tenant.used("max_concurrent_workflows").await, limit - 1);
        let raise = json!({ "quota": { "max_concurrent_workflows": limit } });
        tenant.put("", raise).await.expect(200);
        tenant.start(body.clone()).await;
    }
    let lower = json!({ "quota": { "max_concurrent_workflows": 1 } });
    tenant.put("", lower).await.expect(200);
    let refused = tenant.post("/runs", body).await.problem(429, "quota_exceeded");
    assert_eq!((&refused["limit"], &refused["used"]), (&json!(1), &json!(5)));
    let runs = tenant.get("/runs").await.expect(200);
    for run in runs["runs"].as_array().expect("a list") {
        assert_eq!(run["status"], "running", "{run:#}");
    }
}

#[tokio::test]
async fn a_bad_spec_is_told_before_the_quota() {
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_concurrent_workflows", 0)).await;
    tenant.post("/runs", spec::inline([])).await.problem(422, "invalid_workflow");
    let unknown = json!({ "workflow_name": "nobody-wrote-this" });
    assert_eq!(tenant.post("/runs", unknown).await.status, 422);
}

#[tokio::test]
async fn full_storage_refuses_new_work_and_carries_on_with_the_old() {
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_storage_bytes", 30_000)).await;
    let steps = [spec::wait("pause", 2.0), spec::after(spec::set("late", "x"), &["pause"])];
    let old = tenant.start(spec::inline(steps)).await;
    let heavy = spec::inline([spec::set("a", "x".repeat(2_000))]);
    let refused = eventually("the quota is full", async || {
        let reply = tenant.post("/runs", heavy.clone()).await;
        (reply.status != 201).then_some(reply)
    })
    .await;
    let refused = refused.problem(507, "quota_exceeded");
    assert_eq!(refused["quota"], "max_storage_bytes");
    assert_eq!(refused["limit"], 30_000);
    assert!(refused["used"].as_u64() >= Some(25_000), "{refused:#}");
    let definition = spec::workflow([spec::set("a", "x".repeat(2_000))]);
    let definition = tenant.put("/workflows/w", definition).await;
    definition.problem(507, "quota_exceeded");
    tenant.get("/runs").await.expect(200);
    assert_eq!(tenant.ended(&old).await["status"], "completed");
    eventually("no blobs: events, inputs and outputs count", async || {
        let used = tenant.used("max_storage_bytes").await;
        let stats = tenant.get("/storage-stats").await.expect(200);
        (stats["events_bytes"].as_u64()? + stats["payload_bytes"].as_u64()? == used).then_some(())
    })
    .await;

    let raise = json!({ "quota": { "max_storage_bytes": 1_000_000 } });
    tenant.put("", raise).await.expect(200);
    assert_eq!(tenant.finished(heavy).await["status"], "completed");
}

#[tokio::test]
async fn refusals_of_one_tenant_do_not_touch_another() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let mut poor = spec::only("max_api_requests_per_minute", 0);
    poor["max_concurrent_workflows"] = json!(0);
    let poor = Tenant::create(&client, poor).await;
    let rich = Tenant::create(&client, spec::unlimited()).await;
    poor.get("/runs").await.problem(429, "quota_exceeded");
    assert_eq!(rich.get("/runs").await.expect(200)["runs"], json!([]));
    let headers = rich.get("/runs").await;
    assert_eq!(headers.header("ratelimit-limit"), None, "none where it is unlimited");
}

#[tokio::test]
async fn a_burst_gets_its_limit_and_not_one_more() {
    let server = Server::shared(&[]).await;
    let limit = 30;
    let quota = spec::only("max_api_requests_per_minute", limit);
    let tenant = Tenant::create(&server.client(), quota).await;
    let mut calls = JoinSet::new();
    for _ in 0..STARTS {
        let tenant = tenant.clone();
        calls.spawn(async move { tenant.get("/runs").await });
    }
    let replies = calls.join_all().await;
    let admitted = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!(admitted, 30);
    for reply in &replies {
        let header = |name: &str| -> u64 {
            let value = reply.header(name).unwrap_or_else(|| panic!("{name} in {reply}"));
            value.parse().unwrap_or_else(|_| panic!("{name}: {value}"))
        };
        assert_eq!(header("ratelimit-limit"), limit);
        assert!(header("ratelimit-remaining") < limit);
        assert!(header("ratelimit-reset") <= 61);
        if reply.status != 200 {
            let refused = reply.problem(429, "quota_exceeded");
            assert_eq!(refused["quota"], "max_api_requests_per_minute");
            assert!((1..=61).contains(&header("retry-after")), "{reply}");
        }
    }
    // Management calls are no requests on the tenant's own resources, and refusals do not count.
    assert_eq!(tenant.used("max_api_requests_per_minute").await, limit);
    tenant.get("").await.expect(200);
    tenant.get("/storage-stats").await.expect(200);
    let raise = json!({ "quota": { "max_api_requests_per_minute": limit + 5 } });
    tenant.put("", raise).await.expect(200);
    tenant.get("/runs").await.expect(200);
}

/// Takes more than a minute, for the promise is about minutes; other tests run beside it.
#[tokio::test]
async fn no_window_of_a_minute_admits_more_than_the_limit() {
    const LIMIT: usize = 20;
    const WINDOW: Duration = Duration::from_secs(60);
    const WATCHED: Duration = Duration::from_secs(70);
    let server = Server::alone(&[]).await;
    let quota = spec::only("max_api_requests_per_minute", LIMIT as u64);
    let tenant = Tenant::create(&server.client(), quota).await;
    let started = Instant::now();
    let mut admitted = Vec::new();
    while started.elapsed() < WATCHED {
        let sent = Instant::now();
        let reply = tenant.get("/runs").await;
        if reply.status == 200 {
            admitted.push((sent, Instant::now()));
        }
        // Half the limit in a burst at once, the other half spread over the minute.
        if admitted.len() >= LIMIT / 2 {
            pause(Duration::from_millis(200)).await;
        }
    }
    for window in admitted.windows(LIMIT + 1) {
        // It was admitted between being sent and being answered.
        let span = window[LIMIT].1 - window[0].0;
        assert!(span > WINDOW, "{} requests were admitted within {span:?}", LIMIT + 1);
    }
    assert!(admitted.len() > LIMIT, "requests older than a minute make room again");
}

#[tokio::test]
async fn a_replay_counts_only_by_the_minute() {
    away_from_midnight(LONGEST).await;
    let server = Server::shared(&[]).await;
    let quota = json!({ "max_workflows_per_day": 1, "max_concurrent_workflows": 1 });
    let tenant = Tenant::create(&server.client(), quota).await;
    let body = spec::inline([spec::wait("long", 600.0)]);
    let start = async || {
        let call = tenant.client.call("POST", &tenant.path("/runs")).json(&body);
        call.header("Idempotency-Key", "one").send().await
    };
    let before = tenant.used("max_api_requests_per_minute").await;
    let first = start().await.expect(201);
    for _ in 0..3 {
        let again = start().await;
        assert_eq!(again.header("idempotent-replayed"), Some("true"), "{again}");
        assert_eq!(again.expect(201)["id"], first["id"]);
    }
    assert_eq!(tenant.used("max_workflows_per_day").await, 1);
    assert_eq!(tenant.used("max_api_requests_per_minute").await, before + 4);
}

#[tokio::test]
async fn who_is_refused_again_and_again_has_to_wait_and_a_neighbour_has_not() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let greedy = Tenant::create(&client, spec::only("max_storage_bytes", 1)).await;
    let neighbour = Tenant::create(&client, spec::unlimited()).await;
    // So large that a few refusals a second are too many, however slow the machine is.
    let body = spec::inline_with(json!("x".repeat(900_000)), [spec::set("a", 1)]);
    let told = eventually("somebody is told to wait", async || {
        let replies = start_together(&greedy, &body).await;
        let (full, busy): (Vec<_>, Vec<_>) = replies.iter().partition(|it| it.status == 507);
        assert!(full.iter().all(|it| it.problem(507, "quota_exceeded")["applied"] == false));
        // Each of them has a whole answer, though nobody has read its body.
        busy.first().map(|busy| (busy.problem(503, "busy"), busy.header("retry-after").is_some()))
    });
    let (problem, says_when) = told.await;
    assert!(problem["applied"] == false && says_when, "{problem:#}");
    let run = neighbour.finished(body.clone()).await;
    assert_eq!(run["status"], "completed", "{run:#}");
    // Time pays for it.
    eventually("the quota is heard again", async || {
        let reply = greedy.post("/runs", body.clone()).await;
        (reply.status == 507).then_some(())
    })
    .await;
}

#[tokio::test]
async fn usage_has_one_entry_a_quota() {
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), json!({ "max_routines": null })).await;
    let usage = tenant.get("/usage").await.expect(200);
    let entries = usage["usage"].as_array().expect("a list");
    let mut names: Vec<_> = entries.iter().filter_map(|entry| entry["quota"].as_str()).collect();
    names.sort_unstable();
    let quotas = [
        "max_api_requests_per_minute",
        "max_concurrent_workflows",
        "max_routines",
        "max_storage_bytes",
        "max_workflows_per_day",
    ];
    assert_eq!(names, quotas);
    for entry in entries {
        let fields = entry.as_object().expect("an entry");
        assert!(fields.contains_key("limit") && fields.contains_key("resets_at"), "{entry}");
        assert!(entry["used"].is_u64(), "{entry}");
    }
    assert_eq!(tenant.usage("max_routines").await["limit"], Value::Null);
    assert_eq!(tenant.usage("max_concurrent_workflows").await["limit"], 10);
    let resets_at = tenant.usage("max_workflows_per_day").await["resets_at"].clone();
    assert!(resets_at.as_str().is_some_and(|at| at.contains("T00:00:00")), "{resets_at}");
}

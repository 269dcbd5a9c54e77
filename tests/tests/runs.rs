//! Runs: their steps, order, retries, ends, and what is written about them.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Counter, Scripted, Server, Tenant, eventually, spec};
use tokio::task::JoinSet;
use tokio::time::Instant;

fn types(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["event_type"]["type"].as_str()).collect()
}

#[tokio::test]
async fn an_inline_run_finishes_and_shows_itself_whole() {
    let (_server, tenant) = Tenant::on_shared().await;
    let body = spec::inline_with(json!({ "who": "me" }), [spec::set("a", json!({ "n": 1 }))]);
    let reply = tenant.post("/runs?wait_secs=20", body).await;
    let run = reply.expect(201);
    let id = run["id"].as_str().expect("an id");
    assert_eq!(reply.header("location"), Some(tenant.path(&format!("/runs/{id}")).as_str()));
    assert_eq!(run["status"], "completed");
    assert_eq!(run["input"], json!({ "who": "me" }));
    assert_eq!(run["output"], json!({ "a": { "n": 1 } }));
    assert_eq!(run["error"], Value::Null);
    assert!(run["work_item_id"].is_string(), "{run:#}");
    assert!(run["started_at"].as_str() <= run["completed_at"].as_str(), "{run:#}");
    let step = Tenant::step(&run, "a");
    assert_eq!(step["status"], "completed");
    assert_eq!(step["attempt"], 1);
    assert_eq!(step["output"], json!({ "n": 1 }));
    assert_eq!(step["error"], Value::Null);
    assert_eq!(step["waiting_for"], Value::Null);
    assert_eq!(tenant.run(id).await, run);
}

#[tokio::test]
async fn steps_run_in_the_order_of_their_dependencies() {
    let (_server, tenant) = Tenant::on_shared().await;
    // A diamond, half of it written the one way, half the other.
    let steps = [
        spec::after(spec::set("end", json!("{{ steps.l.output + steps.r.output }}")), &["l", "r"]),
        spec::set("l", json!("{{ steps.top.output * 2 }}")),
        spec::after(spec::set("r", json!("{{ steps.top.output * 3 }}")), &["top"]),
        spec::set("top", json!("{{ input.x }}")),
    ];
    let mut body = spec::inline_with(json!({ "x": 7 }), steps);
    body["workflow"]["dependencies"] = json!({ "l": ["top"] });
    let run = tenant.finished(body).await;
    assert_eq!(run["output"], json!({ "end": 35 }), "{run:#}");
    let events = tenant.events(run["id"].as_str().expect("an id")).await;
    let at = |kind: &str, step: &str| {
        let found = events.iter().position(|event| {
            event["event_type"]["type"] == kind && event["event_type"]["step_id"] == step
        });
        found.unwrap_or_else(|| panic!("no {kind} of {step} in {events:#?}"))
    };
    assert!(at("step_completed", "top") < at("step_started", "l"));
    assert!(at("step_completed", "top") < at("step_started", "r"));
    assert!(at("step_completed", "l") < at("step_started", "end"));
    assert!(at("step_completed", "r") < at("step_started", "end"));
}

#[tokio::test]
async fn events_tell_the_story_of_the_run() {
    let (_server, tenant) = Tenant::on_shared().await;
    let run = tenant.finished(spec::inline(spec::chain(2))).await;
    let id = run["id"].as_str().expect("an id");
    let events = tenant.events(id).await;
    let told = types(&events);
    assert_eq!(told.first(), Some(&"run_started"));
    assert_eq!(told.last(), Some(&"run_completed"));
    for kind in ["step_scheduled", "step_started", "step_completed"] {
        assert_eq!(told.iter().filter(|told| **told == kind).count(), 2, "{kind} in {told:?}");
    }
    let mut last = 0;
    for event in &events {
        let seq = event["seq"].as_u64().expect("a sequence number");
        assert!(seq > last, "{events:#?}");
        last = seq;
        assert_eq!(event["id"], seq.to_string());
        assert_eq!(event["run_id"], id);
        assert!(event["timestamp"].is_string(), "{event:#}");
    }
    assert_eq!(events[0]["event_type"]["work_item_id"], run["work_item_id"]);
    assert!(events[0]["event_type"]["workflow_spec"]["steps"].is_array());
    assert!(events.last().expect("events")["event_type"]["duration_secs"].is_u64());
}

#[tokio::test]
async fn templates_keep_types_and_join_text() {
    let (_server, tenant) = Tenant::on_shared().await;
    let output = json!({
        "whole": "{{ input.list }}",
        "text": "{{ input.name }} has {{ input.list | length }}",
        "upper": "{{ input.name | upper }}",
        "deep": [{ "n": "{{ steps.a.output.n }}" }],
        "plain": "no braces",
    });
    let steps = [spec::set("a", json!({ "n": 41 })), spec::after(spec::set("b", output), &["a"])];
    let input = json!({ "name": "acme", "list": [1, { "x": null }, "three"] });
    let run = tenant.finished(spec::inline_with(input, steps)).await;
    assert_eq!(
        run["output"]["b"],
        json!({
            "whole": [1, { "x": null }, "three"],
            "text": "acme has 3",
            "upper": "ACME",
            "deep": [{ "n": 41 }],
            "plain": "no braces",
        }),
        "{run:#}"
    );
}

#[tokio::test]
async fn a_template_that_names_nothing_fails_its_step() {
    let (_server, tenant) = Tenant::on_shared().await;
    for template in ["{{ input.absent }}", "x {{ input.a.b }}", "{{ input.x | int }}"] {
        let steps = [spec::set("bad", template), spec::after(spec::set("next", 1), &["bad"])];
        let run = tenant.finished(spec::inline(steps)).await;
        assert_eq!(run["status"], "failed", "{template}: {run:#}");
        assert!(run["error"].is_string(), "{run:#}");
        let step = Tenant::step(&run, "bad");
        assert_eq!(step["status"], "failed");
        assert!(step["error"].is_string(), "{run:#}");
        assert_eq!(Tenant::step(&run, "next")["status"], "skipped");
    }
}

#[tokio::test]
async fn waits_last_as_long_as_they_say() {
    let (_server, tenant) = Tenant::on_shared().await;
    let started = Instant::now();
    let run = tenant.finished(spec::inline([spec::wait("w", 0.5)])).await;
    assert_eq!(run["status"], "completed");
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    let past = spec::step("w", json!({ "type": "wait", "until": "2020-01-01T00:00:00Z" }));
    assert_eq!(tenant.finished(spec::inline([past])).await["status"], "completed");
    let far = spec::step("w", json!({ "type": "wait", "until": "2199-01-01T00:00:00Z" }));
    let far = tenant.start(spec::inline([far])).await;
    tenant.step_reaches(&far, "w", "timer").await;
}

#[tokio::test]
async fn wait_secs_is_bounded_and_answers_with_the_run_as_it_is() {
    let (_server, tenant) = Tenant::on_shared().await;
    let started = Instant::now();
    let body = spec::inline([spec::wait("w", 600.0)]);
    let run = tenant.post("/runs?wait_secs=0.3", body.clone()).await.expect(201);
    assert_eq!(run["status"], "running");
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    let id = run["id"].as_str().expect("an id");
    let read = tenant.get(&format!("/runs/{id}?wait_secs=0.2")).await.expect(200);
    assert_eq!(read["status"], "running");
    for bad in ["-1", "x", "301"] {
        let reply = tenant.get(&format!("/runs/{id}?wait_secs={bad}")).await;
        reply.problem(400, "invalid_parameter");
    }
}

#[tokio::test]
async fn a_cancelled_run_stops_where_it_is() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    let steps = [
        spec::set("done", 1),
        spec::after(spec::wait("now", 600.0), &["done"]),
        spec::after(spec::http("later", "GET", &service.url("/later")), &["now"]),
    ];
    let run = tenant.start(spec::inline(steps)).await;
    tenant.step_reaches(&run, "now", "timer").await;
    let path = format!("/runs/{run}/cancel");
    let cancelled = tenant.post(&path, json!({ "reason": "changed my mind" })).await.expect(200);
    assert_eq!(cancelled["status"], "cancelled");
    assert!(!cancelled["completed_at"].is_null());
    assert_eq!(Tenant::step(&cancelled, "done")["status"], "completed");
    assert_eq!(Tenant::step(&cancelled, "now")["status"], "skipped");
    assert_eq!(Tenant::step(&cancelled, "later")["status"], "skipped");
    let events = tenant.events(&run).await;
    let last = &events.last().expect("events")["event_type"];
    assert_eq!(last["type"], "run_cancelled");
    assert_eq!(last["reason"], "changed my mind");
    tenant.post(&path, json!({})).await.problem(409, "conflict");
    assert_eq!(service.count("/later"), 0);
    let finished = tenant.finished(spec::inline([spec::set("a", 1)])).await;
    let path = format!("/runs/{}/cancel", finished["id"].as_str().expect("an id"));
    tenant.client.post_empty(&tenant.path(&path)).await.problem(409, "conflict");
}

#[tokio::test]
async fn a_failure_lets_running_steps_finish_and_skips_the_rest() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    service.script("/slow", [Scripted::slow(Duration::from_secs(5))]);
    let steps = [
        spec::wait("pause", 0.3),
        spec::after(spec::set("bad", "{{ input.absent }}"), &["pause"]),
        spec::http("calls", "GET", &service.url("/slow")),
        spec::after(spec::set("after_calls", 1), &["calls"]),
        spec::after(spec::set("after_bad", 1), &["bad"]),
    ];
    let run = tenant.finished(spec::inline(steps)).await;
    assert_eq!(run["status"], "failed", "{run:#}");
    for (step, status) in [
        ("bad", "failed"),
        ("calls", "completed"),
        ("after_bad", "skipped"),
        ("after_calls", "skipped"),
    ] {
        assert_eq!(Tenant::step(&run, step)["status"], status, "{step} in {run:#}");
    }
}

#[tokio::test]
async fn parallel_duplicates_with_one_key_make_one_run() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    let body = spec::inline([spec::http("call", "POST", &service.url("/once"))]);
    let mut calls = JoinSet::new();
    for _ in 0..32 {
        let (tenant, body) = (tenant.clone(), body.clone());
        calls.spawn(async move {
            let call = tenant.client.call("POST", &tenant.path("/runs")).json(&body);
            call.header("Idempotency-Key", "the-one").send().await
        });
    }
    let replies = calls.join_all().await;
    let first = replies[0].expect(201)["id"].clone();
    for reply in &replies {
        assert_eq!(reply.expect(201)["id"], first);
    }
    let replayed = replies.iter().filter(|reply| reply.header("idempotent-replayed").is_some());
    assert_eq!(replayed.count(), 31);
    let runs = tenant.get("/runs").await.expect(200);
    assert_eq!(runs["runs"].as_array().map(Vec::len), Some(1));
    tenant.ended(first.as_str().expect("an id")).await;
    assert_eq!(service.count("/once"), 1);
    let other = spec::inline([spec::set("a", 1)]);
    let call = tenant.client.call("POST", &tenant.path("/runs")).json(&other);
    let reused = call.header("Idempotency-Key", "the-one").send().await;
    reused.problem(422, "idempotency_key_reused");
    // Another tenant's keys are its own.
    let neighbour = Tenant::create(&tenant.client, spec::unlimited()).await;
    let call = neighbour.client.call("POST", &neighbour.path("/runs")).json(&other);
    let own = call.header("Idempotency-Key", "the-one").send().await;
    assert_ne!(own.expect(201)["id"], first);
}

#[tokio::test]
async fn runs_are_listed_newest_first_by_status_and_in_pages() {
    let (_server, tenant) = Tenant::on_shared().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let body = spec::inline_with(json!({ "number": number }), [spec::set("a", 1)]);
        ids.push(tenant.finished(body).await["id"].clone());
    }
    let waiting = tenant.start(spec::inline([spec::wait("w", 600.0)])).await;
    ids.push(json!(waiting));
    ids.reverse();
    let listed = async |query: &str| -> (Vec<Value>, Value) {
        let page = tenant.get(&format!("/runs{query}")).await.expect(200);
        let runs = page["runs"].as_array().expect("a list");
        (runs.iter().map(|run| run["id"].clone()).collect(), page["next_cursor"].clone())
    };
    assert_eq!(listed("").await, (ids.clone(), Value::Null));
    let (first, cursor) = listed("?limit=4").await;
    assert_eq!(first, ids[..4]);
    let cursor = cursor.as_str().expect("a cursor").to_owned();
    assert_eq!(listed(&format!("?limit=4&cursor={cursor}")).await.0, ids[4..]);
    eventually("the waiting run is running", async || {
        (listed("?status=running").await.0 == ids[..1]).then_some(())
    })
    .await;
    assert_eq!(listed("?status=completed").await.0, ids[1..]);
    assert_eq!(listed("?status=failed").await.0, Vec::<Value>::new());
    tenant.get("/runs?status=sleeping").await.problem(400, "invalid_parameter");
}

#[tokio::test]
async fn the_short_paths_serve_the_tenant_of_the_header() {
    let (_server, tenant) = Tenant::on_shared().await;
    let body = spec::inline([spec::set("a", 1)]);
    tenant.client.post("/api/runs", body.clone()).await.problem(400, "tenant_required");
    tenant.client.get("/api/jobs").await.problem(400, "tenant_required");
    let short = tenant.client.clone().with_header("x-tenant-id", &tenant.id);
    let run = short.post("/api/runs?wait_secs=20", body).await.expect(201);
    assert_eq!(run["status"], "completed");
    let id = run["id"].as_str().expect("an id");
    assert_eq!(short.get(&format!("/api/runs/{id}")).await.expect(200), run);
    assert_eq!(tenant.run(id).await, run);
    assert_eq!(short.get("/api/runs").await.expect(200)["runs"], json!([run]));
    let nobody = tenant.client.clone().with_header("x-tenant-id", "nobody");
    nobody.get("/api/runs").await.problem(404, "not_found");
}

#[tokio::test]
async fn unknown_runs_are_404() {
    let (_server, tenant) = Tenant::on_shared().await;
    for id in ["00000000-0000-4000-8000-000000000000", "nonsense"] {
        tenant.get(&format!("/runs/{id}")).await.problem(404, "not_found");
        tenant.get(&format!("/runs/{id}/events")).await.problem(404, "not_found");
        tenant.post(&format!("/runs/{id}/cancel"), json!({})).await.problem(404, "not_found");
    }
}

#[tokio::test]
async fn a_wide_workflow_runs_all_its_steps_once() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    let mut steps: Vec<_> =
        (0..40).map(|at| spec::http(&format!("h{at}"), "GET", &service.url("/wide"))).collect();
    let ids: Vec<String> = (0..40).map(|at| format!("h{at}")).collect();
    let needs: Vec<&str> = ids.iter().map(String::as_str).collect();
    steps.push(spec::after(spec::set("end", "all"), &needs));
    let run = tenant.finished(spec::inline(steps)).await;
    assert_eq!(run["output"], json!({ "end": "all" }), "{run:#}");
    assert_eq!(service.count("/wide"), 40);
}

#[tokio::test]
async fn a_wait_goes_on_over_a_restart_and_keeps_its_due_time() {
    let mut server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    let started = Instant::now();
    let steps = [spec::wait("w", 5.0), spec::after(spec::set("end", 1), &["w"])];
    let run = tenant.start(spec::inline(steps)).await;
    tenant.step_reaches(&run, "w", "timer").await;
    server.kill9();
    server.restart().await;
    let tenant = Tenant { client: server.client(), ..tenant };
    let ended = tenant.ended(&run).await;
    assert_eq!(ended["status"], "completed", "{ended:#}");
    assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(Tenant::step(&ended, "w")["attempt"], 1, "{ended:#}");
}

#[tokio::test]
async fn pages_of_events_are_the_whole_story_once() {
    let (_server, tenant) = Tenant::on_shared().await;
    let run = tenant.finished(spec::inline([spec::set("a", 1), spec::set("b", 2)])).await;
    let id = run["id"].as_str().expect("an id");
    let all = tenant.events(id).await;
    assert!(all.len() > 5, "{all:#?}");
    for limit in [1, 2, all.len() - 1, all.len()] {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page =
                tenant.get(&format!("/runs/{id}/events?limit={limit}{cursor}")).await.expect(200);
            let events = page["events"].as_array().expect("a list");
            assert!(events.len() <= limit);
            seen.extend(events.iter().cloned());
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => break,
            }
        }
        assert_eq!(seen, all, "{limit} a page");
    }
}

#[tokio::test]
async fn a_run_pauses_between_steps_while_its_tenant_is_suspended() {
    let (_server, tenant) = Tenant::on_shared().await;
    let steps = [spec::wait("first", 3.0), spec::after(spec::set("second", 2), &["first"])];
    let run = tenant.start(spec::inline(steps)).await;
    tenant.step_reaches(&run, "first", "timer").await;
    tenant.client.post_empty(&tenant.path("/suspend")).await.expect(200);
    let paused = tenant.step_reaches(&run, "second", "resume").await;
    assert_eq!(Tenant::step(&paused, "first")["status"], "completed");
    assert_eq!(paused["status"], "running");
    tenant.client.post_empty(&tenant.path("/activate")).await.expect(200);
    let ended = tenant.ended(&run).await;
    assert_eq!(ended["status"], "completed", "{ended:#}");
    assert_eq!(ended["output"], json!({ "second": 2 }));
}

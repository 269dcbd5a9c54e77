//! Steps: what they call and keep, how they fail and are tried again; and steps that could hurt the node
//! they are performed on, its other tenants, or themselves.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Counter, Scripted, Server, Tenant, eventually, eventually_within, spec};
use tokio::time::Instant;

#[tokio::test]
async fn an_http_step_sends_what_it_says_and_keeps_the_answer() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    service.script("/order", [Scripted::body(json!({ "order": 12 }))]);
    let call = spec::step(
        "call",
        json!({
            "type": "http", "method": "POST", "url": service.url("/order"),
            "headers": { "x-who": "{{ input.who }}" }, "body": { "amount": "{{ input.amount }}" },
        }),
    );
    let use_it = spec::after(spec::set("got", "{{ steps.call.output.body.order }}"), &["call"]);
    let input = json!({ "who": "acme", "amount": 3 });
    let run = tenant.finished(spec::inline_with(input, [call, use_it])).await;
    assert_eq!(run["output"], json!({ "got": 12 }), "{run:#}");
    let output = &Tenant::step(&run, "call")["output"];
    assert_eq!(output["status"], 200);
    assert_eq!(output["body"], json!({ "order": 12 }));
    assert_eq!(output["headers"]["content-type"], "application/json");
    let (headers, body) = service.last("/order");
    assert_eq!(headers["x-who"], "acme");
    assert_eq!(headers["content-type"], "application/json");
    let key = format!("{}/call", run["id"].as_str().expect("an id"));
    assert_eq!(headers["idempotency-key"], key.as_str());
    let body: Value = serde_json::from_slice(&body).expect("a JSON body");
    assert_eq!(body, json!({ "amount": 3 }));
}

#[tokio::test]
async fn passing_faults_are_retried_with_backoff() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    service.script("/flaky", [503, 429].map(Scripted::status));
    let step = spec::http("call", "GET", &service.url("/flaky"));
    let retries = json!({ "retry_policy": { "max_attempts": 5, "backoff_secs": 0.2 } });
    let started = Instant::now();
    let run = tenant.finished(spec::inline([spec::with(step, retries)])).await;
    assert_eq!(run["status"], "completed", "{run:#}");
    assert_eq!(Tenant::step(&run, "call")["attempt"], 3);
    assert_eq!(service.count("/flaky"), 3);
    // Jitter may halve it, no more.
    assert!(started.elapsed() > Duration::from_millis(150), "{:?}", started.elapsed());
    let id = run["id"].as_str().expect("an id");
    assert_eq!(service.count_of_key(&format!("{id}/call")), 3, "all attempts carry one key");
    let events = tenant.events(id).await;
    let failures: Vec<_> =
        events.iter().filter(|event| event["event_type"]["type"] == "step_failed").collect();
    assert_eq!(failures.len(), 2, "{events:#?}");
    for (failure, attempt) in failures.iter().zip(1..) {
        assert_eq!(failure["event_type"]["attempt"], attempt);
        assert_eq!(failure["event_type"]["will_retry"], true);
    }
}

#[tokio::test]
async fn lasting_faults_and_used_up_retries_fail_the_run() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    let retries = json!({ "retry_policy": { "max_attempts": 3, "backoff_secs": 0.05 } });
    for (path, status, calls) in [("/gone", 404, 1), ("/bad", 400, 1), ("/down", 500, 3)] {
        service.script(path, [status; 5].map(Scripted::status));
        let step = spec::http("call", "GET", &service.url(path));
        let steps =
            [spec::with(step, retries.clone()), spec::after(spec::set("next", 1), &["call"])];
        let run = tenant.finished(spec::inline(steps)).await;
        assert_eq!(run["status"], "failed", "{run:#}");
        assert_eq!(service.count(path), calls, "{path}");
        assert_eq!(Tenant::step(&run, "call")["attempt"], calls);
        assert_eq!(Tenant::step(&run, "next")["status"], "skipped");
        let events = tenant.events(run["id"].as_str().expect("an id")).await;
        assert_eq!(events.last().expect("events")["event_type"]["type"], "run_failed");
    }
}

#[tokio::test]
async fn a_refused_connection_is_a_passing_fault() {
    let (_server, tenant) = Tenant::on_shared().await;
    // A port that is taken, and where nobody listens.
    let taken = tokio::net::TcpSocket::new_v4().expect("a socket");
    taken.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let url = format!("http://{}/nobody", taken.local_addr().expect("its address"));
    let step = spec::http("call", "GET", &url);
    let retries = json!({ "retry_policy": { "max_attempts": 2, "backoff_secs": 0.05 } });
    let run = tenant.finished(spec::inline([spec::with(step, retries)])).await;
    assert_eq!(run["status"], "failed");
    assert_eq!(Tenant::step(&run, "call")["attempt"], 2, "{run:#}");
}

#[tokio::test]
async fn a_step_that_takes_too_long_fails() {
    let (_server, tenant) = Tenant::on_shared().await;
    let service = Counter::start().await;
    service.script("/slow", [Scripted::slow(Duration::from_secs(120))]);
    let step = spec::http("late", "GET", &service.url("/slow"));
    let step = spec::with(step, json!({ "timeout_secs": 0.3 }));
    let run = tenant.finished(spec::inline([step])).await;
    assert_eq!(run["status"], "failed", "{run:#}");
    assert_eq!(Tenant::step(&run, "late")["status"], "failed");
}

#[tokio::test]
async fn private_targets_are_called_unless_they_are_denied() {
    let service = Counter::start().await;
    let run = spec::inline([spec::http("a", "GET", &service.url("/"))]);
    for (flags, status) in [(&[][..], "completed"), (&["--deny-private-targets"][..], "failed")] {
        let server = Server::shared(flags).await;
        let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
        let run = tenant.finished(run.clone()).await;
        assert_eq!(run["status"], status, "{run:#}");
        if status == "failed" {
            let error = Tenant::step(&run, "a")["error"].as_str().expect("an error");
            assert!(error.contains("--deny-private-targets"), "{error}");
        }
    }
    assert_eq!(service.count("/"), 1);
}

#[tokio::test]
async fn a_step_of_any_name_is_named_in_brackets() {
    let (_server, tenant) = Tenant::on_shared().await;
    let next = spec::set("next", "{{ steps['fetch-user'].output + 1 }}");
    let good = spec::after(next, &["fetch-user"]);
    let run = tenant.finished(spec::inline([spec::set("fetch-user", 1), good])).await;
    assert_eq!(run["output"], json!({ "next": 2 }), "{run:#}");
}

#[tokio::test]
async fn null_is_nothing_and_what_is_stored_is_whole() {
    let (_server, tenant) = Tenant::on_shared().await;
    let nulls = json!({
        "name": null, "description": null, "role": null, "depends_on": null, "timeout_secs": null,
        "retry_policy": { "max_attempts": null, "backoff_secs": null }, "requires_approval": null,
    });
    let call = json!({
        "type": "http", "method": "GET", "url": "http://localhost", "headers": null, "body": null,
    });
    let steps = [spec::with(spec::step("a", call), nulls), spec::set("b", 1)];
    let mut workflow = spec::workflow(steps);
    workflow["steps"][1]["retry_policy"] = Value::Null;
    workflow["dependencies"] = Value::Null;
    let stored = tenant.put("/workflows/nulls", workflow).await.expect(201);
    for (step, id) in [(&stored["spec"]["steps"][0], "a"), (&stored["spec"]["steps"][1], "b")] {
        assert_eq!(step["name"], id, "{stored:#}");
        assert_eq!(step["role"], "default");
        assert_eq!(step["requires_approval"], false);
        assert_eq!(step["timeout_secs"].to_string(), "300");
        assert_eq!(step["retry_policy"].to_string(), r#"{"backoff_secs":1,"max_attempts":1}"#);
    }
    for (field, bad) in [
        ("retry_policy", json!([3, 0.1])),
        ("retry_policy", json!({ "max_attempts": "x" })),
        ("timeout_secs", json!("1")),
        ("action", json!(["set", 1])),
    ] {
        let step = spec::with(spec::set("a", 1), json!({ field: bad }));
        let problem = tenant.post("/runs", spec::inline([step])).await.expect(422);
        let detail = problem["detail"].as_str().expect("a text");
        for name in ["struct", "f64", "u32", "RetryPolicy", "Action", "enum"] {
            assert!(!detail.contains(name), "{detail}");
        }
        let named = problem["field"].as_str().expect("a field");
        assert!(named.contains(field), "{problem:#}");
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_kept_as_it_is_fails_its_step() {
    let (_server, tenant) = Tenant::on_shared().await;
    let input = (0..60).fold(json!(1), |inner, _| json!([inner]));
    let deep = (0..5).fold(json!("{{ input }}"), |inner, _| json!([inner]));
    for (output, said) in
        [(deep, "64 levels"), (json!("{{ 2 ** 64 }}"), "64 bits"), (json!("{{ [input.x] }}"), "")]
    {
        let body = spec::inline_with(input.clone(), [spec::set("a", output)]);
        let run = tenant.finished(body).await;
        assert_eq!(run["status"], "failed", "{run:#}");
        let error = Tenant::step(&run, "a")["error"].as_str().expect("a text");
        assert!(error.contains(said), "{error}");
    }
}

/// Whatever it was that ended the process: a step that was under way each time is not tried for
/// ever.
#[tokio::test]
async fn a_step_under_way_at_three_deaths_in_a_row_fails() {
    let mut server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    let service = Counter::start().await;
    service.script("/poison", vec![Scripted::slow(Duration::from_secs(120)); 9]);
    let step = spec::http("poison", "GET", &service.url("/poison"));
    let run = tenant.start(spec::inline([step])).await;
    // A stop that is asked for does not count.
    for death in 0..4 {
        eventually("the call", async || (service.count("/poison") > death).then_some(())).await;
        match death {
            0 => server.term().await,
            _ => server.kill9(),
        }
        server.restart().await;
    }
    let tenant = Tenant { client: server.client(), ..tenant };
    let ended = tenant.ended(&run).await;
    assert_eq!(ended["status"], "failed", "{ended:#}");
    let error = Tenant::step(&ended, "poison")["error"].as_str().expect("a text");
    assert!(error.contains("died 3 times in a row"), "{error}");
    assert_eq!(service.count("/poison"), 4);
    let run = tenant.finished(spec::inline([spec::set("a", 1)])).await;
    assert_eq!(run["status"], "completed", "{run:#}");
}

/// Rendering takes as long as it takes, but nobody else waits for it.
#[tokio::test]
async fn heavy_templates_stop_nobody_else() {
    /// So many that one template takes longer than a run of the other tenant, and less than it may.
    const NUMBERS: usize = 100_000;
    let server = Server::alone(&[]).await;
    let heavy = Tenant::create(&server.client(), spec::unlimited()).await;
    let other = Tenant::create(&server.client(), spec::unlimited()).await;
    let before_kib = server.rss_kib();
    let outputs: Vec<Value> =
        (0..8).map(|at| spec::set(&format!("o{at}"), "{{ input }}")).collect();
    let names: Vec<String> = (0..8).map(|at| format!("o{at}")).collect();
    let needs: Vec<&str> = names.iter().map(String::as_str).collect();
    let lengths = (0..40).map(|at| {
        let text = format!("{{{{ steps.o{}.output | length }}}}", at % 8);
        spec::after(spec::set(&format!("l{at}"), text), &needs)
    });
    let steps: Vec<Value> = outputs.iter().cloned().chain(lengths).collect();
    let run = heavy.start(spec::inline_with(json!(vec![1; NUMBERS]), steps)).await;
    let (mut slowest, mut others) = (Duration::ZERO, 0);
    eventually_within(Duration::from_secs(120), "the heavy run", async || {
        let asked = Instant::now();
        server.client().get("/healthz").await.expect(200);
        let done = other.finished(spec::inline([spec::set("a", "{{ 1 + 1 }}")])).await;
        assert_eq!(done["status"], "completed", "{done:#}");
        slowest = slowest.max(asked.elapsed());
        others += 1;
        (heavy.used("max_concurrent_workflows").await == 0).then_some(())
    })
    .await;
    let ended = heavy.run(&run).await;
    assert_eq!(ended["status"], "completed", "{}", ended["error"]);
    assert_eq!(Tenant::step(&ended, "l39")["output"], NUMBERS);
    let grown_kib = server.rss_kib().saturating_sub(before_kib);
    println!("{others} runs meanwhile, the slowest took {slowest:?}; grown by {grown_kib} KiB");
    // If they had waited for all of it, there would be one.
    assert!(others > 1, "others wait for the heavy run");
    assert!(slowest < Duration::from_secs(15), "{slowest:?}");
    assert!(grown_kib < 100 * 1024, "{grown_kib} KiB");
}

/// One tenant has so many calls open and no more; the rest of its steps are performed all the same.
#[tokio::test]
async fn calls_of_one_tenant_are_bounded_and_none_is_lost() {
    let (server, tenant) = Tenant::on_shared().await;
    let service = Counter::thinking(Duration::from_millis(300)).await;
    let steps: Vec<Value> =
        (0..150).map(|at| spec::http(&format!("h{at}"), "GET", &service.url("/many"))).collect();
    let run = tenant.start(spec::inline(steps)).await;
    eventually("the first calls", async || (service.count("/many") >= 60).then_some(())).await;
    assert!(service.count("/many") <= 128, "{}", service.count("/many"));
    let other = Tenant::create(&server.client(), spec::unlimited()).await;
    let done = other.finished(spec::inline([spec::http("a", "GET", &service.url("/one"))])).await;
    assert_eq!(done["status"], "completed", "{done:#}");
    assert_eq!(tenant.ended(&run).await["status"], "completed");
    assert_eq!(service.count("/many"), 150);
}

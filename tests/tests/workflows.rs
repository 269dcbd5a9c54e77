//! Workflow definitions and their versions, what makes a bad one, and jobs.

use serde_json::json;
use tempfile::TempDir;
use tests::{Server, Tenant, spec};

#[tokio::test]
async fn a_definition_is_put_read_changed_and_deleted() {
    let (_server, tenant) = Tenant::on_shared().await;
    let first = spec::workflow([spec::set("a", 1)]);
    let put = tenant.put("/workflows/greet", first.clone()).await;
    let made = put.expect(201);
    assert_eq!(put.header("location"), Some(tenant.path("/workflows/greet").as_str()));
    assert_eq!((&made["name"], &made["version"]), (&json!("greet"), &json!(1)));
    assert_eq!(made["spec"]["steps"][0]["id"], "a");
    assert!(made["created_at"].is_string(), "{made:#}");
    assert_eq!(tenant.get("/workflows/greet").await.expect(200), made);

    let changed = tenant.put("/workflows/greet", spec::workflow([spec::set("b", 2)])).await;
    let changed = changed.expect(200);
    assert_eq!(changed["version"], 2);
    assert_eq!(tenant.get("/workflows/greet").await.expect(200), changed);

    tenant.put("/workflows/other", first).await.expect(201);
    let listed = tenant.get("/workflows").await.expect(200);
    let names: Vec<_> = listed["workflows"].as_array().expect("a list").iter().collect();
    assert_eq!(names.len(), 2, "{listed:#}");
    assert_eq!((&names[0]["name"], &names[1]["name"]), (&json!("greet"), &json!("other")));

    let deleted = tenant.delete("/workflows/greet").await.expect(200);
    assert!(deleted["message"].is_string(), "{deleted:#}");
    tenant.get("/workflows/greet").await.problem(404, "not_found");
    tenant.delete("/workflows/greet").await.problem(404, "not_found");
}

#[tokio::test]
async fn a_run_keeps_the_version_it_started_with() {
    let (_server, tenant) = Tenant::on_shared().await;
    let pause = spec::wait("pause", 0.5);
    let old = [pause.clone(), spec::after(spec::set("end", "old"), &["pause"])];
    let new = [pause, spec::after(spec::set("end", "new"), &["pause"])];
    tenant.put("/workflows/w", spec::workflow(old)).await.expect(201);
    let by_name = json!({ "workflow_name": "w" });
    let first = tenant.start(by_name.clone()).await;
    tenant.put("/workflows/w", spec::workflow(new)).await.expect(200);
    let second = tenant.start(by_name.clone()).await;
    tenant.delete("/workflows/w").await.expect(200);
    assert_eq!(tenant.ended(&first).await["output"], json!({ "end": "old" }));
    assert_eq!(tenant.ended(&second).await["output"], json!({ "end": "new" }));
    let refused = tenant.post("/runs", by_name).await;
    assert_eq!(refused.expect(422)["field"], "workflow_name");
}

#[tokio::test]
async fn a_named_run_takes_its_input() {
    let (_server, tenant) = Tenant::on_shared().await;
    let definition = spec::workflow([spec::set("a", "{{ input.x }}")]);
    tenant.put("/workflows/echo", definition).await.expect(201);
    let run = tenant.finished(json!({ "workflow_name": "echo", "input": { "x": [1] } })).await;
    assert_eq!(run["output"], json!({ "a": [1] }));
}

#[tokio::test]
async fn if_match_guards_definitions() {
    let (_server, tenant) = Tenant::on_shared().await;
    let definition = spec::workflow([spec::set("a", 1)]);
    let put = tenant.put("/workflows/w", definition.clone()).await;
    let etag = put.header("etag").expect("an ETag").to_owned();
    assert_eq!(tenant.get("/workflows/w").await.header("etag"), Some(etag.as_str()));
    let path = tenant.path("/workflows/w");
    let guarded = async |method: &str, etag: &str| {
        let call = tenant.client.call(method, &path).header("If-Match", etag);
        call.json(&definition).send().await
    };
    guarded("PUT", &etag).await.expect(200);
    guarded("PUT", &etag).await.problem(412, "precondition_failed");
    guarded("DELETE", &etag).await.problem(412, "precondition_failed");
    assert_eq!(tenant.get("/workflows/w").await.expect(200)["version"], 2);
}

#[tokio::test]
async fn a_bad_workflow_is_refused_wherever_it_is_given() {
    let (_server, tenant) = Tenant::on_shared().await;
    let cycle = [spec::after(spec::set("b", 1), &["c"]), spec::after(spec::set("c", 1), &["b"])];
    let workflow = spec::workflow(cycle);
    let as_run = tenant.post("/runs", json!({ "workflow": workflow })).await;
    let as_job = tenant.post("/jobs", json!({ "name": "j", "workflow": workflow })).await;
    let as_definition = tenant.put("/workflows/bad", workflow).await;
    for reply in [as_run, as_job, as_definition] {
        assert_eq!(reply.problem(422, "invalid_workflow")["step"], "b", "{reply}");
    }
    for body in [json!({}), json!({ "workflow": null }), json!({ "workflow_name": 1 })] {
        tenant.post("/runs", body).await.problem(422, "invalid_field");
    }
    tenant.get("/workflows/bad").await.problem(404, "not_found");
    assert_eq!(tenant.get("/runs").await.expect(200)["runs"], json!([]));
    assert_eq!(tenant.get("/jobs").await.expect(200)["jobs"], json!([]));
}

#[tokio::test]
async fn a_thousand_steps_are_a_workflow() {
    let (_server, tenant) = Tenant::on_shared().await;
    let steps: Vec<_> = (0..1000).map(|at| spec::set(&format!("s{at}"), at)).collect();
    let run = tenant.finished(spec::inline(steps)).await;
    assert_eq!(run["status"], "completed");
    assert_eq!(run["output"].as_object().map(serde_json::Map::len), Some(1000));
}

#[tokio::test]
async fn a_job_is_a_run_with_a_name() {
    let (_server, tenant) = Tenant::on_shared().await;
    let workflow = spec::workflow([spec::set("a", 1)]);
    let body = json!({
        "name": "Nightly", "description": "all of it", "workflow": workflow, "created_by": "me",
    });
    let reply = tenant.post("/jobs", body).await;
    let made = reply.expect(201);
    let (job, run) = (made["job_id"].as_str(), made["run_id"].as_str());
    let (job, run) = (job.expect("a job's id"), run.expect("a run's id"));
    assert!(made["message"].is_string(), "{made:#}");
    assert_eq!(reply.header("location"), Some(tenant.path(&format!("/jobs/{job}")).as_str()));
    assert_eq!(tenant.ended(run).await["status"], "completed");
    let read = tenant.get(&format!("/jobs/{job}")).await.expect(200);
    assert_eq!(read["id"], job);
    assert_eq!(read["name"], "Nightly");
    assert_eq!(read["description"], "all of it");
    assert_eq!(read["created_by"], "me");
    assert_eq!(read["run_id"], run);
    assert_eq!(read["workflow"]["steps"][0]["id"], "a");
    assert!(read["created_at"].is_string(), "{read:#}");

    let kept = json!({ "name": "Kept", "workflow": workflow, "execute": false });
    let kept = tenant.post("/jobs", kept).await.expect(201);
    assert!(kept["run_id"].is_null(), "{kept:#}");
    let listed = tenant.get("/jobs").await.expect(200);
    let ids: Vec<_> = listed["jobs"].as_array().expect("a list").iter().map(|j| &j["id"]).collect();
    assert_eq!(ids, [&made["job_id"], &kept["job_id"]], "by creation");
    assert_eq!(tenant.get("/runs").await.expect(200)["runs"].as_array().map(Vec::len), Some(1));
    let nameless = json!({ "workflow": workflow });
    let refused = tenant.post("/jobs", nameless).await.problem(422, "invalid_field");
    assert_eq!(refused["field"], "name");
    let unknown = "/jobs/00000000-0000-4000-8000-000000000000";
    tenant.get(unknown).await.problem(404, "not_found");
}

#[tokio::test]
async fn a_job_counts_as_the_run_it_starts() {
    let server = Server::shared(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::only("max_concurrent_workflows", 1)).await;
    let job = json!({ "name": "j", "workflow": spec::workflow([spec::wait("w", 600.0)]) });
    tenant.post("/jobs", job.clone()).await.expect(201);
    tenant.post("/jobs", job.clone()).await.problem(429, "quota_exceeded");
    assert_eq!(tenant.get("/jobs").await.expect(200)["jobs"].as_array().map(Vec::len), Some(1));
    let call = tenant.client.call("POST", &tenant.path("/jobs")).json(&job);
    call.header("Idempotency-Key", "k").send().await.problem(429, "quota_exceeded");
}

#[tokio::test]
async fn long_definitions_are_read_by_threads_that_go_behind_all_others() {
    let folder = TempDir::new().expect("a temporary folder");
    let server = Server::start(&folder, &[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    let definition = |steps: usize| {
        let text = "y".repeat(900);
        spec::workflow((0..steps).map(|at| spec::set(&format!("s{at}"), &*text)))
    };
    for number in 0..8 {
        tenant.put(&format!("/workflows/short-{number}"), definition(1)).await.expect(201);
    }
    let (short, nices) = server.process().workers();
    assert!(!nices.is_empty() && nices.iter().all(|nice| *nice > 0), "{nices:?}");
    for number in 0..8 {
        tenant.put(&format!("/workflows/long-{number}"), definition(900)).await.expect(201);
    }
    let (long, _) = server.process().workers();
    assert!(long > short + 1, "{short} ticks before, {long} after");
}

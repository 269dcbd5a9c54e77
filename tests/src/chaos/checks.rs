//! Comparing the node with what its clients know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};

use super::model::{ClientKnowledge, Grant, Knowledge, Register, Start, TenantKnowledge, Tokens};
use crate::{Client, Counter, Server, Tenant, eventually, files};

const PAGE: usize = 1000;

/// What must hold as soon as a killed node is ready again. Settles what was unknown.
pub async fn after_restart(server: &Server, knowledge: &mut Knowledge) {
    let client = server.client();
    for own in &mut knowledge.clients {
        for tenant in &mut own.tenants {
            settle_creation(&client, tenant).await;
            if settle_deletion(&client, tenant).await {
                continue;
            }
            description_and_definition(&client, tenant).await;
            runs_and_quota(&client, tenant).await;
            let Some(id) = tenant.id.clone() else { continue };
            let base = format!("/api/tenants/{id}/locks");
            locks(&client, &base, &mut tenant.locks, &tenant.tokens).await;
            events_end_in_whole_lines(&server.data(), &id).await;
        }
        let ClientKnowledge { cluster_locks, cluster_tokens, .. } = own;
        locks(&client, "/api/locks", cluster_locks, cluster_tokens).await;
    }
}

/// Every run ends as its input demands, its steps are recorded once, its calls were made.
pub async fn everything_ends(server: &Server, knowledge: &Knowledge, service: &Counter) {
    let client = server.client();
    for tenant in knowledge.clients.iter().flat_map(|own| &own.tenants) {
        let Some(id) = tenant.alive() else { continue };
        let user = Tenant { id: id.to_owned(), client: client.clone() };
        eventually(&format!("all runs of {id} end"), async || {
            (user.used("max_concurrent_workflows").await == 0).then_some(())
        })
        .await;
        let listed = list_runs(&client, id).await;
        for (run, start) in &tenant.runs {
            let found = listed.get(run).unwrap_or_else(|| panic!("run {run} of {id} is lost"));
            assert_ended_well(found, start, service);
        }
        if let Some((run, _)) = tenant.runs.iter().next_back() {
            assert_steps_recorded_once(&listed[run], &user.events(run).await);
        }
        events_end_in_whole_lines(&server.data(), id).await;
    }
}

/// After a clean stop: valid to the last byte, and every run's story told once.
pub fn logs_are_whole(data: &Path, knowledge: &Knowledge) {
    for tenant in knowledge.clients.iter().flat_map(|own| &own.tenants) {
        let Some(id) = tenant.alive() else { continue };
        let path = files::tenant(data, id).join("events.jsonl");
        let events = files::events(&path).unwrap_or_else(|error| panic!("{error}"));
        let events = events.unwrap_or_else(|| panic!("{path:?} does not end in a whole line"));
        let mut of_run: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for event in events {
            if let Some((run, _)) =
                event["run_id"].as_str().and_then(|run| tenant.runs.get_key_value(run))
            {
                of_run.entry(run).or_default().push(event);
            }
        }
        for (run, start) in &tenant.runs {
            let events = of_run.get(run.as_str()).unwrap_or_else(|| panic!("no event of {run}"));
            assert_steps_recorded_once(&start.body["workflow"], events);
        }
    }
}

/// Repeating the creation with its key gives the tenant, whatever became of the first call.
async fn settle_creation(client: &Client, tenant: &mut TenantKnowledge) {
    if tenant.id.is_some() {
        return;
    }
    let (key, body) = &tenant.creation;
    let call = client.call("POST", "/api/tenants").header("Idempotency-Key", key).json(body);
    let made = call.send().await.expect(201);
    tenant.id = Some(made["id"].as_str().expect("an id").to_owned());
    let listed = client.get("/api/tenants?limit=10000").await.expect(200);
    let tenants = listed["tenants"].as_array().expect("a list");
    let named = tenants.iter().filter(|listed| listed["name"] == key.as_str());
    assert_eq!(named.count(), 1, "one key made one tenant: {key}");
}

/// Whether it is gone.
async fn settle_deletion(client: &Client, tenant: &mut TenantKnowledge) -> bool {
    let id = tenant.id.as_deref().expect("a settled tenant");
    let reply = client.get(&format!("/api/tenants/{id}")).await;
    let gone = match reply.status {
        200 => false,
        404 => true,
        _ => panic!("neither there nor gone: {reply}"),
    };
    let possible = tenant.deleted.possible().any(|deleted| *deleted == gone);
    assert!(possible, "deleted is {:?}, but {reply}", tenant.deleted);
    tenant.deleted.settle(gone);
    gone
}

async fn description_and_definition(client: &Client, tenant: &mut TenantKnowledge) {
    let id = tenant.id.as_deref().expect("a settled tenant");
    let reply = client.get(&format!("/api/tenants/{id}")).await;
    let description = reply.expect(200)["description"].as_str().unwrap_or_default().to_owned();
    let possible = tenant.description.possible().any(|known| *known == description);
    assert!(possible, "{:?} is known, but {reply}", tenant.description);
    tenant.description.settle(description);

    let reply = client.get(&format!("/api/tenants/{id}/workflows/main")).await;
    let definition = match reply.status {
        404 => (0, String::new()),
        _ => {
            let found = reply.expect(200);
            let mark = found["spec"]["steps"][0]["action"]["output"].as_str();
            (found["version"].as_u64().expect("a version"), mark.unwrap_or_default().to_owned())
        }
    };
    // A doubtful write took the next version if it came to anything; several in doubt, some.
    let newest = tenant.definition.possible().map(|(version, _)| *version).max().unwrap_or(0);
    let possible = tenant.definition.possible().any(|(version, mark)| {
        *mark == definition.1 && (definition.0 == *version || !tenant.definition.maybe.is_empty())
    });
    let in_range = (tenant.definition.known.0..=newest).contains(&definition.0);
    assert!(possible && in_range, "{:?} is known, but {reply}", tenant.definition);
    tenant.definition.settle(definition);
}

/// All acknowledged runs are there, none that nobody started, and the day's count is theirs.
async fn runs_and_quota(client: &Client, tenant: &mut TenantKnowledge) {
    let id = tenant.id.clone().expect("a settled tenant");
    let user = Tenant { id: id.clone(), client: client.clone() };
    let usage = user.usage("max_workflows_per_day").await;
    let listed = list_runs(client, &id).await;
    for run in tenant.runs.keys() {
        assert!(listed.contains_key(run), "acknowledged run {run} of {id} is lost");
    }
    let mut marks = BTreeSet::new();
    for (run, found) in &listed {
        let mark = found["input"]["mark"].as_str().unwrap_or_default();
        assert!(tenant.marks().contains(mark), "nobody started {run} with {mark}");
        assert!(marks.insert(mark.to_owned()), "{mark} was started twice, also as {run}");
        if let Some(at) = tenant.unknown.iter().position(|start| start.mark == mark) {
            tenant.runs.insert(run.clone(), tenant.unknown[at].clone());
        }
    }
    if *tenant.resets_at.get_or_insert_with(|| usage["resets_at"].clone()) == usage["resets_at"] {
        assert_eq!(usage["used"], json!(listed.len()), "runs a day of {id}: {usage}");
    } else {
        // Midnight has passed: what was counted before it counts no more.
        assert!(usage["used"].as_u64() <= Some(listed.len() as u64), "{usage}");
    }
    settle_starts(&user, tenant).await;
}

/// Sends starts in doubt again where they carry a key: those that took effect give their run.
async fn settle_starts(user: &Tenant, tenant: &mut TenantKnowledge) {
    for start in std::mem::take(&mut tenant.unknown) {
        if !start.keyed {
            continue;
        }
        let path = user.path("/runs");
        let call = user.client.call("POST", &path).header("Idempotency-Key", &start.mark);
        let reply = call.json(&start.body).send().await;
        let known = tenant.runs.iter().find(|(_, known)| known.mark == start.mark);
        if let Some((run, _)) = known {
            assert_eq!(reply.expect(201)["id"], run.as_str(), "the run that took effect: {reply}");
            assert_eq!(reply.header("idempotent-replayed"), Some("true"), "{reply}");
        } else if reply.status == 429 {
            let limit = tenant.limit.unwrap_or(u64::MAX);
            assert!(tenant.runs.len() as u64 >= limit, "{limit} a day: {reply}");
        } else {
            let id = reply.expect(201)["id"].as_str().expect("an id").to_owned();
            assert!(tenant.runs.insert(id, start).is_none(), "an id was given twice: {reply}");
        }
    }
}

async fn locks(
    client: &Client,
    base: &str,
    locks: &mut BTreeMap<String, Register<Option<Grant>>>,
    tokens: &Tokens,
) {
    for (key, lock) in locks {
        let reply = client.get(&format!("{base}/{key}")).await;
        let held = match reply.status {
            404 => None,
            _ => {
                let held = reply.expect(200);
                let holder = held["holder"].as_str().expect("a holder").to_owned();
                Some(Grant { holder, token: held["token"].as_u64() })
            }
        };
        let possible = lock.possible().any(|known| match (known, &held) {
            (Some(known), Some(held)) => {
                known.holder == held.holder && (known.token.is_none() || known.token == held.token)
            }
            (known, held) => known.is_none() && held.is_none(),
        });
        assert!(possible, "{base}/{key}: {lock:?} is known, but {reply}");
        if let Some(Grant { token: Some(token), .. }) = held {
            tokens.granted(token, 0);
        }
        lock.settle(held);
    }
}

/// A file that is being written may end in half a line for a moment, no longer.
async fn events_end_in_whole_lines(data: &Path, id: &str) {
    let path = files::tenant(data, id).join("events.jsonl");
    eventually(&format!("{path:?} ends in a whole line"), async || {
        files::events(&path).unwrap_or_else(|error| panic!("{error}"))
    })
    .await;
}

fn assert_ended_well(run: &Value, start: &Start, service: &Counter) {
    assert_eq!(run["status"], "completed", "{run:#}");
    assert_eq!(run["output"], json!({ "end": start.mark }), "{run:#}");
    let id = run["id"].as_str().expect("an id");
    for step in start.body["workflow"]["steps"].as_array().expect("steps") {
        if step["action"]["type"] == "http" {
            let key = format!("{id}/{}", step["id"].as_str().expect("an id"));
            assert!(service.count_of_key(&key) > 0, "{key} is completed and was never called");
        }
    }
}

/// `of` has the steps: a run or a workflow.
fn assert_steps_recorded_once(of: &Value, events: &[Value]) {
    let count = |kind: &str, step: &Value| {
        let told = events.iter().map(|event| &event["event_type"]);
        told.filter(|told| told["type"] == kind && told["step_id"] == *step).count()
    };
    for step in of["steps"].as_array().expect("steps") {
        assert_eq!(count("step_completed", &step["id"]), 1, "{step} in {events:#?}");
    }
    for kind in ["run_started", "run_completed"] {
        assert_eq!(count(kind, &Value::Null), 1, "{kind} in {events:#?}");
    }
}

/// All runs of a tenant by id.
async fn list_runs(client: &Client, id: &str) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut path = format!("/api/tenants/{id}/runs?limit={PAGE}");
    loop {
        let page = client.get(&path).await.expect(200);
        for run in page["runs"].as_array().expect("a list") {
            let run_id = run["id"].as_str().expect("an id").to_owned();
            assert!(found.insert(run_id, run.clone()).is_none(), "listed twice: {run:#}");
        }
        let Some(cursor) = page["next_cursor"].as_str() else { return found };
        path = format!("/api/tenants/{id}/runs?limit={PAGE}&cursor={cursor}");
    }
}

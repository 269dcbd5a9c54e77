//! Comparing the node with what its clients know.

use std::collections::BTreeMap;
use std::path::Path;

use outside::checks::{demand, events, runs};
use serde_json::json;

use super::model::{ClientKnowledge, Grant, Knowledge, Register, TenantKnowledge, Tokens, id_of};
use crate::{Client, Counter, Server, Tenant, eventually, files};

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
        user.idle().await;
        let listed = user.all_runs().await;
        let by_mark = demand(runs::acknowledged(&listed, tenant.started()));
        for start in tenant.runs.values() {
            let calling = start.steps().filter(|step| step["action"]["type"] == "http").map(id_of);
            let calls = |key: &str| service.count_of_key(key);
            demand(runs::completed(by_mark[start.mark.as_str()], &start.mark, calling, calls));
        }
        if let Some((run, start)) = tenant.runs.iter().next_back() {
            let story = BTreeMap::from([(run.clone(), start.step_ids())]);
            demand(events::told_once(id, &story, &user.events(run).await));
        }
        events_end_in_whole_lines(&server.data(), id).await;
    }
}

/// After a clean stop: valid to the last byte, and every run's story told once.
pub fn logs_are_whole(data: &Path, knowledge: &Knowledge) {
    for tenant in knowledge.clients.iter().flat_map(|own| &own.tenants) {
        let Some(id) = tenant.alive() else { continue };
        let stories = tenant.runs.iter().map(|(run, start)| (run.clone(), start.step_ids()));
        demand(events::told_once(id, &stories.collect(), &files::whole_events(data, id)));
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
    let listed = user.all_runs().await;
    for (mark, found) in demand(runs::acknowledged(&listed, tenant.started())) {
        assert!(tenant.marks().contains(mark), "nobody started this run: {found}");
        if let Some(start) = tenant.unknown.iter().find(|start| start.mark == mark) {
            tenant.runs.insert(found["id"].as_str().expect("an id").to_owned(), start.clone());
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

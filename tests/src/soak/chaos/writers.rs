//! The clients: each makes one call after the other and notes what came of it.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::model::{ClientKnowledge, Grant, Register, SMALL_LIMIT, Start, TenantKnowledge, Tokens};
use crate::{Client, Reply, spec};

/// Tenants of one client, deleted ones not counted.
const TENANTS_MAX: usize = 3;
const LOCK_KEYS: u32 = 3;
/// Longer than any run of chaos: no lock expires in between.
const LOCK_TTL_SECS: u32 = 36_000;
/// Between two calls, so that kills and not disks decide how much is written.
const THINKS_MS_MAX: u64 = 12;

/// What came of a call.
enum Outcome {
    Done(Reply),
    Refused(Value),
    Unknown,
    /// Turned away, and the answer says that nothing changed.
    Nothing,
    /// The connection broke: the node is being killed.
    Broken,
}

/// Writes until a connection breaks.
pub async fn write(
    client: Client,
    mut own: ClientKnowledge,
    url: String,
    seed: u64,
) -> ClientKnowledge {
    let mut rng = SmallRng::seed_from_u64(seed);
    loop {
        let living: Vec<usize> =
            (0..own.tenants.len()).filter(|at| own.tenants[*at].alive().is_some()).collect();
        let choice = rng.random_range(0..100);
        let goes_on = if living.is_empty() || (choice < 4 && living.len() < TENANTS_MAX) {
            create(&client, &mut own).await
        } else {
            let at = living[rng.random_range(0..living.len())];
            match choice {
                0..6 => delete(&client, &mut own, &living, at).await,
                6..14 => describe(&client, &mut own, at).await,
                14..22 => define(&client, &mut own, at).await,
                22..34 => tenant_lock(&client, &mut own, at, &mut rng).await,
                34..44 => cluster_lock(&client, &mut own, &mut rng).await,
                _ => start(&client, &mut own, at, &url, &mut rng).await,
            }
        };
        if !goes_on {
            return own;
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..THINKS_MS_MAX))).await;
    }
}

async fn create(client: &Client, own: &mut ClientKnowledge) -> bool {
    // Every other tenant runs into its limit.
    let limit = (own.tenants.len() % 2 == 1).then_some(SMALL_LIMIT);
    let mut tenant = TenantKnowledge::new(own.fresh("tenant"), limit);
    let (key, body) = tenant.creation.clone();
    let call = client.call("POST", "/api/tenants").header("Idempotency-Key", &key).json(&body);
    let outcome = outcome(own, call).await;
    if let Outcome::Done(reply) = &outcome {
        tenant.id = Some(text(&reply.expect(201)["id"]));
    }
    if !matches!(outcome, Outcome::Nothing) {
        own.tenants.push(tenant);
    }
    outcome.goes_on()
}

async fn delete(client: &Client, own: &mut ClientKnowledge, living: &[usize], at: usize) -> bool {
    // Some tenant is left to write to, and the first ones live as long as the run.
    if at < 2 || living.len() < 2 {
        return true;
    }
    let path = path(own, at, "");
    let outcome = outcome(own, client.call("DELETE", &path)).await;
    note(&mut own.tenants[at].deleted, true, &outcome);
    outcome.goes_on()
}

async fn describe(client: &Client, own: &mut ClientKnowledge, at: usize) -> bool {
    let description = own.fresh("description");
    let body = json!({ "description": description });
    let path = path(own, at, "");
    let outcome = outcome(own, client.call("PUT", &path).json(&body)).await;
    note(&mut own.tenants[at].description, description, &outcome);
    outcome.goes_on()
}

async fn define(client: &Client, own: &mut ClientKnowledge, at: usize) -> bool {
    let mark = own.fresh("definition");
    let body = spec::workflow([spec::set("a", mark.as_str())]);
    let path = path(own, at, "/workflows/main");
    let outcome = outcome(own, client.call("PUT", &path).json(&body)).await;
    let definition = &mut own.tenants[at].definition;
    // A write in doubt may have taken a version.
    let newest = definition.possible().map(|(version, _)| *version).max().unwrap_or(0);
    match &outcome {
        Outcome::Done(reply) => {
            let version = reply.json()["version"].as_u64().expect("a version");
            let known = definition.known.0;
            assert!(version > known && version <= newest + 1, "{reply} after {newest}");
            definition.settle((version, mark));
        }
        Outcome::Nothing => {}
        _ => definition.doubt((newest + 1, mark)),
    }
    outcome.goes_on()
}

async fn tenant_lock(
    client: &Client,
    own: &mut ClientKnowledge,
    at: usize,
    rng: &mut SmallRng,
) -> bool {
    let key = format!("k{}", rng.random_range(0..LOCK_KEYS));
    let base = path(own, at, &format!("/locks/{key}"));
    let tokens = own.tenants[at].tokens.clone();
    let mut locks = std::mem::take(&mut own.tenants[at].locks);
    let goes_on = turn_lock(client, own, &base, &tokens, &mut locks, key).await;
    own.tenants[at].locks = locks;
    goes_on
}

async fn cluster_lock(client: &Client, own: &mut ClientKnowledge, rng: &mut SmallRng) -> bool {
    let key = format!("c{}-k{}", own.number, rng.random_range(0..LOCK_KEYS));
    let base = format!("/api/locks/{key}");
    let tokens = own.cluster_tokens.clone();
    let mut locks = std::mem::take(&mut own.cluster_locks);
    let goes_on = turn_lock(client, own, &base, &tokens, &mut locks, key).await;
    own.cluster_locks = locks;
    goes_on
}

/// Releases the lock where it is held, and acquires it where it is free.
async fn turn_lock(
    client: &Client,
    own: &mut ClientKnowledge,
    base: &str,
    tokens: &Tokens,
    locks: &mut BTreeMap<String, Register<Option<Grant>>>,
    key: String,
) -> bool {
    let lock = locks.entry(key).or_insert(Register::new(None));
    if !lock.maybe.is_empty() {
        // In doubt until the next restart tells.
        return true;
    }
    if let Some(grant) = lock.known.clone() {
        let body = json!({ "holder": grant.holder, "token": grant.token });
        let call = client.call("POST", &format!("{base}/release")).json(&body);
        let outcome = outcome(own, call).await;
        if let Outcome::Done(reply) = &outcome {
            assert_eq!(reply.json()["released"], true, "{grant:?} was held: {reply}");
        }
        note(lock, None, &outcome);
        return outcome.goes_on();
    }
    let before = tokens.seen();
    let holder = own.fresh("holder");
    let body = json!({ "holder": holder, "ttl_secs": LOCK_TTL_SECS });
    let call = client.call("POST", &format!("{base}/acquire")).json(&body);
    let outcome = outcome(own, call).await;
    match &outcome {
        Outcome::Done(reply) => {
            let answer = reply.json();
            assert_eq!(answer["acquired"], true, "nobody else wants {base}: {reply}");
            let token = answer["token"].as_u64().expect("a token");
            tokens.granted(token, before);
            lock.settle(Some(Grant { holder, token: Some(token) }));
        }
        Outcome::Nothing => {}
        _ => lock.doubt(Some(Grant { holder, token: None })),
    }
    outcome.goes_on()
}

async fn start(
    client: &Client,
    own: &mut ClientKnowledge,
    at: usize,
    url: &str,
    rng: &mut SmallRng,
) -> bool {
    let mark = own.fresh("run");
    let body = spec::inline_with(json!({ "mark": mark }), steps(url, rng));
    let start = Start { keyed: rng.random(), mark, body };
    let path = path(own, at, "/runs");
    let mut call = client.call("POST", &path).json(&start.body);
    if start.keyed {
        call = call.header("Idempotency-Key", &start.mark);
    }
    let outcome = outcome(own, call).await;
    let tenant = &mut own.tenants[at];
    match &outcome {
        Outcome::Done(reply) => {
            let id = text(&reply.expect(201)["id"]);
            assert!(tenant.runs.insert(id, start).is_none(), "an id was given twice: {reply}");
            let limit = tenant.limit.unwrap_or(u64::MAX);
            assert!(tenant.runs.len() as u64 <= limit, "{limit} a day: {reply}");
        }
        Outcome::Refused(refused) => {
            assert_eq!(refused["quota"], "max_workflows_per_day", "{refused:#}");
            let may_be = (tenant.runs.len() + tenant.unknown.len()) as u64;
            let limit = tenant.limit.expect("a tenant with a limit");
            assert!(may_be >= limit, "refused with {may_be} of {limit} used: {refused:#}");
        }
        Outcome::Nothing => {}
        Outcome::Unknown | Outcome::Broken => tenant.unknown.push(start),
    }
    outcome.goes_on()
}

/// Steps of one of four kinds, all of which end in step `end` with the mark as output.
fn steps(url: &str, rng: &mut SmallRng) -> Vec<Value> {
    let end = |needs: &[&str]| spec::after(spec::set("end", "{{ input.mark }}"), needs);
    match rng.random_range(0..4) {
        0 => vec![end(&[])],
        1 => {
            let mut steps = spec::chain(3);
            steps.push(end(&["s3"]));
            steps
        }
        2 => vec![
            spec::http("call", "POST", url),
            spec::after(spec::wait("pause", rng.random_range(1..30) as f64 / 100.0), &["call"]),
            end(&["pause"]),
        ],
        _ => vec![
            spec::set("a", 1),
            spec::after(spec::http("left", "GET", url), &["a"]),
            spec::after(spec::http("right", "POST", url), &["a"]),
            spec::after(spec::wait("pause", 0.05), &["a"]),
            end(&["left", "right", "pause"]),
        ],
    }
}

async fn outcome(own: &mut ClientKnowledge, call: crate::Call<'_>) -> Outcome {
    match call.try_send().await {
        Err(_) => {
            own.totals.unknown += 1;
            Outcome::Broken
        }
        Ok(reply) if reply.status / 100 == 2 => {
            own.totals.acknowledged += 1;
            Outcome::Done(reply)
        }
        Ok(reply) if reply.status == 429 => {
            own.totals.refused += 1;
            Outcome::Refused(reply.problem(429, "quota_exceeded"))
        }
        Ok(reply) if reply.status == 503 && reply.json()["applied"] == false => Outcome::Nothing,
        Ok(reply) if reply.status == 503 => {
            own.totals.unknown += 1;
            Outcome::Unknown
        }
        Ok(reply) => panic!("an answer that nothing explains: {reply}"),
    }
}

impl Outcome {
    fn goes_on(&self) -> bool {
        !matches!(self, Self::Broken)
    }
}

/// Writes an outcome down where the call itself was the value.
fn note<T: Clone>(register: &mut Register<T>, sent: T, outcome: &Outcome) {
    match outcome {
        Outcome::Done(_) => register.settle(sent),
        Outcome::Refused(refused) => panic!("no quota limits this: {refused:#}"),
        Outcome::Nothing => {}
        Outcome::Unknown | Outcome::Broken => register.doubt(sent),
    }
}

fn path(own: &ClientKnowledge, at: usize, rest: &str) -> String {
    let id = own.tenants[at].alive().expect("a living tenant");
    format!("/api/tenants/{id}{rest}")
}

fn text(value: &Value) -> String {
    value.as_str().expect("text").to_owned()
}

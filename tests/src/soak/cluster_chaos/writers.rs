//! The clients: each does one thing after the other, through any node, and asks again with the same
//! key until the answer is certain.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outside::checks::locks::{LockEvent, LockFact};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{Client, Reply, spec};

/// After so long without an answer another node is asked.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// One of so many first calls is given up sooner, while it is worked on: its answer is lost, and
/// mostly not its effect.
const GIVES_UP_ONE_IN: u32 = 8;
const GIVES_UP_MS_MAX: u64 = 20;
/// Before another node is asked.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Longer than the cluster is ever without service.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two things that a client does.
const THINKS_MS_MAX: u64 = 100;
/// One of so many is a lock, the others are runs.
const LOCK_ONE_IN: u32 = 5;
const WAIT_MS_MAX: u64 = 300;
/// Long enough to be held over many failovers, short enough that one whose taker never heard of it
/// does not keep the key from the others.
const LOCK_TTL: Duration = Duration::from_secs(2);

/// What the clients of one tenant know.
#[derive(Default)]
pub(in crate::soak) struct Known {
    /// The ids of acknowledged runs, by the key that they were started with.
    pub(in crate::soak) runs: BTreeMap<String, String>,
    /// Keys of starts that a quota refused for certain.
    pub(super) refused: Vec<String>,
    /// What is known about the lock that all clients want.
    pub(super) locks: Vec<LockFact>,
    /// Calls that had to be made again.
    pub(super) again: u64,
}

impl Known {
    /// Knows of acknowledged runs alone.
    pub(in crate::soak) fn of_runs(runs: BTreeMap<String, String>) -> Self {
        Self { runs, ..Self::default() }
    }

    /// Locks that were granted.
    pub(super) fn grants(&self) -> usize {
        self.locks.iter().filter(|fact| fact.what != LockEvent::Releasing).count()
    }
}

/// One client of a tenant.
pub(super) struct Writer {
    /// Unique, and part of all its names.
    pub(super) name: String,
    pub(super) tenant: String,
    /// One for each node.
    pub(super) clients: Vec<Client>,
    pub(super) known: Arc<Mutex<Known>>,
    /// From when on it is told what is known about locks.
    pub(super) began: Instant,
    pub(super) rng: SmallRng,
}

impl Writer {
    pub(super) fn new(
        name: String,
        tenant: &str,
        clients: &[Client],
        (known, began): (Arc<Mutex<Known>>, Instant),
        seed: u64,
    ) -> Self {
        let patient = |client: &Client| client.clone().patient_for(CALL_TIMEOUT);
        let clients = clients.iter().map(patient).collect();
        let rng = SmallRng::seed_from_u64(seed);
        Self { name, tenant: tenant.to_owned(), clients, known, began, rng }
    }

    /// Writes until it is told to stop, and then ends what it has begun.
    pub(super) async fn write(mut self, stop: Arc<AtomicBool>) {
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let key = format!("{}-{number}", self.name);
            if self.rng.random_ratio(1, LOCK_ONE_IN) {
                self.turn_lock(key).await;
            } else {
                self.start(key).await;
            }
            let thinks = Duration::from_millis(self.rng.random_range(0..THINKS_MS_MAX));
            tokio::time::sleep(thinks).await;
        }
    }

    /// Starts a run, or is refused by the quota.
    async fn start(&mut self, key: String) {
        let body = spec::inline_with(json!({ "mark": key }), self.steps());
        // A start that was sent before may still arrive: a refusal is certain at the first call only.
        let is_certain =
            |reply: &Reply, asked| reply.status == 201 || (is_full(reply) && asked == 1);
        let (reply, asked) = self.certain("/runs", &key, &body, is_certain).await;
        let mut known = self.known.lock().expect("what is known");
        known.again += asked - 1;
        if reply.status == 201 {
            let id = reply.json()["id"].as_str().expect("an id").to_owned();
            known.runs.insert(key, id);
        } else {
            known.refused.push(key);
        }
    }

    /// One to three steps, which may wait.
    fn steps(&mut self) -> Vec<Value> {
        let end = spec::set("end", "{{ input.mark }}");
        let wait = spec::wait("pause", self.rng.random_range(0..WAIT_MS_MAX) as f64 / 1000.0);
        match self.rng.random_range(0..3) {
            0 => vec![end],
            1 => vec![wait, spec::after(end, &["pause"])],
            _ => {
                let wait = spec::after(wait, &["first"]);
                vec![spec::set("first", 1), wait, spec::after(end, &["pause"])]
            }
        }
    }

    /// Takes the lock that all clients of the tenant want, and releases it.
    async fn turn_lock(&mut self, holder: String) {
        let sent_at = self.began.elapsed();
        let body = json!({ "holder": holder, "ttl_secs": LOCK_TTL.as_secs_f64() });
        let is_certain = |reply: &Reply, _| reply.status == 200;
        let (reply, asked) =
            self.certain("/locks/wanted/acquire", &holder, &body, is_certain).await;
        self.known.lock().expect("what is known").again += asked - 1;
        let answer = reply.json();
        if answer["acquired"] != true {
            return;
        }
        let token = answer["token"].as_u64().expect("a token");
        let (answered_at, ttl) = (self.began.elapsed(), LOCK_TTL);
        self.learn(&holder, token, sent_at, LockEvent::Held { answered_at, ttl });
        tokio::time::sleep(Duration::from_millis(self.rng.random_range(0..THINKS_MS_MAX))).await;
        self.learn(&holder, token, self.began.elapsed(), LockEvent::Releasing);
        let body = json!({ "holder": holder, "token": token });
        let (reply, asked) =
            self.certain("/locks/wanted/release", &holder, &body, is_certain).await;
        self.known.lock().expect("what is known").again += asked - 1;
        let was_held = asked == 1 && self.began.elapsed() < sent_at + LOCK_TTL;
        assert!(!was_held || reply.json()["released"] == true, "{holder} was the holder: {reply}");
    }

    /// Writes down what is known now about the lock.
    fn learn(&self, holder: &str, token: u64, sent_at: Duration, what: LockEvent) {
        let (space, key) = (self.tenant.clone(), "wanted".to_owned());
        let (holder, first_sent_at) = (holder.to_owned(), sent_at);
        let fact = LockFact { space, key, holder, token, first_sent_at, sent_at, what };
        self.known.lock().expect("what is known").locks.push(fact);
    }

    /// Asks one node after the other until an answer is certain. Gives it, and how often was asked.
    async fn certain(
        &mut self,
        path: &str,
        key: &str,
        body: &Value,
        is_certain: impl Fn(&Reply, u64) -> bool,
    ) -> (Reply, u64) {
        let path = format!("/api/tenants/{}{path}", self.tenant);
        let began = Instant::now();
        let first = self.rng.random_range(0..self.clients.len());
        for asked in 1.. {
            let client = &self.clients[(first + asked as usize) % self.clients.len()];
            let mut call = client.call("POST", &path).header("Idempotency-Key", key).json(body);
            if asked == 1 && self.rng.random_ratio(1, GIVES_UP_ONE_IN) {
                let soon = self.rng.random_range(0..GIVES_UP_MS_MAX);
                call = call.within(Duration::from_millis(soon));
            }
            let answer = call.try_send().await;
            match &answer {
                Ok(reply) if is_certain(reply, asked) => return (reply.clone(), asked),
                Ok(reply) if reply.status == 503 || is_full(reply) => {}
                Ok(reply) => panic!("an answer that nothing explains: {reply}"),
                Err(_) => {}
            }
            let patient = began.elapsed() < PATIENCE;
            assert!(patient, "{path}, {key}: nothing certain in {PATIENCE:?}, at last {answer:?}");
            tokio::time::sleep(TRY_AGAIN_AFTER).await;
        }
        unreachable!("somebody is asked until an answer is certain")
    }
}

/// Whether the quota of runs is used up.
fn is_full(reply: &Reply) -> bool {
    reply.status == 429
        && reply.problem(429, "quota_exceeded")["quota"] == "max_concurrent_workflows"
}

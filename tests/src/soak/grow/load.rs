//! Clients that use a cluster while it changes: runs that wait, locks, reads, through any node. They do
//! what HTTP tells clients to do and count everything else: where no connection comes to be they ask
//! another node, and after 503 with `Retry-After` they come back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::tally::{Tally, Trouble};
use crate::{Broken, Client, Reply, Tenant, spec};

/// How long a client waits for one answer: a run that waits, and the failover of who performs it.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a client tries one call, beyond which it counts as wrong.
const PATIENCE: Duration = Duration::from_secs(60);
/// Before another node is asked where no connection came to be.
const ELSEWHERE_AFTER: Duration = Duration::from_millis(20);
/// Longest pause that is kept of what `Retry-After` says.
const LATER_MAX: Duration = Duration::from_secs(1);
/// Between two calls of a client.
const THINKS_MS_MAX: u64 = 40;
/// A run waits for so long at most.
const RUN_WAITS_MS_MAX: u64 = 300;
const RUN_WAITED_FOR_SECS: u64 = 20;
const LOCK_TTL_SECS: u64 = 30;

/// The clients, and what they know.
pub(super) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
}

struct Shared {
    stop: AtomicBool,
    nodes: Mutex<Vec<SocketAddr>>,
    tally: Mutex<Tally>,
    /// The ids of acknowledged runs by their key, by tenant.
    runs: Mutex<BTreeMap<String, BTreeMap<String, String>>>,
}

/// What is known when all clients have ended.
pub(super) struct Known {
    pub(super) tally: Tally,
    /// The ids of acknowledged runs by their key, by tenant.
    pub(super) runs: BTreeMap<String, BTreeMap<String, String>>,
}

impl Load {
    /// Begins, with so many clients of each tenant.
    pub(super) fn of(tenants: &[Tenant], each: usize, nodes: Vec<SocketAddr>, seed: u64) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            nodes: Mutex::new(nodes),
            tally: Mutex::new(Tally::new("before")),
            runs: Mutex::default(),
        });
        let (mut rng, mut clients) = (SmallRng::seed_from_u64(seed), JoinSet::new());
        for (at, tenant) in tenants.iter().enumerate() {
            for number in 0..each {
                let user = User {
                    name: format!("t{at}-c{number}"),
                    tenant: tenant.id.clone(),
                    shared: Arc::clone(&shared),
                    clients: BTreeMap::new(),
                    rng: SmallRng::seed_from_u64(rng.random()),
                    last_run: None,
                    last_token: 0,
                };
                clients.spawn(user.go_on());
            }
        }
        Self { shared, clients }
    }

    /// Begins the next moment of the story.
    pub(super) fn begin(&self, moment: &str) {
        self.tally().begin(moment);
    }

    /// Has clients use another set of nodes.
    pub(super) fn set_nodes(&self, nodes: Vec<SocketAddr>) {
        *self.shared.nodes.lock().expect("the nodes") = nodes;
    }

    /// Lets the clients end what they are about, and gives what they know.
    pub(super) async fn end(mut self) -> Known {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.expect("a client does not panic");
        }
        let runs = std::mem::take(&mut *self.shared.runs.lock().expect("the runs"));
        let tally = self.tally().clone();
        Known { tally, runs }
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.shared.tally.lock().expect("the tally")
    }
}

/// One client of a tenant, with connections of its own.
struct User {
    name: String,
    tenant: String,
    shared: Arc<Shared>,
    clients: BTreeMap<SocketAddr, Client>,
    rng: SmallRng,
    last_run: Option<(String, String)>,
    last_token: u64,
}

impl User {
    async fn go_on(mut self) {
        for number in 0.. {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let key = format!("{}-{number}", self.name);
            match self.rng.random_range(0..3) {
                0 => self.run(key).await,
                1 => self.turn_lock(key).await,
                _ => self.read().await,
            }
            let thinks = self.rng.random_range(0..THINKS_MS_MAX);
            tokio::time::sleep(Duration::from_millis(thinks)).await;
        }
    }

    /// Starts a run and waits for its end.
    async fn run(&mut self, key: String) {
        let secs = self.rng.random_range(0..RUN_WAITS_MS_MAX) as f64 / 1000.0;
        let end = spec::after(spec::set("end", "{{ input.mark }}"), &["pause"]);
        let body = spec::inline_with(json!({ "mark": key }), [spec::wait("pause", secs), end]);
        let path = format!("/runs?wait_secs={RUN_WAITED_FOR_SECS}");
        let Some((reply, _)) = self.certain("POST", &path, &key, Some(&body), 201).await else {
            return;
        };
        let id = reply["id"].as_str().unwrap_or_default().to_owned();
        let mut runs = self.shared.runs.lock().expect("the runs");
        runs.entry(self.tenant.clone()).or_default().insert(key.clone(), id.clone());
        drop(runs);
        self.last_run = Some((id, key));
        self.check_run(&reply);
    }

    /// Reads what the tenant did, or that it is there.
    async fn read(&mut self) {
        let Some((id, _)) = self.last_run.clone() else { return };
        if self.rng.random_bool(0.5) {
            let path = format!("/runs/{id}?wait_secs={RUN_WAITED_FOR_SECS}");
            if let Some((run, _)) = self.certain("GET", &path, "", None, 200).await {
                self.check_run(&run);
            }
        } else if let Some((tenant, _)) = self.certain("GET", "", "", None, 200).await {
            self.demand(tenant["id"] == self.tenant.as_str(), "GET", &tenant);
        }
    }

    fn check_run(&self, run: &Value) {
        let Some((id, mark)) = &self.last_run else { return };
        let is_well = run["id"] == id.as_str()
            && run["status"] == "completed"
            && run["output"]["end"] == mark.as_str();
        self.demand(is_well, "a run that has ended", run);
    }

    /// Takes a lock that nobody else wants, and releases it.
    async fn turn_lock(&mut self, holder: String) {
        let path = format!("/locks/{}", self.name);
        let body = json!({ "holder": holder, "ttl_secs": LOCK_TTL_SECS });
        let acquire = format!("{path}/acquire");
        let Some((taken, _)) = self.certain("POST", &acquire, &holder, Some(&body), 200).await
        else {
            return;
        };
        let token = taken["token"].as_u64().unwrap_or_default();
        self.demand(taken["acquired"] == true && token > self.last_token, "POST acquire", &taken);
        self.last_token = token;
        let body = json!({ "holder": holder, "token": token });
        let release = format!("{path}/release");
        if let Some((given, asked)) =
            self.certain("POST", &release, &holder, Some(&body), 200).await
        {
            self.demand(given["released"] == true || asked > 1, "POST release", &given);
        }
    }

    fn demand(&self, holds: bool, call: &str, seen: &Value) {
        if !holds {
            self.troubled(call, Trouble::Wrong(seen.to_string()));
        }
    }

    /// Calls until the answer is the one that is expected. Gives it, and how often the request was sent.
    /// Nothing when it was another that nothing explains.
    async fn certain(
        &mut self,
        method: &str,
        path: &str,
        key: &str,
        body: Option<&Value>,
        status: u16,
    ) -> Option<(Value, u64)> {
        let path = format!("/api/tenants/{}{path}", self.tenant);
        let (began, mut sent) = (Instant::now(), 0);
        while began.elapsed() < PATIENCE {
            let client = self.client();
            let mut call = client.call(method, &path).within(CALL_TIMEOUT);
            if let Some(body) = body {
                call = call.header("Idempotency-Key", key).json(body);
            }
            let what = format!("{method} {path} at {}", client.addr());
            match call.try_send().await {
                Ok(reply) if reply.status == status => {
                    let mut tally = self.shared.tally.lock().expect("the tally");
                    tally.answered(began.elapsed());
                    return Some((reply.json(), sent + 1));
                }
                Ok(reply) => {
                    sent += 1;
                    let Some(pause) = comes_back(&reply) else {
                        self.troubled(&what, Trouble::Wrong(reply.to_string()));
                        return None;
                    };
                    let code = reply.json()["code"].as_str().unwrap_or_default().to_owned();
                    self.troubled(&what, Trouble::Later(code));
                    tokio::time::sleep(pause).await;
                }
                Err(Broken { is_unsent: true, .. }) => {
                    self.troubled(&what, Trouble::Refused);
                    tokio::time::sleep(ELSEWHERE_AFTER).await;
                }
                Err(Broken { why, .. }) => {
                    sent += 1;
                    self.troubled(&what, Trouble::Broken(why));
                    tokio::time::sleep(ELSEWHERE_AFTER).await;
                }
            }
        }
        self.troubled(&path, Trouble::Wrong(format!("nothing certain in {PATIENCE:?}")));
        None
    }

    fn troubled(&self, call: &str, trouble: Trouble) {
        self.shared.tally.lock().expect("the tally").troubled(call, trouble);
    }

    /// A client of any node, whose connections are kept.
    fn client(&mut self) -> Client {
        let nodes = self.shared.nodes.lock().expect("the nodes");
        let node = nodes[self.rng.random_range(0..nodes.len())];
        drop(nodes);
        self.clients.entry(node).or_insert_with(|| Client::new(node)).clone()
    }
}

/// When a client is told to come back, if it is.
fn comes_back(reply: &Reply) -> Option<Duration> {
    let secs = reply.header("retry-after").filter(|_| reply.status == 503)?.parse().ok()?;
    Some(Duration::from_secs(secs).min(LATER_MAX))
}

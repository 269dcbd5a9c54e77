//! Everything that a hostile tenant does, all at once, from threads of their own.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::{Args, shapes, sockets};
use crate::{Client, spec};

pub(super) const THREADS: usize = 2;
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// After an answer that came at once, so that refusals are not all there is.
const BREATH: Duration = Duration::from_millis(2);
/// How many times as many wait as do anything else.
const WAITERS_FACTOR: usize = 25;
/// How many times as many connections are held.
const SOCKETS_FACTOR: usize = 12;

/// One kind of attack: a call, made again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    SilentCalls,
    HeavyTemplates,
    SmallRuns,
    Waiters,
    LockWaiters,
    BigInputs,
    BigOutputs,
    Definitions,
    Pages,
    Keys,
    Malformed,
    Invented,
    Locks,
}

const KINDS: [Kind; 13] = [
    Kind::SilentCalls,
    Kind::HeavyTemplates,
    Kind::SmallRuns,
    Kind::Waiters,
    Kind::LockWaiters,
    Kind::BigInputs,
    Kind::BigOutputs,
    Kind::Definitions,
    Kind::Pages,
    Kind::Keys,
    Kind::Malformed,
    Kind::Invented,
    Kind::Locks,
];

type Tally = Arc<Mutex<BTreeMap<(String, String), u64>>>;

/// An attack that is under way. It ends when dropped.
pub(super) struct Attack {
    runtime: Option<Runtime>,
    stop: Arc<AtomicBool>,
    tally: Tally,
}

/// What every attacker knows.
#[derive(Clone)]
struct Attacker {
    kind: Kind,
    client: Client,
    tenant: String,
    silent: String,
    number: usize,
    tally: Tally,
    stop: Arc<AtomicBool>,
}

impl Attack {
    pub(super) fn begin(
        addrs: Vec<SocketAddr>,
        tenants: Vec<String>,
        silent: String,
        args: &Args,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .enable_all()
            .on_thread_start(take_what_is_left)
            .build()
            .expect("a runtime");
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Tally::default());
        let chosen = |name: &str| args.only.is_empty() || args.only.iter().any(|it| it == name);
        for kind in KINDS.into_iter().filter(|kind| chosen(&format!("{kind:?}"))) {
            let many = matches!(kind, Kind::Waiters | Kind::LockWaiters);
            for number in 0..args.width * if many { WAITERS_FACTOR } else { 1 } {
                let attacker = Attacker {
                    kind,
                    client: Client::new(addrs[number % addrs.len()]).patient_for(CALL_TIMEOUT),
                    tenant: tenants[number % tenants.len()].clone(),
                    silent: silent.clone(),
                    number,
                    tally: Arc::clone(&tally),
                    stop: Arc::clone(&stop),
                };
                runtime.spawn(attacker.go());
            }
        }
        for (name, hold) in sockets::KINDS.into_iter().filter(|(name, _)| chosen(name)) {
            for number in 0..args.width * SOCKETS_FACTOR {
                let tenant = tenants[number % tenants.len()].clone();
                let (addr, tally) = (addrs[number % addrs.len()], Arc::clone(&tally));
                runtime.spawn(async move {
                    loop {
                        let ended = sockets::hold(hold, addr, &tenant).await;
                        count(&tally, name, ended);
                        tokio::time::sleep(BREATH * 25).await;
                    }
                });
            }
        }
        Self { runtime: Some(runtime), stop, tally }
    }

    /// Ends it, and tells how it was answered.
    pub(super) fn end(mut self) -> Vec<String> {
        self.halt();
        let tally = self.tally.lock().expect("the tally");
        let mut lines: BTreeMap<&str, String> = BTreeMap::new();
        for ((kind, answer), count) in tally.iter() {
            let line = lines.entry(kind).or_insert_with(|| format!("{kind}:"));
            line.push_str(&format!(" {answer} x {count};"));
        }
        lines.into_values().collect()
    }

    fn halt(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Attacker {
    async fn go(self) {
        while !self.stop.load(Ordering::Relaxed) {
            let call = self.next();
            let answer = match timeout(CALL_TIMEOUT, call.send(&self.client)).await {
                Ok(answer) => answer,
                Err(_) => "late".to_owned(),
            };
            count(&self.tally, &format!("{:?}", self.kind), answer);
            tokio::time::sleep(BREATH).await;
        }
    }

    fn next(&self) -> Request {
        let turn = next_turn();
        let path = |rest: &str| format!("/api/tenants/{}{rest}", self.tenant);
        let run = |body: Value| Request::json("POST", path("/runs"), &body);
        match self.kind {
            Kind::SilentCalls => run(shapes::silent_calls(&self.silent)),
            Kind::HeavyTemplates => run(shapes::heavy(turn)),
            Kind::SmallRuns => run(spec::inline(spec::chain(1 + turn % 3))),
            Kind::Waiters => {
                let body = spec::inline([spec::wait("w", 600.0)]);
                Request::json("POST", path("/runs?wait_secs=300"), &body)
            }
            Kind::LockWaiters => {
                let wait =
                    json!({ "holder": format!("h{turn}"), "wait_secs": 300, "ttl_secs": 600 });
                // Of the tenant, and some of the cluster's.
                let space = if turn.is_multiple_of(4) { "/api".to_owned() } else { path("") };
                Request::json("POST", format!("{space}/locks/k{}/acquire", self.number % 3), &wait)
            }
            Kind::BigInputs => run(shapes::big_input(turn)),
            Kind::BigOutputs => run(shapes::big_outputs()),
            Kind::Definitions => {
                let body = shapes::definition(turn);
                Request::json("PUT", path(&format!("/workflows/w{turn}")), &body)
            }
            Kind::Pages => Request::get(shapes::page(turn, &path(""))),
            Kind::Keys => {
                let request = run(spec::inline([spec::set("a", 1)]));
                request.with_header("idempotency-key", &format!("key-{turn}"))
            }
            Kind::Malformed => Request {
                body: shapes::malformed(turn),
                ..Request::json("POST", path("/runs"), &Value::Null)
            },
            Kind::Invented => {
                let tenant = format!("10000000-0000-4000-8000-{turn:012}");
                let path = format!("/api/tenants/{tenant}/runs");
                Request::json("POST", path, &shapes::big_input(turn))
            }
            Kind::Locks => {
                let meta = json!({ "m": "x".repeat(4_000) });
                let body = json!({ "holder": "h", "ttl_secs": 600, "metadata": meta });
                Request::json("POST", path(&format!("/locks/many-{turn}/acquire")), &body)
            }
        }
    }
}

/// A number that no call before had.
fn next_turn() -> usize {
    static TURNS: AtomicU64 = AtomicU64::new(0);
    usize::try_from(TURNS.fetch_add(1, Ordering::Relaxed)).expect("a number of this machine")
}

struct Request {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Request {
    fn get(path: String) -> Self {
        Self { method: "GET", path, headers: vec![], body: vec![] }
    }

    fn json(method: &'static str, path: String, body: &Value) -> Self {
        let headers = vec![("content-type", "application/json".to_owned())];
        Self { method, path, headers, body: body.to_string().into_bytes() }
    }

    fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    async fn send(self, client: &Client) -> String {
        let mut call = client.call(self.method, &self.path).body(self.body);
        for (name, value) in &self.headers {
            call = call.header(name, value);
        }
        match call.try_send().await {
            Ok(reply) if reply.status < 300 => reply.status.to_string(),
            Ok(reply) => {
                let problem: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
                format!("{} {}", reply.status, problem["code"].as_str().unwrap_or("?"))
            }
            Err(_) => "broken".to_owned(),
        }
    }
}

fn count(tally: &Tally, kind: &str, answer: String) {
    let mut tally = tally.lock().expect("the tally");
    *tally.entry((kind.to_owned(), answer)).or_default() += 1;
}

/// Has this thread take what others leave of the processors, and give it back at once. The lowest priority would
/// not do: who wakes waits up to three milliseconds for the one that runs, whatever its priority.
pub(super) fn take_what_is_left() {
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: changes how the calling thread alone is scheduled, which Linux means by 0, and reads `none`.
    let lowered = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const none) };
    assert_eq!(lowered, 0, "attackers would take processors from the nodes");
}

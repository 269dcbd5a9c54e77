//! The neighbour: small runs at a steady rate, each of which has to complete.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Broken, Call, Client, Counter, Reply, Tenant, spec};

/// Longest patience with one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a run waits that waits on purpose. It does not count as latency.
const WAIT: Duration = Duration::from_millis(50);
/// Pause before a call is made again that had to make way.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Failures that are told in full, and refusals.
const TOLD_MAX: usize = 5;
/// Of the slowest runs, how many are told.
const SLOWEST: usize = 12;

/// What the neighbour did, and how it fared.
#[derive(Clone, Debug, Default)]
pub struct Work {
    /// Of each run that completed, the fastest first: how long it took, and when it was due, from when
    /// the work began.
    latencies: Vec<(Duration, Duration)>,
    /// Runs that were refused, by the text of the refusal; of a full disk they are apart.
    refused: Vec<String>,
    /// Refusals for lack of room on the disk.
    full: usize,
    /// Calls without a whole answer, and runs that did not complete.
    failed: Vec<String>,
}

enum Fate {
    /// How long it took.
    Completed(Duration),
    Refused(String),
    Full,
    Failed(String),
}

/// How the neighbour works.
#[derive(Clone, Copy)]
pub(super) struct Manner {
    /// Runs that it starts a second.
    pub(super) rate: u64,
    /// For how long it tries again what had to make way for others.
    pub(super) patience: Duration,
}

/// Works for a while; clients are those of all nodes, which are used in turn.
pub(super) async fn work(
    clients: &[Client],
    tenant: &str,
    service: &Counter,
    Manner { rate, patience }: Manner,
    span: Duration,
) -> Work {
    let began = Instant::now();
    let mut runs = JoinSet::new();
    let count = u32::try_from(span.as_millis() * u128::from(rate) / 1000).expect("a count");
    for number in 0..count {
        let due = began + Duration::from_secs(1) * number / u32::try_from(rate).expect("a rate");
        tokio::time::sleep_until(due).await;
        // Next to each other in time, kinds and nodes change at different steps.
        let client = &clients[number as usize / 2 % clients.len()];
        let client = client.clone().patient_for(CALL_TIMEOUT);
        let tenant = Tenant { id: tenant.to_owned(), client };
        let run = run(tenant, number, service.url("/"), due, due + patience);
        runs.spawn(async move { (due - began, run.await) });
    }
    let mut work = Work::default();
    for (due, fate) in runs.join_all().await {
        match fate {
            Fate::Completed(latency) => work.latencies.push((latency, due)),
            Fate::Refused(why) => work.refused.push(why),
            Fate::Full => work.full += 1,
            Fate::Failed(why) => work.failed.push(why),
        }
    }
    work.latencies.sort_unstable();
    work
}

/// One run, from when it was due to its end.
async fn run(
    tenant: Tenant,
    number: u32,
    url: String,
    due: Instant,
    patient_until: Instant,
) -> Fate {
    // Each run has a key, by which a start whose answer was lost is found again.
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let (steps, waits) = steps(number, &url);
    let key = format!("neighbour-{}", RUNS.fetch_add(1, Ordering::Relaxed));
    let start = async |rest: &str| {
        let (path, body) = (tenant.path(rest), spec::inline(steps));
        let call = || tenant.client.call("POST", &path).header("Idempotency-Key", &key).json(&body);
        answered(call, 201, patient_until).await
    };
    let fate = match number % 2 {
        0 => start("/runs?wait_secs=50").await,
        _ => match start("/runs").await {
            Ok(run) => {
                let path = tenant.path(&format!("/runs/{}?wait_secs=50", text(&run["id"])));
                answered(|| tenant.client.call("GET", &path), 200, patient_until).await
            }
            Err(fate) => Err(fate),
        },
    };
    match fate {
        Ok(run) if run["status"] == "completed" => {
            Fate::Completed(due.elapsed().saturating_sub(if waits { WAIT } else { Duration::ZERO }))
        }
        Ok(run) => Fate::Failed(run.to_string()),
        Err(fate) => fate,
    }
}

/// The answer to a call. One that had to make way is made again: it was refused for a while, or its connection
/// was closed before it was read.
async fn answered<'c>(
    call: impl Fn() -> Call<'c>,
    wanted: u16,
    patient_until: Instant,
) -> Result<Value, Fate> {
    loop {
        match call().try_send().await {
            Ok(reply) if reply.status == wanted => return Ok(reply.json()),
            Ok(reply) if reply.status == 507 => return Err(Fate::Full),
            Ok(reply) if is_passing(&reply) && Instant::now() < patient_until => {
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
            Err(_) if Instant::now() < patient_until => {
                tokio::time::sleep(TRY_AGAIN_AFTER).await;
            }
            Ok(reply) => return Err(Fate::Refused(reply.to_string())),
            Err(Broken { why, .. }) => return Err(Fate::Failed(why)),
        }
    }
}

fn is_passing(reply: &Reply) -> bool {
    let problem: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    reply.status == 503 && problem["retryable"] == true
}

/// One to three steps, and whether they wait.
fn steps(number: u32, url: &str) -> (Vec<Value>, bool) {
    let call = || {
        let retries = json!({ "retry_policy": { "max_attempts": 5, "backoff_secs": 0.05 } });
        spec::with(spec::http("call", "GET", url), retries)
    };
    match number / 2 % 4 {
        0 => (spec::chain(1), false),
        1 => (vec![call()], false),
        2 => (spec::chain(3), false),
        _ => {
            let wait = spec::wait("pause", WAIT.as_secs_f64());
            let told = spec::set("told", "{{ steps.call.output.status }} {{ 1 + 1 }}");
            (vec![wait, spec::after(call(), &["pause"]), spec::after(told, &["call"])], true)
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

impl Work {
    /// Whether every run completed, but those for which there was no room.
    pub fn is_whole(&self) -> bool {
        !self.latencies.is_empty() && self.refused.is_empty() && self.failed.is_empty()
    }

    /// Runs that were refused for lack of room on the disk.
    pub fn full(&self) -> usize {
        self.full
    }

    /// Of a hundred runs the second slowest, about.
    pub fn p99(&self) -> Duration {
        self.at(0.99)
    }

    /// This and what came after.
    #[must_use]
    pub(super) fn and(mut self, later: Self) -> Self {
        self.latencies.extend(later.latencies);
        self.latencies.sort_unstable();
        self.refused.extend(later.refused);
        self.failed.extend(later.failed);
        self.full += later.full;
        self
    }

    fn at(&self, part: f64) -> Duration {
        let rank = (self.latencies.len() as f64 * part).ceil() as usize;
        self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default().0
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |part| self.at(part).as_secs_f64() * 1000.0;
        write!(
            f,
            "{} runs, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, refused {}, no room {}, failed {}",
            self.latencies.len(),
            ms(0.5),
            ms(0.99),
            ms(1.0),
            self.refused.len(),
            self.full,
            self.failed.len(),
        )?;
        write!(f, "\n    slowest (ms at s):")?;
        for (took, due) in self.latencies.iter().rev().take(SLOWEST) {
            write!(f, " {:.0} at {:.1};", took.as_secs_f64() * 1000.0, due.as_secs_f64())?;
        }
        let told = self.failed.iter().take(TOLD_MAX).chain(self.refused.iter().take(TOLD_MAX));
        told.into_iter().try_for_each(|why| {
            let why: String = why.chars().take(400).collect();
            write!(f, "\n    {why}")
        })
    }
}

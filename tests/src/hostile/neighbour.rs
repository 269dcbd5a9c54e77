//! The neighbour: small runs at a steady rate, each of which has to complete.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::{Broken, Client, Counter, Reply, Tenant, spec};

/// Longest patience with one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a run waits that waits on purpose. It does not count as latency.
const WAIT: Duration = Duration::from_millis(50);
/// Failures that are told in full.
const TOLD_MAX: usize = 5;

/// What the neighbour did, and how it fared.
#[derive(Clone, Debug, Default)]
pub struct Work {
    latencies: Vec<Duration>,
    /// Runs that were refused, by the text of the refusal; of a full disk they are apart.
    refused: Vec<String>,
    /// Refusals for lack of room on the disk.
    full: usize,
    /// Calls without a whole answer, and runs that did not complete.
    failed: Vec<String>,
}

enum Fate {
    Completed(Duration),
    Refused(String),
    Full,
    Failed(String),
}

/// Works for a while; clients are those of all nodes, which are used in turn.
pub(super) async fn work(
    clients: &[Client],
    tenant: &str,
    service: &Counter,
    rate: u64,
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
        runs.spawn(run(tenant, number, service.url("/"), due));
    }
    let mut work = Work::default();
    for fate in runs.join_all().await {
        match fate {
            Fate::Completed(latency) => work.latencies.push(latency),
            Fate::Refused(why) => work.refused.push(why),
            Fate::Full => work.full += 1,
            Fate::Failed(why) => work.failed.push(why),
        }
    }
    work.latencies.sort_unstable();
    work
}

/// One run, from when it was due to its end.
async fn run(tenant: Tenant, number: u32, url: String, due: Instant) -> Fate {
    let (steps, waits) = steps(number, &url);
    let fate = match number % 2 {
        0 => started(&tenant, "/runs?wait_secs=25", steps).await,
        _ => match started(&tenant, "/runs", steps).await {
            Ok(run) => {
                let path = tenant.path(&format!("/runs/{}?wait_secs=25", text(&run["id"])));
                answered(tenant.client.call("GET", &path).try_send().await, 200)
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

async fn started(tenant: &Tenant, rest: &str, steps: Vec<Value>) -> Result<Value, Fate> {
    let path = tenant.path(rest);
    answered(tenant.client.call("POST", &path).json(&spec::inline(steps)).try_send().await, 201)
}

fn answered(reply: Result<Reply, Broken>, wanted: u16) -> Result<Value, Fate> {
    match reply {
        Ok(reply) if reply.status == wanted => Ok(reply.json()),
        Ok(reply) if reply.status == 507 => Err(Fate::Full),
        Ok(reply) => Err(Fate::Refused(reply.to_string())),
        Err(Broken(why)) => Err(Fate::Failed(why)),
    }
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

    /// Whether every run that was accepted completed, and at most one in `of` was told to try again.
    pub fn is_nearly_whole(&self, of: usize) -> bool {
        self.failed.is_empty() && self.refused.len() * of <= self.latencies.len()
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
        self.latencies.get(rank.saturating_sub(1)).copied().unwrap_or_default()
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
        let told = self.refused.iter().chain(&self.failed).take(TOLD_MAX);
        told.into_iter().try_for_each(|why| {
            let why: String = why.chars().take(400).collect();
            write!(f, "\n    {why}")
        })
    }
}

//! What the clients do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Choice;
use super::measure::Sample;
use super::service::Service;
use super::wire::{Wire, request};
use crate::spec;

/// Above what one connection reaches in a second.
const OPERATIONS_PER_SECOND_MAX: usize = 10_000;
const EXAMPLE_BYTES_MAX: usize = 300;

/// Where, by how many and for how long.
pub(crate) struct Setup {
    pub(crate) addrs: Vec<SocketAddr>,
    pub(crate) clients: usize,
    pub(crate) seconds: Duration,
}

impl Setup {
    /// The node that a client calls: they are spread evenly.
    fn addr(&self, client: usize) -> SocketAddr {
        self.addrs[client % self.addrs.len()]
    }
}

/// One operation: calls in a row, each with what its answer must hold.
struct Operation(Vec<(Vec<u8>, Expected)>);

/// What an answer must be to count.
#[derive(Clone, Copy)]
struct Expected {
    status: u16,
    holds: &'static [u8],
}

/// The HTTP floor: a call that does nothing.
pub(crate) async fn healthz(setup: &Setup) -> Sample {
    let expected = Expected { status: 200, holds: b"" };
    let call = |client| request(setup.addr(client), "GET", "/healthz", "");
    drive(setup, |client| Operation(vec![(call(client), expected)])).await
}

/// A scenario over these tenants.
pub(crate) async fn work(
    choice: Choice,
    setup: &Setup,
    tenants: &[String],
    service: &Service,
) -> Sample {
    let addr = |client| setup.addr(client);
    let tenant = |client: usize| format!("/api/tenants/{}", tenants[client % tenants.len()]);
    let run = |client: usize, steps: Vec<Value>| {
        start_and_wait(addr(client), &tenant(client), &spec::inline(steps))
    };
    match choice {
        Choice::Locks => {
            let base = |client| format!("{}/locks", tenant(client));
            drive(setup, |client| cycle(addr(client), &base(client), client)).await
        }
        Choice::ClusterLocks => {
            drive(setup, |client| cycle(addr(client), "/api/locks", client)).await
        }
        Choice::Runs1 => drive(setup, |client| run(client, spec::chain(1))).await,
        Choice::Runs3 => drive(setup, |client| run(client, spec::chain(3))).await,
        Choice::Http1 => drive(setup, |client| run(client, calls(service.url(), 1))).await,
        Choice::Http3 => drive(setup, |client| run(client, calls(service.url(), 3))).await,
        Choice::Baseline | Choice::All => unreachable!("these stand for several or none"),
    }
}

/// Acquires and releases a key that nobody else wants.
fn cycle(addr: SocketAddr, base: &str, client: usize) -> Operation {
    let key = format!("{base}/load-{client}");
    let body = json!({ "holder": format!("load-{client}") }).to_string();
    let acquire = request(addr, "POST", &format!("{key}/acquire"), &body);
    let release = request(addr, "POST", &format!("{key}/release"), &body);
    let acquired = Expected { status: 200, holds: b"\"acquired\":true" };
    let released = Expected { status: 200, holds: b"\"released\":true" };
    Operation(vec![(acquire, acquired), (release, released)])
}

/// A run that counts when its answer says that it is completed.
fn start_and_wait(addr: SocketAddr, tenant: &str, body: &Value) -> Operation {
    let path = format!("{tenant}/runs?wait_secs=30");
    let start = request(addr, "POST", &path, &body.to_string());
    let completed = Expected { status: 201, holds: b"\"status\":\"completed\"" };
    Operation(vec![(start, completed)])
}

/// A chain of `http` steps.
fn calls(url: &str, length: usize) -> Vec<Value> {
    let step = |at: usize| {
        let step = spec::http(&format!("h{at}"), "GET", url);
        if at == 1 { step } else { spec::after(step, &[&format!("h{}", at - 1)]) }
    };
    (1..=length).map(step).collect()
}

/// Lets every client repeat its operation until the time is up.
async fn drive(setup: &Setup, operation: impl Fn(usize) -> Operation) -> Sample {
    let until = Instant::now() + setup.seconds;
    let mut clients = JoinSet::new();
    let capacity = setup.seconds.as_secs() as usize * OPERATIONS_PER_SECOND_MAX / setup.clients;
    for client in 0..setup.clients {
        let sample = Sample::with_capacity(capacity);
        clients.spawn(repeat(setup.addr(client), operation(client), until, sample));
    }
    let mut sum = Sample::default();
    while let Some(sample) = clients.join_next().await {
        sum.merge(sample.expect("a client does not panic"));
    }
    sum
}

async fn repeat(
    addr: SocketAddr,
    operation: Operation,
    until: Instant,
    mut sample: Sample,
) -> Sample {
    let mut wire = None;
    while Instant::now() < until {
        let connected = match wire.take() {
            Some(wire) => Ok(wire),
            None => Wire::connect(addr).await,
        };
        let mut open = match connected {
            Ok(open) => open,
            Err(error) => {
                sample.fail(format!("connect: {error}"));
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let started = Instant::now();
        match once(&mut open, &operation).await {
            Ok(None) => {
                sample.add(started.elapsed());
                wire = Some(open);
            }
            Ok(Some(refusal)) => {
                sample.fail(refusal);
                wire = Some(open);
            }
            Err(error) => sample.fail(error.to_string()),
        }
    }
    sample
}

/// None when every answer was as expected, else the first that was not.
async fn once(wire: &mut Wire, operation: &Operation) -> std::io::Result<Option<String>> {
    for (call, expected) in &operation.0 {
        let (status, body) = wire.call(call).await?;
        if status != expected.status || !holds(body, expected.holds) {
            let body = &body[..body.len().min(EXAMPLE_BYTES_MAX)];
            return Ok(Some(format!("{status} {}", String::from_utf8_lossy(body))));
        }
    }
    Ok(None)
}

fn holds(body: &[u8], part: &[u8]) -> bool {
    part.is_empty() || body.windows(part.len()).any(|window| window == part)
}

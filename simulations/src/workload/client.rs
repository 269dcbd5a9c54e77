//! A client of all nodes over turmoil's network: each node answers for all.
//!
//! A call that brings no whole answer in time is [`Broken`]: whether it took effect is unknown.
//! [`Client::settle`] then asks again with the same `Idempotency-Key`, as the API wants it,
//! and another node where there is one.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use outside::Broken;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use turmoil::net::TcpStream;

use crate::env::trace;
use crate::facts::Reply;

/// Beyond the node's own request timeout, so that a call that timed out here is over there.
const CALL_MAX: Duration = Duration::from_secs(8);
/// Pause before a call whose outcome is unknown is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(150);
/// How often a client turns to another node without a reason.
const WANDERS: f64 = 0.3;
/// How often a client asks again under an `Idempotency-Key` before it can have been answered, or
/// just then.
const IMPATIENT: f64 = 0.2;
/// How long it waits then at most, ms.
const IMPATIENT_MS_MAX: u64 = 30;

/// A client of all nodes.
pub struct Client {
    name: String,
    /// The nodes by name, each with a client of it.
    nodes: Vec<(String, outside::Client)>,
    /// The node it turns to.
    at: Cell<usize>,
    rng: RefCell<SmallRng>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Call {
    method: &'static str,
    path: String,
    body: Option<Value>,
    key: Option<String>,
    wait: Duration,
    /// How long an answer is waited for, the wait above not counted.
    patience: Duration,
}

impl Call {
    /// `GET path`.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new("GET", path)
    }

    /// `DELETE path`.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new("DELETE", path)
    }

    /// `POST path` with a JSON body.
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { body: Some(body), ..Self::new("POST", path) }
    }

    /// `PUT path` with a JSON body.
    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Self { body: Some(body), ..Self::new("PUT", path) }
    }

    /// The same under an `Idempotency-Key`.
    #[must_use]
    pub fn keyed(self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self }
    }

    /// The same, which the node may take so much longer for.
    #[must_use]
    pub fn waiting(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    /// The same, for an answer that is wanted soon or not at all.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    fn new(method: &'static str, path: impl Into<String>) -> Self {
        let (wait, patience) = (Duration::ZERO, CALL_MAX);
        Self { method, path: path.into(), body: None, key: None, wait, patience }
    }
}

impl Client {
    /// A client on host `name` of the nodes on these hosts.
    pub fn new(name: &str, nodes: Vec<String>, port: u16, seed: u64) -> Self {
        let client = |node: String| {
            let host = node.clone();
            let connect = move || TcpStream::connect((host.clone(), port));
            (node.clone(), outside::Client::over(format!("{node}:{port}"), connect))
        };
        Self {
            name: name.to_owned(),
            nodes: nodes.into_iter().map(client).collect(),
            at: Cell::default(),
            rng: RefCell::new(SmallRng::seed_from_u64(seed)),
        }
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Calls until there is an answer that says for sure what became of the request. Waits for
    /// ever when none comes: the run's own bound ends that.
    pub async fn settle(&self, call: Call) -> Reply {
        let first_sent_at = trace::now();
        let mut in_doubt = false;
        self.wander(WANDERS);
        let mut first = self.impatient(&call);
        loop {
            let attempt = first.take();
            match self.call(attempt.as_ref().unwrap_or(&call)).await {
                Ok(mut reply) if reply.is_final() => {
                    (reply.first_sent_at, reply.retried) = (first_sent_at, in_doubt);
                    return reply;
                }
                Ok(reply) => in_doubt |= reply.body["applied"] != false,
                Err(Broken { .. }) => in_doubt = true,
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            self.wander(1.0);
        }
    }

    /// The call for a client that does not wait for its answer, now and then. Only what has a key
    /// may be asked twice without a reason.
    fn impatient(&self, call: &Call) -> Option<Call> {
        let mut rng = self.rng.borrow_mut();
        let is_impatient = call.key.is_some() && rng.random_bool(IMPATIENT);
        let patience_ms = rng.random_range(1..=IMPATIENT_MS_MAX);
        is_impatient.then(|| call.clone().within(Duration::from_millis(patience_ms)))
    }

    fn wander(&self, how_often: f64) {
        let mut rng = self.rng.borrow_mut();
        if rng.random_bool(how_often) {
            self.at.set(rng.random_range(0..self.nodes.len()));
        }
    }

    /// Calls some node, once.
    ///
    /// # Errors
    /// [`Broken`] when there is no whole answer in time.
    pub async fn anywhere(&self, call: &Call) -> Result<Reply, Broken> {
        self.wander(1.0);
        self.call(call).await
    }

    /// Calls the node it turns to, once.
    ///
    /// # Errors
    /// [`Broken`] when there is no whole answer in time.
    pub async fn call(&self, call: &Call) -> Result<Reply, Broken> {
        self.call_at(self.at.get(), call).await
    }

    /// Calls the node in this place, once.
    ///
    /// # Errors
    /// [`Broken`] when there is no whole answer in time.
    pub async fn call_at(&self, at: usize, call: &Call) -> Result<Reply, Broken> {
        let sent_at = trace::now();
        let (node, client) = &self.nodes[at];
        let sent = call.body.as_ref().map(Value::to_string).unwrap_or_default();
        let key = call.key.as_deref().unwrap_or("-");
        let asked = format!("{} {} at {node}", call.method, call.path);
        trace::event(&self.name, "http", format_args!("{asked} key {key} {sent}"), &[]);
        let mut request = client.call(call.method, &call.path).within(call.patience + call.wait);
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        if let Some(key) = &call.key {
            request = request.header("idempotency-key", key);
        }
        let answer = request.try_send().await;
        let came = match &answer {
            Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            Err(Broken { why, .. }) => why.clone(),
        };
        trace::event(&self.name, "http", format_args!("{asked} -> {came}"), &[]);
        let answer = answer?;
        let version = answer.header("etag").and_then(|etag| etag.trim_matches('"').parse().ok());
        let body = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        let (status, first_sent_at, retried) = (answer.status, sent_at, false);
        Ok(Reply { asked, status, body, version, first_sent_at, sent_at, retried })
    }
}

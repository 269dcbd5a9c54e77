//! A small HTTP/1.1 client over turmoil's network, of any of the nodes: each answers for all.
//!
//! A call that brings no whole answer in time is [`Broken`]: whether it took effect is unknown.
//! [`Client::settle`] then asks again with the same `Idempotency-Key`, as the API wants it,
//! and another node where there is one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HOST};
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use turmoil::net::TcpStream;

use crate::trace;

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
    nodes: Vec<String>,
    port: u16,
    /// The node it turns to.
    at: Cell<usize>,
    rng: RefCell<SmallRng>,
    /// A connection to each node is kept: a client has one call under way.
    idle: RefCell<BTreeMap<usize, SendRequest<Full<Bytes>>>>,
    /// Calls that got no answer or one that leaves the outcome open.
    unknown: Cell<u64>,
    /// Calls that were answered for good.
    answered: Cell<u64>,
}

/// A request.
#[derive(Debug, Clone)]
pub struct Call {
    method: Method,
    path: String,
    body: Option<Value>,
    key: Option<String>,
    wait: Duration,
    /// How long an answer is waited for, the wait above not counted.
    patience: Duration,
}

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The request line it answers, for messages.
    pub asked: String,
    /// The status code.
    pub status: u16,
    /// The body, null when it is not JSON.
    pub body: Value,
    /// The version that its `ETag` names.
    pub version: Option<u64>,
    /// When the request was first sent, since the start of the run.
    pub first_sent_at: Duration,
    /// When the call that brought it was sent.
    pub sent_at: Duration,
    /// Whether an earlier call of the same request may have taken effect.
    pub retried: bool,
}

/// No whole answer.
#[derive(Debug)]
pub struct Broken(pub String);

impl Call {
    /// `GET path`.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// `DELETE path`.
    pub fn delete(path: impl Into<String>) -> Self {
        Self::new(Method::DELETE, path)
    }

    /// `POST path` with a JSON body.
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::POST, path) }
    }

    /// `PUT path` with a JSON body.
    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Self { body: Some(body), ..Self::new(Method::PUT, path) }
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

    fn new(method: Method, path: impl Into<String>) -> Self {
        let (wait, patience) = (Duration::ZERO, CALL_MAX);
        Self { method, path: path.into(), body: None, key: None, wait, patience }
    }

    fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

impl Reply {
    /// Whether it says that the request was done.
    pub fn is_success(&self) -> bool {
        self.status / 100 == 2
    }

    /// The code of a refusal.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// Whether it says for sure what became of the request.
    fn is_final(&self) -> bool {
        self.status < 500
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let again = if self.retried { " (asked again)" } else { "" };
        write!(f, "{}{again} -> {} {}", self.asked, self.status, self.body)
    }
}

impl Client {
    /// A client on host `name` of the nodes on these hosts.
    pub fn new(name: &str, nodes: Vec<String>, port: u16, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            nodes,
            port,
            at: Cell::default(),
            rng: RefCell::new(SmallRng::seed_from_u64(seed)),
            idle: RefCell::default(),
            unknown: Cell::default(),
            answered: Cell::default(),
        }
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// How many calls were answered for good, and how many were not.
    pub fn counts(&self) -> (u64, u64) {
        (self.answered.get(), self.unknown.get())
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
                    self.answered.set(self.answered.get() + 1);
                    (reply.first_sent_at, reply.retried) = (first_sent_at, in_doubt);
                    return reply;
                }
                Ok(reply) => in_doubt |= reply.body["applied"] != false,
                Err(Broken(_)) => in_doubt = true,
            }
            self.unknown.set(self.unknown.get() + 1);
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

    /// Calls the node with this place among [`Self::nodes`], once.
    ///
    /// # Errors
    /// [`Broken`] when there is no whole answer in time.
    pub async fn call_at(&self, at: usize, call: &Call) -> Result<Reply, Broken> {
        let sent_at = trace::now();
        let sent = call.body.as_ref().map(Value::to_string).unwrap_or_default();
        let key = call.key.as_deref().unwrap_or("-");
        let line = format!("{} at {}", call.line(), self.nodes[at]);
        trace::event(&self.name, "http", format_args!("{line} key {key} {sent}"), &[]);
        let exchange =
            tokio::time::timeout(call.patience + call.wait, self.exchange(at, call, sent));
        let answer = match exchange.await {
            Ok(answer) => answer,
            Err(_) => Err(Broken("no answer in time".to_owned())),
        };
        match answer {
            Ok((status, version, bytes)) => {
                let text = String::from_utf8_lossy(&bytes);
                trace::event(&self.name, "http", format_args!("{line} -> {status} {text}"), &[]);
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let first_sent_at = sent_at;
                let retried = false;
                Ok(Reply { asked: line, status, body, version, first_sent_at, sent_at, retried })
            }
            Err(Broken(why)) => {
                trace::event(&self.name, "http", format_args!("{line} -> {why}"), &[]);
                Err(Broken(why))
            }
        }
    }

    async fn exchange(
        &self,
        at: usize,
        call: &Call,
        sent: String,
    ) -> Result<(u16, Option<u64>, Bytes), Broken> {
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(&call.path)
            .header(HOST, format!("{}:{}", self.nodes[at], self.port));
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &call.key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Full::from(sent)).map_err(broken)?;
        let mut sender = self.connection(at).await?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let etag = response.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        let version = etag.and_then(|etag| etag.trim_matches('"').parse().ok());
        let bytes = response.into_body().collect().await.map_err(broken)?.to_bytes();
        self.idle.borrow_mut().insert(at, sender);
        Ok((status, version, bytes))
    }

    async fn connection(&self, at: usize) -> Result<SendRequest<Full<Bytes>>, Broken> {
        let idle = self.idle.borrow_mut().remove(&at);
        if let Some(mut sender) = idle
            && sender.ready().await.is_ok()
        {
            return Ok(sender);
        }
        let stream =
            TcpStream::connect((self.nodes[at].as_str(), self.port)).await.map_err(broken)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

fn broken(error: impl std::error::Error) -> Broken {
    Broken(error.to_string())
}

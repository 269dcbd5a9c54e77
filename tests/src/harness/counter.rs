//! A local HTTP service for `http` steps, which counts what it was asked and answers as told.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// A counting service on a loopback port; it ends when dropped.
pub struct Counter {
    addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// One answer of a path's script. Where there is none the answer is 200 and `{"n": <calls>}`.
#[derive(Clone, Debug)]
pub struct Scripted {
    /// The status to answer with.
    pub status: u16,
    /// How long to think before.
    pub delay: Duration,
    /// The JSON body.
    pub body: Value,
}

#[derive(Default)]
struct Seen {
    by_path: HashMap<String, u64>,
    by_key: HashMap<String, u64>,
    scripts: HashMap<String, VecDeque<Scripted>>,
    last: HashMap<String, Request<Bytes>>,
    delay: Duration,
}

impl Counter {
    /// Starts it on the current runtime.
    pub async fn start() -> Self {
        Self::thinking(Duration::ZERO).await
    }

    /// One that thinks this long before every answer that is not scripted.
    pub async fn thinking(delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind the service");
        let addr = listener.local_addr().expect("the service's address");
        let seen = Arc::new(Mutex::new(Seen { delay, ..Seen::default() }));
        let task = tokio::spawn(accept(listener, seen.clone()));
        Self { addr, seen, task }
    }

    /// The URL of a path on it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// Answers the next calls of `path` with these, one each.
    pub fn script(&self, path: &str, answers: impl IntoIterator<Item = Scripted>) {
        let mut seen = self.seen.lock().expect("the counts");
        seen.scripts.entry(path.to_owned()).or_default().extend(answers);
    }

    /// How often `path` was called.
    pub fn count(&self, path: &str) -> u64 {
        self.seen.lock().expect("the counts").by_path.get(path).copied().unwrap_or(0)
    }

    /// How often this `Idempotency-Key` came.
    pub fn count_of_key(&self, key: &str) -> u64 {
        self.seen.lock().expect("the counts").by_key.get(key).copied().unwrap_or(0)
    }

    /// Headers and body of the last call of `path`.
    pub fn last(&self, path: &str) -> (HeaderMap, Bytes) {
        let seen = self.seen.lock().expect("the counts");
        let last = seen.last.get(path).unwrap_or_else(|| panic!("{path} was never called"));
        (last.headers().clone(), last.body().clone())
    }
}

impl Scripted {
    /// This status at once, with an empty object.
    pub fn status(status: u16) -> Self {
        Self { status, delay: Duration::ZERO, body: json!({}) }
    }

    /// 200 with this body.
    pub fn body(body: Value) -> Self {
        Self { status: 200, delay: Duration::ZERO, body }
    }

    /// 200 after a while.
    pub fn slow(delay: Duration) -> Self {
        Self { status: 200, delay, body: json!({}) }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, seen: Arc<Mutex<Seen>>) {
    // Connections belong to the service: the set ends them with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Running out of descriptors passes: the next accept tells.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let seen = seen.clone();
        let service = service_fn(move |request| answer(seen.clone(), request));
        connections.spawn(async move {
            // A caller that went away is no error of the service.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    seen: Arc<Mutex<Seen>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let path = head.uri.path().to_owned();
    let key = head.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
    let scripted = {
        let mut seen = seen.lock().expect("the counts");
        if let Some(key) = key {
            *seen.by_key.entry(key.to_owned()).or_default() += 1;
        }
        let calls = seen.by_path.entry(path.clone()).or_default();
        *calls += 1;
        let number = json!({ "n": *calls });
        let plain = Scripted { status: 200, delay: seen.delay, body: number };
        let scripted = seen.scripts.get_mut(&path).and_then(VecDeque::pop_front);
        seen.last.insert(path, Request::from_parts(head, body));
        scripted.unwrap_or(plain)
    };
    tokio::time::sleep(scripted.delay).await;
    let response = Response::builder()
        .status(scripted.status)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(scripted.body.to_string())))
        .expect("a response");
    Ok(response)
}

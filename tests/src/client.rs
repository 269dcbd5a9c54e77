//! A small HTTP/1.1 client with keep-alive: one idle connection per call that is under way.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderMap};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::Namespace;

/// Beyond the longest long poll that a test asks for.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// A client of one server. Clones share its idle connections.
#[derive(Clone)]
pub struct Client {
    addr: SocketAddr,
    idle: Arc<Mutex<Vec<SendRequest<Full<Bytes>>>>>,
    always: HeaderMap,
    namespace: Option<Namespace>,
    timeout: Duration,
}

/// A call that got no whole answer: whether it took effect is unknown.
#[derive(Debug)]
pub struct Broken(pub String);

/// A call being put together.
pub struct Call<'a> {
    client: &'a Client,
    request: Request<Full<Bytes>>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The request line it answers, for messages.
    pub asked: String,
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Client {
    /// Connects lazily, at the first call.
    pub fn new(addr: SocketAddr) -> Self {
        Self {
            addr,
            idle: Arc::default(),
            always: HeaderMap::new(),
            namespace: None,
            timeout: CALL_TIMEOUT,
        }
    }

    /// The same client, which connects in another network namespace.
    #[must_use]
    pub fn inside(mut self, namespace: &Namespace) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// The same client, which gives up so soon.
    #[must_use]
    pub fn patient_for(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same client, which sends this header with every call.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.always.insert(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    /// Where it connects to.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Begins a call of any kind.
    pub fn call(&self, method: &str, path: &str) -> Call<'_> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.addr.to_string())
            .body(Full::default())
            .unwrap_or_else(|error| panic!("{path} is no request target: {error}"));
        request.headers_mut().extend(self.always.clone());
        Call { client: self, request }
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Reply {
        self.call("GET", path).send().await
    }

    /// `POST path` with a JSON body.
    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.call("POST", path).json(&body).send().await
    }

    /// `POST path` without any body.
    pub async fn post_empty(&self, path: &str) -> Reply {
        self.call("POST", path).send().await
    }

    /// `PUT path` with a JSON body.
    pub async fn put(&self, path: &str, body: Value) -> Reply {
        self.call("PUT", path).json(&body).send().await
    }

    /// `DELETE path`.
    pub async fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path).send().await
    }

    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, Broken> {
        while let Some(mut sender) = self.take_idle() {
            // A connection that the server has closed meanwhile is not used: a request lost on it
            // would look like an unknown outcome.
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = match &self.namespace {
            Some(namespace) => namespace.connect(self.addr).await.map_err(broken)?,
            None => TcpStream::connect(self.addr).await.map_err(broken)?,
        };
        stream.set_nodelay(true).map_err(broken)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        self.idle.lock().expect("the idle list").pop()
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply, Broken> {
        let asked = format!("{} {}", request.method(), request.uri());
        let mut sender = self.connection().await?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        self.idle.lock().expect("the idle list").push(sender);
        Ok(Reply { asked, status: head.status.as_u16(), headers: head.headers, body })
    }
}

impl Call<'_> {
    /// Sets a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a header name");
        self.request.headers_mut().insert(name, HeaderValue::from_str(value).expect("a value"));
        self
    }

    /// Sets a JSON body, and its content type.
    #[must_use]
    pub fn json(self, body: &Value) -> Self {
        self.body(body.to_string()).header(CONTENT_TYPE.as_str(), "application/json")
    }

    /// Sets the body as it is, with no content type.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        *self.request.body_mut() = Full::new(body.into());
        self
    }

    /// Sends it; panics where there is no whole answer.
    pub async fn send(self) -> Reply {
        let asked = format!("{} {}", self.request.method(), self.request.uri());
        self.try_send().await.unwrap_or_else(|broken| panic!("{asked}: {}", broken.0))
    }

    /// Sends it, for callers that kill the server meanwhile.
    pub async fn try_send(self) -> Result<Reply, Broken> {
        let timeout = self.client.timeout;
        match tokio::time::timeout(timeout, self.client.exchange(self.request)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Broken(format!("no answer within {timeout:?}"))),
        }
    }
}

impl Reply {
    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{self}: not JSON: {error}"),
        }
    }

    /// The body as JSON of an answer that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self}");
        self.json()
    }

    /// The problem document of a refusal that must have this status and code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self}");
        assert_eq!(problem["code"], code, "{self}");
        assert_eq!(problem["status"], status, "{self}");
        assert_eq!(problem["type"], format!("/problems/{code}"), "{self}");
        assert_eq!(problem["error"], problem["detail"], "{self}");
        let said = problem["detail"].as_str().unwrap_or_default();
        assert!(!said.is_empty(), "a refusal says what was wrong: {self}");
        assert!(problem["title"].is_string(), "{self}");
        assert!(problem["request_id"].is_string(), "{self}");
        assert!(problem["retryable"].is_boolean(), "{self}");
        problem
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let body: String = body.chars().take(2000).collect();
        write!(f, "{} -> {} {body}", self.asked, self.status)
    }
}

fn broken(error: impl std::error::Error) -> Broken {
    Broken(error.to_string())
}

//! An HTTP/1.1 client with keep-alive: one idle connection for each call that is under way.
//!
//! A call that brings no whole answer in time is [`Broken`]: whether it took effect is unknown.

mod reply;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HOST, HeaderMap};
use http::{HeaderName, HeaderValue, Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

pub use reply::Reply;

/// How long an answer is waited for, unless told otherwise: beyond the longest long poll of tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Makes a connection.
type Connect = dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn Stream>>> + Send + Sync;

type Connection = SendRequest<Full<Bytes>>;

/// A client of one server. Clones share its idle connections.
#[derive(Clone)]
pub struct Client {
    /// Host and port.
    host: String,
    connect: Arc<Connect>,
    idle: Arc<Mutex<Vec<Connection>>>,
    always: HeaderMap,
    patience: Duration,
}

/// A call that got no whole answer: whether it took effect is unknown, unless it was never sent.
#[derive(Debug)]
pub struct Broken {
    /// What happened.
    pub why: String,
    /// Whether nothing of the request left: it may be sent again, to whomever, whatever it asks for.
    pub is_unsent: bool,
}

/// A call being put together.
pub struct Call<'a> {
    client: &'a Client,
    request: Request<Full<Bytes>>,
    patience: Duration,
}

impl Client {
    /// A client over TCP. It connects at the first call.
    pub fn new(addr: SocketAddr) -> Self {
        Self::over(addr.to_string(), move || tcp(addr))
    }

    /// A client of the server at this host and port, over what `connect` makes.
    pub fn over<S: Stream + 'static, F>(
        host: String,
        connect: impl Fn() -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let connect = move || -> BoxFuture<'static, io::Result<Box<dyn Stream>>> {
            let connecting = connect();
            Box::pin(async move { Ok(Box::new(connecting.await?) as Box<dyn Stream>) })
        };
        let (connect, always) = (Arc::new(connect), HeaderMap::new());
        Self { host, connect, idle: Arc::default(), always, patience: PATIENCE }
    }

    /// The same client, which waits so long for an answer.
    #[must_use]
    pub fn patient_for(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The same client, which sends this header with every call.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.always.insert(name, HeaderValue::from_str(value).expect("a header value"));
        self
    }

    /// The address of the server. Panics for one that has a name instead.
    pub fn addr(&self) -> SocketAddr {
        self.host.parse().unwrap_or_else(|_| panic!("{} is no address", self.host))
    }

    /// Begins a call of any kind.
    pub fn call(&self, method: &str, path: &str) -> Call<'_> {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.host)
            .body(Full::default())
            .unwrap_or_else(|error| panic!("{path} is no request target: {error}"));
        request.headers_mut().extend(self.always.clone());
        Call { client: self, request, patience: self.patience }
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

    async fn connection(&self) -> Result<Connection, Broken> {
        while let Some(mut connection) = self.take_idle() {
            // A connection that the server has closed meanwhile is not used: a request lost on it
            // would look like an unknown outcome.
            if connection.ready().await.is_ok() {
                return Ok(connection);
            }
        }
        let unsent = |error: io::Error| Broken { why: error.to_string(), is_unsent: true };
        let stream = TokioIo::new((self.connect)().await.map_err(unsent)?);
        let (connection, driver) = http1::handshake(stream).await.map_err(broken)?;
        tokio::spawn(driver);
        Ok(connection)
    }

    fn take_idle(&self) -> Option<Connection> {
        self.idle.lock().expect("the idle list").pop()
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Reply, Broken> {
        let asked = line(&request);
        let mut connection = self.connection().await?;
        let response = connection.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(broken)?.to_bytes();
        self.idle.lock().expect("the idle list").push(connection);
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

    /// Waits so long for the answer, whatever the client's patience.
    #[must_use]
    pub fn within(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Sends it; panics where there is no whole answer in time.
    pub async fn send(self) -> Reply {
        let (asked, patience) = (line(&self.request), self.patience);
        let answer = self.try_send().await;
        answer.unwrap_or_else(|Broken { why, .. }| panic!("{asked}, within {patience:?}: {why}"))
    }

    /// Sends it, for callers that expect the server to die, or to be slow.
    ///
    /// # Errors
    /// [`Broken`] when there is no whole answer in time.
    pub async fn try_send(self) -> Result<Reply, Broken> {
        let exchange = self.client.exchange(self.request);
        let answer = tokio::time::timeout(self.patience, exchange).await;
        let late = || Broken { why: "no answer in time".to_owned(), is_unsent: false };
        answer.unwrap_or_else(|_| Err(late()))
    }
}

// This is the outside of a node: the product's own sockets are reached through its seams.
#[allow(clippy::disallowed_methods)]
async fn tcp(addr: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn line(request: &Request<Full<Bytes>>) -> String {
    format!("{} {}", request.method(), request.uri())
}

fn broken(error: hyper::Error) -> Broken {
    // Cancelled: the connection went before the request was written.
    Broken { why: error.to_string(), is_unsent: error.is_canceled() }
}

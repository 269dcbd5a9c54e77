//! The client against a server that answers from a script, over real loopback sockets.

mod exchanges;
mod network;

use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::seams::{ByteStream, TcpListen};
use shiioo_actors::testing::At;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::sockets::tcp::RealTcp;
use crate::testing::tenant;

/// Longest wait for what takes a moment. Below the time after which idle connections are closed
/// anyway.
const PATIENCE: Duration = Duration::from_secs(3);

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Got: It\r\n\r\nhi";

/// Answers the requests of each connection with the given texts, in turn, and then closes it.
/// Records what it was sent.
struct Server {
    port: u16,
    heard: Arc<Mutex<Vec<String>>>,
    script: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(connections: Vec<Vec<String>>, tls: Option<TlsAcceptor>) -> Self {
        let listener = RealTcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let script = tokio::spawn(play(listener, connections, tls, Arc::clone(&heard)));
        Self { port, heard, script }
    }

    async fn plain(connections: &[&[&str]]) -> Self {
        let texts = |answers: &&[&str]| answers.iter().map(|it| (*it).to_owned()).collect();
        Self::start(connections.iter().map(texts).collect(), None).await
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().clone()
    }
}

async fn play(
    listener: Box<dyn TcpListen>,
    connections: Vec<Vec<String>>,
    tls: Option<TlsAcceptor>,
    heard: Arc<Mutex<Vec<String>>>,
) {
    for answers in connections {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream: Box<dyn ByteStream> = match &tls {
            None => stream,
            Some(tls) => match tls.accept(stream).await {
                Ok(stream) => Box::new(stream),
                Err(_) => continue,
            },
        };
        for answer in answers {
            let Some(request) = hear(&mut stream).await else { break };
            heard.lock().push(request);
            if stream.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
    }
}

/// Reads one request; `None` at the end of the connection.
async fn hear(stream: &mut Box<dyn ByteStream>) -> Option<String> {
    let mut text = String::new();
    let mut wanted = usize::MAX;
    while text.len() < wanted {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.ok().filter(|read| *read > 0)?;
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        if let Some(end) = text.find("\r\n\r\n") {
            let length = text
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .map_or(0, |length| length.parse().unwrap());
            wanted = end + 4 + length;
        }
    }
    Some(text)
}

/// 2030-01-01T00:00:00Z.
const TODAY: At = At(Timestamp(1_893_456_000_000));

fn client() -> HttpSteps {
    HttpSteps::new(Arc::new(RealTcp), Arc::new(TODAY), false, &DescriptorBudget::default()).unwrap()
}

fn denying(tcp: impl Tcp + 'static) -> HttpSteps {
    HttpSteps::new(Arc::new(tcp), Arc::new(TODAY), true, &DescriptorBudget::default()).unwrap()
}

/// Waits until every kept connection has been closed by its service.
async fn until_no_connection_is_usable(client: &HttpSteps) {
    let closed = async {
        while client.pool.usable() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, closed).await.expect("the services close their connections");
}

fn get(url: impl Into<String>) -> HttpRequest {
    HttpRequest {
        tenant: tenant(1),
        method: "GET".into(),
        url: url.into(),
        headers: vec![],
        body: vec![],
    }
}

fn unsendable(result: Result<HttpResponse, HttpCallError>) -> String {
    match result {
        Err(HttpCallError::Unsendable(reason)) => reason,
        other => panic!("expected a request that cannot be sent, got {other:?}"),
    }
}

fn failed(result: Result<HttpResponse, HttpCallError>) -> String {
    match result {
        Err(HttpCallError::Failed(reason)) => reason,
        other => panic!("expected a failure, got {other:?}"),
    }
}

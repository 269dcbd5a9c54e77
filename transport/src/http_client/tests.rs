//! The client against a server that answers from a script, over real loopback sockets.

use std::io;
use std::sync::Mutex;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::seams::TcpListen;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::http_client::connection::RESPONSE_BODY_BYTES_MAX;
use crate::tcp::RealTcp;
use crate::testing::tenant;

/// Longest wait for what takes a moment. Below the time after which idle connections are closed
/// anyway.
const PATIENCE: Duration = Duration::from_secs(3);

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Got: It\r\n\r\nhi";

/// Answers the requests of each connection with the given texts, in turn, and then closes it.
/// Remembers what it was sent.
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
        self.heard.lock().unwrap().clone()
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
            heard.lock().unwrap().push(request);
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

#[derive(Debug)]
struct At(&'static str);

impl Clock for At {
    fn now(&self) -> Timestamp {
        Timestamp::parse_rfc3339(self.0).unwrap()
    }
}

const TODAY: At = At("2030-01-01T00:00:00Z");

fn client() -> HttpSteps {
    HttpSteps::new(Arc::new(RealTcp), Arc::new(TODAY), false, &DescriptorBudget::default()).unwrap()
}

fn denying(tcp: impl Tcp + 'static) -> HttpSteps {
    HttpSteps::new(Arc::new(tcp), Arc::new(TODAY), true, &DescriptorBudget::default()).unwrap()
}

/// Waits until every kept connection has been closed by its service.
async fn until_nothing_stands(client: &HttpSteps) {
    let closed = async {
        while client.pool.standing() > 0 {
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

#[tokio::test]
async fn requests_to_one_place_share_a_connection() {
    let server = Server::plain(&[&[OK, OK]]).await;
    let client = client();
    let answer = client.call(get(server.url("/a?b=c"))).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"hi"[..]));
    assert!(answer.headers.contains(&("x-got".into(), "It".into())));
    assert_eq!(client.pool.standing(), 1);

    let post = HttpRequest {
        method: "POST".into(),
        headers: vec![("X-A".into(), "b".into())],
        body: b"{}".to_vec(),
        ..get(server.url("/p"))
    };
    client.call(post).await.unwrap();
    let heard = server.heard();
    assert!(heard[0].starts_with("GET /a?b=c HTTP/1.1\r\n"), "{}", heard[0]);
    assert!(heard[0].contains(&format!("\r\nhost: 127.0.0.1:{}\r\n", server.port)));
    assert!(!heard[0].contains("content-length"));
    assert!(
        heard[1].contains("\r\nx-a: b\r\n") && heard[1].ends_with("\r\n\r\n{}"),
        "{}",
        heard[1]
    );
}

#[tokio::test]
async fn an_empty_post_says_so_and_a_head_has_no_body() {
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n";
    let server = Server::plain(&[&[OK, head, OK]]).await;
    let client = client();
    client.call(HttpRequest { method: "POST".into(), ..get(server.url("/")) }).await.unwrap();
    let answer = client.call(HttpRequest { method: "HEAD".into(), ..get(server.url("/")) });
    assert_eq!(answer.await.unwrap().body, b"");
    client.call(get(server.url("/"))).await.unwrap();
    assert!(server.heard()[0].contains("\r\ncontent-length: 0\r\n"));
}

#[tokio::test]
async fn a_closed_idle_connection_is_replaced() {
    let server = Server::plain(&[&[OK], &[OK]]).await;
    let client = client();
    client.call(get(server.url("/1"))).await.unwrap();
    until_nothing_stands(&client).await;
    client.call(get(server.url("/2"))).await.unwrap();
    assert_eq!(server.heard().len(), 2);
}

#[tokio::test]
async fn a_kept_connection_that_closes_without_an_answer_is_replaced() {
    for method in ["GET", "HEAD", "PUT", "DELETE"] {
        let server = Server::plain(&[&[OK, ""], &[OK]]).await;
        let client = client();
        client.call(get(server.url("/1"))).await.unwrap();
        let request = HttpRequest { method: method.into(), ..get(server.url("/2")) };
        assert_eq!(client.call(request).await.unwrap().status, 200, "{method}");
        assert_eq!(server.heard().len(), 3, "{method}");
    }
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_sent_twice() {
    // The method, what the service says on a kept connection before it closes, and on a fresh one.
    for (method, kept, fresh) in [
        ("POST", Some(""), OK),
        ("PATCH", Some(""), OK),
        ("GET", Some("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh"), OK),
        ("GET", Some("HTT"), OK),
        ("GET", None, ""),
    ] {
        let kept = kept.map(|text| [OK, text]);
        let fresh = [fresh];
        let connections: Vec<&[&str]> =
            kept.iter().map(<[_; 2]>::as_slice).chain([&fresh[..], &[OK]]).collect();
        let server = Server::plain(&connections).await;
        let client = client();
        if kept.is_some() {
            client.call(get(server.url("/1"))).await.unwrap();
        }
        let request = HttpRequest { method: method.into(), ..get(server.url("/2")) };
        let reason = failed(client.call(request).await);
        assert!(reason.contains("closed") || reason.contains("end of file"), "{reason}");
        assert_eq!(server.heard().len(), 1 + kept.iter().len(), "{method}");
    }
}

#[tokio::test]
async fn calls_of_one_tenant_leave_room_for_another() {
    let budget =
        DescriptorBudget { step_calls: 3, tenant_step_calls: 2, ..DescriptorBudget::default() };
    let client =
        Arc::new(HttpSteps::new(Arc::new(RealTcp), Arc::new(TODAY), false, &budget).unwrap());
    let silent = RealTcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (client, request) = (Arc::clone(&client), get(url.clone()));
        calls.spawn(async move { client.call(request).await });
    }
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(silent.accept().await.unwrap());
    }
    let server = Server::plain(&[&[OK]]).await;
    let request = HttpRequest { tenant: tenant(2), ..get(server.url("/")) };
    let answer = tokio::time::timeout(PATIENCE, client.call(request)).await;
    assert_eq!(answer.unwrap().unwrap().status, 200);
    // Its third call would have connected long before the other tenant was answered.
    let third = tokio::time::timeout(Duration::from_millis(50), silent.accept()).await;
    assert!(third.is_err(), "a third call of the tenant is under way");
    drop(open.pop());
    let next = tokio::time::timeout(PATIENCE, silent.accept()).await;
    assert!(next.is_ok(), "a call that has ended makes room");
}

/// A network in which the first attempts to connect find no descriptor.
#[derive(Debug)]
struct Short(Mutex<u32>);

impl Tcp for Short {
    fn bind(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>> {
        RealTcp.bind(addr)
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        RealTcp.resolve(host, port)
    }

    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        let mut left = self.0.lock().unwrap();
        if *left == 0 {
            return RealTcp.connect(addr);
        }
        *left -= 1;
        // Too many open files.
        let error = io::Error::from_raw_os_error(if *left == 0 { 23 } else { 24 });
        Box::pin(async move { Err(error) })
    }
}

#[tokio::test]
async fn a_lack_of_descriptors_is_waited_for() {
    let tcp = Arc::new(Short(Mutex::new(3)));
    let budget = DescriptorBudget::default();
    let client = HttpSteps::new(tcp, Arc::new(TODAY), false, &budget).unwrap();
    let server = Server::plain(&[&[OK]]).await;
    assert_eq!(client.call(get(server.url("/"))).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_connection_that_is_to_be_closed_is_not_kept() {
    let close = "HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\nuntil the end";
    let server = Server::plain(&[&[close]]).await;
    let client = client();
    let answer = client.call(get(server.url("/"))).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (404, &b"until the end"[..]));
    assert_eq!(client.pool.standing(), 0);
}

#[tokio::test]
async fn redirects_are_followed_a_few_times() {
    let there = "HTTP/1.1 302 Found\r\nLocation: next\r\nContent-Length: 0\r\n\r\n";
    let server = Server::plain(&[&[there, there, OK], &[there; 7]]).await;
    let client = client();
    let post = HttpRequest {
        method: "POST".into(),
        body: b"{}".to_vec(),
        ..get(server.url("/deep/start?secret=sesame"))
    };
    assert_eq!(client.call(post).await.unwrap().status, 200);
    let lines: Vec<String> =
        server.heard().iter().map(|it| it.lines().next().unwrap().to_owned()).collect();
    let next = "GET /deep/next HTTP/1.1";
    assert_eq!(lines, ["POST /deep/start?secret=sesame HTTP/1.1", next, next]);

    until_nothing_stands(&client).await;
    let reason = unsendable(client.call(get(server.url("/?sesame"))).await);
    assert_eq!(reason, "redirected more than 5 times");
    assert_eq!(server.heard().len(), 3 + 6);
}

#[tokio::test]
async fn redirects_stay_within_a_scheme() {
    let away = "HTTP/1.1 307 Temporary Redirect\r\nLocation: https://127.0.0.1/sesame\r\n\
                Content-Length: 0\r\n\r\n";
    let server = Server::plain(&[&[away]]).await;
    let reason = unsendable(client().call(get(server.url("/"))).await);
    assert!(reason.contains("from http to https") && !reason.contains("sesame"), "{reason}");
}

#[tokio::test]
async fn answers_are_bounded() {
    let announced =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", RESPONSE_BODY_BYTES_MAX + 1);
    let chunked = format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{}\r\n0\r\n\r\n",
        RESPONSE_BODY_BYTES_MAX + 1,
        "x".repeat(RESPONSE_BODY_BYTES_MAX + 1)
    );
    let just_fits = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {RESPONSE_BODY_BYTES_MAX}\r\n\r\n{}",
        "x".repeat(RESPONSE_BODY_BYTES_MAX)
    );
    let wide_head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    let long_head = format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(101));
    let answers = [announced, chunked, wide_head, long_head, just_fits];
    let server = Server::start(answers.map(|answer| vec![answer]).to_vec(), None).await;
    let client = client();
    for what in ["body of the answer", "body of the answer", "head of", "head of"] {
        let reason = failed(client.call(get(server.url("/"))).await);
        assert!(reason.contains(what) && reason.contains("larger than"), "{reason}");
        assert_eq!(client.pool.standing(), 0);
    }
    let answer = client.call(get(server.url("/"))).await.unwrap();
    assert_eq!(answer.body.len(), RESPONSE_BODY_BYTES_MAX);
}

#[tokio::test]
async fn a_dropped_call_closes_its_connection() {
    let listener = RealTcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let client = client();
    let mut call = client.call(get(url));
    let server = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        hear(&mut stream).await.unwrap();
        stream
    };
    let mut stream = tokio::select! {
        _ = &mut call => panic!("nobody answered"),
        stream = server => stream,
    };
    drop(call);
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "end of the stream");
    assert_eq!(client.pool.standing(), 0);
}

#[tokio::test]
async fn failures_of_the_network_name_the_host_only() {
    let listener = RealTcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let reason = failed(client().call(get(format!("http://127.0.0.1:{port}/sesame"))).await);
    assert!(reason.starts_with(&format!("127.0.0.1:{port}: cannot connect")), "{reason}");
    assert!(!reason.contains("sesame"));

    let server = Server::plain(&[&["SSH-2.0-OpenSSH\r\n"]]).await;
    failed(client().call(get(server.url("/"))).await);
    unsendable(client().call(get("gopher://x/")).await);
}

/// A network where `public.example` has one public address, `both.example` a private one as well,
/// and every public address leads to this machine.
#[derive(Debug, Default)]
struct Detour(RealTcp);

const PUBLIC: [u8; 4] = [93, 184, 216, 34];
const PRIVATE: [u8; 4] = [10, 0, 0, 1];

impl Tcp for Detour {
    fn bind(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>> {
        self.0.bind(addr)
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        match host {
            "public.example" => Box::pin(async move { Ok(vec![(PUBLIC, port).into()]) }),
            "both.example" => {
                Box::pin(async move { Ok(vec![(PRIVATE, port).into(), (PUBLIC, port).into()]) })
            }
            _ => self.0.resolve(host, port),
        }
    }

    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        assert_eq!(addr.ip(), std::net::IpAddr::from(PUBLIC), "a private address was dialled");
        self.0.connect(([127, 0, 0, 1], addr.port()).into())
    }
}

#[tokio::test]
async fn private_targets_are_denied_by_the_address_that_is_dialled() {
    let client = denying(Detour::default());
    for url in ["http://127.0.0.1:1/", "http://[::ffff:127.0.0.1]:1/", "http://[::1]:1/"] {
        let reason = unsendable(client.call(get(url)).await);
        assert!(reason.contains("--deny-private-targets"), "{reason}");
    }

    let inward = "HTTP/1.1 302 Found\r\nLocation: //127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n";
    let server = Server::plain(&[&[OK, inward], &[OK]]).await;
    let public = || get(format!("http://public.example:{}/", server.port));
    assert_eq!(client.call(public()).await.unwrap().status, 200);
    let reason = unsendable(client.call(public()).await);
    assert!(reason.contains("loopback"), "{reason}");
    let both = get(format!("http://both.example:{}/", server.port));
    assert_eq!(client.call(both).await.unwrap().status, 200);
}

#[tokio::test]
async fn https_checks_the_certificate_against_authority_name_and_clock() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from(&include_bytes!("testdata/leaf.der")[..]);
    let key = PrivatePkcs8KeyDer::from(&include_bytes!("testdata/leaf.key.der")[..]);
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let answers = || vec![OK.to_owned(), OK.to_owned()];
    let tls = TlsAcceptor::from(Arc::new(config));
    let server = Server::start(vec![answers(), answers(), answers()], Some(tls)).await;
    let url = format!("https://127.0.0.1:{}/", server.port);

    let trusting = |clock: At| {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(&include_bytes!("testdata/ca.der")[..])).unwrap();
        HttpSteps::with_roots(
            Arc::new(RealTcp),
            Arc::new(clock),
            false,
            &DescriptorBudget::default(),
            roots,
        )
        .unwrap()
    };
    let reason = failed(trusting(At("2200-01-01T00:00:00Z")).call(get(url.clone())).await);
    assert!(reason.contains("TLS") && reason.contains("expired"), "{reason}");
    let reason = failed(client().call(get(url.clone())).await);
    assert!(reason.contains("UnknownIssuer"), "{reason}");

    let client = trusting(TODAY);
    for _ in 0..2 {
        assert_eq!(client.call(get(url.clone())).await.unwrap().body, b"hi");
    }
    assert_eq!(server.heard().len(), 2);
    server.script.await.unwrap();
}

//! The server against clients that are slow, wrong or gone, over streams whose clock the test
//! controls.

mod support;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use shiioo_actors::ports::BoxFuture;
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::ports::seams::{ByteStream, TcpListen};
use shiioo_api::Api;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// How long a body may take, seconds.
const BODY_READ_SECS: u64 = 10;

const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
const POST: &[u8] = b"POST /api/tenants HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";
const HALF_A_BODY: &[u8] =
    b"POST /api/tenants HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n{";

/// Streams in memory, and failures, in the order the test sends them.
struct InMemory(Mutex<mpsc::Receiver<io::Result<DuplexStream>>>);

impl TcpListen for InMemory {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, SocketAddr)>> {
        Box::pin(async {
            match self.0.lock().await.recv().await {
                Some(stream) => Ok((Box::new(stream?) as Box<dyn ByteStream>, self.local_addr()?)),
                None => std::future::pending().await,
            }
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)))
    }
}

struct Server {
    stop: oneshot::Sender<()>,
    running: JoinHandle<()>,
}

impl Server {
    fn start(listener: impl TcpListen + 'static) -> Self {
        Self::serving(listener, support::api(None))
    }

    fn start_bounded(listener: impl TcpListen + 'static, bounds: DescriptorBudget) -> Self {
        Self::serving(listener, support::bounded_api(None, bounds))
    }

    fn serving(listener: impl TcpListen + 'static, api: Api) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let running = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            api.serve(Box::new(listener), stopped).await;
        });
        Self { stop, running }
    }

    async fn stop(self) {
        drop(self.stop);
        self.running.await.unwrap();
    }
}

fn in_memory() -> (Server, mpsc::Sender<io::Result<DuplexStream>>) {
    let (sender, receiver) = mpsc::channel(16);
    (Server::start(InMemory(Mutex::new(receiver))), sender)
}

async fn dial(clients: &mpsc::Sender<io::Result<DuplexStream>>) -> DuplexStream {
    let (client, server) = duplex(256 * 1024);
    clients.send(Ok(server)).await.unwrap();
    client
}

/// Sends, then reads until the server closes.
async fn exchange(mut stream: impl ByteStream, sent: &[u8]) -> String {
    // The server may close before it has read everything.
    let _ = stream.write_all(sent).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends, and reads one answer with a body.
async fn one_answer(stream: &mut impl ByteStream, sent: &[u8]) -> String {
    stream.write_all(sent).await.unwrap();
    answered(stream).await
}

#[tokio::test(start_paused = true)]
async fn a_connection_serves_many_requests_and_stops_in_order() {
    let (server, clients) = in_memory();
    let mut stream = dial(&clients).await;
    for _ in 0..3 {
        let answer = one_answer(&mut stream, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    server.stop().await;
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "an idle connection is closed");
}

/// A client may be about to send when the server begins to stop: closing first would break its request.
#[tokio::test(start_paused = true)]
async fn a_server_that_stops_answers_what_was_on_its_way() {
    let (server, clients) = in_memory();
    let mut stream = dial(&clients).await;
    one_answer(&mut stream, GET).await;
    let idle = dial(&clients).await;
    sleep(Duration::from_millis(1)).await;
    // Nothing is accepted between these two: it waits in the backlog.
    let mut waiting = dial(&clients).await;
    let Server { stop, running: stopping } = server;
    drop(stop);
    sleep(Duration::from_millis(200)).await;
    for stream in [&mut stream, &mut waiting] {
        let answer = one_answer(stream, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap(), 0, "it said so");
    }
    assert!(!stopping.is_finished(), "one may still send");
    stopping.await.unwrap();
    drop(idle);
}

/// Nobody else needs its place; it ends all the same.
#[tokio::test(start_paused = true)]
async fn a_client_that_reads_no_answer_loses_its_connection() {
    let (server, clients) = in_memory();
    let mut stream = dial(&clients).await;
    let began = Instant::now();
    // More answers than there is room for: the server then reads no further requests, until it closes.
    let sending = async { while stream.write_all(GET).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(60), sending).await.expect("it is closed");
    assert_eq!(began.elapsed().as_secs(), 30);
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn garbage_is_refused_and_harms_nobody() {
    let (server, clients) = in_memory();
    let many_headers = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let long_line = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "p".repeat(100_000));
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /api/tenants HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        many_headers.as_bytes(),
        long_line.as_bytes(),
    ] {
        let answer = exchange(dial(&clients).await, garbage).await;
        let shown = String::from_utf8_lossy(&garbage[..garbage.len().min(60)]);
        assert!(answer.starts_with("HTTP/1.1 4"), "{shown}: {answer}");
    }
    assert_eq!(
        exchange(dial(&clients).await, b"\r\n\r\n\r\n").await,
        "",
        "it is waited for in vain"
    );
    let answer = one_answer(&mut dial(&clients).await, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn large_headers_are_431() {
    let (server, clients) = in_memory();
    // Above our bound an answer of the API, above the bound of the buffer a bare one.
    for (kib, problem) in [(20, true), (200, false)] {
        let large = "x".repeat(kib * 1024);
        let request = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {large}\r\n\r\n");
        let answer = exchange(dial(&clients).await, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert_eq!(answer.contains("\"code\":\"too_large\""), problem, "{answer}");
    }
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_with_a_length_and_without() {
    let (server, clients) = in_memory();
    // Told by its length alone, before the body comes.
    let announced =
        b"POST /api/tenants HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000000000\r\n\r\n";
    let answer = exchange(dial(&clients).await, announced).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    // And by counting where no length is given.
    let mut request =
        b"POST /api/tenants HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..20 {
        request.extend_from_slice(b"10000\r\n");
        request.extend_from_slice(&[b' '; 0x10000]);
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let (mut reading, mut writing) = tokio::io::split(dial(&clients).await);
    let writer = tokio::spawn(async move {
        let _ = writing.write_all(&request).await;
    });
    let mut answer = Vec::new();
    let _ = reading.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    writer.await.unwrap();
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn slow_headers_and_idle_connections_are_closed() {
    let (server, clients) = in_memory();
    for sent in [&b""[..], b"GET /healthz HTTP/1.1\r\nHost:"] {
        let began = Instant::now();
        assert_eq!(exchange(dial(&clients).await, sent).await, "");
        let took = began.elapsed();
        assert!((9..12).contains(&took.as_secs()), "{took:?}");
    }
    // A byte now and then keeps it open no longer.
    let (began, mut slow) = (Instant::now(), dial(&clients).await);
    while slow.write_all(b"x").await.is_ok() {
        sleep(Duration::from_millis(300)).await;
    }
    assert!((9..12).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_408_and_the_connection_is_closed() {
    let (server, clients) = in_memory();
    let sent = b"POST /api/tenants HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{";
    let began = Instant::now();
    let answer = exchange(dial(&clients).await, sent).await;
    let took = began.elapsed();
    assert!((BODY_READ_SECS..BODY_READ_SECS + 2).contains(&took.as_secs()), "{took:?}");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
    server.stop().await;
}

/// A server with two places, and room for so many connections beside them.
fn crowded(api_refusals: usize) -> (Server, mpsc::Sender<io::Result<DuplexStream>>) {
    let (sender, receiver) = mpsc::channel(16);
    let bounds =
        DescriptorBudget { api_connections: 2, api_refusals, ..DescriptorBudget::default() };
    (Server::start_bounded(InMemory(Mutex::new(receiver)), bounds), sender)
}

/// Connections that have sent this, and as much time that the server has read it.
async fn holders(
    clients: &mpsc::Sender<io::Result<DuplexStream>>,
    count: usize,
    sent: &[u8],
) -> Vec<DuplexStream> {
    let mut holders = Vec::new();
    for _ in 0..count {
        let mut holder = dial(clients).await;
        holder.write_all(sent).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        holders.push(holder);
    }
    holders
}

#[tokio::test(start_paused = true)]
async fn above_the_bound_probes_are_answered_and_the_rest_is_told() {
    let (server, clients) = crowded(2);
    // Requests whose bodies do not come hold both places.
    let mut served = holders(&clients, 2, HALF_A_BODY).await;
    let answer = one_answer(&mut dial(&clients).await, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    let ready = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let ready = one_answer(&mut dial(&clients).await, ready).await;
    assert!(ready.contains("\"code\":\"starting\""), "{ready}");
    let answer = one_answer(&mut dial(&clients).await, POST).await;
    for part in
        ["HTTP/1.1 503 ", "\r\nretry-after: 1\r\n", "\"code\":\"busy\"", "\"applied\":false"]
    {
        assert!(answer.contains(part), "{part} is not in {answer}");
    }

    // Connections that say nothing keep a probe out for a moment only.
    let _silent = holders(&clients, 2, b"").await;
    let began = Instant::now();
    let mut probe = dial(&clients).await;
    assert!(one_answer(&mut probe, GET).await.starts_with("HTTP/1.1 200 OK"));
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());

    drop(served.pop());
    sleep(Duration::from_millis(1)).await;
    for _ in 0..2 {
        let answer = one_answer(&mut probe, POST).await;
        assert!(!answer.contains("\"code\":\"busy\""), "{answer}");
    }
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_only_waits_for_its_client_makes_way_for_the_next() {
    /// Longer than a client may leave its connection waiting in a crowd, and shorter than the
    /// patience with one that is alone.
    const A_WHILE: Duration = Duration::from_secs(2);
    let half = b"GET /healthz HTTP/1.1\r\nHost: local";
    // Two places and one more: who has sent a whole head has a place, and the others have none.
    for (what, sent, count) in
        [("nothing", &b""[..], 3), ("half a head", half, 3), ("half a body", HALF_A_BODY, 2)]
    {
        let (server, clients) = crowded(1);
        let mut holders = holders(&clients, count, sent).await;
        sleep(A_WHILE).await;
        let mut next = dial(&clients).await;
        for _ in 0..2 {
            let answer = one_answer(&mut next, POST).await;
            let is_served = !answer.contains("\"code\":\"busy\"") && !answer.contains("close");
            assert!(is_served, "beside those who sent {what}: {answer}");
        }
        let mut rest = Vec::new();
        holders.remove(0).read_to_end(&mut rest).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "", "the first that came makes way");
        server.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_loop_outlives_failures_of_the_listener() {
    let (server, clients) = in_memory();
    for kind in [io::ErrorKind::ConnectionAborted, io::ErrorKind::Other] {
        clients.send(Err(kind.into())).await.unwrap();
    }
    let answer = one_answer(&mut dial(&clients).await, GET).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn stopping_does_not_wait_for_ever() {
    let (server, clients) = in_memory();
    let mut client = dial(&clients).await;
    client.write_all(b"POST /api/tenants HTTP/1.1\r\nContent-Length: 9\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(10)).await;
    let began = Instant::now();
    server.stop().await;
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
}

/// A refusal that is ready before any byte of the body.
fn refused_head(more: &str) -> String {
    format!("POST /nowhere HTTP/1.1\r\nHost: localhost\r\n{more}\r\n\r\n")
}

/// What the server sends until it pauses for as long as a client would wait between its packets.
async fn heard(stream: &mut DuplexStream) -> String {
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(Ok(read @ 1..)) =
        tokio::time::timeout(Duration::from_millis(300), stream.read(&mut piece)).await
    {
        answer.extend_from_slice(&piece[..read]);
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_before_the_body_is_heard_and_the_connection_goes_on() {
    let (server, clients) = in_memory();
    for bytes in [0_usize, 1, 700, 100 * 1024, 2 * 1024 * 1024] {
        let mut stream = dial(&clients).await;
        stream
            .write_all(refused_head(&format!("Content-Length: {bytes}")).as_bytes())
            .await
            .unwrap();
        // The pause between the packets: the answer is there by then.
        let answer = heard(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{bytes}: {answer}");
        assert!(!answer.contains("connection: close"), "{bytes}: {answer}");
        stream.write_all(&vec![b'x'; bytes]).await.unwrap();
        for _ in 0..2 {
            stream.write_all(GET).await.unwrap();
            let next = heard(&mut stream).await;
            assert!(next.starts_with("HTTP/1.1 200 OK"), "{bytes}: {next}");
        }
    }
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rest_beyond_two_mebibytes_ends_the_connection_and_says_so() {
    let (server, clients) = in_memory();
    let head = refused_head(&format!("Content-Length: {}", 2 * 1024 * 1024 + 1));
    let answer = exchange(dial(&clients).await, head.as_bytes());
    let answer = tokio::time::timeout(Duration::from_secs(30), answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    server.stop().await;
}

/// Reads one answer with a body.
async fn answered(reading: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert_ne!(reading.read_buf(&mut answer).await.unwrap(), 0, "closed after {answer:?}");
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_body_in_chunks_is_thrown_away_to_its_end_before_the_answer() {
    let (server, clients) = in_memory();
    let chunk = [b"10000\r\n".to_vec(), vec![b' '; 0x10000], b"\r\n".to_vec()].concat();
    for (chunks, ended, closes) in
        [(1, true, false), (32, true, false), (33, true, true), (1, false, true)]
    {
        let mut stream = dial(&clients).await;
        stream.write_all(refused_head("Transfer-Encoding: chunked").as_bytes()).await.unwrap();
        sleep(Duration::from_millis(500)).await;
        let (mut reading, mut writing) = tokio::io::split(stream);
        let chunk = chunk.clone();
        let writer = tokio::spawn(async move {
            for _ in 0..chunks {
                if writing.write_all(&chunk).await.is_err() {
                    return writing;
                }
            }
            if ended {
                let _ = writing.write_all(b"0\r\n\r\n").await;
            }
            writing
        });
        let answer = answered(&mut reading).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{chunks}: {answer}");
        assert_eq!(answer.contains("connection: close"), closes, "{chunks}: {answer}");
        let mut stream = reading.unsplit(writer.await.unwrap());
        if !closes {
            let next = one_answer(&mut stream, GET).await;
            assert!(next.starts_with("HTTP/1.1 200 OK"), "{next}");
        }
    }
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_to_be_told_to_send_is_told_not_to() {
    let (server, clients) = in_memory();
    let head = refused_head("Content-Length: 5\r\nExpect: 100-continue");
    let answer = exchange(dial(&clients).await, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    // Who may send is told so, and is answered on a connection that stays.
    let head = "POST /api/tenants HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let mut stream = dial(&clients).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(heard(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    let answer = one_answer(&mut stream, b"{}").await;
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
    let next = one_answer(&mut stream, GET).await;
    assert!(next.starts_with("HTTP/1.1 200 OK"), "{next}");
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn requests_in_a_row_are_answered_in_a_row_whatever_is_refused() {
    let (server, clients) = in_memory();
    let mut stream = dial(&clients).await;
    let sent = [
        refused_head("Content-Length: 5").as_bytes(),
        b"abcde",
        GET,
        refused_head("Transfer-Encoding: chunked").as_bytes(),
        b"3\r\nabc\r\n0\r\n\r\n",
        GET,
    ]
    .concat();
    stream.write_all(&sent).await.unwrap();
    let answers = heard(&mut stream).await;
    let statuses: Vec<&str> =
        answers.matches("HTTP/1.1 404").chain(answers.matches("HTTP/1.1 200")).collect();
    assert_eq!(statuses.len(), 4, "{answers}");
    let order: Vec<usize> =
        ["404", "200"].iter().filter_map(|s| answers.find(&format!("HTTP/1.1 {s}"))).collect();
    assert!(order[0] < order[1], "{answers}");
    server.stop().await;
}

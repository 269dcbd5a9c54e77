//! A node that may open few files: whatever one tenant or one client opens, it lives, writes, starts
//! again, and serves the others.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tests::{Counter, Launch, Server, Tenant, eventually, raw, spec};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Longer than any test.
const NEVER: Duration = Duration::from_secs(3_600);
/// Steps that one run may have.
const STEPS: usize = 1_000;
/// Runs with an input of nearly a megabyte: more than a segment of the log.
const LARGE_RUNS: usize = 24;
const INPUT_BYTES: usize = 900_000;
/// Pause between two bytes of a connection that is held.
const DRIBBLE_EVERY: Duration = Duration::from_millis(50);

async fn start(folder: &TempDir, descriptors: u64) -> Server {
    open_many_files();
    let launch =
        Launch { descriptors: Some(descriptors), ..Launch::anywhere(folder.path(), vec![]) };
    let mut server = launch.start();
    if let Err(code) = server.await_ready().await {
        panic!("the node did not become ready ({code:?}):\n{}", server.output());
    }
    server
}

/// Lets this process have as many files as it may: the tests here together come near the usual soft limit.
fn open_many_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls use `limit` only, which lives as long as they take.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

/// A run whose every step calls `url` at once.
fn many_calls(url: &str) -> serde_json::Value {
    let call = |number| {
        let call = spec::http(&format!("s{number}"), "GET", url);
        spec::with(call, json!({ "timeout_secs": 600 }))
    };
    spec::inline((0..STEPS).map(call))
}

/// Others are served: a call, a write, a tenant that is new.
async fn is_well(server: &Server, neighbour: &Tenant, service: &Counter) {
    let call = spec::http("a", "GET", &service.url("/"));
    let call =
        spec::with(call, json!({ "retry_policy": { "max_attempts": 5, "backoff_secs": 0.2 } }));
    let run = neighbour.finished(spec::inline([call])).await;
    assert_eq!(run["status"], "completed", "{run:#}\n{}", server.output());
    let newcomer = Tenant::create(&server.client(), spec::unlimited()).await;
    let run = newcomer.finished(spec::inline([spec::set("a", 1)])).await;
    assert_eq!(run["status"], "completed", "{run:#}");
}

async fn calls_that_are_not_answered(descriptors: u64) {
    let silent = Counter::thinking(NEVER).await;
    let service = Counter::start().await;
    let folder = TempDir::new().expect("a temporary folder");
    let mut server = start(&folder, descriptors).await;
    let greedy = Tenant::create(&server.client(), spec::unlimited()).await;
    let neighbour = Tenant::create(&server.client(), spec::unlimited()).await;
    for _ in 0..2 {
        greedy.start(many_calls(&silent.url("/"))).await;
    }
    eventually("calls are under way", async || (silent.count("/") > 0).then_some(())).await;
    is_well(&server, &neighbour, &service).await;
    for _ in 0..LARGE_RUNS {
        let input = json!("x".repeat(INPUT_BYTES));
        neighbour.finished(spec::inline_with(input, [spec::set("a", 1)])).await;
    }
    let open = server.process().descriptors();
    assert!(open < usize::try_from(descriptors).unwrap() * 3 / 4, "{open} are open");

    server.kill9();
    // Counted before the restart: a node may have performed all calls it has room for by the time
    // it is ready, and none of them ends.
    let before = silent.count("/");
    server.restart().await;
    let client = server.client();
    let [greedy, neighbour] =
        [greedy, neighbour].map(|tenant| Tenant { client: client.clone(), ..tenant });
    eventually("calls go on", async || (silent.count("/") > before).then_some(())).await;
    is_well(&server, &neighbour, &service).await;
    let runs = greedy.get("/runs?status=running").await.expect(200);
    assert_eq!(runs["runs"].as_array().map(Vec::len), Some(2));
    server.term().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_not_answered_leave_256_descriptors_to_others() {
    calls_that_are_not_answered(256).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_not_answered_leave_1024_descriptors_to_others() {
    calls_that_are_not_answered(1_024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tenants_than_can_be_open_wait_for_each_other() {
    /// With two files each, more than the node may open.
    const TENANTS: usize = 140;
    let folder = TempDir::new().expect("a temporary folder");
    let server = start(&folder, 256).await;
    let client = server.client();
    let mut made = Vec::new();
    for number in 0..TENANTS {
        let what = format!("tenant {number} is made");
        let tenant = eventually(&what, async || {
            let reply = client.post("/api/tenants", json!({ "name": "T" })).await;
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            assert!(matches!(reply.status, 201 | 503), "{reply}");
            assert!(!text.contains("quarantine") && !text.contains(".redb"), "{text}");
            (reply.status == 201).then(|| reply.json()["id"].as_str().expect("an id").to_owned())
        });
        made.push(tenant.await);
    }
    for id in made.iter().step_by(20) {
        eventually("an old tenant is served", async || {
            let reply = client.get(&format!("/api/tenants/{id}/runs")).await;
            assert!(matches!(reply.status, 200 | 503), "{reply}");
            (reply.status == 200).then_some(())
        })
        .await;
    }
    assert!(!server.output().contains("quarantine"), "a lack of descriptors is no failure");
}

#[tokio::test(flavor = "multi_thread")]
async fn waiters_and_idle_clients_leave_room_for_short_requests_and_probes() {
    const WAITERS: usize = 280;
    let folder = TempDir::new().expect("a temporary folder");
    let mut server = start(&folder, 256).await;
    let client = server.client();
    let acquire = json!({ "holder": "h", "ttl_secs": 600 });
    client.post("/api/locks/k/acquire", acquire).await.expect(200);
    let mut waiters = JoinSet::new();
    for number in 0..WAITERS {
        let client = server.client().patient_for(NEVER);
        let wait = json!({ "holder": format!("w{number}"), "wait_secs": 300 });
        waiters.spawn(async move {
            client.call("POST", "/api/locks/k/acquire").json(&wait).try_send().await
        });
    }
    // Whoever finds no place is told so at once, by 503 and when to come again. A connection that has sent
    // nothing yet may have to make way before: a waiter without an answer says nothing.
    let told = eventually("somebody is told", async || {
        waiters.join_next().await?.expect("a waiter that does not panic").ok()
    })
    .await;
    assert_eq!(told.problem(503, "busy")["applied"], false);
    assert_eq!(told.header("retry-after"), Some("1"));
    for path in ["/healthz", "/readyz", "/api/cluster/leader"] {
        let path = path.to_owned();
        eventually(&format!("{path} is answered"), async || {
            let reply = server.client().call("GET", &path).try_send().await;
            reply.is_ok_and(|reply| reply.status == 200).then_some(())
        })
        .await;
    }
    let tenant = eventually("a tenant is made", async || {
        let client = server.client();
        let made = client.call("POST", "/api/tenants").json(&json!({ "name": "T" }));
        made.try_send().await.ok().filter(|reply| reply.status == 201)
    })
    .await;
    assert!(tenant.json()["id"].is_string());
    eventually("waiters are known", async || {
        let held = server.client().call("GET", "/api/locks/k").try_send().await.ok()?;
        (held.status == 200 && held.json()["waiters"].as_u64() > Some(0)).then_some(())
    })
    .await;

    // When the node stops, who waits is told so by an answer.
    server.term().await;
    let mut told = 0;
    while let Some(waiter) = waiters.join_next().await {
        if let Ok(reply) = waiter.expect("a waiter that does not panic") {
            assert_eq!(reply.status, 503, "{reply}");
            assert!(reply.header("retry-after").is_some(), "{reply}");
            told += 1;
        }
    }
    assert!(told > 0, "no waiter was told");
}

/// Takes a connection, sends this and then a byte now and then, reads nothing, and begins again when the
/// node has closed it.
async fn hold(addr: SocketAddr, request: String) {
    loop {
        let mut stream = raw::connect(addr).await;
        let mut sent = stream.write_all(request.as_bytes()).await;
        while sent.is_ok() {
            tokio::time::sleep(DRIBBLE_EVERY).await;
            sent = stream.write_all(b"x").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_tenant_leave_places_to_others() {
    /// Connections of each kind: each kind alone could take nearly all places.
    const HELD: usize = 60;
    /// Longer than any connection keeps a place for being young.
    const SPAN: Duration = Duration::from_secs(4);
    /// Less than a connection may be idle.
    const IDLE_MAX: Duration = Duration::from_secs(9);
    let folder = TempDir::new().expect("a temporary folder");
    let server = start(&folder, 256).await;
    let (client, addr) = (server.client(), server.addr());
    let greedy = Tenant::create(&client, spec::unlimited()).await;
    let neighbour = Tenant::create(&client, spec::unlimited()).await;
    greedy.post("/locks/k/acquire", json!({ "holder": "h", "ttl_secs": 600 })).await.expect(200);
    let get = |tenant: &Tenant| {
        format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", tenant.path("/runs"))
    };
    let post = |path: &str, length: usize, body: &str| {
        format!(
            "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}",
            greedy.path(path)
        )
    };
    let (mut kept, used) = (raw::connect(addr).await, Instant::now());
    kept.write_all(get(&neighbour).as_bytes()).await.expect("send");
    assert_eq!(raw::read_answer(&mut kept).await.status, Some(200));

    let wait = json!({ "holder": "w", "wait_secs": 300 }).to_string();
    let unread = get(&greedy).repeat(1_000);
    let mut held = JoinSet::new();
    for request in
        [post("/runs", 900_000, "{"), post("/locks/k/acquire", wait.len(), &wait), unread]
    {
        for _ in 0..HELD {
            held.spawn(hold(addr, request.clone()));
        }
    }
    let until = Instant::now() + SPAN;
    while Instant::now() < until {
        // A connection of its own each time, and again if it was closed before its request was read, or told
        // that the node is busy.
        eventually("a newcomer is answered", async || {
            let client = server.client();
            let reply = client.call("GET", &neighbour.path("/runs")).try_send().await.ok()?;
            assert!(matches!(reply.status, 200 | 503), "{reply}");
            (reply.status == 200).then_some(())
        })
        .await;
    }
    if used.elapsed() < IDLE_MAX {
        kept.write_all(get(&neighbour).as_bytes()).await.expect("the connection is kept");
        assert_eq!(raw::read_answer(&mut kept).await.status, Some(200));
    }
}

//! A tenant's event log: in pages, and followed live, also while nodes die.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Cluster, Launch, Server, Tenant, eventually, pause, raw, spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Long enough for any event to come, on a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// A node that is not there refuses at once.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Follows the events of a tenant.
struct Reader {
    stream: TcpStream,
    text: String,
    status: u16,
}

impl Reader {
    /// Begins to read behind event `after`. With HTTP/1.0, which has no chunks: the text is as it was sent.
    async fn of(addr: SocketAddr, tenant: &Tenant, after: Option<u64>) -> Self {
        let last = after.map(|after| format!("Last-Event-ID: {after}\r\n")).unwrap_or_default();
        let mut stream = raw::connect(addr).await;
        let path = tenant.path("/events");
        let head = format!(
            "GET {path} HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n{last}\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("send");
        let mut reader = Self { stream, text: String::new(), status: 0 };
        reader.read_until(|text| text.contains("\r\n\r\n")).await;
        let (head, text) = reader.text.split_once("\r\n\r\n").expect("a head");
        reader.status = head[9..12].parse().expect("a status");
        reader.text = text.to_owned();
        reader
    }

    /// Reads on until the text is as wanted, or the stream ends: then it gives `false`.
    async fn read_until(&mut self, is_wanted: impl Fn(&str) -> bool) -> bool {
        let reading = async {
            while !is_wanted(&self.text) {
                let mut bytes = Vec::new();
                match self.stream.read_buf(&mut bytes).await {
                    Ok(0) | Err(_) => return false,
                    Ok(_) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                }
            }
            true
        };
        let told = timeout(TOLD_WITHIN, reading).await;
        told.unwrap_or_else(|_| panic!("told within {TOLD_WITHIN:?}: {}", self.text))
    }

    /// Gives the events that are whole, and forgets them.
    fn take(&mut self) -> Vec<Value> {
        let end = self.text.rfind("\n\n").map_or(0, |end| end + 2);
        let rest = self.text.split_off(end);
        let whole = std::mem::replace(&mut self.text, rest);
        let events = whole.split("\n\n").filter(|event| event.starts_with("id: "));
        events.map(Self::event).collect()
    }

    /// Reads one event, whose fields have to agree.
    fn event(text: &str) -> Value {
        let mut lines = text.lines();
        let mut field = |name: &str| lines.next().and_then(|line| line.strip_prefix(name));
        let (id, kind, data) = (field("id: "), field("event: "), field("data: "));
        let event: Value = serde_json::from_str(data.expect("data")).expect("JSON");
        assert_eq!(id, Some(event["seq"].to_string().as_str()), "{text}");
        assert_eq!(kind, event["event_type"]["type"].as_str(), "{text}");
        event
    }

    /// Reads events up to number `last`.
    async fn up_to(&mut self, last: u64) -> Vec<Value> {
        let wanted = format!("id: {last}\n");
        let told = self.read_until(|text| text.contains(&wanted) && text.ends_with("\n\n")).await;
        assert!(told, "the stream ended before event {last}: {}", self.text);
        self.take()
    }
}

fn seqs(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["seq"].as_u64().expect("a number")).collect()
}

/// All events, in pages of `limit`.
async fn pages(tenant: &Tenant, limit: u64) -> Vec<Value> {
    let (mut events, mut after) = (Vec::new(), 0);
    loop {
        let page = tenant.get(&format!("/events?after={after}&limit={limit}")).await.expect(200);
        let found = page["events"].as_array().expect("a list").clone();
        if found.is_empty() {
            assert_eq!(page["next_after"], after, "there is no more: {page}");
            return events;
        }
        events.extend(found);
        after = page["next_after"].as_u64().expect("a number");
        assert_eq!(events.last().expect("one")["seq"], after);
    }
}

#[tokio::test]
async fn events_are_listed_and_followed() {
    let (server, tenant) = Tenant::on_shared().await;
    let run = tenant.finished(spec::inline(spec::chain(3))).await;
    let listed = pages(&tenant, 4).await;
    let count = listed.len() as u64;
    assert_eq!(seqs(&listed), (1..=count).collect::<Vec<_>>());
    assert_eq!(pages(&tenant, 10_000).await, listed);
    assert_eq!(listed[0]["event_type"]["type"], "tenant_created");
    let of_run =
        |event: &&Value| event["run_id"] == run["id"] && event["event_type"]["type"] != "audit";
    let of_run: Vec<&Value> = listed.iter().filter(of_run).collect();
    let path = format!("/runs/{}/events", run["id"].as_str().expect("an id"));
    assert_eq!(json!(of_run), tenant.get(&path).await.expect(200)["events"]);

    let mut reader = Reader::of(server.addr(), &tenant, None).await;
    assert_eq!(reader.status, 200);
    assert_eq!(reader.up_to(count).await, listed);
    // What comes later, to one that waits.
    tenant.finished(spec::inline([spec::set("a", 1)])).await;
    let all = pages(&tenant, 1000).await;
    assert_eq!(reader.up_to(all.len() as u64).await, all[listed.len()..]);
    // Another goes on where the first was.
    let mut second = Reader::of(server.addr(), &tenant, Some(count - 1)).await;
    assert_eq!(second.up_to(all.len() as u64).await, all[listed.len() - 1..]);

    tenant.client.delete(&tenant.path("")).await.expect(200);
    assert!(!reader.read_until(|_| false).await, "the stream ends with the tenant");
}

#[tokio::test]
async fn what_is_no_event_number_is_refused() {
    let (server, tenant) = Tenant::on_shared().await;
    for query in ["after=-1", "after=x", "after=18446744073709551616", "limit=0", "limit=10001"] {
        let reply = tenant.get(&format!("/events?{query}")).await;
        assert_eq!((reply.status, &reply.json()["code"]), (400, &json!("invalid_parameter")));
        let named = query.split('=').next().expect("a name");
        let detail = reply.json()["detail"].as_str().expect("a text").to_owned();
        assert!(detail.starts_with(&format!("{named}: must be ")), "{detail}");
    }
    let twice = tenant.get("/events?after=1&after=2").await;
    assert_eq!(twice.json()["detail"], "after: is given more than once");
    let beyond = tenant.get("/events?after=18446744073709551615").await.expect(200);
    assert_eq!(beyond, json!({ "events": [], "next_after": u64::MAX }));
    let head = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n", tenant.path("/events"));
    let asks = "Accept: text/html, text/event-stream;q=0.9\r\nLast-Event-ID: seven\r\n\r\n";
    let answer = raw::send(server.addr(), format!("{head}{asks}")).await;
    assert_eq!(answer.status, Some(400), "{}", answer.text);
    assert!(answer.text.contains("Last-Event-ID: must be the id of an event"), "{}", answer.text);
    let none = Tenant { id: "10000000-0000-4000-8000-000000000000".to_owned(), ..tenant.clone() };
    assert_eq!(none.get("/events").await.status, 404);
    assert_eq!(Reader::of(server.addr(), &none, None).await.status, 404);
}

/// A node with few descriptors has few places for readers, and no tenant gets all of them.
#[tokio::test]
async fn readers_of_one_tenant_leave_places_to_another() {
    let folder = tempfile::tempdir().expect("a folder");
    let launch = Launch { descriptors: Some(256), ..Launch::anywhere(folder.path(), vec![]) };
    let mut server: Server = launch.start();
    server.await_ready().await.expect("a node that is ready");
    let many = Tenant::create(&server.client(), spec::unlimited()).await;
    let other = Tenant::create(&server.client(), spec::unlimited()).await;
    let mut readers = Vec::new();
    let refused = loop {
        let reader = Reader::of(server.addr(), &many, None).await;
        if reader.status != 200 {
            break reader;
        }
        readers.push(reader);
        assert!(readers.len() < 63, "more readers than connections");
    };
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(readers.len() > 10, "{}", readers.len());
    let mut reader = Reader::of(server.addr(), &other, None).await;
    assert_eq!(reader.status, 200);
    assert_eq!(reader.up_to(1).await.len(), 1);
    // Who goes makes room.
    drop(readers);
    eventually("there is room", async || {
        (Reader::of(server.addr(), &many, None).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_reader_misses_nothing_and_gets_nothing_twice_while_leaders_die() {
    let mut cluster = Cluster::of(3, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<Client> = (0..3).map(|node| cluster.client(node)).collect();
    let writing = tokio::spawn(start_runs(tenant.clone(), clients.clone(), Arc::clone(&stop)));
    let mut events = Vec::new();
    for round in 0..4 {
        let wanted = events.len() + 20;
        read_on(&tenant, &clients[round % 3], &mut events, wanted).await;
        let owner = tenant.leader(&cluster).await;
        cluster.kill9(owner);
        // By another, while the one that died is away, and nobody waits for it.
        let wanted = events.len() + 20;
        read_on(&tenant, &clients[(owner + 1) % 3], &mut events, wanted).await;
        cluster.restart(owner).await;
        cluster.whole().await;
    }
    stop.store(true, Ordering::Relaxed);
    writing.await.expect("the writer");
    let known = events.len();
    assert_eq!(seqs(&events), (1..=known as u64).collect::<Vec<_>>(), "no gap, none twice");
    assert_eq!(events, pages(&tenant, 1000).await[..known]);
}

/// Reads on behind the last of `events`, until there are `wanted`. A stream that ends early, as with a lead
/// that moves, is taken up again.
async fn read_on(tenant: &Tenant, client: &Client, events: &mut Vec<Value>, wanted: usize) {
    eventually("there are more events", async || {
        let mut reader = Reader::of(client.addr(), tenant, seqs(events).last().copied()).await;
        let missing = wanted.saturating_sub(events.len());
        let whole =
            |text: &str| text.rfind("\n\n").map_or(0, |end| text[..end].matches("id: ").count());
        reader.read_until(|text| whole(text) >= missing).await;
        events.extend(reader.take());
        (events.len() >= wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_stream_ends_when_a_node_on_its_way_stops() {
    let mut cluster = Cluster::of(3, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    for is_leader in [false, true] {
        // By way of a node that does not lead: which stops, and then the one that leads does.
        let owner = tenant.leader(&cluster).await;
        let by = (owner + 1) % 3;
        let stops = if is_leader { owner } else { by };
        let mut reader = Reader::of(cluster.client(by).addr(), &tenant, None).await;
        assert_eq!(reader.status, 200, "{}", reader.text);
        reader.up_to(1).await;
        cluster.term(stops).await;
        assert!(!reader.read_until(|_| false).await, "the stream ends: {}", reader.text);
        let output = cluster.server(stops).output();
        assert!(!output.contains("requests were still running"), "it waited for it: {output}");
        cluster.restart(stops).await;
        cluster.whole().await;
    }
}

/// Starts runs, by each node in turn, until it is told to stop. Some are refused, or break off.
async fn start_runs(tenant: Tenant, clients: Vec<Client>, stop: Arc<AtomicBool>) {
    let body = spec::inline([spec::set("a", 1)]).to_string().into_bytes();
    for client in clients.iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let call = client.call("POST", &tenant.path("/runs")).body(body.clone());
        let answer = call.header("content-type", "application/json").try_send().await;
        if answer.is_err() {
            pause(PAUSE_AFTER_FAILURE).await;
        }
    }
}

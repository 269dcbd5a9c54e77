//! What changes in a cluster, as its nodes tell those who follow.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Cluster, Server, Tenant, eventually, raw, spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A cluster needs seconds to give up a member that does not answer.
const TOLD_WITHIN: Duration = Duration::from_secs(60);
/// Readers that a node has at once.
const READERS_MAX: usize = 32;

/// A reader of the events of one node.
struct Reader {
    stream: TcpStream,
    text: String,
}

impl Reader {
    async fn of(addr: SocketAddr) -> Self {
        let mut stream = raw::connect(addr).await;
        let request = "GET /api/cluster/events HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut reader = Self { stream, text: String::new() };
        reader.reads(|text| text.contains("\n\n") || text.contains("retryable")).await;
        reader
    }

    /// Reads on until the text is as wanted.
    async fn reads(&mut self, is_wanted: impl Fn(&str) -> bool) {
        let reading = async {
            while !is_wanted(&self.text) {
                let mut bytes = Vec::new();
                let read = self.stream.read_buf(&mut bytes).await.expect("read");
                assert!(read > 0, "the node goes on telling: {}", self.text);
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        let is_told = timeout(TOLD_WITHIN, reading).await.is_ok();
        assert!(is_told, "told within {TOLD_WITHIN:?}: {}", self.text);
    }

    /// Waits until an event of a kind is as wanted.
    async fn awaits(&mut self, kind: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let found = |text: &str| {
            let read = Self::told_in(text, kind);
            read.into_iter().find(&is_wanted)
        };
        self.reads(|text| found(text).is_some()).await;
        found(&self.text).expect("just read")
    }

    /// Gives all events of a kind, in order.
    fn told_in(text: &str, kind: &str) -> Vec<Value> {
        let events = text.split("\n\n").filter_map(|event| {
            let (head, data) = event.split_once("\ndata: ")?;
            head.ends_with(&format!("event: {kind}")).then(|| serde_json::from_str(data).ok())?
        });
        events.collect()
    }
}

#[tokio::test]
async fn nodes_that_come_and_go_and_leaders_that_change_are_told() {
    let mut cluster = Cluster::of(3, &[]).await;
    let (leader, term) = cluster.await_leader(&[]).await;
    let asked = (leader + 1) % 3;
    let client = cluster.client(asked);
    let mut reader = Reader::of(client.addr()).await;
    assert!(reader.text.contains("content-type: text/event-stream"), "{}", reader.text);
    let added = client.post("/api/cluster/nodes", json!({ "address": "http://x:1" })).await;
    let added = added.expect(201)["id"].clone();
    let joined = reader.awaits("node_joined", |node| node["id"] == added).await;
    assert_eq!(joined["address"], "http://x:1");
    let path = format!("/api/cluster/nodes/{}", added.as_str().expect("an id"));
    client.delete(&path).await.expect(200);
    reader.awaits("node_left", |node| node["id"] == added).await;

    let dead = cluster.id(leader).to_owned();
    cluster.kill9(leader);
    let is_led = |told: &Value| !told["leader"].is_null() && told["leader"] != dead;
    let changed = reader.awaits("leader_changed", is_led).await;
    assert!(changed["term"].as_u64() > Some(term), "{changed:#}");
    let is_ill = |told: &Value| told["id"] == dead && told["status"] == "Unhealthy";
    reader.awaits("node_status", is_ill).await;
    let moved = reader.awaits("placement_changed", is_led).await;
    assert_eq!(moved["region"], "default");
    assert_eq!(moved["replicas"].as_array().map(Vec::len), Some(3), "{moved:#}");
}

#[tokio::test]
async fn tenants_that_move_are_told() {
    let mut cluster = Cluster::of(1, &[]).await;
    let elsewhere = cluster.next_launch(&["--region", "eu"]);
    let eu = cluster.add(elsewhere).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let mut reader = Reader::of(cluster.client(eu).addr()).await;
    let moved = tenant.put("", json!({ "region": "eu" })).await.expect(200);
    let told = reader.awaits("tenant_moved", |told| told["id"] == tenant.id.as_str()).await;
    assert_eq!((&told["region"], &told["group"]), (&json!("eu"), &moved["placement"]["group"]));
}

#[tokio::test]
async fn readers_are_few_and_keep_no_node_from_stopping() {
    let mut server = Server::alone(&[]).await;
    let addr = server.client().addr();
    let mut readers = Vec::new();
    for _ in 0..READERS_MAX {
        readers.push(Reader::of(addr).await);
    }
    let refused = Reader::of(addr).await;
    let is_refused = refused.text.starts_with("HTTP/1.1 503") && refused.text.contains("busy");
    assert!(is_refused, "{}", refused.text);
    readers.pop();
    eventually("the place of one that went is free", async || {
        Reader::of(addr).await.text.contains("event-stream").then_some(())
    })
    .await;
    server.term().await;
}

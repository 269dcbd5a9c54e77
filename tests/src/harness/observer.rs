//! Watching a cluster while its network fails: who says that who leads, and what was acknowledged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Cluster, Lead, eventually};
use crate::Client;

const WATCH_EVERY: Duration = Duration::from_millis(20);
/// Far longer than a request waits in these tests.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Polls every node for the leader, and writes through every node, until it is ended.
pub struct Observer {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    /// Who was said to lead, by term.
    leaders: BTreeMap<u64, String>,
    /// Acknowledged locks and their tokens.
    acknowledged: BTreeMap<String, u64>,
    /// By node: how many writes it acknowledged.
    written: Vec<u64>,
}

impl Observer {
    /// Begins.
    pub fn of(cluster: &Cluster) -> Self {
        // Not the keys of an observer before this one: those are held.
        static OBSERVERS: AtomicU64 = AtomicU64::new(0);
        let name = OBSERVERS.fetch_add(1, Ordering::Relaxed);
        let (stop, seen) = (Arc::default(), Arc::new(Mutex::new(Seen::default())));
        seen.lock().expect("what was seen").written = vec![0; cluster.len()];
        let mut tasks = JoinSet::new();
        for node in cluster.running() {
            let watcher = cluster.client(node).patient_for(WRITE_TIMEOUT);
            tasks.spawn(watch(watcher, Arc::clone(&stop), Arc::clone(&seen)));
            let writer = cluster.client(node).patient_for(WRITE_TIMEOUT);
            let prefix = format!("o{name}-n{node}");
            tasks.spawn(write(node, prefix, writer, Arc::clone(&stop), Arc::clone(&seen)));
        }
        Self { stop, seen, tasks }
    }

    /// How many writes a node has acknowledged.
    pub fn written(&self, node: usize) -> u64 {
        self.seen.lock().expect("what was seen").written[node]
    }

    /// The latest term that anybody spoke of with a leader.
    pub fn term(&self) -> u64 {
        let seen = self.seen.lock().expect("what was seen");
        seen.leaders.last_key_value().map_or(0, |(term, _)| *term)
    }

    /// Waits until a node acknowledges writes again.
    pub async fn serves(&mut self, node: usize) {
        let before = self.written(node);
        eventually(&format!("node {node} acknowledges writes"), async || {
            self.still_well();
            (self.written(node) > before + 1).then_some(())
        })
        .await;
    }

    /// Ends, and holds the cluster, which must be whole again, to all that it acknowledged.
    pub async fn end(mut self, cluster: &Cluster) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(task) = self.tasks.join_next().await {
            task.expect("what was observed is as it should be");
        }
        let (acknowledged, leaders) = {
            let mut seen = self.seen.lock().expect("what was seen");
            (std::mem::take(&mut seen.acknowledged), std::mem::take(&mut seen.leaders))
        };
        println!("{} writes, leaders by term {leaders:?}", acknowledged.len());
        for node in cluster.running() {
            let locks = all_locks(&cluster.client(node)).await;
            for (key, token) in &acknowledged {
                assert_eq!(locks.get(key), Some(token), "{key} at node {node}");
            }
        }
    }

    /// Panics as soon as something was seen that must not be.
    fn still_well(&mut self) {
        if let Some(ended) = self.tasks.try_join_next() {
            ended.expect("what was observed is as it should be");
        }
    }
}

async fn all_locks(client: &Client) -> BTreeMap<String, u64> {
    let entry = |lock: &Value| {
        let key = lock["key"].as_str().expect("a key").to_owned();
        (key, lock["token"].as_u64().expect("a token"))
    };
    let (mut all, mut cursor) = (BTreeMap::new(), String::new());
    loop {
        // A request may be refused when its time is short.
        let page = eventually("a page of locks", async || {
            let reply = client.get(&format!("/api/locks?limit=1000{cursor}")).await;
            (reply.status == 200).then(|| reply.json())
        })
        .await;
        all.extend(page["locks"].as_array().expect("a list").iter().map(entry));
        let Some(next) = page["next_cursor"].as_str() else { return all };
        cursor = format!("&cursor={next}");
    }
}

async fn watch(client: Client, stop: Arc<AtomicBool>, seen: Arc<Mutex<Seen>>) {
    while !stop.load(Ordering::Relaxed) {
        let reply = client.call("GET", "/api/cluster/leader").try_send().await;
        let reply = reply.expect("a node answers over its own loopback");
        // Without a quorum it may not even know whom a leader's id belongs to.
        if reply.status == 200 {
            let lead = Lead::of(&reply.json());
            if let Some(leader) = lead.leader {
                let mut seen = seen.lock().expect("what was seen");
                let other = seen.leaders.entry(lead.term).or_insert_with(|| leader.clone());
                assert_eq!(*other, leader, "two leaders in term {}", lead.term);
            }
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

async fn write(
    at: usize,
    prefix: String,
    client: Client,
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
) {
    let mut last = 0;
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("{prefix}-{number}");
        let body = json!({ "holder": "observer", "ttl_secs": 3600 });
        let call = client.call("POST", &format!("/api/locks/{key}/acquire")).json(&body);
        let reply = call.try_send().await.expect("a node answers over its own loopback");
        match reply.status {
            200 => {
                let token = reply.json()["token"].as_u64().expect("a token");
                assert!(token > last, "node {at} granted {token} after {last}");
                last = token;
                let mut seen = seen.lock().expect("what was seen");
                seen.acknowledged.insert(key, token);
                seen.written[at] += 1;
            }
            503 => assert!(reply.header("retry-after").is_some(), "{reply}"),
            _ => panic!("{reply}"),
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

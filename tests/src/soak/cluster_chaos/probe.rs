//! How long a tenant is without service: a write every few moments, through all nodes in turn.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::Client;

/// Between two writes: what a gap is measured with.
const EVERY: Duration = Duration::from_millis(50);

/// Writes to one tenant until it is dropped.
pub(super) struct Probe {
    /// When writes were acknowledged since the last look.
    acknowledged: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Probe {
    pub(super) fn of(clients: &[Client], tenant: &str) -> Self {
        let acknowledged: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let path = format!("/api/tenants/{tenant}/locks/probe/acquire");
        let task = tokio::spawn(probe(clients.to_vec(), path, Arc::clone(&acknowledged)));
        Self { acknowledged, task }
    }

    /// Forgets what came before, but for the last acknowledged write: the next look begins there.
    pub(super) fn begin(&self) {
        let mut acknowledged = self.acknowledged.lock().expect("what was acknowledged");
        let before = acknowledged.len().saturating_sub(1);
        acknowledged.drain(..before);
    }

    /// The longest time without an acknowledged write since `begin`, up to now.
    pub(super) fn longest_gap(&self) -> Duration {
        let mut times = self.acknowledged.lock().expect("what was acknowledged").clone();
        times.push(Instant::now());
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn probe(clients: Vec<Client>, path: String, acknowledged: Arc<Mutex<Vec<Instant>>>) {
    let mut due = tokio::time::interval(EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for first in 0.. {
        due.tick().await;
        // A write that waits for somebody must not keep back the next one.
        tokio::spawn(write(clients.clone(), first, path.clone(), Arc::clone(&acknowledged)));
    }
}

/// Writes through one node, or, where that one is gone, through the next.
async fn write(
    clients: Vec<Client>,
    first: usize,
    path: String,
    acknowledged: Arc<Mutex<Vec<Instant>>>,
) {
    let body = json!({ "holder": "probe", "ttl_secs": 3600 });
    for turn in 0..clients.len() {
        let client = &clients[(first + turn) % clients.len()];
        let reply = client.call("POST", &path).json(&body).try_send().await;
        if reply.is_ok_and(|reply| reply.status == 200) {
            acknowledged.lock().expect("what was acknowledged").push(Instant::now());
            return;
        }
    }
}

//! Losing leaders, and how long it takes until somebody else serves.

use std::fmt;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::Cluster;

const PATIENCE: Duration = Duration::from_secs(20);

/// How a leader is lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Blow {
    /// `kill -9`: its sockets are gone at once.
    Kill,
    /// SIGSTOP: it falls silent, and nothing tells.
    Stop,
}

/// What came of losing a leader.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// Until another node named another leader.
    pub leader: Duration,
    /// Until another node acknowledged a write that was sent right after.
    pub write: Duration,
    /// How often that write was refused before.
    pub refused: u32,
    /// The fencing token it got.
    pub token: u64,
}

/// Takes the leader `old` away and measures. The write takes the lock `key`, through `via`.
pub async fn strike(cluster: &mut Cluster, old: usize, via: usize, blow: Blow, key: &str) -> Round {
    // Connected before, so that no handshake is measured.
    let client = cluster.client(via);
    client.get("/healthz").await;
    match blow {
        Blow::Kill => cluster.kill9(old),
        Blow::Stop => cluster.stop(old),
    }
    let started = Instant::now();
    let written = async {
        let mut refused = 0;
        loop {
            let body = json!({ "holder": "failover", "ttl_secs": 3600 });
            let reply = client.post(&format!("/api/locks/{key}/acquire"), body).await;
            if reply.status == 200 {
                let token = reply.json()["token"].as_u64().expect("a token");
                return (started.elapsed(), refused, token);
            }
            refused += 1;
            assert!(started.elapsed() < PATIENCE, "{reply}");
        }
    };
    let (leader, (write, refused, token)) = tokio::join!(cluster.time_to_leader(old), written);
    Round { leader, write, refused, token }
}

/// Brings the old leader back and waits until the cluster is whole.
pub async fn recover(cluster: &mut Cluster, old: usize, blow: Blow) -> usize {
    match blow {
        Blow::Kill => cluster.restart(old).await,
        Blow::Stop => cluster.cont(old),
    }
    cluster.whole().await
}

/// Times, and how they are spread.
#[derive(Clone, Debug, Default)]
pub struct Times(Vec<Duration>);

impl Times {
    /// One more.
    pub fn add(&mut self, time: Duration) {
        self.0.push(time);
        self.0.sort_unstable();
    }

    /// The longest.
    pub fn max(&self) -> Duration {
        self.0.last().copied().unwrap_or_default()
    }

    fn at(&self, part: f64) -> Duration {
        let rank = (self.0.len() as f64 * part).ceil() as usize;
        self.0.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        write!(
            f,
            "min {:>5.0} ms  median {:>5.0} ms  p90 {:>5.0} ms  max {:>5.0} ms  ({} times)",
            ms(self.at(0.0)),
            ms(self.at(0.5)),
            ms(self.at(0.9)),
            ms(self.max()),
            self.0.len()
        )
    }
}

//! Losing leaders, and how long it takes until somebody else serves.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::Instant;

use crate::chaos::any_seed;
use crate::{Cluster, pause};

const PATIENCE: Duration = Duration::from_secs(20);
/// Blows come at any moment between two heartbeats: so long after the cluster is whole, at most.
const QUIET_MS_MAX: u64 = 500;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How often the leader is lost in each way.
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    /// Of how many nodes.
    #[arg(long, default_value_t = 3)]
    nodes: usize,
    /// Further arguments for the nodes.
    #[arg(last = true)]
    node_args: Vec<String>,
}

/// Takes leaders away and prints how long it took until another was known, and until another node
/// acknowledged a write.
pub async fn measure(args: &Args) {
    let node_args: Vec<&str> = args.node_args.iter().map(String::as_str).collect();
    let mut cluster = Cluster::of(args.nodes, &node_args).await;
    let mut rng = SmallRng::seed_from_u64(any_seed());
    for blow in [Blow::Kill, Blow::Stop] {
        let (mut leaders, mut writes) = (Times::default(), Times::default());
        let (mut refused, mut token) = (0, 0);
        for number in 0..args.rounds {
            let old = cluster.whole().await;
            pause(Duration::from_millis(rng.random_range(0..QUIET_MS_MAX))).await;
            let via = (old + 1) % args.nodes;
            let key = format!("{blow:?}-{number}");
            let round = strike(&mut cluster, old, via, blow, &key).await;
            assert!(round.token > token, "{} after {token}", round.token);
            token = round.token;
            leaders.add(round.leader);
            writes.add(round.write);
            refused += round.refused;
            recover(&mut cluster, old, blow).await;
        }
        println!("{blow:?}: new leader known at another node    {leaders}");
        println!("{blow:?}: first write acknowledged by another {writes}");
        println!("{blow:?}: refused in between: {refused}");
    }
}

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

//! Killing and stopping nodes of a cluster under load, and holding it to what it had acknowledged.
//!
//! Several tenants, in several groups, each with clients that write through any node and a probe that
//! measures how long the tenant is without service. In each round one node is killed with SIGKILL or
//! falls silent by SIGSTOP, at a random moment, and comes back; the next round begins once the cluster
//! may lose a node again. In the end:
//!
//! - *Acknowledged is there, once*: one run for each key, completed with the output that its input
//!   demands; none for a key that was refused.
//! - *Quotas hold*: no tenant had more runs at once than its quota, by its own events.
//! - *A lock has one holder*: leases that are certain never overlap, and tokens grow.
//! - *Replicas are equal*: once all nodes have stopped, a tenant's `events.jsonl` is the same on all of
//!   its replicas, byte for byte, numbered without gaps.
//!
//! How long a tenant is without service is measured and printed, and asserted by nobody.

pub(in crate::soak) mod checks;
mod probe;
pub(in crate::soak) mod writers;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use outside::checks::{demand, locks};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::chaos::any_seed;
use crate::failover::{self, Blow, Times};
use crate::{Cluster, Tenant, eventually, pause, spec};
pub use checks::replicas_agree;
use probe::Probe;
use writers::{Known, Writer};

/// How many runs a tenant may have at once: few enough that clients run into it.
const RUNS_AT_ONCE: u64 = 3;
/// From when the cluster is whole to the blow.
const QUIET_MS_MIN: u64 = 300;
const QUIET_MS_MAX: u64 = 1_500;
/// A node is gone, or silent, for so long.
const AWAY_MS_MIN: u64 = 1_000;
const AWAY_MS_MAX: u64 = 3_000;

/// What to do.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Of how many nodes the cluster is.
    #[arg(long, default_value_t = 3)]
    pub nodes: usize,
    /// How often a node is taken away.
    #[arg(long, default_value_t = 50)]
    pub rounds: u32,
    /// How many tenants there are.
    #[arg(long, default_value_t = 8)]
    pub tenants: usize,
    /// How many clients each tenant has.
    #[arg(long, default_value_t = 2)]
    pub clients: usize,
    /// Chooses moments, nodes and operations; by default another one every time.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Further arguments for the nodes.
    #[arg(last = true)]
    pub node_args: Vec<String>,
}

/// What came of it, beside that all promises were kept.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How long a tenant was without service whose leader was killed.
    pub leader_killed: Times,
    /// How long one whose leader fell silent.
    pub leader_stopped: Times,
    /// How long one when another node than its leader was taken away.
    pub led_elsewhere: Times,
    /// Acknowledged runs.
    pub runs: usize,
    /// Starts that a quota refused.
    pub refused: usize,
    /// Locks that were granted.
    pub grants: usize,
    /// Calls that had to be made again.
    pub again: u64,
    /// Events of all tenants.
    pub events: usize,
}

/// One tenant with all who use it.
struct Site {
    user: Tenant,
    known: Arc<Mutex<Known>>,
    probe: Probe,
}

/// Takes nodes away and prints what came of it; panics where a promise was broken.
pub async fn soak(args: &Args) {
    println!("{}", trial(args).await);
}

/// Takes nodes away; panics where a promise was broken.
pub async fn trial(args: &Args) -> Report {
    let seed = args.seed.unwrap_or_else(any_seed);
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let evidence = Evidence(TempDir::new().expect("a temporary folder"));
    let node_args: Vec<&str> = args.node_args.iter().map(String::as_str).collect();
    let mut cluster = Cluster::of_in(evidence.0.path(), args.nodes, &node_args).await;
    cluster.keep_data();

    let (stop, mut writing) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    let mut sites = Vec::new();
    for number in 0..args.tenants {
        sites.push(settle(&cluster, args, number, &stop, &mut writing, &mut rng).await);
    }
    let mut report = Report::default();
    for round in 1..=args.rounds {
        report.take_away(round, &mut cluster, &sites, &mut rng).await;
        while let Some(ended) = writing.try_join_next() {
            ended.expect("clients see nothing that is wrong");
        }
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writing.join_next().await {
        ended.expect("clients see nothing that is wrong");
    }
    report.check(cluster, sites).await;
    report
}

/// Makes a tenant and lets its clients and its probe begin.
async fn settle(
    cluster: &Cluster,
    args: &Args,
    number: usize,
    stop: &Arc<AtomicBool>,
    writing: &mut JoinSet<()>,
    rng: &mut SmallRng,
) -> Site {
    let clients: Vec<_> = (0..args.nodes).map(|node| cluster.client(node)).collect();
    let quota = spec::only("max_concurrent_workflows", RUNS_AT_ONCE);
    let user = Tenant::create(&clients[number % args.nodes], quota).await;
    let (known, began) = (Arc::default(), Instant::now());
    for client in 0..args.clients {
        let shared = (Arc::clone(&known), began);
        let name = format!("t{number}-c{client}");
        let writer = Writer::new(name, &user.id, &clients, shared, rng.random());
        writing.spawn(writer.write(Arc::clone(stop)));
    }
    let probe = Probe::of(&clients, &user.id);
    Site { user, known, probe }
}

impl Report {
    /// One round.
    async fn take_away(
        &mut self,
        round: u32,
        cluster: &mut Cluster,
        sites: &[Site],
        rng: &mut SmallRng,
    ) {
        pause(Duration::from_millis(rng.random_range(QUIET_MS_MIN..QUIET_MS_MAX))).await;
        let node = rng.random_range(0..cluster.len());
        // In turn: few rounds have both.
        let blow = if round % 2 == 1 { Blow::Kill } else { Blow::Stop };
        let away = Duration::from_millis(rng.random_range(AWAY_MS_MIN..AWAY_MS_MAX));
        let leaders = leaders(cluster, (node + 1) % cluster.len()).await;
        let led_here = |site: &Site| {
            let of_tenant = leaders.iter().find(|tenant| tenant["id"] == site.user.id.as_str());
            of_tenant.expect("the tenant")["placement"]["leader"] == cluster.id(node)
        };
        let led: Vec<bool> = sites.iter().map(led_here).collect();
        sites.iter().for_each(|site| site.probe.begin());
        match blow {
            Blow::Kill => cluster.kill9(node),
            Blow::Stop => cluster.stop(node),
        }
        pause(away).await;
        let back = Instant::now();
        failover::recover(cluster, node, blow).await;
        may_lose_one(cluster).await;
        let gaps: Vec<_> = sites.iter().map(|site| site.probe.longest_gap()).collect();
        println!(
            "{round:>3}: {blow:?} of node {node} for {away:.1?}, whole after {:.1?}; without service, ms: {}",
            back.elapsed(),
            shown(&gaps, &led),
        );
        for (gap, led) in gaps.into_iter().zip(led) {
            match (led, blow) {
                (true, Blow::Kill) => self.leader_killed.add(gap),
                (true, Blow::Stop) => self.leader_stopped.add(gap),
                (false, _) => self.led_elsewhere.add(gap),
            }
        }
    }

    /// Holds the cluster to everything, and ends it.
    async fn check(&mut self, mut cluster: Cluster, sites: Vec<Site>) {
        let mut of_tenant = Vec::new();
        for Site { user, known, probe } in sites {
            drop(probe);
            let known = std::mem::take(&mut *known.lock().expect("what is known"));
            checks::runs_ended(&user, &known).await;
            demand(locks::check(&known.locks));
            let homes = checks::homes(&mut cluster, &user.id).await;
            of_tenant.push((user.id, homes, known));
        }
        checks::replicas_agree(&cluster).await;
        for node in 0..cluster.len() {
            cluster.term(node).await;
        }
        for (tenant, homes, known) in of_tenant {
            self.events += checks::events_agree(&tenant, &homes, &known, RUNS_AT_ONCE);
            self.runs += known.runs.len();
            self.refused += known.refused.len();
            self.grants += known.grants();
            self.again += known.again;
        }
    }
}

/// All tenants, with who leads their groups, as a node knows.
async fn leaders(cluster: &Cluster, asked: usize) -> Vec<Value> {
    let tenants = cluster.client(asked).get("/api/tenants").await.expect(200);
    tenants["tenants"].as_array().expect("a list").clone()
}

async fn may_lose_one(cluster: &Cluster) {
    eventually("every group may lose a node", async || {
        let health = cluster.client(0).get("/api/cluster/health").await;
        (health.status == 200 && health.json()["can_lose"].as_u64() >= Some(1)).then_some(())
    })
    .await;
}

/// Those of tenants that the node led carry a star.
fn shown(gaps: &[Duration], led: &[bool]) -> String {
    let one = |(gap, led): (&Duration, &bool)| {
        format!("{}{}", gap.as_millis(), if *led { "*" } else { "" })
    };
    gaps.iter().zip(led).map(one).collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, refused, grants, again, events, .. } = self;
        writeln!(f, "without service, leader killed:  {}", self.leader_killed)?;
        writeln!(f, "without service, leader stopped: {}", self.leader_stopped)?;
        writeln!(f, "without service, led elsewhere:  {}", self.led_elsewhere)?;
        write!(
            f,
            "{runs} runs, {refused} refused, {grants} locks, {again} calls made again, {events} events"
        )
    }
}

/// The data of all nodes, kept when a promise was broken.
struct Evidence(TempDir);

impl Drop for Evidence {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.disable_cleanup(true);
            eprintln!("data and logs are kept in {:?}", self.0.path());
        }
    }
}

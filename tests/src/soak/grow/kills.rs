//! One member is replaced by another under load, and nodes are killed meanwhile: the one that joins, the one
//! that leads, the one that leaves, at any moment. In the end nothing acknowledged is lost, and replicas are
//! equal.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::time::Instant;

use super::changes::addresses;
use super::load::{Known, Load};
use super::shares::settled;
use super::tally::Tally;
use crate::cluster_chaos::checks;
use crate::cluster_chaos::writers;
use crate::{Client, Cluster, Tenant, eventually_within, pause, spec};

/// From a change until every group has what it should have.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// From the first call until a node is removed.
const REMOVED_WITHIN: Duration = Duration::from_secs(180);
/// A node is killed so long after a step began.
const BLOW_MS_MAX: u64 = 4_000;
/// And is gone for so long.
const AWAY_MS_MIN: u64 = 200;
const AWAY_MS_MAX: u64 = 1_500;
/// From the start of all nodes until the replicas of all tenants were compared.
const COMPARED_WITHIN: Duration = Duration::from_secs(180);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How often a member is replaced.
    pub rounds: u32,
    /// How many tenants, with a client each.
    pub tenants: usize,
    /// Chooses moments, nodes and operations.
    pub seed: u64,
}

/// What came of it, beside that all promises were kept.
#[derive(Clone, Debug)]
pub struct Report {
    /// What clients saw: connections that broke among it.
    pub tally: Tally,
    /// Acknowledged runs.
    pub runs: usize,
    /// Events of all tenants.
    pub events: usize,
    /// Comparisons of a tenant's replicas, all of which found them equal.
    pub compared: u64,
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Added,
    Leader,
    Removed,
}

/// Replaces members and kills nodes; panics where a promise was broken.
pub async fn trial(plan: &Plan) -> Report {
    println!("kills: seed {}", plan.seed);
    let mut rng = SmallRng::seed_from_u64(plan.seed);
    let evidence = TempDir::new().expect("a temporary folder").keep();
    println!("data and logs are in {}", evidence.display());
    let mut cluster = Cluster::of_in(&evidence, 3, &[]).await;
    cluster.keep_data();
    settled(&cluster.client(0), 3, SETTLED_WITHIN).await;
    let mut tenants = Vec::new();
    for at in 0..plan.tenants {
        tenants.push(Tenant::create(&cluster.client(at % 3), spec::unlimited()).await);
    }
    let load = Load::of(&tenants, 1, addresses(&cluster), rng.random());
    for round in 1..=plan.rounds {
        load.begin(&format!("round {round}"));
        replace(round, &mut cluster, &load, &mut rng).await;
    }
    let report = check(cluster, tenants, load.end().await).await;
    // Kept where something is wrong.
    crate::files::remove(&evidence);
    report
}

/// One round.
async fn replace(round: u32, cluster: &mut Cluster, load: &Load, rng: &mut SmallRng) {
    let old = cluster.running();
    let removed = old[rng.random_range(0..old.len())];
    let began = Instant::now();
    let launch = cluster.next_launch(&[]);
    let added = cluster.begin_join(launch);
    let while_joining = [Victim::Added, Victim::Leader][rng.random_range(0..2)];
    strike(cluster, while_joining, added, removed, rng).await;
    cluster.joined(added).await;
    load.set_nodes(addresses(cluster));

    // Whoever is killed, the others answer.
    let clients: Vec<Client> = cluster.running().iter().map(|node| cluster.poller(*node)).collect();
    let path = cluster.path(removed);
    let removal = eventually_within(REMOVED_WITHIN, "the node is removed", async || {
        for client in &clients {
            let reply = client.call("DELETE", &path).try_send().await;
            if reply.is_ok_and(|reply| matches!(reply.status, 200 | 404)) {
                return Some(());
            }
        }
        None
    });
    let while_leaving = [Victim::Added, Victim::Leader, Victim::Removed][rng.random_range(0..3)];
    tokio::join!(removal, strike(cluster, while_leaving, added, removed, rng));
    cluster.ended(removed).await;
    load.set_nodes(addresses(cluster));
    let asked = cluster.running()[0];
    settled(&cluster.client(asked), 3, SETTLED_WITHIN).await;
    cluster.whole().await;
    println!(
        "{round:>3}: node {added} for {removed}; killed {while_joining:?}, then {while_leaving:?}; \
         whole after {:.1?}",
        began.elapsed()
    );
}

/// Kills a node at a random moment, and starts it again a while later.
async fn strike(
    cluster: &mut Cluster,
    victim: Victim,
    added: usize,
    removed: usize,
    rng: &mut SmallRng,
) {
    pause(Duration::from_millis(rng.random_range(0..BLOW_MS_MAX))).await;
    let node = match victim {
        Victim::Added => added,
        Victim::Removed => removed,
        Victim::Leader => leader(cluster).await.unwrap_or(removed),
    };
    // One that was removed already has ended, or is about to.
    if !cluster.server(node).is_running() {
        return;
    }
    cluster.kill9(node);
    pause(Duration::from_millis(rng.random_range(AWAY_MS_MIN..AWAY_MS_MAX))).await;
    cluster.relaunch(node);
}

/// Who leads the cluster, as any of the nodes tells.
async fn leader(cluster: &Cluster) -> Option<usize> {
    for node in cluster.running() {
        if let Some(leader) = cluster.lead(node).await.and_then(|lead| lead.leader) {
            return Some(cluster.place_of(&leader));
        }
    }
    None
}

/// Holds the cluster to everything, and ends it.
async fn check(mut cluster: Cluster, tenants: Vec<Tenant>, known: Known) -> Report {
    let Known { tally, mut runs } = known;
    assert!(tally.wrong().is_empty(), "answers that nothing explains: {tally}");
    let asked = cluster.client(cluster.running()[0]);
    let mut of_tenant = Vec::new();
    for Tenant { id, .. } in tenants {
        let user = Tenant { id: id.clone(), client: asked.clone() };
        let runs = runs.remove(&id).unwrap_or_default();
        let known = writers::Known::of_runs(runs);
        checks::runs_ended(&user, &known).await;
        of_tenant.push((id.clone(), checks::homes(&mut cluster, &id).await, known));
    }
    checks::replicas_agree(&cluster).await;
    let nodes = cluster.running();
    for node in &nodes {
        cluster.term(*node).await;
    }
    let (mut count, mut events) = (0, 0);
    for (tenant, homes, known) in &of_tenant {
        events += checks::events_agree(tenant, homes, known, u64::MAX);
        count += known.runs.len();
    }
    // What the replicas hold beside their events they compare themselves, once after a start.
    for node in &nodes {
        cluster.relaunch(*node);
    }
    let compared = compared(&cluster, of_tenant.len() as u64).await;
    Report { tally, runs: count, events, compared }
}

/// Waits until the replicas of so many tenants were compared, and found equal.
async fn compared(cluster: &Cluster, tenants: u64) -> u64 {
    eventually_within(COMPARED_WITHIN, "all replicas are compared", async || {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for node in cluster.running() {
            let reply = cluster.poller(node).call("GET", "/metrics").try_send().await.ok()?;
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            for name in ["shiioo_tenant_comparisons_total", "shiioo_replicas_differ_total"] {
                let line = text.lines().find_map(|line| line.strip_prefix(name))?;
                *sums.entry(name).or_default() += line.trim().parse::<u64>().ok()?;
            }
        }
        assert_eq!(sums["shiioo_replicas_differ_total"], 0, "replicas differ");
        let compared = sums["shiioo_tenant_comparisons_total"];
        (compared >= tenants).then_some(compared)
    })
    .await
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, runs, events, compared } = self;
        write!(f, "{tally}{runs} runs, {events} events, {compared} comparisons")
    }
}

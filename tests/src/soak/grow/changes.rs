//! A cluster changes under load, and no client sees an error: a node joins, one is removed, and each is
//! started again.

use std::net::SocketAddr;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::load::Load;
use super::shares::settled;
use super::tally::Tally;
use crate::{Client, Cluster, Tenant, eventually_within, pause, spec};

/// Undisturbed load before the first change and after the last.
const QUIET: Duration = Duration::from_secs(2);
/// From a change until every group has what it should have.
const SETTLED_WITHIN: Duration = Duration::from_secs(180);
/// From the first call until a node is removed.
const REMOVED_WITHIN: Duration = Duration::from_secs(120);

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many tenants.
    pub tenants: usize,
    /// How many clients each of them has.
    pub clients: usize,
    /// Whether a node is removed after one has joined.
    pub removes: bool,
    /// Whether each node is started again.
    pub restarts: bool,
    /// Chooses nodes and operations.
    pub seed: u64,
}

/// Changes a cluster of three nodes under load; gives what clients saw.
pub async fn trial(plan: &Plan) -> Tally {
    println!("changes: seed {}", plan.seed);
    let mut rng = SmallRng::seed_from_u64(plan.seed);
    let mut cluster = Cluster::of(3, &[]).await;
    settled(&cluster.client(0), 3, SETTLED_WITHIN).await;
    let mut tenants = Vec::new();
    for at in 0..plan.tenants {
        tenants.push(Tenant::create(&cluster.client(at % 3), spec::unlimited()).await);
    }
    let load = Load::of(&tenants, plan.clients, addresses(&cluster), rng.random());
    pause(QUIET).await;

    load.begin("a node joins");
    let began = Instant::now();
    let launch = cluster.next_launch(&[]);
    cluster.add(launch).await;
    println!("a fourth node is ready after {:.1?}", began.elapsed());
    load.set_nodes(addresses(&cluster));
    settled(&cluster.client(0), 4, SETTLED_WITHIN).await;
    println!("and has its share after {:.1?}", began.elapsed());

    if plan.removes {
        let node = rng.random_range(0..cluster.len());
        load.begin("a node is removed");
        let began = Instant::now();
        remove(&mut cluster, node).await;
        println!("node {node} is removed after {:.1?}", began.elapsed());
        load.set_nodes(addresses(&cluster));
        let asked = cluster.running()[0];
        settled(&cluster.client(asked), 3, SETTLED_WITHIN).await;
    }
    if plan.restarts {
        for node in cluster.running() {
            load.begin(&format!("node {node} is started again"));
            let took = cluster.term(node).await;
            let began = Instant::now();
            cluster.restart(node).await;
            println!("node {node} ended in {took:.1?}, is ready {:.1?} later", began.elapsed());
        }
    }
    load.begin("after");
    pause(QUIET).await;
    load.end().await.tally
}

/// Where the nodes that run answer clients.
pub(super) fn addresses(cluster: &Cluster) -> Vec<SocketAddr> {
    cluster.running().into_iter().map(|node| cluster.client(node).addr()).collect()
}

/// Removes a node, as the manual says, and waits for its end.
async fn remove(cluster: &mut Cluster, node: usize) {
    let other = (0..cluster.len()).find(|other| *other != node).expect("another");
    let client = cluster.client(other);
    removed(&client, &cluster.path(node)).await;
    cluster.ended(node).await;
}

/// Asks until the node is removed: an answer may come before its groups have moved.
pub(super) async fn removed(client: &Client, path: &str) {
    eventually_within(REMOVED_WITHIN, &format!("{path} is removed"), async || {
        let reply = client.call("DELETE", path).try_send().await.ok()?;
        assert!(matches!(reply.status, 200 | 404 | 503 | 409), "{reply}");
        matches!(reply.status, 200 | 404).then_some(())
    })
    .await;
}

//! Many tenants on several nodes, and one node more: who has how much, and what moves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::shares::{self, Groups, Share, greatest, least_lead, settled};
use crate::{Client, Cluster, Tenant, eventually_within, files, pause, spec};

/// Tenants that are made, or looked at, at a time.
const AT_ONCE: usize = 16;
/// Bytes that the run of each tenant is given.
const INPUT_BYTES: usize = 2_000;
/// From the last tenant, or the start of the further node, until all is even.
const EVEN_WITHIN: Duration = Duration::from_secs(240);
/// Between two looks at where replicas are: shorter than a replica takes to move.
const WATCHED_EVERY: Duration = Duration::from_millis(100);
/// The greatest share of what placement evens out, as a part of the average.
const SHARE_MAX: f64 = 1.3;
/// Replicas that may move beside the share of the further node.
const MOVED_BESIDE_MAX: usize = 1;
/// The greatest lead may be larger than the best one by this part of it, and so many tenants: below a
/// margin placement moves nothing.
const LEAD_PART: u64 = 10;
const LEAD_TENANTS: u64 = 10;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many nodes there are at first.
    pub nodes: usize,
    /// How many tenants.
    pub tenants: usize,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    made_in: Duration,
    before: Even,
    after: Even,
    /// Replicas that came to a node, since the further one was started.
    moved: usize,
    /// Leads that another node took over in that time.
    led_anew: usize,
}

/// Shares that are even.
#[derive(Clone, Debug)]
struct Even {
    took: Duration,
    shares: BTreeMap<String, Share>,
    /// The least that the greatest lead can be, tenants.
    least_lead: u64,
    /// What the API says tenants have, with each replica counted, and what is on disk, by node.
    bytes: BTreeMap<String, (u64, u64)>,
}

/// Makes the tenants and adds a node; panics where shares are uneven, or too much moves.
pub async fn trial(plan: Plan) -> Report {
    let mut cluster = Cluster::of(plan.nodes, &[]).await;
    settled(&cluster.client(0), plan.nodes, EVEN_WITHIN).await;
    let began = Instant::now();
    make_tenants(&cluster, plan.tenants).await;
    let made_in = began.elapsed();
    let began = Instant::now();
    let groups = even(&cluster.client(0), plan.nodes, plan.tenants).await;
    let before = Even::of(&mut cluster, &groups, began.elapsed()).await;
    before.check();

    let began = Instant::now();
    let moves = Moves::watch(cluster.client(0), groups);
    let launch = cluster.next_launch(&[]);
    cluster.add(launch).await;
    println!("one node more is ready after {:.1?}", began.elapsed());
    let groups = even(&cluster.client(0), plan.nodes + 1, plan.tenants).await;
    let took = began.elapsed();
    let (moved, led_anew) = moves.seen();
    let after = Even::of(&mut cluster, &groups, took).await;
    after.check();
    let replicas: usize = after.shares.values().map(|share| share.replicas).sum();
    let moved_max = replicas.div_ceil(plan.nodes + 1) + MOVED_BESIDE_MAX;
    let report = Report { made_in, before, after, moved, led_anew };
    assert!(report.moved <= moved_max, "{moved_max} replicas may move: {report}");
    report
}

/// Makes tenants through all nodes, each with a run that has ended.
async fn make_tenants(cluster: &Cluster, tenants: usize) {
    let clients: Vec<Client> = cluster.running().iter().map(|at| cluster.client(*at)).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let mut makers = JoinSet::new();
    for maker in 0..AT_ONCE {
        let (client, next) = (clients[maker % clients.len()].clone(), Arc::clone(&next));
        makers.spawn(async move {
            while next.fetch_add(1, Ordering::Relaxed) < tenants {
                let tenant = Tenant::create(&client, spec::unlimited()).await;
                let input = serde_json::json!({ "text": "x".repeat(INPUT_BYTES) });
                tenant.finished(spec::inline_with(input, [spec::set("a", 1)])).await;
            }
        });
    }
    while let Some(made) = makers.join_next().await {
        made.expect("tenants are made");
    }
}

/// Waits until replicas and leads are even, and gives the groups.
async fn even(client: &Client, nodes: usize, tenants: usize) -> Groups {
    settled(client, nodes, EVEN_WITHIN).await;
    eventually_within(EVEN_WITHIN, "leads are even", async || {
        let groups = shares::groups(client).await?;
        let least = least_lead(&groups);
        let all: u64 = groups.values().map(|group| group.tenants).sum();
        let greatest = shares::shares(&groups).values().map(|share| share.led_tenants).max()?;
        let is_even = greatest <= least + least / LEAD_PART + LEAD_TENANTS;
        (all == tenants as u64 && is_even).then_some(groups)
    })
    .await
}

/// What has moved.
#[derive(Default)]
struct Moved {
    /// Groups, and nodes that had no replica of theirs.
    replicas: BTreeSet<(u64, String)>,
    /// Leads that another node took over.
    leads: usize,
}

/// Looks on while replicas and leads move, until it is dropped.
struct Moves {
    seen: Arc<Mutex<Moved>>,
    task: tokio::task::JoinHandle<()>,
}

impl Moves {
    fn watch(client: Client, before: Groups) -> Self {
        let seen: Arc<Mutex<Moved>> = Arc::default();
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut last = before.clone();
            loop {
                if let Some(groups) = shares::groups(&client).await {
                    let mut seen = noted.lock().expect("what moved");
                    for (id, group) in &groups {
                        let was = &before[id];
                        let all = group.voters.union(&group.learners);
                        let came = all.filter(|node| !was.voters.contains(*node));
                        seen.replicas.extend(came.map(|node| (*id, node.clone())));
                        seen.leads += usize::from(last[id].leader != group.leader);
                    }
                    last = groups;
                }
                pause(WATCHED_EVERY).await;
            }
        });
        Self { seen, task }
    }

    /// Gives how many replicas came to a node that had none of the group, and how many leads moved.
    fn seen(&self) -> (usize, usize) {
        let seen = self.seen.lock().expect("what moved");
        (seen.replicas.len(), seen.leads)
    }
}

impl Drop for Moves {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Even {
    async fn of(cluster: &mut Cluster, groups: &Groups, took: Duration) -> Self {
        let shares = shares::shares(groups);
        let mut bytes: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (group, counted) in counted_bytes(&cluster.client(0)).await {
            for node in &groups[&group].voters {
                bytes.entry(node.clone()).or_default().0 += counted;
            }
        }
        for node in cluster.running() {
            let on_disk =
                files::walk(&cluster.server(node).data()).iter().map(|(_, len)| len).sum();
            bytes.entry(cluster.id(node).to_owned()).or_default().1 = on_disk;
        }
        Self { took, shares, least_lead: least_lead(groups), bytes }
    }

    /// Panics where shares are uneven of what placement evens out.
    fn check(&self) {
        let replicas = greatest(self.shares.values().map(|share| share.replicas as u64));
        let tenants = greatest(self.shares.values().map(|share| share.tenants));
        assert!(replicas <= SHARE_MAX && tenants <= SHARE_MAX, "{self}");
    }
}

/// What the API says that the tenants of each group have.
async fn counted_bytes(client: &Client) -> BTreeMap<u64, u64> {
    let listed = client.get("/api/tenants?limit=10000").await.expect(200);
    let listed = listed["tenants"].as_array().expect("a list").clone();
    let of = |tenant: &Value| {
        let id = tenant["id"].as_str().expect("an id").to_owned();
        (id, tenant["placement"]["group"].as_u64().expect("a group"))
    };
    let tenants: Vec<(String, u64)> = listed.iter().map(of).collect();
    let mut askers = JoinSet::new();
    for part in tenants.chunks(tenants.len().div_ceil(AT_ONCE)) {
        let (client, part) = (client.clone(), part.to_vec());
        askers.spawn(async move {
            let mut counted: Vec<(u64, u64)> = Vec::new();
            for (id, group) in part {
                let stats = client.get(&format!("/api/tenants/{id}/storage-stats")).await;
                counted.push((group, stats.expect(200)["total_bytes"].as_u64().expect("bytes")));
            }
            counted
        });
    }
    let mut all: BTreeMap<u64, u64> = BTreeMap::new();
    while let Some(counted) = askers.join_next().await {
        for (group, bytes) in counted.expect("storage is told") {
            *all.entry(group).or_default() += bytes;
        }
    }
    all
}

impl fmt::Display for Even {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "even after {:.1?}:", self.took)?;
        for (node, share) in &self.shares {
            let (counted, on_disk) = self.bytes.get(node).copied().unwrap_or_default();
            let (counted, on_disk) = (counted >> 20, on_disk >> 20);
            writeln!(f, "  {node}: {share}; {counted} MiB counted, {on_disk} MiB on disk")?;
        }
        let share = |of: fn(&Share) -> u64| greatest(self.shares.values().map(of));
        let led = self.shares.values().map(|share| share.led_tenants).max().unwrap_or_default();
        write!(
            f,
            "  greatest of the average: replicas {:.2}, tenants {:.2}, led tenants {:.2};              most led {led}, which is at least {}",
            share(|it| it.replicas as u64),
            share(|it| it.tenants),
            share(|it| it.led_tenants),
            self.least_lead
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "many: tenants made in {:.1?}; {}", self.made_in, self.before)?;
        writeln!(f, "one node more: {}", self.after)?;
        write!(f, "  {} replicas moved, {} leads", self.moved, self.led_anew)
    }
}

//! A hostile tenant hurts nobody: a neighbour works at a steady rate, first alone, then while
//! another tenant does everything at once that it can think of.
//!
//! The nodes are real and small: few descriptors, little memory, a disk of some mebibytes. What the
//! neighbour lost, who led, and what the nodes took is measured all the while. The attackers take what
//! is left of the processors, as if they were on machines of their own, and while the neighbour is
//! alone as many such threads are busy: what is measured is what the node does with what they send.

mod attack;
mod busy;
mod neighbour;
mod shapes;
mod sockets;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Cluster, Counter, SmallDisk, Tenant, pause, spec};
use attack::Attack;
use busy::Busy;
use neighbour::Manner;
pub use neighbour::Work;
pub use watch::Cost;
use watch::Watch;

/// Longer than any trial: what a silent service thinks.
const NEVER: Duration = Duration::from_secs(3_600);
/// After the attack the neighbour works on for so long: what was left behind must not hurt either.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// What to try.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Of how many nodes the cluster is.
    #[arg(long, default_value_t = 1)]
    pub nodes: usize,
    /// How long the attack lasts.
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// How long the neighbour is measured alone before.
    #[arg(long, default_value_t = 15)]
    pub alone_seconds: u64,
    /// File descriptors that each node may have open, soft and hard limit.
    #[arg(long, default_value_t = 1_024)]
    pub descriptors: u64,
    /// Resident memory that no node may exceed.
    #[arg(long, default_value_t = 512)]
    pub memory_mib: u64,
    /// Size of the disk of each node; 0 for the disk that temporary files are on.
    #[arg(long, default_value_t = 0)]
    pub disk_mib: u32,
    /// Runs that the neighbour starts a second.
    #[arg(long, default_value_t = 20)]
    pub rate: u64,
    /// For how long the neighbour tries again what was refused with `busy`, as clients are told to.
    #[arg(long, default_value_t = 0)]
    pub patience_secs: u64,
    /// How many tenants are hostile.
    #[arg(long, default_value_t = 1)]
    pub tenants: usize,
    /// How many times every kind of attack is under way.
    #[arg(long, default_value_t = 8)]
    pub width: usize,
    /// Only these kinds of attack, by name.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Quota of each hostile tenant: runs that have not ended.
    #[arg(long, default_value_t = 50)]
    pub runs: u64,
    /// Quota of each hostile tenant: requests in any minute; 0 for no limit.
    #[arg(long, default_value_t = 0)]
    pub requests: u64,
    /// Quota of each hostile tenant: mebibytes it may store.
    #[arg(long, default_value_t = 64)]
    pub storage_mib: u64,
    /// Further arguments for the nodes.
    #[arg(last = true)]
    pub node_args: Vec<String>,
}

impl Default for Args {
    /// As the command line has it.
    fn default() -> Self {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        <Line as clap::Parser>::parse_from(["hostile"]).args
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// The neighbour alone.
    pub alone: Work,
    /// The neighbour beside the hostile tenant.
    pub beside: Work,
    /// What each node took at most.
    pub costs: Vec<Cost>,
    /// Terms that groups came to while the attack lasted, beyond those before: none when no leader
    /// was lost.
    pub new_terms: Vec<String>,
    /// Nodes that ended.
    pub dead: Vec<usize>,
    /// How the attacks were answered.
    pub attacks: Vec<String>,
}

/// Tries, prints what came of it, and panics when somebody was hurt.
pub async fn soak(args: &Args) {
    let report = trial(args).await;
    println!("{report}");
    let mut wrong = report.wrongs(args);
    wrong.extend(report.slowness());
    assert!(wrong.is_empty(), "a hostile tenant hurt somebody: {wrong:#?}");
}

/// Tries.
pub async fn trial(args: &Args) -> Report {
    let mut site = Site::build(args).await;
    let neighbour = Tenant::create(&site.cluster.client(0), spec::unlimited()).await;
    let (service, silent) = (Counter::start().await, Counter::thinking(NEVER).await);
    let clients: Vec<_> = (0..args.nodes).map(|node| site.cluster.client(node)).collect();
    let manner = Manner { rate: args.rate, patience: Duration::from_secs(args.patience_secs) };
    let work = |span| neighbour::work(&clients, &neighbour.id, &service, manner, span);
    let gives_way = std::thread::spawn(attack::take_what_is_left);
    gives_way.join().expect("attackers that take only what is left of the processors");
    // What is done for the first time takes longer.
    work(Duration::from_secs(2)).await;
    // Alone on the node, but not on the machine: attackers take processors too, before they send anything.
    let busy = Busy::begin();
    let alone = work(Duration::from_secs(args.alone_seconds)).await;
    drop(busy);

    let mut hostile = Vec::new();
    for _ in 0..args.tenants {
        hostile.push(Tenant::create(&site.cluster.client(0), quotas(args)).await.id);
    }
    let watch = Watch::begin(&site.cluster).await;
    let addrs = clients.iter().map(crate::Client::addr).collect();
    let attack = Attack::begin(addrs, hostile, silent.url("/"), args);
    let beside = work(Duration::from_secs(args.seconds)).await;
    let attacks = attack.end();
    assert!(!attacks.is_empty(), "nobody attacked");
    let beside = beside.and(work(AFTERWARDS).await);
    pause(Duration::from_millis(200)).await;

    let dead = site.dead();
    let seen = watch.end().await;
    Report { alone, beside, costs: seen.costs, new_terms: seen.new_terms, dead, attacks }
}

/// What an operator gives somebody that it does not know.
fn quotas(args: &Args) -> Value {
    json!({
        "max_concurrent_workflows": args.runs,
        "max_workflows_per_day": null,
        "max_routines": 50,
        "max_storage_bytes": args.storage_mib << 20,
        "max_api_requests_per_minute": (args.requests > 0).then_some(args.requests),
    })
}

/// The nodes and their disks.
struct Site {
    _disks: Vec<SmallDisk>,
    cluster: Cluster,
}

impl Site {
    async fn build(args: &Args) -> Self {
        let node_args: Vec<&str> = args.node_args.iter().map(String::as_str).collect();
        let mut disks = Vec::new();
        let cluster = Cluster::of_launches(args.nodes, &node_args, |mut launch| {
            launch.descriptors = Some(args.descriptors);
            if args.disk_mib > 0 {
                let data: PathBuf = launch.folder.join("data");
                disks.push(SmallDisk::mount(&data, args.disk_mib).expect("mount a small disk"));
            }
            launch
        });
        Self { cluster: cluster.await, _disks: disks }
    }

    fn dead(&mut self) -> Vec<usize> {
        let nodes = self.cluster.running();
        nodes.into_iter().filter(|node| !self.cluster.server(*node).is_running()).collect()
    }
}

impl Report {
    /// What must not be, whatever the machine: empty when all is well.
    pub fn wrongs(&self, args: &Args) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut check = |holds: bool, what: String| {
            if !holds {
                wrong.push(what);
            }
        };
        check(self.dead.is_empty(), format!("nodes {:?} ended", self.dead));
        check(self.new_terms.is_empty(), format!("leaders were lost: {:?}", self.new_terms));
        check(self.alone.is_whole(), format!("the neighbour alone: {}", self.alone));
        check(self.beside.is_whole(), format!("the neighbour beside: {}", self.beside));
        for (node, cost) in self.costs.iter().enumerate() {
            let (rss, open) = (cost.rss_kib_max, cost.descriptors_max);
            check(rss <= args.memory_mib << 10, format!("node {node} took {rss} KiB"));
            check(open < args.descriptors, format!("node {node} had {open} descriptors open"));
        }
        wrong
    }

    /// What must not be even on a machine that does other things, where leaders may be lost.
    pub fn worst(&self, args: &Args) -> Vec<String> {
        let mut wrong = self.wrongs(args);
        wrong.retain(|wrong| !wrong.starts_with("leaders were lost"));
        wrong
    }

    /// What must not be on a quiet machine.
    fn slowness(&self) -> Option<String> {
        let (alone, beside) = (self.alone.p99(), self.beside.p99());
        (beside > alone * 2).then(|| format!("p99 {beside:.1?} beside, {alone:.1?} alone"))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "neighbour alone:  {}", self.alone)?;
        writeln!(f, "neighbour beside: {}", self.beside)?;
        for (node, cost) in self.costs.iter().enumerate() {
            writeln!(f, "node {node}: {cost}")?;
        }
        writeln!(f, "leaders lost: {:?}; nodes ended: {:?}", self.new_terms, self.dead)?;
        self.attacks.iter().try_for_each(|attack| writeln!(f, "  {attack}"))
    }
}

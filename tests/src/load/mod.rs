//! The load tool: how much a node does, what that costs, and how much of it is the machine's.
//!
//! Client and server share the machine, so the client is cheap: requests are bytes that were made
//! before, an answer's head is searched for its status and length and nothing is parsed. Beside
//! the scenarios it measures what no server can beat here: an HTTP call that does nothing
//! (`GET /healthz`) and a 4 KiB append that is synced (`fdatasync`) on the same disk.

mod disk;
mod measure;
mod scenario;
mod service;
mod wire;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use tempfile::TempDir;

pub(crate) use crate::harness::Process;
use crate::{Client, Cluster, Server, Tenant, spec};
use measure::{Cost, Table};
use scenario::Setup;

/// Measures a node under load.
#[derive(Parser)]
pub struct Args {
    /// A running server, as http://127.0.0.1:3000; by default a node of its own in a temporary
    /// folder is started.
    #[arg(long)]
    server: Option<String>,
    /// Starts a cluster of so many nodes and spreads the clients over them.
    #[arg(long, default_value_t = 1, conflicts_with = "server")]
    nodes: usize,
    /// How many connections call at once, each one call after the other.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How long each scenario takes.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// What to do.
    #[arg(long, value_enum, default_value_t = Choice::All)]
    scenario: Choice,
    /// Over how many tenants the clients are spread.
    #[arg(long, default_value_t = 8)]
    tenants: usize,
    /// Where its own node keeps its data, to measure a certain disk. A new folder in it is used
    /// and removed.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Further arguments for its own node.
    #[arg(last = true)]
    node_args: Vec<String>,
}

/// The scenarios by name.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Choice {
    /// Acquire and release of distinct keys of the tenants: one cycle is one operation.
    Locks,
    /// The same with keys of the cluster.
    ClusterLocks,
    /// Runs of one `set` step, counted when completed.
    #[value(name = "runs-1")]
    Runs1,
    /// Runs of three `set` steps in a chain.
    #[value(name = "runs-3")]
    Runs3,
    /// Runs of one `http` step to a service of the tool.
    #[value(name = "http-1")]
    Http1,
    /// Runs of three `http` steps in a chain.
    #[value(name = "http-3")]
    Http3,
    /// The two baselines only.
    Baseline,
    /// The baselines, and all of the above.
    All,
}

impl Choice {
    fn scenarios(self) -> Vec<Self> {
        match self {
            Self::All => vec![
                Self::Locks,
                Self::ClusterLocks,
                Self::Runs1,
                Self::Runs3,
                Self::Http1,
                Self::Http3,
            ],
            Self::Baseline => Vec::new(),
            one => vec![one],
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// Measures and prints; panics where the server refuses what it should do.
pub async fn run(args: Args) {
    let folder = match &args.dir {
        Some(dir) => TempDir::new_in(dir),
        None => TempDir::new(),
    };
    let folder = folder.expect("a temporary folder");
    let node_args: Vec<&str> = args.node_args.iter().map(String::as_str).collect();
    let own = match &args.server {
        Some(url) => Own::None(address(url)),
        None if args.nodes > 1 => {
            Own::Cluster(Cluster::of_in(folder.path(), args.nodes, &node_args).await)
        }
        None => Own::Node(Server::start(&folder, &node_args).await),
    };
    let (addrs, processes) = (own.addrs(), own.processes());
    let addr = addrs[0];
    let idle = rss_kib(&processes);

    let seconds = Duration::from_secs(args.seconds);
    let setup = Setup { addrs, clients: args.clients, seconds };
    println!("{} clients, {} s each, {} tenants, {addr}", args.clients, args.seconds, args.tenants);
    let mut table = Table::new();
    table.add("fdatasync 4 KiB", &disk::synced_appends(folder.path(), seconds), None);
    let (sample, cost) = Cost::of(&processes, scenario::healthz(&setup)).await;
    table.add("GET /healthz", &sample, Some(cost));

    let tenants = tenants(addr, args.tenants).await;
    let service = service::Service::start().await;
    for choice in args.scenario.scenarios() {
        let work = scenario::work(choice, &setup, &tenants, &service);
        let (sample, cost) = Cost::of(&processes, work).await;
        table.add(&choice.name(), &sample, Some(cost));
    }
    println!("http steps served: {}", service.served());
    for (node, (idle, after)) in idle.iter().zip(rss_kib(&processes)).enumerate() {
        println!("RSS of node {node}: {idle} KiB idle, {after} KiB after");
    }
    remove(addr, &tenants).await;
}

/// What was started to be measured.
enum Own {
    /// Nothing: a server that was there before, at this address.
    None(SocketAddr),
    Node(Server),
    Cluster(Cluster),
}

impl Own {
    fn addrs(&self) -> Vec<SocketAddr> {
        match self {
            Self::None(addr) => vec![*addr],
            Self::Node(server) => vec![server.addr()],
            Self::Cluster(cluster) => {
                (0..cluster.len()).map(|node| cluster.client(node).addr()).collect()
            }
        }
    }

    fn processes(&self) -> Vec<Process> {
        match self {
            Self::None(_) => Vec::new(),
            Self::Node(server) => vec![server.process()],
            Self::Cluster(cluster) => cluster.pids().into_iter().map(Process::new).collect(),
        }
    }
}

fn rss_kib(processes: &[Process]) -> Vec<u64> {
    processes.iter().map(|process| process.rss_kib().unwrap_or(0)).collect()
}

/// Tenants without limits.
async fn tenants(addr: SocketAddr, count: usize) -> Vec<String> {
    let client = Client::new(addr);
    let mut made = Vec::new();
    for _ in 0..count.max(1) {
        made.push(Tenant::create(&client, spec::unlimited()).await.id);
    }
    made
}

/// A server that was there before is left as it was.
async fn remove(addr: SocketAddr, tenants: &[String]) {
    let client = Client::new(addr);
    for id in tenants {
        client.delete(&format!("/api/tenants/{id}")).await.expect(200);
    }
}

fn address(url: &str) -> SocketAddr {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    host.parse().unwrap_or_else(|_| panic!("{url} is no address like http://127.0.0.1:3000"))
}

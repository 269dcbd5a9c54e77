//! Several nodes that are one cluster, each a real process with addresses it keeps.
//!
//! The first node founds the cluster, the others join it. Nodes are named by their place in that
//! order, whoever leads. Waiting for something a failure may have made impossible ends with a
//! panic, and what every node last printed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use super::{Exit, Launch, Network, Ports, Server, eventually};
use crate::Client;

/// A stopped process answers nobody: polls must not wait for it.
const POLL_TIMEOUT: Duration = Duration::from_secs(3);
/// From the cause to the end of a node that ends by itself.
const ENDED_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_EVERY: Duration = Duration::from_millis(5);

/// Tells a node whom to ask to be let in.
const JOIN: &str = "--join";
/// What admits nodes to a cluster in a network of its own.
const SECRET: &str = "a-secret-of-the-tests";

/// A cluster. Dropping it kills all its nodes.
pub struct Cluster {
    nodes: Vec<Node>,
    folder: TempDir,
}

struct Node {
    server: Server,
    id: String,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Running,
    /// By SIGSTOP.
    Stopped,
    Ended,
}

/// Who leads, as one node tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Lead {
    /// The id of the node that leads, if any does.
    pub leader: Option<String>,
    /// The term.
    pub term: u64,
}

impl Cluster {
    /// For tests that assume that the leader stays and that everybody is `Healthy`: neither changes when
    /// a busy machine holds a node up for a moment.
    pub const STEADY: &str = "--election-timeout=5s";

    /// Founds a cluster of `nodes`, all with these further arguments, and waits until all of them
    /// vote and agree on who leads.
    pub async fn of(nodes: usize, extra_args: &[&str]) -> Self {
        Self::of_in(&std::env::temp_dir(), nodes, extra_args).await
    }

    /// The same with the data in a new folder in `dir`.
    pub async fn of_in(dir: &Path, nodes: usize, extra_args: &[&str]) -> Self {
        let folder = TempDir::new_in(dir).expect("a temporary folder");
        Self::start(folder, nodes, extra_args, at_free_ports).await
    }

    /// The same with each node launched in the way that `prepare` makes of the usual one.
    pub async fn of_launches(
        nodes: usize,
        extra_args: &[&str],
        mut prepare: impl FnMut(Launch) -> Launch,
    ) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let place = |at, launch| prepare(at_free_ports(at, launch));
        Self::start(folder, nodes, extra_args, place).await
    }

    /// The same with each node in a namespace of `network`, where joining needs a secret.
    pub async fn within(network: &Network, nodes: usize, extra_args: &[&str]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        Self::start(folder, nodes, extra_args, |at, mut launch| {
            launch.api_addr = ([127, 0, 0, 1], 3000).into();
            launch.node_addr = (Network::ip(at), 7400).into();
            launch.args.extend(["--join-token".to_owned(), SECRET.to_owned()]);
            launch.namespace = Some(network.namespace(at).clone());
            launch
        })
        .await
    }

    async fn start(
        folder: TempDir,
        nodes: usize,
        extra_args: &[&str],
        mut place: impl FnMut(usize, Launch) -> Launch,
    ) -> Self {
        let mut cluster = Self { nodes: Vec::new(), folder };
        for at in 0..nodes {
            let args = extra_args.iter().map(|arg| (*arg).to_owned()).collect();
            let folder = cluster.folder.path().join(at.to_string());
            std::fs::create_dir(&folder).expect("make a node's folder");
            let launch = place(at, Launch::anywhere(&folder, args));
            cluster.add(launch).await;
        }
        cluster.whole().await;
        cluster
    }

    /// Has one more node join, and waits until it is ready. Gives its place.
    pub async fn add(&mut self, launch: Launch) -> usize {
        let place = self.admit(launch).await;
        self.ready(place).await;
        place
    }

    /// Has one more node join, and waits until it is a member, which may not vote yet. Gives its
    /// place.
    pub async fn admit(&mut self, launch: Launch) -> usize {
        let place = self.begin_join(launch);
        self.joined(place).await;
        place
    }

    /// Starts a node that is to join, through a node that runs unless the launch names others,
    /// and waits for nothing. Gives its place.
    pub fn begin_join(&mut self, mut launch: Launch) -> usize {
        let running = self.nodes.iter().find(|node| node.state == State::Running);
        // A test may have started the first one again by itself.
        let founder = running.or_else(|| self.nodes.first());
        if let Some(founder) = founder.filter(|_| !launch.args.iter().any(|arg| arg == JOIN)) {
            launch.args.extend([JOIN.to_owned(), founder.server.node_addr()]);
        }
        let (server, id) = (launch.start(), String::new());
        self.nodes.push(Node { server, id, state: State::Running });
        self.nodes.len() - 1
    }

    /// Waits until a node that joins is a member.
    pub async fn joined(&mut self, place: usize) {
        let server = &mut self.nodes[place].server;
        let file = server.data().join("node.json");
        eventually(&format!("node {place} is a member"), async || {
            assert!(server.is_running(), "node {place} ended:\n{}", server.output());
            file.exists().then_some(())
        })
        .await;
        // A member needs to be told nothing when it starts again.
        let args = &mut server.launch_mut().args;
        if let Some(at) = args.iter().rposition(|arg| arg == JOIN) {
            args.drain(at..at + 2);
        }
        self.learn_id(place);
    }

    /// Takes note of the id of a node that has become another member.
    pub fn learn_id(&mut self, node: usize) {
        let id = self.nodes[node].server.node_json()["node_id"].clone();
        self.nodes[node].id = id.as_str().expect("an id").to_owned();
    }

    /// How a further node would be started; `add` starts it.
    pub fn next_launch(&self, args: &[&str]) -> Launch {
        let folder = self.folder.path().join(format!("further-{}", self.nodes.len()));
        std::fs::create_dir_all(&folder).expect("make a node's folder");
        let ports = Ports::free();
        let mut launch = Launch::anywhere(&folder, args.iter().map(ToString::to_string).collect());
        (launch.api_addr, launch.node_addr) = (ports.api, ports.node);
        launch
    }

    /// Leaves the data where it is when the cluster is dropped: its owner is whoever made the folder
    /// around it.
    pub fn keep_data(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// How many nodes were ever started.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: a cluster has a node.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The process of a node.
    pub fn server(&mut self, node: usize) -> &mut Server {
        &mut self.nodes[node].server
    }

    /// The process ids of all nodes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.server.pid()).collect()
    }

    /// A new client of a node.
    pub fn client(&self, node: usize) -> Client {
        self.nodes[node].server.client()
    }

    /// A client of a node for polls, which does not wait long.
    pub fn poller(&self, node: usize) -> Client {
        self.client(node).patient_for(POLL_TIMEOUT)
    }

    /// The id of a node.
    pub fn id(&self, node: usize) -> &str {
        &self.nodes[node].id
    }

    /// The path of a node in the API.
    pub fn path(&self, node: usize) -> String {
        format!("/api/cluster/nodes/{}", self.id(node))
    }

    /// Where other nodes reach a node.
    pub fn node_addr(&self, node: usize) -> String {
        self.nodes[node].server.node_addr()
    }

    /// The nodes that run and are not stopped.
    pub fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| self.nodes[*node].state == State::Running).collect()
    }

    /// Who leads, as soon as all nodes that run agree.
    pub async fn leader(&self) -> usize {
        self.await_leader(&[]).await.0
    }

    /// The nodes that run and do not lead.
    pub async fn followers(&self) -> Vec<usize> {
        let leader = self.leader().await;
        self.running().into_iter().filter(|node| *node != leader).collect()
    }

    /// Has leaders step down until another node than this one leads. Gives that one.
    pub async fn led_by_another_than(&self, node: usize) -> usize {
        eventually(&format!("node {node} does not lead"), async || {
            let leader = self.leader().await;
            if leader != node {
                return Some(leader);
            }
            self.client(node).post_empty("/api/cluster/leader/step-down").await;
            None
        })
        .await
    }

    /// Waits until all nodes that run agree on a leader that is none of `excluded`. Gives it and
    /// its term.
    pub async fn await_leader(&self, excluded: &[usize]) -> (usize, u64) {
        eventually(&format!("a leader that is none of {excluded:?}"), async || {
            let mut agreed: Option<Lead> = None;
            for node in self.running() {
                let said = self.lead(node).await?;
                if agreed.as_ref().is_some_and(|agreed| *agreed != said) {
                    return None;
                }
                agreed = Some(said);
            }
            let Lead { leader, term } = agreed?;
            let leader = self.place_of(&leader?);
            (!excluded.contains(&leader)).then_some((leader, term))
        })
        .await
    }

    /// Who leads, as this node tells; none when it does not answer, or with an error.
    pub async fn lead(&self, node: usize) -> Option<Lead> {
        let reply = self.poller(node).call("GET", "/api/cluster/leader").try_send().await.ok()?;
        (reply.status == 200).then(|| Lead::of(&reply.json()))
    }

    /// How long from now on until one of the nodes that run names a leader that is not `old`.
    pub async fn time_to_leader(&self, old: usize) -> Duration {
        let started = Instant::now();
        let patience = Duration::from_secs(20);
        loop {
            for node in self.running() {
                let said = self.lead(node).await.and_then(|lead| lead.leader);
                if said.is_some_and(|leader| leader != self.id(old)) {
                    return started.elapsed();
                }
            }
            assert!(started.elapsed() < patience, "no new leader within {patience:?}");
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// The place of the node with this id.
    pub fn place_of(&self, id: &str) -> usize {
        let place = self.nodes.iter().position(|node| node.id == id);
        place.unwrap_or_else(|| panic!("no node of ours: {id}"))
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill9(&mut self, node: usize) {
        self.nodes[node].server.kill9();
        self.nodes[node].state = State::Ended;
    }

    /// SIGSTOP.
    pub fn stop(&mut self, node: usize) {
        self.nodes[node].server.signal(libc::SIGSTOP);
        self.nodes[node].state = State::Stopped;
    }

    /// SIGCONT.
    pub fn cont(&mut self, node: usize) {
        self.nodes[node].server.signal(libc::SIGCONT);
        self.nodes[node].state = State::Running;
    }

    /// SIGTERM; panics unless it exits 0 within ten seconds. Gives how long it took.
    pub async fn term(&mut self, node: usize) -> Duration {
        let started = Instant::now();
        self.nodes[node].server.term().await;
        self.nodes[node].state = State::Ended;
        started.elapsed()
    }

    /// Waits for a node to end by itself.
    pub async fn ended(&mut self, node: usize) -> Exit {
        let exit = self.nodes[node].server.wait(ENDED_TIMEOUT).await;
        self.nodes[node].state = State::Ended;
        exit.unwrap_or_else(|| panic!("node {node} goes on"))
    }

    /// Starts a node again on its data, without `--join`, and waits until it is ready.
    pub async fn restart(&mut self, node: usize) {
        self.relaunch(node);
        self.ready(node).await;
    }

    /// Starts a node again without waiting for anything.
    pub fn relaunch(&mut self, node: usize) {
        self.nodes[node].server.relaunch();
        self.nodes[node].state = State::Running;
    }

    /// Waits until a node is ready.
    pub async fn ready(&mut self, node: usize) {
        if let Err(code) = self.nodes[node].server.await_ready().await {
            let output = self.nodes[node].server.output();
            panic!("node {node} did not become ready ({code:?}): {output}");
        }
    }

    /// Waits until all nodes that run are ready, healthy voters, and agree on a leader.
    pub async fn whole(&mut self) -> usize {
        for node in self.running() {
            self.ready(node).await;
        }
        let (leader, _) = self.await_leader(&[]).await;
        let ids: Vec<_> = self.running().into_iter().map(|node| self.id(node).to_owned()).collect();
        eventually(&format!("{ids:?} are healthy and vote"), async || {
            let voters = self.voters(leader).await?;
            let statuses = self.statuses(leader).await?;
            let is_well = |id: &String| {
                voters.contains(id) && statuses.get(id).is_some_and(|status| status == "Healthy")
            };
            ids.iter().all(is_well).then_some(())
        })
        .await;
        leader
    }

    /// The ids of those who vote in the system group, as this node tells.
    pub async fn voters(&self, node: usize) -> Option<Vec<String>> {
        let groups = self.answer(node, "/api/cluster/groups").await?;
        let system = groups["groups"].as_array()?.iter().find(|group| group["id"] == 0)?;
        let replicas = system["replicas"].as_array()?;
        let voters = replicas.iter().filter(|replica| replica["role"] == "voter");
        Some(voters.filter_map(|it| it["node_id"].as_str().map(str::to_owned)).collect())
    }

    /// The status of every listed node, by id, as this node tells.
    pub async fn statuses(&self, node: usize) -> Option<BTreeMap<String, String>> {
        let nodes = self.answer(node, "/api/cluster/nodes").await?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let status = |node: &Value| Some((text(&node["id"])?, text(&node["status"])?));
        nodes["nodes"].as_array()?.iter().map(status).collect()
    }

    /// A whole 200 of a node.
    async fn answer(&self, node: usize, path: &str) -> Option<Value> {
        let reply = self.poller(node).call("GET", path).try_send().await.ok()?;
        (reply.status == 200).then(|| reply.json())
    }
}

fn at_free_ports(at: usize, mut launch: Launch) -> Launch {
    let ports = Ports::free();
    (launch.api_addr, launch.node_addr) = (ports.api, ports.node);
    launch.args.extend(["--label".to_owned(), format!("place={at}")]);
    launch
}

impl Lead {
    /// What `/api/cluster/leader` said.
    pub fn of(answer: &Value) -> Self {
        Self {
            leader: answer["leader"]["id"].as_str().map(str::to_owned),
            term: answer["term"].as_u64().expect("a term"),
        }
    }
}

//! Nodes in one process, and links between them that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shiioo_actors::command::Outcome;
use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::seams::ByteStream;
use shiioo_actors::ports::{
    BoxFuture, Durability as _, Membership as _, Peer, PeerError, Peers, Proposals as _,
    ProposeError, Service, StreamService,
};
use tokio::time::Instant;

use super::part::{Contents, TestPart, command, part};
use crate::disk::SimDisk;
use crate::executor::Executor;
use crate::raft::{Groups, GroupsConfig};

pub const GROUP: GroupId = GroupId::SYSTEM;

pub const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// One way.
const LATENCY: Duration = Duration::from_millis(2);

/// What is no longer than this does not wait for what is.
const SMALL_BYTES: usize = 1 << 10;

/// Nothing that should happen takes longer, in simulated time.
const PATIENCE: Duration = Duration::from_secs(90);

/// No story is longer, in simulated time.
const STORY_MAX: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Links {
    nodes: BTreeMap<u64, Arc<Groups>>,
    /// From whom to whom nothing arrives.
    cut: BTreeSet<(u64, u64)>,
    calls: BTreeMap<Service, u64>,
    /// A service that nobody knows.
    unknown: Option<Service>,
    /// Bytes that a link carries in a second, each way, where it is slow.
    rate: Option<u64>,
    /// Held while a large message is on its way from one to the other.
    busy: BTreeMap<(u64, u64), Arc<tokio::sync::Mutex<()>>>,
}

/// The ends of the links of one node.
struct Link {
    from: u64,
    links: Arc<Mutex<Links>>,
}

impl Link {
    fn is_cut(&self, from: u64, to: u64) -> bool {
        self.links.lock().unwrap().cut.contains(&(from, to))
    }
}

impl Link {
    /// Takes the time that a slow link takes for a message. Small ones go before large ones.
    async fn carry(&self, to: u64, bytes: usize) {
        let (rate, busy) = {
            let mut links = self.links.lock().unwrap();
            (links.rate, Arc::clone(links.busy.entry((self.from, to)).or_default()))
        };
        let Some(rate) = rate else { return };
        let _busy = if bytes > SMALL_BYTES { Some(busy.lock().await) } else { None };
        // Dropped when its caller waits no more: what is not sent by then never is.
        tokio::time::sleep(Duration::from_millis(bytes as u64 * 1_000 / rate)).await;
    }
}

impl Peers for Link {
    fn call(
        &self,
        to: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(async move {
            let lost = async {
                tokio::time::sleep_until(deadline).await;
                Err(PeerError::Lost { to, why: "cut".into() })
            };
            self.carry(to.0, request.len()).await;
            tokio::time::sleep(LATENCY).await;
            if self.is_cut(self.from, to.0) {
                return lost.await;
            }
            let node = {
                let mut links = self.links.lock().unwrap();
                *links.calls.entry(service).or_default() += 1;
                if links.unknown == Some(service) {
                    return Err(PeerError::Declined { to, why: "not known here".into() });
                }
                links.nodes.get(&to.0).cloned()
            };
            let Some(node) = node else {
                return Err(PeerError::Unreachable { to, why: "down".into() });
            };
            let answer = node.serve(RaftId(self.from), service, request, deadline).await;
            tokio::time::sleep(LATENCY).await;
            if self.is_cut(to.0, self.from) {
                return lost.await;
            }
            answer.map_err(|declined| PeerError::Declined { to, why: declined.0 })
        })
    }

    fn open_stream(
        &self,
        _to: RaftId,
        _service: StreamService,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Box<dyn ByteStream>, PeerError>> {
        unreachable!("logs open no streams")
    }

    fn set_members(&self, _members: Vec<Peer>, _last_given: RaftId) {}
}

/// A node and what of it survives.
pub struct Node {
    pub disk: SimDisk,
    pub part: Arc<TestPart>,
    pub groups: Arc<Groups>,
    durable: Arc<Mutex<Contents>>,
}

pub struct Cluster {
    links: Arc<Mutex<Links>>,
    pub nodes: BTreeMap<u64, Node>,
}

impl Cluster {
    /// Starts nodes 1 to `count`, of which the first `voters` are the members of the group.
    pub async fn start(count: u64, voters: u64) -> Self {
        let mut cluster = Self { links: Arc::default(), nodes: BTreeMap::new() };
        for raft_id in 1..=count {
            cluster.boot(raft_id, SimDisk::new(raft_id), Arc::default()).await;
        }
        for raft_id in 1..=count {
            cluster.open(raft_id, (1..=voters).collect()).await;
        }
        cluster
    }

    pub async fn boot(&mut self, raft_id: u64, disk: SimDisk, durable: Arc<Mutex<Contents>>) {
        let part = TestPart::open(Arc::clone(&durable));
        let config = GroupsConfig {
            log: identity(),
            raft_id: RaftId(raft_id),
            election_timeout: ELECTION_TIMEOUT,
        };
        let peers = Arc::new(Link { from: raft_id, links: Arc::clone(&self.links) });
        let sink = Arc::clone(&part) as _;
        let groups = Groups::start(config, disk.mount(), Executor::Inline, sink, peers);
        let groups = groups.await.unwrap();
        self.links.lock().unwrap().nodes.insert(raft_id, Arc::clone(&groups));
        self.nodes.insert(raft_id, Node { disk, part, groups, durable });
    }

    pub async fn open(&self, raft_id: u64, members: Vec<u64>) {
        self.groups(raft_id)
            .open_group(GROUP, members.into_iter().map(RaftId).collect())
            .await
            .unwrap();
    }

    pub fn groups(&self, raft_id: u64) -> &Arc<Groups> {
        &self.nodes[&raft_id].groups
    }

    pub fn part(&self, raft_id: u64) -> &Arc<TestPart> {
        &self.nodes[&raft_id].part
    }

    /// Ends a node; how it ends is told apart by what `end` does to its disk.
    async fn take_down(&mut self, raft_id: u64, end: impl FnOnce(&SimDisk)) -> Node {
        let node = self.nodes.remove(&raft_id).unwrap();
        self.links.lock().unwrap().nodes.remove(&raft_id);
        end(&node.disk);
        node
    }

    /// Cuts the power of a node. What it was about to do, it does not.
    pub async fn kill(&mut self, raft_id: u64) -> Down {
        let node = self.take_down(raft_id, SimDisk::cut_power).await;
        let groups = Arc::clone(&node.groups);
        // Its disk is fenced: nothing it still does matters.
        tokio::spawn(async move { groups.shutdown().await });
        Down { disk: node.disk, durable: node.durable }
    }

    pub async fn shut_down(&mut self, raft_id: u64) -> Down {
        let node = self.take_down(raft_id, |_| ()).await;
        node.groups.shutdown().await;
        Down { disk: node.disk, durable: node.durable }
    }

    pub async fn bring_back(&mut self, raft_id: u64, down: Down) {
        self.boot(raft_id, down.disk, down.durable).await;
        self.open(raft_id, Vec::new()).await;
    }

    /// From now on nothing gets from one to the other.
    pub fn cut(&self, from: u64, to: u64) {
        self.links.lock().unwrap().cut.insert((from, to));
    }

    /// From now on a link carries so many bytes in a second.
    pub fn limit(&self, rate: u64) {
        self.links.lock().unwrap().rate = Some(rate);
    }

    /// From now on no node knows a service.
    pub fn know_nothing_of(&self, service: Service) {
        self.links.lock().unwrap().unknown = Some(service);
    }

    /// Nothing gets to the node or away from it.
    pub fn isolate(&self, raft_id: u64) {
        for other in self.nodes.keys().filter(|other| **other != raft_id) {
            self.cut(raft_id, *other);
            self.cut(*other, raft_id);
        }
    }

    pub fn heal(&self) {
        self.links.lock().unwrap().cut.clear();
    }

    pub fn calls(&self, service: Service) -> u64 {
        self.links.lock().unwrap().calls.get(&service).copied().unwrap_or_default()
    }

    /// The node that leads by its own account, once there is one among `of`.
    pub async fn leader_among(&self, of: &[u64]) -> u64 {
        let find = || of.iter().copied().find(|raft_id| self.leads(*raft_id));
        until("a leader", || find().is_some()).await;
        find().unwrap()
    }

    pub async fn leader(&self) -> u64 {
        let all: Vec<_> = self.nodes.keys().copied().collect();
        self.leader_among(&all).await
    }

    pub fn leads(&self, raft_id: u64) -> bool {
        self.groups(raft_id).leadership(GROUP).is_some_and(|leadership| leadership.borrow().here)
    }

    pub fn followers(&self, leader: u64) -> Vec<u64> {
        self.nodes.keys().copied().filter(|raft_id| *raft_id != leader).collect()
    }

    /// Proposes, again while the leader is too fresh to take it.
    pub async fn propose(&self, raft_id: u64, text: &str) {
        loop {
            match self.groups(raft_id).propose(GROUP, command(text)).await {
                Ok(outcome) => return assert_eq!(outcome, Outcome::Done),
                Err(ProposeError::NoLeader) => tokio::time::sleep(LATENCY).await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn propose_many(&self, raft_id: u64, count: usize, what: &str) {
        for number in 0..count {
            self.propose(raft_id, &format!("{what} {number}")).await;
        }
    }

    /// Waits until the nodes hold the same as the leader.
    pub async fn same(&self, leader: u64, nodes: &[u64]) {
        let contents = |node: &u64| self.part(*node).live().clone();
        let is_same = || nodes.iter().all(|node| contents(node) == contents(&leader));
        until("the same contents", is_same).await;
    }

    pub fn flush(&self, raft_id: u64) {
        if let Some(position) = self.part(raft_id).flush() {
            self.groups(raft_id).durable(GROUP, part(), position);
        }
    }

    /// Has the node forget of its log what is durable in its part.
    pub async fn purge(&self, raft_id: u64) -> u64 {
        let groups = self.groups(raft_id);
        let mark = groups.progress(GROUP).unwrap().low_water_mark().unwrap().position.index;
        let group = groups.group(GROUP).unwrap();
        // Not while it sends one.
        until("a turn", || !group.network().snapshots.is_any()).await;
        group.snapshot().await;
        let purged = || groups.log.state(GROUP).purged.map(|purged| purged.index);
        until("a purge", || purged() == Some(mark)).await;
        mark
    }
}

/// What is left of a node that is down.
pub struct Down {
    pub disk: SimDisk,
    pub durable: Arc<Mutex<Contents>>,
}

/// Waits for something that should come to pass.
pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "there was never {what}");
        tokio::time::sleep(LATENCY).await;
    }
}

/// Runs a story in simulated time.
pub fn story(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(STORY_MAX, body).await })
        .expect("the story has no end");
}

/// Any log there is.
fn identity() -> crate::log::LogIdentity {
    let fresh = uuid::Uuid::from_u128(1);
    crate::log::LogIdentity { expected: None, fresh, region: Region::default() }
}

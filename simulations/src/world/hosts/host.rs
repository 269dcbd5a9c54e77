//! A node's host: lives of the shipped program, one after the other, on one disk.

use std::cell::{Cell, RefCell};
use std::future;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use shiioo::config::Secret;
use shiioo::{ClientThreads, Config, Node, NodeSeams};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::GroupStatus;
use shiioo_actors::ports::seams::Seams;
use shiioo_storage::disk::{DiskCopy, SimDisk};
use shiioo_storage::{Executor, Pace};
use tokio::sync::Notify;

use crate::env::trace;
use crate::env::{
    Air, DiskFaultsSeen, Process, SeededEntropy, SimClock, SimTcp, SimUdp, TracedDisk,
};
use crate::plan::{API_PORT, ELECTION_TIMEOUT, LyingDisk, Plan, node_name, region_of};

/// Where a node talks to others.
const NODE_PORT: u16 = 7400;
/// What admits joiners.
const JOIN_TOKEN: &str = "the secret of this world";
/// File descriptors that every node may have: as many as are any use.
const DESCRIPTORS: u64 = 1 << 20;
/// How long a node that failed gets to stop, as the shipped program does it.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A node, through all its lives.
pub struct NodeHost {
    name: String,
    /// Its number among the hosts: no two share their chance.
    number: u64,
    seed: u64,
    lying_disk: Option<LyingDisk>,
    region: &'static str,
    names: Vec<String>,
    /// Whom it asks to be let in; the first node asks nobody.
    join: Vec<String>,
    /// What becomes of the packets it sends.
    pub air: Arc<Air>,
    /// What outlives a life.
    pub disk: SimDisk,
    /// How long its syncs take.
    pub pace: Pace,
    /// Its wall clock.
    pub clock: SimClock,
    /// What its disk refused.
    pub seen: Arc<DiskFaultsSeen>,
    /// The life that runs now or ran last.
    life: RefCell<Rc<Life>>,
    /// How many lives began.
    starts: Cell<u64>,
    /// How many lives got as far as being ready.
    ready: Cell<u64>,
    /// Whether the present life is ready.
    is_ready: Cell<bool>,
    /// What the disk had refused before the present life.
    refused_before: Cell<u64>,
    io_failures_before: Cell<u64>,
    /// Its id in the cluster, once it has one.
    id: RefCell<String>,
    /// Why the life that ran last ended by itself.
    exit: RefCell<Option<Exit>>,
    /// The node of the present life, once it is ready.
    node: RefCell<Weak<Node>>,
    /// See [`Self::comparisons`].
    comparisons: Cell<(u64, u64)>,
}

/// One life of the program: its hold on the world, and the ways to end it.
struct Life {
    process: Process,
    tcp: SimTcp,
    udp: SimUdp,
    stop: Notify,
    kill: Notify,
}

/// How a life of a node ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to stop, and did.
    Stopped,
    /// It was killed.
    Killed,
    /// It did not start, or could not go on.
    Failed(String),
}

impl Life {
    fn new(
        name: &str,
        names: &[String],
        seen: &Arc<DiskFaultsSeen>,
        air: &Arc<Air>,
        lying_disk: Option<LyingDisk>,
    ) -> Rc<Self> {
        Rc::new(Self {
            process: Process::new(name, Arc::clone(seen), lying_disk),
            tcp: SimTcp::new(name, names),
            udp: SimUdp::new(name, Arc::clone(air)),
            stop: Notify::new(),
            kill: Notify::new(),
        })
    }

    /// Ends its reach: files first, so that nothing that the rest of it does is kept.
    fn end(&self) {
        self.process.kill();
        self.udp.close();
        self.tcp.close_all();
    }
}

impl NodeHost {
    /// The `number`-th node of a run, from 1, which can look up `names` and joins `others`.
    pub fn new(number: u64, plan: &Plan, names: &[String], others: &[String]) -> Rc<Self> {
        let Plan { seed, lying_disk, regions, .. } = *plan;
        let name = &node_name(number);
        let air = Air::new(seed ^ number << 24);
        let join = others.iter().map(|other| format!("{other}:{NODE_PORT}")).collect();
        let seen = Arc::new(DiskFaultsSeen::default());
        Rc::new(Self {
            name: name.to_owned(),
            number,
            seed,
            lying_disk,
            region: region_of(number, regions),
            names: names.to_vec(),
            join,
            disk: SimDisk::new(seed ^ number << 32),
            pace: Pace::default(),
            clock: SimClock::default(),
            life: RefCell::new(Life::new(name, names, &seen, &air, lying_disk)),
            air,
            seen,
            starts: Cell::default(),
            ready: Cell::default(),
            is_ready: Cell::default(),
            refused_before: Cell::default(),
            io_failures_before: Cell::default(),
            id: RefCell::default(),
            exit: RefCell::default(),
            node: RefCell::default(),
            comparisons: Cell::default(),
        })
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The region that the node is in.
    pub fn region(&self) -> &'static str {
        self.region
    }

    /// What the node knows of its Raft groups; nothing while it is not ready.
    pub fn groups(&self) -> Vec<GroupStatus> {
        self.node.borrow().upgrade().map(|node| node.groups()).unwrap_or_default()
    }

    /// Whether the node has looked through the files of all tenants in the present life.
    pub fn has_scrubbed(&self) -> bool {
        self.node.borrow().upgrade().is_some_and(|node| node.scrubs() > 0)
    }

    /// How many tenants the node has compared with other replicas in the lives that were not killed, and how many
    /// of them differed.
    pub fn comparisons(&self) -> (u64, u64) {
        self.comparisons.get()
    }

    /// How many lives got as far as being ready.
    pub fn lives(&self) -> u64 {
        self.ready.get()
    }

    /// Whether this is its id in the cluster.
    pub fn is_called(&self, id: &str) -> bool {
        *self.id.borrow() == id
    }

    /// Whether this is its id in Raft groups.
    pub fn is_member(&self, raft_id: RaftId) -> bool {
        self.node.borrow().upgrade().is_some_and(|node| node.identity().raft_id == raft_id)
    }

    /// Whether the present life is ready.
    pub fn is_ready(&self) -> bool {
        self.is_ready.get()
    }

    /// Whether the disk has refused something in the present life: then the node may fail.
    pub fn has_seen_disk_fail(&self) -> bool {
        self.refused() > self.refused_before.get()
    }

    /// Whether something but a want of room has failed in the present life: a node that does not
    /// know what its disk holds stops.
    pub fn has_seen_io_fail(&self) -> bool {
        self.io_failures() > self.io_failures_before.get()
    }

    fn io_failures(&self) -> u64 {
        let (writes, reads) = self.disk.failed();
        self.seen.failed_syncs() + writes + reads
    }

    fn refused(&self) -> u64 {
        self.seen.full() + self.io_failures()
    }

    /// How the present life ended by itself, once.
    pub fn take_exit(&self) -> Option<Exit> {
        self.exit.take()
    }

    /// Asks the present life to stop cleanly.
    pub fn ask_to_stop(&self) {
        self.life.borrow().stop.notify_one();
    }

    /// Kills the present life at its next step, as the system kills a process: the disk keeps
    /// what was written, the peers learn that the connections are gone.
    pub fn kill(&self) {
        self.life.borrow().kill.notify_one();
    }

    /// Takes the power away between two steps: nobody learns of it.
    pub fn cut_power(&self) {
        self.disk.cut_power();
        self.is_gone();
    }

    /// Takes the power away, and puts a copy in the place of what is on the disk.
    pub fn put_back(&self, copy: &DiskCopy) {
        self.disk.put_back(copy);
        self.is_gone();
    }

    /// Its disk is gone, with all that was on it and its place in the cluster.
    pub fn lose_disk(&self) {
        self.disk.replace();
        self.id.take();
        self.is_gone();
    }

    /// How many lives began.
    pub fn starts(&self) -> u64 {
        self.starts.get()
    }

    /// Its id in the cluster; nothing before it has one.
    pub fn id(&self) -> String {
        self.id.borrow().clone()
    }

    /// Draws the consequences of an end that came in the middle of an operation of the disk.
    pub fn is_gone(&self) {
        self.life.borrow().end();
        self.exit.take();
    }

    /// One life: starts the node as it is shipped and waits for its end. Never returns, so that
    /// what it has left behind is torn down by the world, as that of a process is.
    ///
    /// # Errors
    /// Never: a failed life is no end of the world.
    pub async fn live(self: Rc<Self>) -> turmoil::Result {
        let incarnation = self.starts.get() + 1;
        self.starts.set(incarnation);
        self.is_ready.set(false);
        self.refused_before.set(self.refused());
        self.io_failures_before.set(self.io_failures());
        let life = Life::new(&self.name, &self.names, &self.seen, &self.air, self.lying_disk);
        self.life.replace(Rc::clone(&life));
        trace::event(&self.name, "node", format_args!("life {incarnation} begins"), &[]);
        let exit = tokio::select! {
            biased;
            () = life.kill.notified() => {
                life.end();
                Exit::Killed
            }
            exit = self.run(incarnation, &life) => exit,
        };
        trace::event(&self.name, "node", format_args!("life {incarnation} ends: {exit:?}"), &[]);
        // Whoever is left over must do no more: there is no process any longer.
        life.end();
        self.exit.replace(Some(exit));
        future::pending().await
    }

    async fn run(&self, incarnation: u64, life: &Life) -> Exit {
        let node = match Node::start(self.config(), self.seams(incarnation, life)).await {
            Ok(node) => Rc::new(node),
            Err(error) => return Exit::Failed(format!("it did not start: {error}")),
        };
        trace::event(&self.name, "node", format_args!("life {incarnation} is ready"), &[]);
        self.id.replace(node.identity().node_id.to_string());
        self.ready.set(self.ready.get() + 1);
        self.is_ready.set(true);
        self.node.replace(Rc::downgrade(&node));
        let failure = tokio::select! {
            biased;
            failure = node.failed() => Some(failure),
            () = life.stop.notified() => None,
        };
        let ((tenants, differing), (more, more_differing)) =
            (self.comparisons.get(), node.comparisons());
        self.comparisons.set((tenants + more, differing + more_differing));
        let Some(node) = Rc::into_inner(node) else {
            return Exit::Failed("somebody holds on to the node".to_owned());
        };
        let stopped = tokio::time::timeout(STOP_MAX, node.stop()).await;
        match (failure, stopped) {
            (Some(failure), _) => Exit::Failed(failure.to_string()),
            (None, Ok(())) => Exit::Stopped,
            (None, Err(_)) => Exit::Failed(format!("it did not stop within {STOP_MAX:?}")),
        }
    }

    fn config(&self) -> Config {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Config {
            api_addr: any(API_PORT),
            node_addr: any(NODE_PORT),
            advertise_addr: Some(format!("{}:{NODE_PORT}", self.name)),
            join: self.join.clone(),
            join_token: Some(Secret::new(JOIN_TOKEN)),
            data_dir: format!("/{}", self.name).into(),
            insecure: true,
            api_hosts: vec![self.name.clone()],
            election_timeout: ELECTION_TIMEOUT,
            region: Region::try_from(self.region.to_owned()).unwrap_or_default(),
            ..Config::default()
        }
    }

    fn seams(&self, incarnation: u64, life: &Life) -> NodeSeams {
        let entropy = SeededEntropy::new(self.seed, self.number, incarnation);
        NodeSeams {
            seams: Seams { clock: Arc::new(self.clock.clone()), entropy: Arc::new(entropy) },
            tcp: Arc::new(life.tcp.clone()),
            udp: Arc::new(life.udp.clone()),
            disk: Arc::new(TracedDisk::new(self.disk.mount(), life.process.clone())),
            executor: Executor::Paced(self.pace.clone()),
            client_threads: ClientThreads::Shared,
            plain_packets: true,
            pid: u32::try_from(self.number).unwrap_or(u32::MAX),
            descriptors: DESCRIPTORS,
        }
    }
}

//! The world of a run: the hosts, the faults, and the three phases.
//!
//! First the clients work while faults happen. Then the faults stop for good, everything that was
//! begun has to end within a bound, and the nodes have to agree. At last all nodes are stopped
//! cleanly, and what is on their disks is checked as a whole.

pub mod board;
mod disks;
mod faults;
mod hosts;
mod inside;
mod stage;
mod verdict;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use outside::ensure;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use turmoil::Sim;

use crate::checks::matching::{Compared, Matching};
use crate::checks::terms::Terms;
use crate::checks::{self, Checked, Violation, liveness};
use crate::env::{det, heap, trace};
use crate::plan::{Mix, Plan, SERVICE, node_name, regions};
pub use board::{Board, Phase};
use disks::deletions::Kept;
use disks::files;
use disks::folders::Folder;
pub(crate) use disks::folders::folder;
use disks::losses::Loss;
pub use faults::Fault;
use faults::Schedule;
pub use hosts::{Exit, NodeHost, Service};
use hosts::{NodeState, Seat};

/// A step of the simulation. The loop over steps is what costs, so it is as long as the shortest
/// way of a message.
const TICK: Duration = Duration::from_millis(2);
/// The longest way of a message, unless the link is slowed down.
const LATENCY_TICKS_MAX: u32 = 3;
/// Datagrams that wait at a socket.
const UDP_DATAGRAMS_MAX: usize = 4096;

/// A run, from its first to its last moment.
pub struct World {
    sim: Sim<'static>,
    board: Rc<Board>,
    seats: Vec<Seat>,
    /// The hosts that are no nodes.
    others: Vec<String>,
    /// Whether a process that has ended is started only when somebody says so.
    stays_down: bool,
    schedule: Schedule,
    /// The node that has no disk of its own history, if any.
    loss: Option<Loss>,
    /// The folder of a tenant that is not as it was, if any.
    folder: Option<Folder>,
    /// The folder of a tenant that is put back when the tenant was deleted, if any.
    kept: Option<Kept>,
    /// Whether a bit of a tenant's events has rotted in this run.
    has_rotted: bool,
    /// Chance of the world itself: moments and kinds of faults.
    rng: SmallRng,
    counts: BTreeMap<Fault, u64>,
    matching: Matching,
    terms: Terms,
    told: inside::AllTold,
    steps: u64,
}

/// How a run ended.
pub(crate) struct Ending {
    pub(crate) violation: Option<String>,
    pub(crate) simulated: Duration,
    pub(crate) faults: BTreeMap<Fault, u64>,
    /// What was compared with what another node has.
    pub(crate) compared: Compared,
}

impl World {
    /// Builds the nodes and the service. Whoever adds these clients lays the links then.
    pub(crate) fn new(plan: &Plan, clients: &[String]) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH)
            .simulation_duration(Duration::MAX)
            .tick_duration(TICK)
            .min_message_latency(TICK)
            .max_message_latency(TICK)
            .udp_capacity(UDP_DATAGRAMS_MAX);
        let mut sim = builder.build();
        let mut names: Vec<String> = (1..=plan.nodes).map(node_name).collect();
        names.push(SERVICE.to_owned());
        let nodes: Vec<_> = (1..=plan.nodes)
            .map(|number| {
                // The first one founds the cluster; the others know it and one another.
                let others = if number == 1 { 0 } else { plan.nodes };
                let others: Vec<String> = (1..=others).map(node_name).collect();
                NodeHost::new(number, plan, &names, &others)
            })
            .collect();
        let service = Service::new(plan.seed);
        let unrest = plan.faults && matches!(plan.mix, Mix::All | Mix::Processes);
        let board = Board::new(nodes.clone(), Rc::clone(&service), unrest, regions(plan.regions));
        sim.host(SERVICE, move || Rc::clone(&service).serve());
        for node in &nodes {
            let living = Rc::clone(node);
            sim.host(node.name(), move || Rc::clone(&living).live());
        }
        let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0xfa_u64 << 56);
        let schedule = Schedule::new(plan, &mut rng);
        let seats = nodes.into_iter().map(Seat::new).collect();
        let mut others = clients.to_vec();
        others.push(SERVICE.to_owned());
        Self {
            sim,
            board,
            seats,
            others,
            stays_down: false,
            schedule,
            loss: None,
            folder: None,
            kept: None,
            has_rotted: false,
            rng,
            counts: BTreeMap::new(),
            matching: Matching::default(),
            terms: Terms::default(),
            told: BTreeMap::new(),
            steps: 0,
        }
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(mut self, plan: &Plan) -> Ending {
        let work = Duration::from_secs(plan.secs);
        // A panic in a task that nobody joins ends turmoil's step.
        let checked = catch_unwind(AssertUnwindSafe(|| self.phases(work)));
        let violation = match checked {
            Ok(checked) => checked.err().map(|Violation(text)| text),
            Err(_) => Some("a task of a host panicked".to_owned()),
        };
        let violation = match (det::take_panics(), violation) {
            (panics, violation) if panics.is_empty() => violation,
            (panics, _) => Some(panics.join("; ")),
        };
        if let Some(violation) = &violation {
            trace::event("all", "broken", format_args!("{violation}"), &[]);
        }
        self.count_seen();
        let (compared, simulated) = (self.compared(), self.sim.elapsed());
        let faults = std::mem::take(&mut self.counts);
        self.tear_down();
        Ending { violation, simulated, faults, compared }
    }

    /// Counts what was compared, here and by the nodes.
    fn compared(&self) -> Compared {
        let mut compared = self.matching.compared();
        for Seat { host, .. } in &self.seats {
            let (tenants, differing) = host.comparisons();
            compared.tenants += tenants;
            compared.differing += differing;
        }
        compared
    }

    /// What the clients share.
    pub(crate) fn board(&self) -> &Rc<Board> {
        &self.board
    }

    /// Adds a client, one of those that the world was built for.
    pub(crate) fn add_client(
        &mut self,
        name: &str,
        client: impl Future<Output = turmoil::Result> + 'static,
    ) {
        self.sim.client(name, client);
    }

    /// Ends everything.
    pub(crate) fn tear_down(self) {
        // What is left of the processes must not reach a network that is torn down with them.
        self.seats.iter().for_each(|seat| seat.host.is_gone());
    }

    /// Counts what others than the world itself have seen happen.
    fn count_seen(&mut self) {
        let mut seen = |fault, times| *self.counts.entry(fault).or_default() += times;
        for Seat { host, .. } in &self.seats {
            seen(Fault::FullDisk, host.seen.full());
            seen(Fault::FailedSyncs, host.seen.failed_syncs());
            let (writes, reads) = host.disk.failed();
            seen(Fault::FailedWrites, writes);
            seen(Fault::FailedReads, reads);
            let [lost, doubled, late] = host.air.counts();
            seen(Fault::LostPacket, lost);
            seen(Fault::DoubledPacket, doubled);
            seen(Fault::LatePacket, late);
        }
        seen(Fault::StepDown, self.board.stepped_down.get());
    }

    fn phases(&mut self, work: Duration) -> Checked {
        while self.sim.elapsed() < work {
            self.step()?;
            self.next_fault();
        }
        self.clear_up();
        self.board.settles_since.set(self.sim.elapsed());
        self.board.phase.set(Phase::Settle);
        let since = self.sim.elapsed();
        while !self.step()? {
            let settle_max = liveness::SETTLE_MAX + self.board.replacing_max();
            let in_time = self.sim.elapsed() < since + settle_max;
            ensure!(in_time, "not all is done {settle_max:?} after the last fault");
        }
        self.await_letting_go()?;
        self.await_deletions()?;
        self.stop_and_compare()?;
        // A replica that is taken out of service for nothing is rebuilt, and nobody else would notice.
        let differing = self.compared().differing;
        ensure!(differing == 0 || self.has_rotted, "{differing} tenants differ between nodes");
        let heap_bytes = heap::peak_bytes().saturating_sub(trace::line_bytes());
        checks::memory::check(self.seats.len() as u64, heap_bytes)?;
        verdict::whole(&self.board, &self.disks()?)
    }

    /// Runs on until nobody has anything of a group that was assigned to others.
    fn await_letting_go(&mut self) -> Checked {
        let bound = self.sim.elapsed() + liveness::LET_GO_MAX;
        while let Some(left) = self.left_over() {
            let in_time = self.sim.elapsed() < bound;
            ensure!(in_time, "{left} after {:?}", liveness::LET_GO_MAX);
            self.run_for(Duration::from_secs(1))?;
        }
        Ok(())
    }

    /// Runs on for so long.
    fn run_for(&mut self, time: Duration) -> Checked {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step()?;
        }
        Ok(())
    }

    /// Stops all nodes for good, and compares what they have left.
    pub(crate) fn stop_and_compare(&mut self) -> Checked {
        self.board.phase.set(Phase::Stop);
        self.stop_all()?;
        self.check_folders()?;
        (0..self.seats.len()).try_for_each(|at| self.examine_all(at))
    }

    /// One step of all hosts. Tells whether the clients are done.
    pub(crate) fn step(&mut self) -> Checked<bool> {
        det::count_step();
        trace::freeze(None);
        let stepped = self.sim.step();
        trace::freeze(Some(self.sim.elapsed()));
        let done = stepped.map_err(|error| Violation(error.to_string()))?;
        let panics = det::take_panics();
        ensure!(panics.is_empty(), "{}", panics.join("; "));
        self.look_inside()?;
        self.follow_nodes()?;
        self.check_losses()?;
        Ok(done)
    }

    /// Stops the nodes for good: at once, or one after the other.
    fn stop_all(&mut self) -> Checked {
        let at_once = self.rng.random_bool(0.5);
        for at in 0..self.seats.len() {
            self.seats[at].host.ask_to_stop();
            if !at_once {
                self.await_stops(at + 1)?;
            }
        }
        self.await_stops(self.seats.len())
    }

    fn await_stops(&mut self, first: usize) -> Checked {
        let bound = self.sim.elapsed() + liveness::STOP_MAX;
        while self.seats[..first].iter().any(|seat| seat.state != NodeState::Stopped) {
            self.step()?;
            let in_time = self.sim.elapsed() < bound;
            ensure!(in_time, "a node does not stop in {:?}", liveness::STOP_MAX);
        }
        Ok(())
    }

    fn count(&mut self, fault: Fault) {
        *self.counts.entry(fault).or_default() += 1;
    }

    /// The logs of tenants on each disk.
    fn disks(&self) -> Checked<Vec<checks::Logs>> {
        let read = |seat: &Seat| files::read_all(&*seat.host.disk.fork().mount(), "events.jsonl");
        let disks = self.seats.iter().map(|seat| {
            let logs = read(seat).map_err(|error| Violation(format!("the disk: {error}")))?;
            Ok(checks::Logs { node: seat.host.name().to_owned(), logs })
        });
        disks.collect()
    }
}

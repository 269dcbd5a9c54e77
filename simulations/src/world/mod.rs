//! The world of a run: the hosts, the faults, and the two phases.
//!
//! First the clients work while faults happen. Then the faults stop for good, everything that was
//! begun has to end within a bound, the node is stopped cleanly, and what is on its disk is
//! checked as a whole.

mod faults;
mod host;
mod service;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use turmoil::Sim;

use crate::board::{Board, Phase};
use crate::checks::{Checked, Violation, events, liveness, locks, quotas, steps};
use crate::workload::client_name;
use crate::{Plan, det, ensure, trace, workload};
pub use faults::Fault;
use faults::Weather;
pub use host::{API_PORT, Exit, NodeHost};
pub use service::{SERVICE, SERVICE_PORT, Service};

/// The node's host.
const NODE: &str = "n1";
/// How many clients there are.
const CLIENTS: u64 = 4;
/// A step of the simulation. The loop over steps is what costs, so it is as long as the shortest
/// way of a message.
const TICK: Duration = Duration::from_millis(2);
/// The longest way of a message.
const LATENCY_MAX: Duration = Duration::from_millis(6);
/// A process that ended by itself is started again after so long, ms.
const RESTART_MS_MIN: u64 = 20;
const RESTART_MS_MAX: u64 = 1500;

/// A run, from its first to its last moment.
pub struct World {
    sim: Sim<'static>,
    board: Rc<Board>,
    state: NodeState,
    weather: Weather,
    /// Chance of the world itself: moments and kinds of faults.
    rng: SmallRng,
    counts: BTreeMap<Fault, u64>,
}

/// Whether the node's process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeState {
    /// It runs, since that moment.
    Up(Duration),
    /// It is started at that moment.
    Down(Duration),
    /// It was asked to stop for good, and did.
    Stopped,
}

/// How a run ended.
pub(crate) struct Ending {
    pub(crate) violation: Option<String>,
    pub(crate) simulated: Duration,
    pub(crate) faults: BTreeMap<Fault, u64>,
}

impl World {
    /// Builds the hosts.
    pub fn new(plan: &Plan) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH)
            .simulation_duration(Duration::MAX)
            .tick_duration(TICK)
            .min_message_latency(TICK)
            .max_message_latency(LATENCY_MAX);
        let mut sim = builder.build();
        let names = [SERVICE.to_owned()];
        let node = NodeHost::new(NODE, 1, plan, &names);
        let service = Service::new(plan.seed);
        let board = Board::new(Rc::clone(&node), Rc::clone(&service));
        sim.host(SERVICE, move || Rc::clone(&service).serve());
        sim.host(NODE, move || Rc::clone(&node).live());
        for number in 1..=CLIENTS {
            let client = workload::client(number, plan.seed, Rc::clone(&board));
            sim.client(client_name(number), client);
        }
        let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0xfa_u64 << 56);
        let weather = Weather::new(plan, &mut rng);
        let state = NodeState::Up(Duration::ZERO);
        Self { sim, board, state, weather, rng, counts: BTreeMap::new() }
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
        let seen = &self.board.node.seen;
        self.counts.insert(Fault::FullDisk, seen.full());
        self.counts.insert(Fault::FailedSyncs, seen.failed_syncs());
        Ending { violation, simulated: self.sim.elapsed(), faults: self.counts }
    }

    fn phases(&mut self, work: Duration) -> Checked {
        while self.sim.elapsed() < work {
            self.step()?;
            self.next_fault();
        }
        self.clear_up();
        self.board.phase.set(Phase::Settle);
        let bound = self.sim.elapsed() + liveness::SETTLE_MAX;
        while !self.step()? {
            ensure!(
                self.sim.elapsed() < bound,
                "not all is done {:?} after the last fault",
                liveness::SETTLE_MAX
            );
        }
        self.board.node.ask_to_stop();
        let bound = self.sim.elapsed() + liveness::STOP_MAX;
        while self.state != NodeState::Stopped {
            self.step()?;
            ensure!(
                self.sim.elapsed() < bound,
                "the node does not stop in {:?}",
                liveness::STOP_MAX
            );
        }
        self.check_whole()
    }

    /// One step of all hosts. Tells whether the clients are done.
    fn step(&mut self) -> Checked<bool> {
        trace::freeze(None);
        let stepped = self.sim.step();
        trace::freeze(Some(self.sim.elapsed()));
        let done = stepped.map_err(|error| Violation(error.to_string()))?;
        let panics = det::take_panics();
        ensure!(panics.is_empty(), "{}", panics.join("; "));
        self.follow_node(done)?;
        Ok(done)
    }

    /// Carries out what has become of the node's process.
    fn follow_node(&mut self, done: bool) -> Checked {
        let now = self.sim.elapsed();
        let node = Rc::clone(&self.board.node);
        if node.disk.take_ended() {
            node.is_gone();
            self.count(self.weather.armed());
            self.bring_down("it is gone in the middle of an operation");
            return Ok(());
        }
        match (node.take_exit(), self.state) {
            (Some(Exit::Stopped), _) if done => {
                self.sim.crash(NODE);
                self.state = NodeState::Stopped;
            }
            (Some(Exit::Failed(why)), _) => {
                let excused = node.has_seen_disk_fail();
                ensure!(excused, "the node failed by itself: {why}");
                self.count(Fault::NodeFailed);
                self.bring_down("it ended by itself");
            }
            (Some(exit @ (Exit::Stopped | Exit::Killed)), _) => {
                self.count(if exit == Exit::Killed { Fault::Kill } else { Fault::Restart });
                self.bring_down("it ended");
            }
            (None, NodeState::Down(until)) if now >= until => {
                self.sim.bounce(NODE);
                self.state = NodeState::Up(now);
            }
            (None, NodeState::Up(since)) => {
                let late = now > since + liveness::READY_MAX && !node.is_ready();
                let excused = node.has_seen_disk_fail();
                ensure!(!late || excused, "not ready {:?} after its start", liveness::READY_MAX);
            }
            _ => {}
        }
        Ok(())
    }

    /// Tears down what is left of a process that has come to its end, and plans the next one.
    fn bring_down(&mut self, why: &str) {
        trace::event(NODE, "fault", format_args!("{why}"), &[]);
        self.sim.crash(NODE);
        let down_ms = self.rng.random_range(RESTART_MS_MIN..=RESTART_MS_MAX);
        self.state = NodeState::Down(self.sim.elapsed() + Duration::from_millis(down_ms));
    }

    fn count(&mut self, fault: Fault) {
        *self.counts.entry(fault).or_default() += 1;
    }

    /// What can only be said when everything has ended: of the disk, and of what all know.
    fn check_whole(&self) -> Checked {
        locks::check(&self.board.locks.borrow())?;
        let (limits, runs) = (self.board.limits.borrow(), self.board.runs.borrow());
        let disk = self.board.node.disk.mount();
        let logs = faults::read_all(&*disk, "events.jsonl");
        for (path, bytes) in logs.map_err(|error| Violation(format!("the disk: {error}")))? {
            let events = events::parse(&path, &bytes)?;
            let tenant = path.rsplit('/').nth(1).unwrap_or_default();
            quotas::check(tenant, limits.get(tenant).copied().unwrap_or_default(), &events)?;
            if let Some(runs) = runs.get(tenant) {
                steps::check(tenant, runs, &events)?;
            }
        }
        Ok(())
    }
}

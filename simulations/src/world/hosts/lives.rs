//! What becomes of the nodes' processes: followed after every step of the world.

use std::rc::Rc;
use std::time::Duration;

use outside::ensure;
use rand::Rng as _;

use crate::checks::{Checked, liveness};
use crate::env::trace;
use crate::world::Phase;
use crate::world::{Exit, Fault, NodeHost, World};

/// A process that ended by itself is started again after so long, ms.
const RESTART_MS_MIN: u64 = 20;
const RESTART_MS_MAX: u64 = 1500;

/// A node's place in the world.
pub(in crate::world) struct Seat {
    pub(in crate::world) host: Rc<NodeHost>,
    pub(in crate::world) state: NodeState,
    /// What was last armed to come in the middle of an operation of its disk.
    pub(in crate::world) armed: Fault,
}

/// Whether a node's process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::world) enum NodeState {
    /// It runs, since that moment.
    Up(Duration),
    /// It is started at that moment.
    Down(Duration),
    /// It was asked to stop for good, and did.
    Stopped,
}

impl Seat {
    pub(in crate::world) fn new(host: Rc<NodeHost>) -> Self {
        Self { host, state: NodeState::Up(Duration::ZERO), armed: Fault::PowerCutInOperation }
    }

    pub(in crate::world) fn is_up(&self) -> bool {
        matches!(self.state, NodeState::Up(_))
    }
}

impl World {
    /// Carries out what has become of all processes.
    pub(in crate::world) fn follow_nodes(&mut self) -> Checked {
        (0..self.seats.len()).try_for_each(|at| self.follow_node(at))
    }

    fn follow_node(&mut self, at: usize) -> Checked {
        let now = self.sim.elapsed();
        let Seat { host, state, armed } = &self.seats[at];
        let (host, state, armed) = (Rc::clone(host), *state, *armed);
        if host.disk.take_ended() {
            host.is_gone();
            self.count(armed);
            self.bring_down(at, "it is gone in the middle of an operation");
            return Ok(());
        }
        match (host.take_exit(), state) {
            (Some(Exit::Stopped), _) if self.board.phase.get() == Phase::Stop => {
                self.sim.crash(host.name());
                self.seats[at].state = NodeState::Stopped;
            }
            (Some(Exit::Failed(why)), _) if self.is_lost(at, &why) => {}
            (Some(Exit::Failed(why)), _) => {
                // A full disk is no reason to end, but a start may need room.
                let excused = host.has_seen_io_fail()
                    || (host.has_seen_disk_fail() && !host.is_ready())
                    || is_waiting_to_join(&why);
                let is_settled = self.board.phase.get() != Phase::Work
                    && now > self.board.settles_since.get() + liveness::EXCUSED_MAX;
                ensure!(excused && !is_settled, "{} failed by itself: {why}", host.name());
                self.count(Fault::NodeFailed);
                self.bring_down(at, "it ended by itself");
            }
            (Some(exit @ (Exit::Stopped | Exit::Killed)), _) => {
                self.count(if exit == Exit::Killed { Fault::Kill } else { Fault::Restart });
                self.bring_down(at, "it ended");
            }
            (None, NodeState::Down(until)) if now >= until => {
                self.examine(at)?;
                self.sim.bounce(host.name());
                self.seats[at].state = NodeState::Up(now);
            }
            // With others it may have to wait for them.
            (None, NodeState::Up(since)) if self.seats.len() == 1 => {
                let late = now > since + liveness::READY_MAX && !host.is_ready();
                let excused = host.has_seen_disk_fail();
                ensure!(!late || excused, "not ready {:?} after its start", liveness::READY_MAX);
            }
            _ => {}
        }
        Ok(())
    }

    /// Tears down what is left of a process that has come to its end, and plans the next one.
    pub(in crate::world) fn bring_down(&mut self, at: usize, why: &str) {
        let name = self.seats[at].host.name();
        trace::event(name, "fault", format_args!("{why}"), &[]);
        self.sim.crash(name);
        let down_ms = self.rng.random_range(RESTART_MS_MIN..=RESTART_MS_MAX);
        let until = match self.stays_down {
            true => Duration::MAX,
            false => self.sim.elapsed() + Duration::from_millis(down_ms),
        };
        self.seats[at].state = NodeState::Down(until);
    }
}

/// Whether a node gave up because nobody was there to let it in.
fn is_waiting_to_join(why: &str) -> bool {
    why.contains("no member of the cluster let this node in")
}

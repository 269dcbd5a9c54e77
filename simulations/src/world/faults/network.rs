//! The links between nodes: how long they are, and how they fail.

use std::fmt;
use std::time::Duration;

use rand::Rng as _;
use rand::seq::SliceRandom as _;

use super::Fault;
use crate::env::trace;
use crate::plan::node_name;
use crate::world::{LATENCY_TICKS_MAX, TICK, World};

/// The way over a link that was slowed down, ms.
const SLOW_MS_MIN: u64 = 20;
const SLOW_MS_MAX: u64 = 90;

/// A partition in force: the ways, from a node to a node, that nothing passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::world) struct Split {
    pub(in crate::world) kind: Fault,
    ways: Vec<(usize, usize)>,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = |at: usize| node_name(at as u64 + 1);
        let ways: Vec<String> =
            self.ways.iter().map(|(from, to)| format!("{} to {}", n(*from), n(*to))).collect();
        write!(f, "{}: nothing passes {}", self.kind, ways.join(", "))
    }
}

impl World {
    /// Gives every link a length of its own. A latency that changes from packet to packet would
    /// reorder them, and QUIC takes that for loss.
    pub(crate) fn lay_links(&mut self) {
        let mut hosts = self.board.node_names();
        let nodes = hosts.len();
        hosts.extend(self.others.iter().cloned());
        for a in 0..nodes {
            for b in a + 1..hosts.len() {
                let latency = TICK * self.rng.random_range(1..=LATENCY_TICKS_MAX);
                self.sim.set_link_latency(hosts[a].as_str(), hosts[b].as_str(), latency);
            }
        }
    }

    /// Makes a link between two nodes long.
    pub(in crate::world) fn slow_down(&mut self, pair: (usize, usize)) {
        let slow = Duration::from_millis(self.rng.random_range(SLOW_MS_MIN..=SLOW_MS_MAX));
        self.set_latency(pair, slow);
    }

    pub(in crate::world) fn speed_up(&mut self, pair: (usize, usize)) {
        let latency = TICK * self.rng.random_range(1..=LATENCY_TICKS_MAX);
        self.set_latency(pair, latency);
    }

    fn set_latency(&mut self, (a, b): (usize, usize), latency: Duration) {
        let (a, b) = (self.seats[a].host.name(), self.seats[b].host.name());
        trace::event(a, "fault", format_args!("{latency:?} from and to {b}"), &[]);
        self.sim.set_link_latency(a, b, latency);
    }

    /// Thinks of a partition of some kind.
    pub(in crate::world) fn some_split(&mut self, kind: Fault) -> Split {
        let nodes = self.seats.len();
        let one = self.rng.random_range(0..nodes);
        let others = |one: usize| (0..nodes).filter(move |other| *other != one);
        let both = |a: usize, b: usize| [(a, b), (b, a)];
        let ways: Vec<(usize, usize)> = match kind {
            Fault::LeaderAlone => {
                let one = self.board.leader.get().unwrap_or(one);
                others(one).flat_map(|other| both(one, other)).collect()
            }
            Fault::NodeAlone => others(one).flat_map(|other| both(one, other)).collect(),
            Fault::OneWay => {
                let heard = self.rng.random_bool(0.5);
                others(one).map(|other| if heard { (other, one) } else { (one, other) }).collect()
            }
            Fault::Halves => {
                let mut order: Vec<usize> = (0..nodes).collect();
                order.shuffle(&mut self.rng);
                let (left, right) = order.split_at(nodes / 2);
                left.iter().flat_map(|a| right.iter().flat_map(move |b| both(*a, *b))).collect()
            }
            _ => {
                let (a, b) = self.some_pair();
                both(a, b).to_vec()
            }
        };
        Split { kind, ways }
    }

    pub(in crate::world) fn part(&mut self, split: &Split) {
        for &(from, to) in &split.ways {
            let (from, to) = (self.seats[from].host.name(), self.seats[to].host.name());
            self.sim.partition_oneway(from, to);
        }
        self.count(split.kind);
        let now = self.sim.elapsed();
        for at in 0..self.seats.len() {
            // It neither reaches nor is reached by so many others that no majority is left.
            let cut_off = (0..self.seats.len())
                .filter(|other| split.ways.contains(&(at, *other)))
                .filter(|other| split.ways.contains(&(*other, at)))
                .count();
            let reached = self.seats.len() - cut_off;
            if reached * 2 <= self.seats.len() && self.board.all_vote.get() {
                self.board.cut_off.borrow_mut().insert(at, now);
            }
        }
    }

    pub(in crate::world) fn mend(&mut self, split: &Split) {
        for &(from, to) in &split.ways {
            let (from, to) = (self.seats[from].host.name(), self.seats[to].host.name());
            self.sim.repair_oneway(from, to);
        }
        self.board.cut_off.borrow_mut().clear();
    }

    /// Nothing comes to a node and nothing leaves it, until [`Self::let_go`].
    pub(crate) fn hold(&mut self, at: usize) {
        for other in self.everybody_but(at) {
            self.sim.hold(self.seats[at].host.name(), other.as_str());
        }
    }

    pub(crate) fn let_go(&mut self, at: usize) {
        for other in self.everybody_but(at) {
            self.sim.release(self.seats[at].host.name(), other.as_str());
        }
    }

    fn everybody_but(&self, at: usize) -> Vec<String> {
        let mut others = self.board.node_names();
        others.remove(at);
        others.extend(self.others.iter().cloned());
        others
    }

    pub(in crate::world) fn some_pair(&mut self) -> (usize, usize) {
        let a = self.rng.random_range(0..self.seats.len());
        let b = (a + self.rng.random_range(1..self.seats.len())) % self.seats.len();
        (a, b)
    }
}

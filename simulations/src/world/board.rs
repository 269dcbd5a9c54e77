//! What the clients of a run share: the phase it is in, and the facts that only all of them
//! together know.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use outside::checks::locks::LockFact;
use serde_json::Value;
use stateright::semantics::register::{RegisterOp, RegisterRet};

use super::{NodeHost, Service};
use crate::checks::linear::Seen;
use crate::checks::lock_spec::{LockAnswer, LockOp};
use crate::checks::object_spec::SharedObject;
use crate::checks::out_of_service::Reason;
use crate::checks::{Checked, liveness, reads};
use crate::env::trace;
use crate::facts::{Limits, Reply};

/// What a run is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Faults happen and the clients work.
    Work,
    /// Faults have stopped and the clients wait for what they began.
    Settle,
    /// All is done and the nodes are stopped for good.
    Stop,
}

/// A tenant that has to be out of service on its node for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutOfService {
    /// The place of the node.
    pub at: usize,
    /// The tenant.
    pub tenant: String,
    /// Why.
    pub reason: Reason,
    /// Whether the node has said so.
    pub was_said: bool,
    /// Whether the node has served another tenant meanwhile.
    pub neighbour_served: bool,
}

impl OutOfService {
    /// A tenant of which nobody has heard yet that it is.
    pub fn new(at: usize, tenant: &str, reason: Reason) -> Self {
        Self { at, tenant: tenant.to_owned(), reason, was_said: false, neighbour_served: false }
    }
}

/// The description of the shared tenant, which all clients write and read.
#[derive(Debug, Clone)]
pub struct SharedRegister {
    /// What it said at first.
    pub initial: String,
    /// How many operations were begun.
    pub begun: usize,
    /// What was written and read.
    pub history: Vec<Seen<RegisterOp<String>, RegisterRet<String>>>,
}

/// What clients did with one lock.
pub type LockHistory = Vec<Seen<LockOp, LockAnswer>>;

/// What the clients share.
pub struct Board {
    /// Whether clients may make trouble as well.
    pub unrest: bool,
    /// The regions that tenants move between.
    pub regions: &'static [&'static str],
    /// The nodes they talk to.
    pub nodes: Vec<Rc<NodeHost>>,
    /// The service that steps call.
    pub service: Rc<Service>,
    /// The phase.
    pub phase: Cell<Phase>,
    /// When the faults stopped.
    pub settles_since: Cell<Duration>,
    /// Clients that have something left to do or to wait for.
    pub busy: Cell<u64>,
    /// The place of the node that was last seen to lead the cluster.
    pub leader: Cell<Option<usize>>,
    /// Whether every node has been seen to vote: before, fewer are a majority.
    pub all_vote: Cell<bool>,
    /// The ids of the nodes that hold a group of tenants, as soon as there are any.
    pub keeps_tenants: RefCell<BTreeSet<String>>,
    /// The node that is to leave the cluster, by its id, until a client has taken that on.
    pub to_leave: RefCell<Option<String>>,
    /// Whether the last one that was to leave was told to stay.
    pub stays: Cell<bool>,
    /// Whether clients leave the leader alone.
    pub holds_still: Cell<bool>,
    /// The tenant that has to be out of service, if any.
    pub out_of_service: RefCell<Option<OutOfService>>,
    /// The tenants that a client has asked to delete.
    pub deletions: RefCell<BTreeSet<String>>,
    /// How many disks were lost with all that was on them.
    pub lost_disks: Cell<u64>,
    /// The nodes that can talk to no majority, by their places, and since when.
    pub cut_off: RefCell<BTreeMap<usize, Duration>>,
    /// How often a leader stepped down because a client asked.
    pub stepped_down: Cell<u64>,
    /// The tenant that all clients use, once it is there.
    pub shared_tenant: RefCell<Option<String>>,
    /// What is known about locks, in the order it was learned.
    pub locks: RefCell<Vec<LockFact>>,
    /// What was done with each lock, by key space and key, but for refusals.
    pub lock_ops: RefCell<BTreeMap<(String, String), LockHistory>>,
    /// The highest token that was shown to what each lock guards.
    pub fences: RefCell<BTreeMap<(String, String), u64>>,
    /// The register that all clients share, once it is there.
    pub register: RefCell<Option<SharedRegister>>,
    /// What all clients write, read and remove.
    pub objects: RefCell<Vec<SharedObject>>,
    /// The tenant that definitions and runs among those are in, once it is there.
    pub objects_tenant: RefCell<Option<String>>,
    /// The events of the shared tenant, as far as anybody has read them.
    pub events: RefCell<Vec<Value>>,
    /// The newest version of the shared tenant that anybody was shown.
    pub told: Cell<u64>,
    /// The limits of every tenant that was ever acknowledged.
    pub limits: RefCell<BTreeMap<String, Limits>>,
    /// By how many days the clock of each node was wrong, one time after the other; nodes by their
    /// places.
    pub days_off: RefCell<BTreeMap<usize, Vec<i64>>>,
    /// The runs that must be in the log of a tenant that was not deleted, with their steps.
    pub runs: RefCell<BTreeMap<String, BTreeMap<String, Vec<String>>>>,
}

impl Board {
    /// The board of a world with these nodes.
    pub fn new(
        nodes: Vec<Rc<NodeHost>>,
        service: Rc<Service>,
        unrest: bool,
        regions: &'static [&'static str],
    ) -> Rc<Self> {
        Rc::new(Self {
            unrest,
            regions,
            nodes,
            service,
            phase: Cell::new(Phase::Work),
            settles_since: Cell::default(),
            busy: Cell::default(),
            leader: Cell::default(),
            all_vote: Cell::default(),
            keeps_tenants: RefCell::default(),
            to_leave: RefCell::default(),
            stays: Cell::default(),
            holds_still: Cell::default(),
            out_of_service: RefCell::default(),
            deletions: RefCell::default(),
            lost_disks: Cell::default(),
            cut_off: RefCell::default(),
            stepped_down: Cell::default(),
            shared_tenant: RefCell::default(),
            locks: RefCell::default(),
            lock_ops: RefCell::default(),
            fences: RefCell::default(),
            register: RefCell::default(),
            objects: RefCell::default(),
            objects_tenant: RefCell::default(),
            events: RefCell::default(),
            told: Cell::default(),
            limits: RefCell::default(),
            days_off: RefCell::default(),
            runs: RefCell::default(),
        })
    }

    /// Whether the clients should go on.
    pub fn works(&self) -> bool {
        self.phase.get() == Phase::Work
    }

    /// How many lives of nodes got as far as being ready: it grows with each interruption.
    pub fn lives(&self) -> u64 {
        self.nodes.iter().map(|node| node.lives()).sum()
    }

    /// So much longer than else it may take until everything is in order.
    pub fn replacing_max(&self) -> Duration {
        if self.lost_disks.get() > 0 { liveness::REPLACED_MAX } else { Duration::ZERO }
    }

    /// The names of the nodes.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name().to_owned()).collect()
    }

    /// Compares an answer about the shared tenant with what was `told` when it was asked for.
    ///
    /// # Errors
    /// When it is older.
    pub fn learn_version(&self, told: u64, reply: &Reply) -> Checked {
        let version = reads::not_older(told, reply)?;
        self.told.set(self.told.get().max(version));
        Ok(())
    }

    /// Adds a fact about locks.
    pub fn learn(&self, fact: LockFact) {
        trace::event("all", "lock", format_args!("{fact:?}"), &[]);
        self.locks.borrow_mut().push(fact);
    }
}

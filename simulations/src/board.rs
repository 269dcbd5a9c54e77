//! What the clients of a run share: the phase it is in, and the facts that only all of them
//! together know.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::trace;
use crate::world::{NodeHost, Service};

/// What a run is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Faults happen and the clients work.
    Work,
    /// Faults have stopped and the clients wait for what they began.
    Settle,
}

/// A fact about locks, as a client learned it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockFact {
    /// The key space: the cluster's or a tenant's.
    pub space: String,
    /// The key.
    pub key: String,
    /// The holder.
    pub holder: String,
    /// The fencing token.
    pub token: u64,
    /// When the request was first sent, since the start of the run: what it brought about is no
    /// older.
    pub first_sent_at: Duration,
    /// When the call that was answered was sent.
    pub sent_at: Duration,
    /// What it says.
    pub what: LockEvent,
}

/// What a call about a lock did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockEvent {
    /// Granted, or prolonged, for so long from a moment after it was sent.
    Held {
        /// When the answer came.
        answered_at: Duration,
        /// For how long.
        ttl: Duration,
    },
    /// Asked to be released, whatever came of it.
    Releasing,
}

/// What a tenant was made with and keeps: the limits that the log must respect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Runs at the same time.
    pub concurrent: Option<u64>,
    /// Runs a day.
    pub per_day: Option<u64>,
}

/// What the clients share.
pub struct Board {
    /// The node they talk to.
    pub node: Rc<NodeHost>,
    /// The service that steps call.
    pub service: Rc<Service>,
    /// The phase.
    pub phase: Cell<Phase>,
    /// The tenant that all clients use, once it is there.
    pub shared_tenant: RefCell<Option<String>>,
    /// What is known about locks, in the order it was learned.
    pub locks: RefCell<Vec<LockFact>>,
    /// The limits of every tenant that was ever acknowledged.
    pub limits: RefCell<BTreeMap<String, Limits>>,
    /// The runs that must be in the log of a tenant that was not deleted, with their steps.
    pub runs: RefCell<BTreeMap<String, BTreeMap<String, Vec<String>>>>,
}

impl Board {
    /// The board of a world with one node.
    pub fn new(node: Rc<NodeHost>, service: Rc<Service>) -> Rc<Self> {
        Rc::new(Self {
            node,
            service,
            phase: Cell::new(Phase::Work),
            shared_tenant: RefCell::default(),
            locks: RefCell::default(),
            limits: RefCell::default(),
            runs: RefCell::default(),
        })
    }

    /// Whether the clients should go on.
    pub fn works(&self) -> bool {
        self.phase.get() == Phase::Work
    }

    /// Adds a fact about locks.
    pub fn learn(&self, fact: LockFact) {
        trace::event("all", "lock", format_args!("{fact:?}"), &[]);
        self.locks.borrow_mut().push(fact);
    }
}

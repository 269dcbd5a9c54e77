//! What a group's log delivers to the replicas on this node, and what it takes from them.

use std::fmt;
use std::sync::Arc;

use super::{BoxFuture, Found, StoreError};
use crate::command::{Envelope, Outcome};
use crate::domain::ids::{GroupId, Position};

/// Takes what a group's log hands over. Must neither block nor fail: a replica that cannot keep up
/// lets its entries go and fetches them again with [`Durability::replay`](super::Durability::replay).
pub trait ApplySink: Send + Sync + 'static {
    /// Hands over the next entry of a group.
    fn deliver(&self, group: GroupId, entry: CommittedEntry);

    /// Why a command should not be proposed, as nobody would apply it for now.
    fn refuses(&self, _group: GroupId, _envelope: &Envelope) -> Option<String> {
        None
    }

    /// Everything the group's replica holds now, for a replica that has to begin with it: at least
    /// all that was handed over before. Only groups of one state machine have snapshots so far:
    /// group 0.
    fn dump(&self, group: GroupId) -> BoxFuture<'_, Result<Dump, StoreError>>;

    /// Replaces everything the group's replica holds with another replica's [`ApplySink::dump`].
    /// Returns once that is durable; nothing older is handed over afterwards. A dump that is older
    /// than what the replica holds changes nothing.
    ///
    /// [`StoreError::Full`] means that it was taken over and waits in memory for room:
    /// [`ApplySink::settle`] tells when it is durable.
    fn install(&self, group: GroupId, dump: Dump) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Makes durable what the group's replica holds; [`StoreError::Full`] while there is no room.
    fn settle(&self, group: GroupId) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// Everything a replica holds, at one position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// The last entry in it; `None` when it is empty.
    pub position: Option<Position>,
    /// All its rows, by key.
    pub rows: Vec<Found>,
}

/// An entry of a group's log, committed.
pub struct CommittedEntry {
    /// Where it stands.
    pub position: Position,
    /// What it is.
    pub payload: Payload,
    /// Whom to tell the outcome: whoever proposed it, when that was here.
    pub reply: Option<Reply>,
}

/// What an entry holds.
pub enum Payload {
    /// A command.
    Command(Arc<Envelope>),
    /// The first entry of a new leader's term: everything of earlier terms has been handed over.
    NewTerm,
}

/// Answers a proposal once.
pub struct Reply(Box<dyn FnOnce(Outcome) + Send>);

impl Reply {
    /// Wraps what takes the outcome.
    pub fn new(send: impl FnOnce(Outcome) + Send + 'static) -> Self {
        Self(Box::new(send))
    }

    /// Answers.
    pub fn send(self, outcome: Outcome) {
        (self.0)(outcome);
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

//! What a group's log delivers to the replicas on this node, and what it takes from them.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{BoxFuture, Dump, Staged, Staging, StoreError};
use crate::command::{Envelope, Outcome};
use crate::domain::ids::{GroupId, Position, StateMachineId};

/// Takes what a group's log hands over. Must neither block nor fail: a replica that cannot keep up
/// lets its entries go and fetches them again with [`Durability::replay`](super::Durability::replay).
pub trait ApplySink: Send + Sync + 'static {
    /// Hands over the next entry of a group.
    fn deliver(&self, group: GroupId, entry: CommittedEntry);

    /// Why a command should not be proposed, as nobody would apply it for now.
    fn refuses(&self, _group: GroupId, _envelope: &Envelope) -> Option<String> {
        None
    }

    /// Has a replica make durable what it holds, now rather than with its next turn: the log needs room.
    fn write_soon(&self, _group: GroupId, _part: StateMachineId) {}

    /// The state machines of the group that have files here: what a snapshot of the group consists
    /// of. All that were handed something are among them, but for what their files still lack and
    /// the log has.
    fn parts(&self, _group: GroupId) -> BoxFuture<'_, Result<Vec<StateMachineId>, StoreError>> {
        Box::pin(async { Err(no_snapshots()) })
    }

    /// Makes durable what a replica holds, and tells how much that is. [`StoreError::Full`] while
    /// there is no room.
    fn held(
        &self,
        _group: GroupId,
        _part: StateMachineId,
    ) -> BoxFuture<'_, Result<Held, StoreError>> {
        Box::pin(async { Err(no_snapshots()) })
    }

    /// What the replica here holds now and one that holds `beyond` lacks: at least all that was
    /// handed over before. `None` when it lacks nothing. [`StoreError::Full`] while what was handed over is not in
    /// its files for lack of room.
    fn dump(
        &self,
        _group: GroupId,
        _part: StateMachineId,
        _beyond: Held,
    ) -> BoxFuture<'_, Result<Option<Dump>, StoreError>> {
        Box::pin(async { Err(no_snapshots()) })
    }

    /// Begins files for what another replica sends, whose events begin at a byte of all events. Waits while others of
    /// the same replica are there.
    fn stage(
        &self,
        _group: GroupId,
        _part: StateMachineId,
        _events_from: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>> {
        Box::pin(async { Err(no_snapshots()) })
    }

    /// Replaces what the replica holds with what has come of another's [`ApplySink::dump`]. Returns once that is
    /// durable. What is older than what the replica holds changes nothing.
    fn install(
        &self,
        _group: GroupId,
        _part: StateMachineId,
        _staged: Staged,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Err(no_snapshots()) })
    }

    /// Hashes what the replica here held at a position, for as long as its answer is waited for. `None` when
    /// it is not done yet, has not come there, or has gone on without noting it.
    fn digest(
        &self,
        _group: GroupId,
        _part: StateMachineId,
        _at: Position,
    ) -> BoxFuture<'_, Result<Option<StateDigest>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    /// Takes the replica here out of service, which has said that it held `digest` at a position: others
    /// agree on something else.
    fn distrust(
        &self,
        _group: GroupId,
        part: StateMachineId,
        _at: Position,
        _digest: StateDigest,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let source = Arc::new(io::ErrorKind::Unsupported.into());
            Err(StoreError::Io { what: format!("take {part} out of service"), source })
        })
    }

    /// Stops the replicas of a group that this node has left, and removes their files. Returns once they
    /// are gone durably.
    fn leave(&self, _group: GroupId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Lets go of the group's replicas that are not among `parts`, as far as they are not further
    /// than `upto`: they were deleted by then. Returns once that is durable.
    fn keep_only(
        &self,
        _group: GroupId,
        _parts: Vec<StateMachineId>,
        _upto: Position,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Err(no_snapshots()) })
    }
}

/// What a sink says that neither gives nor takes snapshots.
fn no_snapshots() -> StoreError {
    StoreError::Io {
        what: "send or take a snapshot".to_owned(),
        source: Arc::new(io::ErrorKind::Unsupported.into()),
    }
}

/// How much a replica holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The last entry in it; `None` when it is empty.
    pub position: Option<Position>,
    /// Bytes of its events.
    pub events: u64,
}

/// A hash of all that a state machine holds at one position, its rows and its events: SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StateDigest(pub [u8; 32]);

impl fmt::Display for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for StateDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
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

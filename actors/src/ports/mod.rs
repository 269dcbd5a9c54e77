//! What the actors need from outside, as traits. The adapters (`storage`, `transport`) implement
//! them; `node` wires them.

mod certificates;
pub mod descriptors;
pub mod error;
mod peers;
pub mod seams;
mod work;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use futures_util::future::BoxFuture;

pub use certificates::CertificateIssuer;
pub use peers::{
    Declined, JoinService, Lane, PEER_CALL_MAX, PEER_HTTP_STREAMS_MAX, PEER_MESSAGE_BYTES_MAX,
    Peer, PeerError, PeerService, Peers, Service, StreamService, UnauthenticatedPeer,
};

pub use work::{Attempt, AttemptJournal, DEATHS_MAX, Job, WorkerPool};

use crate::command::{Envelope, Outcome};
use crate::domain::ids::{GroupId, Position, StateMachineId, TenantId};
use crate::domain::voters::Voters;
use crate::ports::descriptors::is_exhausted;

/// The replicated log of every group on this node.
pub trait ReplicatedLog: Send + Sync + 'static {
    /// Proposes a command to a group. Answers with its outcome once the command is durable on a
    /// quorum and applied here.
    fn propose(
        &self,
        group: GroupId,
        envelope: Envelope,
    ) -> BoxFuture<'_, Result<Outcome, ProposeError>>;

    /// Read index: returns once everything that was committed in the group before the call has
    /// been handed over on this node. On a node that follows, the leader is asked for the index.
    fn read_index(&self, group: GroupId) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// What this node knows of the group's leadership, as it changes. `None` for a group that is
    /// not on this node.
    fn leadership(&self, group: GroupId) -> Option<watch::Receiver<Leadership>>;

    /// The term in which this node leads the group now, if a quorum has confirmed it within the
    /// lease: what [`ReplicatedLog::leadership`] publishes, looked at again at this moment. A
    /// process that was stopped for a while does not know yet that time has passed; this does.
    fn leads(&self, group: GroupId) -> Option<u64>;

    /// The first entries for `part` in the group's log from index `from` up to index `upto`
    /// inclusive, in order: what an actor that starts again has to apply once more. Some MiB at
    /// once, so that a long log costs time and no memory; [`Replay::next`] tells where to go on.
    fn replay(
        &self,
        group: GroupId,
        part: StateMachineId,
        from: u64,
        upto: u64,
    ) -> BoxFuture<'_, Result<Replay, StoreError>>;

    /// Whether files that hold the state at `held` belong to the log: looked at before a replica
    /// goes on from them. `None` for a replica that has no files.
    ///
    /// # Errors
    /// When they do not.
    fn belongs(
        &self,
        group: GroupId,
        part: StateMachineId,
        held: Option<Position>,
    ) -> Result<(), LogMismatch>;

    /// The term of the entry that stands at an index of the group's log, as far as it is known.
    fn term_at(&self, group: GroupId, index: u64) -> Option<u64>;

    /// Tells that the replica has files, and that they hold everything up to `upto` durably. To be
    /// told before [`ReplicatedLog::durable`]: what the log need not keep must be missed when it is
    /// not there.
    fn filed(&self, part: StateMachineId, upto: Position);

    /// The replicas that have files, by what was told: whoever of them has none has lost them.
    fn with_files(&self) -> BTreeSet<StateMachineId>;

    /// Tells that the replica's files are about to be removed. Returns once that is durable: then
    /// they may go, and are not missed.
    fn unfile(&self, group: GroupId, part: StateMachineId)
    -> BoxFuture<'_, Result<(), StoreError>>;

    /// Tells that everything handed to `part` up to `upto` is durable in its own files, so that
    /// the log need not keep it.
    fn durable(&self, group: GroupId, part: StateMachineId, upto: Position);

    /// Bytes of the group's log that are kept on account of `part` alone: what it has not made
    /// durable, up to where another replica needs the log.
    fn kept_for(&self, _group: GroupId, _part: StateMachineId) -> u64 {
        0
    }

    /// Starts the group on this node, initialising it with `members` where it is new.
    fn open_group(
        &self,
        group: GroupId,
        members: Vec<u64>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Adds a replica that does not vote, or does nothing where there is one. Only on the group's
    /// leader. Returns when the membership is committed, not when the replica has caught up.
    fn add_learner(&self, group: GroupId, raft_id: u64) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Makes exactly `voters` the voters, through a joint membership; those who lose their vote
    /// stay as learners. Only on the group's leader.
    fn set_voters(
        &self,
        group: GroupId,
        voters: BTreeSet<u64>,
    ) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Removes a replica that does not vote. Only on the group's leader.
    fn remove_learner(
        &self,
        group: GroupId,
        raft_id: u64,
    ) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Hands the lead of the group over to the voter `to`, if this node leads. Returns at once:
    /// [`ReplicatedLog::leadership`] tells whether it came to it.
    fn transfer(&self, group: GroupId, to: u64) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Whether the log takes what is proposed: not while its disk is full.
    fn has_room(&self) -> bool;

    /// Tells that a replica found no room for its files. Nothing is proposed here from now on until
    /// there is some: what was applied waits in memory, and that has to stay bounded. A log
    /// without a disk has nothing to look at.
    fn found_no_room(&self) {}

    /// State of every group on this node, for people and for placement.
    fn groups(&self) -> Vec<GroupStatus>;

    /// Who votes in a group, as this node's log has it. `None` for a group that is not here.
    fn voters(&self, group: GroupId) -> Option<Voters>;
}

/// An entry as it stands in a group's log.
pub type LogEntry = (Position, Arc<Envelope>);

/// Why files do not belong to the log beside them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogMismatch {
    /// There are none, and there were.
    #[error("the files are missing, with everything that the log does not keep any more")]
    Missing,
    /// They are an older copy.
    #[error("the files are older than what was durable in them: they are a copy made before")]
    Older,
    /// They hold what the log never said.
    #[error("the files continue another history than the log beside them")]
    Foreign,
    /// The log is an older copy.
    #[error("the files are ahead of the log beside them: the log is a copy made before")]
    Ahead,
}

/// A piece of a replica's entries.
#[derive(Debug, Clone, Default)]
pub struct Replay {
    /// Entries of the replica, in order; none where only others' were found.
    pub entries: Vec<LogEntry>,
    /// The index to go on from; `None` when everything asked for has been read.
    pub next: Option<u64>,
}

/// Why a proposal or a linearizable read did not come to an outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ProposeError {
    /// Not proposed: this node does not lead the group. Nothing was applied.
    #[error("this node does not lead the group")]
    NotLeader,
    /// Not proposed: the group has no leader at the moment, or it has only just been elected.
    /// Nothing was applied.
    #[error("the group has no leader at the moment")]
    NoLeader,
    /// Not proposed: the disk is full. Nothing was applied.
    #[error("the disk of the node is full")]
    DiskFull,
    /// Proposed, and then the answer was lost: the outcome is unknown.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The node is stopping. Nothing was applied.
    #[error("the node is stopping")]
    Stopping,
    /// Not proposed: the tenant is quarantined, and nobody would apply it. Nothing was applied.
    #[error("the tenant is quarantined: {0}")]
    Quarantined(String),
}

/// Who leads a group, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Raft term.
    pub term: u64,
    /// Raft id of the leader, if one is known.
    pub leader: Option<u64>,
    /// Whether this node leads, and a quorum confirmed it within the lease.
    pub here: bool,
}

/// A group's state, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// Raft term.
    pub term: u64,
    /// Raft id of its leader.
    pub leader: Option<u64>,
    /// Its replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// Whether a change of its membership is not committed yet.
    pub is_changing: bool,
    /// The voters that a change was to come to, when it was left in the middle: a joint membership.
    pub unfinished: Option<BTreeSet<u64>>,
}

/// A replica of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Raft id.
    pub raft_id: u64,
    /// Whether it votes.
    pub voter: bool,
    /// Index applied (on this node) or matched (on others, when this node leads).
    pub applied: u64,
    /// Entries behind the leader's last.
    pub lag: u64,
}

/// Takes what a group's log hands over. Must neither block nor fail: a replica that cannot keep up
/// lets its entries go and fetches them again with [`ReplicatedLog::replay`].
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

/// The files of replicas.
pub trait Stores: Send + Sync + 'static {
    /// Opens a replica's files, making them where there are none. Recovers what a crash left: the
    /// events are cut to the length that the index recorded.
    fn open(&self, part: StateMachineId) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>>;

    /// Whether the replica has files. An error is not a no.
    fn exists(&self, part: StateMachineId) -> Result<bool, StoreError>;

    /// Removes a tenant's files. Returns once they are gone durably.
    fn remove(&self, tenant: TenantId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The tenants that have files.
    fn tenants(&self) -> Result<Vec<TenantId>, StoreError>;

    /// The tenants that have files and are not known to be idle ([`Store::set_idle`]).
    fn tenants_with_work(&self) -> BoxFuture<'_, Result<Vec<TenantId>, StoreError>>;
}

/// A row to write (`Some`) or delete (`None`), by key.
pub type Row = (Vec<u8>, Option<Vec<u8>>);

/// A row that was found: key and value.
pub type Found = (Vec<u8>, Vec<u8>);

/// The open files of one replica: an index of ordered rows and, for tenants, an event log.
///
/// Nothing here is durable before [`Store::make_durable`] returns; the replicated log is.
pub trait Store: Send {
    /// The position whose state the index holds; `None` when it is new.
    fn position(&self) -> Option<Position>;

    /// The value of a key.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Up to `limit` rows with `from <= key < to`, ascending, or descending from the end.
    ///
    /// # Errors
    /// When the index cannot be read.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<Found>, StoreError>;

    /// Appends to the event log.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn append_events(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Length of the event log, bytes.
    fn events_len(&self) -> u64;

    /// Reads from the event log.
    ///
    /// # Errors
    /// When the file cannot be read or is too short.
    fn read_events(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError>;

    /// Writes rows and the position whose state they complete, and makes everything durable: first the
    /// event log, then the index.
    ///
    /// # Errors
    /// When a file cannot be written.
    fn make_durable(
        &mut self,
        rows: Vec<Row>,
        position: Position,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Why every further call fails, once one has.
    fn failure(&self) -> Option<StoreError> {
        None
    }

    /// Sets what is called when other replicas need the descriptors of these files. Until it is set
    /// nobody asks for them.
    fn on_wanted(&mut self, _ask: Box<dyn Fn() + Send + Sync>) {}

    /// Whether the files are marked as those of a replica without work ([`Store::set_idle`]).
    fn is_idle(&self) -> bool {
        false
    }

    /// Marks the files as those of a replica without work, which a new leader need not start, or
    /// takes the mark away. Taken away it is durably when this returns; set it may be lost again.
    fn set_idle(&mut self, _is_idle: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    /// Bytes and files, as the file system has them.
    ///
    /// # Errors
    /// When the directory cannot be read.
    fn stats(&self) -> Result<StoreStats, StoreError>;
}

/// Sizes of a replica's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Files.
    pub file_count: u64,
    /// Bytes of `blobs/`.
    pub blobs_bytes: u64,
    /// Bytes of `events.jsonl`.
    pub events_bytes: u64,
    /// Bytes of `index.redb`.
    pub index_bytes: u64,
}

/// Files that cannot be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The disk has no room.
    #[error("the disk is full")]
    Full,
    /// The operating system says no.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, with the file's name.
        what: String,
        /// What the system said.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The files hold what no crash of ours can have left.
    #[error("{file} is damaged at byte {offset}: {what}")]
    Damaged {
        /// Which file, relative to the data directory.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong and what is lost.
        what: String,
    },
    /// A later version of the program wrote it.
    #[error(
        "{what}, and this version of shiioo knows up to {known}: start the version that wrote it, \
         or a newer one"
    )]
    TooNew {
        /// What is of which version.
        what: String,
        /// The version that this program knows.
        known: u64,
    },
}

impl StoreError {
    /// What clients are told of files that will not be right again by themselves: nothing of where
    /// they are. `None` for a failure that may pass.
    pub fn lasting(&self) -> Option<String> {
        match self {
            Self::Full | Self::Io { .. } => None,
            Self::Damaged { file, what, .. } => {
                let name = file.rsplit('/').next().unwrap_or_default();
                Some(format!("its data is damaged ({name}: {what})"))
            }
            Self::TooNew { .. } => {
                Some("its data was written by a newer version of shiioo".to_owned())
            }
        }
    }
}

impl StoreError {
    /// Whether only a lack of file descriptors is in the way: it passes, and the files are well.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_exhausted(source))
    }
}

/// Sends the requests of `http` steps.
pub trait HttpCaller: Send + Sync + 'static {
    /// Sends one request and reads the whole answer, within the caller's deadline.
    fn call(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpResponse, HttpCallError>>;
}

/// A request of an `http` step, rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// Whose step it is: calls and name lookups are shared out among tenants.
    pub tenant: TenantId,
    /// Method, upper case.
    pub method: String,
    /// Absolute `http` or `https` URL.
    pub url: String,
    /// Headers as given.
    pub headers: Vec<(String, String)>,
    /// Body; may be empty.
    pub body: Vec<u8>,
}

/// An answer to an `http` step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// Why an `http` step got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpCallError {
    /// The request cannot be sent as it is; another attempt will not help.
    #[error("{0}")]
    Unsendable(String),
    /// The network or the other side failed; another attempt may help.
    #[error("{0}")]
    Failed(String),
}

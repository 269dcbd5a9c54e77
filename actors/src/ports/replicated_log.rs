//! The replicated log, as four capabilities: nobody gets the power to change who votes in order to
//! propose a command.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{BoxFuture, StateDigest, StoreError};
use crate::command::{Envelope, Outcome};
use crate::domain::ids::{GroupId, Position, RaftId, StateMachineId};
use crate::domain::voters::Voters;

/// The replicated log of every group on this node, with all that can be done with it.
pub trait ReplicatedLog: Proposals + Durability + Membership + LogStatus {}

impl<T: Proposals + Durability + Membership + LogStatus> ReplicatedLog for T {}

/// Proposes commands, and tells who leads.
pub trait Proposals: Send + Sync + 'static {
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
    /// lease: what [`Proposals::leadership`] publishes, looked at again at this moment. A
    /// process that was stopped for a while does not know yet that time has passed; this does.
    fn leads(&self, group: GroupId) -> Option<u64>;
}

/// Gives a replica the entries that its files lack, and keeps what they lack until they have it.
pub trait Durability: Send + Sync + 'static {
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
    /// told before [`Durability::durable`]: what the log need not keep must be missed when it is
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

    /// Asks the leader of the group to send everything that it holds of `part`, whose files here are
    /// damaged. Returns when the leader begins; what it sends comes by
    /// [`ApplySink::install`](super::ApplySink::install). A log without other replicas has nobody to ask.
    fn ask_for_copy(
        &self,
        _group: GroupId,
        _part: StateMachineId,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async { Err(ProposeError::NoLeader) })
    }

    /// Asks a member's replica of `part` what it held at a position: [`ApplySink::digest`](super::ApplySink::digest).
    /// A log without other replicas has nobody to ask.
    fn digest_of(
        &self,
        _group: GroupId,
        _member: RaftId,
        _part: StateMachineId,
        _at: Position,
    ) -> BoxFuture<'_, Result<Option<StateDigest>, ProposeError>> {
        Box::pin(async { Err(ProposeError::NoLeader) })
    }

    /// Tells a member, as the group's leader, that what its replica of `part` held at a position is not what
    /// two others held: [`ApplySink::distrust`](super::ApplySink::distrust).
    fn tell_difference(
        &self,
        _group: GroupId,
        _member: RaftId,
        _part: StateMachineId,
        _at: Position,
        _digest: StateDigest,
    ) -> BoxFuture<'_, Result<(), ProposeError>> {
        Box::pin(async { Err(ProposeError::NoLeader) })
    }

    /// Bytes of the group's log that are kept on account of `part` alone: what it has not made
    /// durable, up to where another replica needs the log.
    fn kept_for(&self, _group: GroupId, _part: StateMachineId) -> u64 {
        0
    }

    /// Whether the log takes what is proposed: not while its disk is full.
    fn has_room(&self) -> bool;

    /// Tells that a replica found no room for its files. Nothing is proposed here from now on until
    /// there is some: what was applied waits in memory, and that has to stay bounded. A log
    /// without a disk has nothing to look at.
    fn found_no_room(&self) {}
}

/// Changes who has a replica of a group, who votes in it, and who leads it.
pub trait Membership: Send + Sync + 'static {
    /// Starts the group on this node, initialising it with `members` where it is new.
    fn open_group(
        &self,
        group: GroupId,
        members: Vec<RaftId>,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Ends the group on this node, which has no replica of it any more; its log goes, and then the files
    /// ([`ApplySink::leave`](super::ApplySink::leave)). The group is not opened meanwhile, and `still` is
    /// asked then whether all that is right: else nothing happens. To be awaited to its end.
    fn leave_group<'a>(
        &'a self,
        group: GroupId,
        still: BoxFuture<'a, bool>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Adds a replica that does not vote, or does nothing where there is one. Only on the group's
    /// leader. Returns when the membership is committed, not when the replica has caught up.
    fn add_learner(
        &self,
        group: GroupId,
        raft_id: RaftId,
    ) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Makes exactly `voters` the voters, through a joint membership; those who lose their vote
    /// stay as learners. Only on the group's leader.
    fn set_voters(
        &self,
        group: GroupId,
        voters: BTreeSet<RaftId>,
    ) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Removes a replica that does not vote. Only on the group's leader.
    fn remove_learner(
        &self,
        group: GroupId,
        raft_id: RaftId,
    ) -> BoxFuture<'_, Result<(), ProposeError>>;

    /// Hands the lead of the group over to the voter `to`, if this node leads. Returns at once:
    /// [`Proposals::leadership`] tells whether it came to it.
    fn transfer(&self, group: GroupId, to: RaftId) -> BoxFuture<'_, Result<(), ProposeError>>;
}

/// Tells how the groups on this node are.
pub trait LogStatus: Send + Sync + 'static {
    /// State of every group on this node, for people and for placement.
    fn groups(&self) -> Vec<GroupStatus>;

    /// Index of the last entry that this node's log has of a group, open or not, also one that is not
    /// durable yet.
    fn last_index(&self, group: GroupId) -> Option<u64>;

    /// How much replicas of a group that this node leads have of the copies that it sends to them: what they lack
    /// of state machines, where the log does not reach back to it. A log without other replicas copies nothing.
    fn copies(&self, _group: GroupId) -> BTreeMap<RaftId, CopyProgress> {
        BTreeMap::new()
    }

    /// The groups that this node leads now, as [`Proposals::leads`] has it.
    fn led(&self) -> Vec<GroupLead>;

    /// Changes whenever this node begins or ceases to lead a group, or its term there changes.
    fn leads_changed(&self) -> watch::Receiver<()>;

    /// Bytes of this node's disk that may be taken by what others send, beside what its log needs. A log without a disk
    /// has any number.
    fn room_for_copies(&self) -> u64 {
        u64::MAX
    }

    /// What other replicas send and there is no room for here, said to people; nothing where nothing is lacking.
    fn lacks_room(&self) -> Option<String> {
        None
    }

    /// Who votes in a group, as this node's log has it. `None` for a group that is not here.
    fn voters(&self, group: GroupId) -> Option<Voters>;
}

/// How much a replica has of a copy of a group: grows while it gets on, and begins again with another attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyProgress {
    /// State machines that it has whole.
    pub state_machines: u64,
    /// Bytes of the next one that it has acknowledged.
    pub bytes: u64,
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
    /// Not proposed: too much of the tenant is under way already. Nothing was applied.
    #[error("too much of the tenant is under way already")]
    Busy,
}

/// Who leads a group, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Raft term.
    pub term: u64,
    /// Raft id of the leader, if one is known.
    pub leader: Option<RaftId>,
    /// Whether this node leads, and a quorum confirmed it within the lease.
    pub here: bool,
}

/// A group that a node leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLead {
    /// The group.
    pub group: GroupId,
    /// Raft term.
    pub term: u64,
    /// Who votes in the group, as the leader's log has it.
    pub voters: Voters,
}

/// A group's state, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// Raft term.
    pub term: u64,
    /// Raft id of its leader.
    pub leader: Option<RaftId>,
    /// Its replicas.
    pub replicas: Vec<ReplicaStatus>,
    /// Whether a change of its membership is not committed yet.
    pub is_changing: bool,
    /// The voters that a change was to come to, when it was left in the middle: a joint membership.
    pub unfinished: Option<BTreeSet<RaftId>>,
}

/// A replica of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Raft id.
    pub raft_id: RaftId,
    /// Whether it votes.
    pub voter: bool,
    /// Index applied (on this node) or matched (on others, when this node leads).
    pub applied: u64,
    /// Entries behind the leader's last.
    pub lag: u64,
}

//! openraft's types as this program fills them in, and their conversion to records of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use openraft::impls::leader_id_std;
use openraft::type_config::alias::{EntryOf, LogIdOf, StoredMembershipOf, VoteOf};
use openraft::{EmptyNode, EntryPayload, Membership};
use shiioo_actors::command::Envelope;
use shiioo_actors::command::Outcome;
use shiioo_actors::domain::ids::{Position, RaftId};
use shiioo_actors::ports::StoreError;

use crate::log::record::{Body, LogEntry, Members, Vote};

openraft::declare_raft_types!(
    /// Commands in, outcomes out. With this leader id a term has one leader, and an entry is
    /// named by term and index alone.
    pub(crate) TypeConfig:
        D = Arc<Envelope>,
        R = Outcome,
        NodeId = RaftId,
        Node = EmptyNode,
        LeaderId = leader_id_std::LeaderId<u64, RaftId>,
        AsyncRuntime = openraft_rt_tokio::TokioRuntime
);

pub(crate) type Entry = EntryOf<TypeConfig>;
pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type RaftVote = VoteOf<TypeConfig>;
pub(crate) type StoredMembership = StoredMembershipOf<TypeConfig>;

pub(crate) fn log_id(position: Position) -> LogId {
    LogId::new_term_index(position.term, position.index)
}

pub(crate) fn position(log_id: &LogId) -> Position {
    Position { term: log_id.committed_leader_id().term, index: log_id.index() }
}

pub(crate) fn raft_vote(vote: Vote) -> RaftVote {
    if vote.committed {
        RaftVote::new_committed(vote.term, vote.node)
    } else {
        RaftVote::new(vote.term, vote.node)
    }
}

pub(crate) fn vote(vote: &RaftVote) -> Vote {
    let leader = vote.leader_id();
    Vote { term: leader.term, node: leader.voted_for, committed: vote.is_committed() }
}

pub(crate) fn log_entry(entry: Entry) -> LogEntry {
    let body = match entry.payload {
        EntryPayload::Blank => Body::Blank,
        EntryPayload::Normal(envelope) => Body::Command(envelope),
        EntryPayload::Membership(membership) => Body::Members(members(&membership)),
    };
    LogEntry { position: position(&entry.log_id), body }
}

pub(crate) fn raft_entry(entry: LogEntry) -> Entry {
    let payload = match entry.body {
        Body::Blank => EntryPayload::Blank,
        Body::Command(envelope) => EntryPayload::Normal(envelope),
        Body::Members(members) => EntryPayload::Membership(membership(&members)),
    };
    Entry { log_id: log_id(entry.position), payload }
}

pub(crate) fn members(membership: &Membership<RaftId, EmptyNode>) -> Members {
    Members {
        voters: membership
            .get_joint_config()
            .iter()
            .map(|set| set.iter().copied().collect())
            .collect(),
        nodes: membership.nodes().map(|(id, _)| *id).collect(),
    }
}

pub(crate) fn membership(members: &Members) -> Membership<RaftId, EmptyNode> {
    let voters: Vec<BTreeSet<RaftId>> =
        members.voters.iter().map(|set| set.iter().copied().collect()).collect();
    let nodes: BTreeMap<RaftId, EmptyNode> =
        members.nodes.iter().map(|id| (*id, EmptyNode {})).collect();
    Membership::new_with_defaults(voters, nodes.into_keys())
}

pub(crate) fn stored_membership(members: Option<&(Position, Members)>) -> StoredMembership {
    match members {
        Some((position, members)) => {
            StoredMembership::new(Some(log_id(*position)), membership(members))
        }
        None => StoredMembership::default(),
    }
}

/// Turns an error of ours into the one that openraft is given, which stops the group.
pub(crate) fn io_error(error: StoreError) -> io::Error {
    match error {
        StoreError::Full => io::ErrorKind::StorageFull.into(),
        error => io::Error::other(error),
    }
}

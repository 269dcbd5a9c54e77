//! Converts openraft's messages to those on the wire, and back.

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use shiioo_actors::domain::ids::{GroupId, Position};

use super::types::{
    StoredMembership, TypeConfig, log_id, members, position, raft_entry, raft_vote, vote,
};
use super::wire::{Append, AppendReply, Ballot, Transfer, TransferReply, VoteReply};
use crate::log::record::Members;

pub(crate) fn append_from_wire(
    group: GroupId,
    append: &Append,
) -> Result<AppendEntriesRequest<TypeConfig>, String> {
    let entries = append.entries(group)?;
    Ok(AppendEntriesRequest {
        vote: raft_vote(append.vote),
        prev_log_id: append.prev.map(log_id),
        entries: entries.into_iter().map(raft_entry).collect(),
        leader_commit: append.commit.map(log_id),
    })
}

pub(crate) fn appended_to_wire(appended: &AppendEntriesResponse<TypeConfig>) -> AppendReply {
    match appended {
        // A follower takes all of a message or nothing: openraft reports parts on the sender only.
        AppendEntriesResponse::Success | AppendEntriesResponse::PartialSuccess(_) => {
            AppendReply::Done
        }
        AppendEntriesResponse::Conflict => AppendReply::Conflict,
        AppendEntriesResponse::HigherVote(higher) => AppendReply::HigherVote(vote(higher)),
    }
}

pub(crate) fn ballot_to_wire(request: &VoteRequest<TypeConfig>) -> Ballot {
    Ballot {
        vote: vote(&request.vote),
        last: request.last_log_id.as_ref().map(position),
        is_transfer: request.leadership_transfer,
    }
}

pub(crate) fn ballot_from_wire(ballot: &Ballot) -> VoteRequest<TypeConfig> {
    VoteRequest {
        vote: raft_vote(ballot.vote),
        last_log_id: ballot.last.map(log_id),
        leadership_transfer: ballot.is_transfer,
    }
}

pub(crate) fn voted_to_wire(response: &VoteResponse<TypeConfig>) -> VoteReply {
    VoteReply {
        vote: vote(&response.vote),
        is_granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(position),
    }
}

pub(crate) fn voted_from_wire(voted: VoteReply) -> VoteResponse<TypeConfig> {
    VoteResponse::new(raft_vote(voted.vote), voted.last.map(log_id), voted.is_granted)
}

pub(crate) fn transfer_from_wire(transfer: &Transfer) -> TransferLeaderRequest<TypeConfig> {
    let last = transfer.last.map(log_id);
    TransferLeaderRequest::new(raft_vote(transfer.vote), transfer.to, last)
}

pub(crate) fn transferred_to_wire(response: &TransferLeaderResponse<TypeConfig>) -> TransferReply {
    match response {
        Ok(()) => TransferReply::Taken,
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            TransferReply::VoteChanged(vote(actual))
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            TransferReply::NotFlushed(actual.as_ref().map(position))
        }
    }
}

pub(crate) fn transferred_from_wire(
    answer: TransferReply,
    request: &TransferLeaderRequest<TypeConfig>,
) -> TransferLeaderResponse<TypeConfig> {
    match answer {
        TransferReply::Taken => Ok(()),
        TransferReply::VoteChanged(actual) => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: raft_vote(actual),
        }),
        TransferReply::NotFlushed(actual) => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: actual.map(log_id),
        }),
    }
}

/// Gives a membership and its position; `None` when there has been none.
pub(crate) fn stored_members(stored: &StoredMembership) -> Option<(Position, Members)> {
    let at = stored.log_id().as_ref().map(position)?;
    Some((at, members(stored.membership())))
}

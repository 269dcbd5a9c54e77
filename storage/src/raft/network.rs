//! The way to the other replicas of a group, as openraft sees it: calls over [`Peers`].
//!
//! Invariants:
//! - Every call has a deadline, which grows with the bytes that it sends.
//! - A request that reached nobody, or was declined, is `Unreachable`: openraft waits before it
//!   tries again. A request that was sent and not answered is a `NetworkError`: it may have been
//!   carried out.
//! - A replica that lacks an entry that it has acknowledged in the same term is sent nothing more.
//!   It may have voted as if that entry had never been, and openraft takes for granted that logs do
//!   not revert. The replica is told, and stops.
//! - Appends to one replica are sent one after another, so that they cannot overtake each other.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use shiioo_actors::domain::ids::{GroupId, Position, RaftId};
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{ApplySink, PeerError, Peers};
use tokio::time::Instant;

use super::convert;
use super::copy_room::CopyRoom;
use super::flow_control::{BatchLimit, time_allowed};
use super::heartbeats::{HEARTBEATS_PER_TIMEOUT, HeartbeatBatches, Pulse};
use super::snapshots_under_way::SnapshotsUnderWay;
use super::state_machine::SnapshotHandle;
use super::types::{RaftVote, TypeConfig, log_entry, log_id, position, raft_vote, vote};
use super::wire::{
    self, Append, AppendReply, LogReverted, Request, RequestBody, Response, Transfer,
};
use crate::log::Log;
use crate::log::record::Vote;

/// Entries may take this part of an election timeout, beside the time for their bytes: they are
/// synced before they are answered.
const ENTRIES_TIMEOUT_DIVISOR: u32 = 2;

/// Entries that are answered within this part of an election timeout came soon: more can be sent at
/// once.
const ENTRIES_SOON_DIVISOR: u32 = 5;

/// The other replicas of one group.
#[derive(Clone)]
pub(crate) struct Network {
    group: GroupId,
    peers: Arc<dyn Peers>,
    sink: Arc<dyn ApplySink>,
    log: Arc<Log>,
    /// Snapshots sent so far.
    transfers: Arc<AtomicU64>,
    acknowledged: Arc<Mutex<Acknowledged>>,
    /// The snapshots that replicas of the group are being sent.
    pub(super) snapshots: SnapshotsUnderWay,
    /// The room on this node's disk for what others send.
    copies: Arc<CopyRoom>,
    /// How the group's heartbeats leave.
    pub(super) heartbeats: Arc<HeartbeatBatches>,
    pub(super) pulse: Arc<Pulse>,
}

/// The last entry that each replica has acknowledged, with the term of the leader it told.
type Acknowledged = BTreeMap<RaftId, (u64, Position)>;

/// The way to one of them.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(super) network: Network,
    pub(super) raft_id: RaftId,
    /// How much of the log is sent to it at once.
    batch: BatchLimit,
    /// Sends the heartbeats, which travel with those of other groups. What another sends has to
    /// leave at once, also where it has no entries.
    sends_heartbeats: bool,
}

impl Network {
    pub fn new(
        group: GroupId,
        peers: Arc<dyn Peers>,
        sink: Arc<dyn ApplySink>,
        log: Arc<Log>,
        heartbeats: Arc<HeartbeatBatches>,
        copies: Arc<CopyRoom>,
    ) -> Self {
        Self {
            group,
            peers,
            sink,
            log,
            transfers: Arc::default(),
            acknowledged: Arc::default(),
            snapshots: SnapshotsUnderWay::default(),
            copies,
            heartbeats,
            pulse: Arc::default(),
        }
    }

    /// Gives the last entry that a replica has acknowledged to this node as the leader of `term`.
    /// In another term it may have been told to truncate.
    fn acknowledged(&self, raft_id: RaftId, term: u64) -> Option<Position> {
        if mutants::is(Mutant::TrustMissingLog) {
            return None;
        }
        let known = self.acknowledged.lock().get(&raft_id).copied();
        known.filter(|(of, _)| *of == term).map(|(_, upto)| upto)
    }

    fn acknowledge(&self, raft_id: RaftId, term: u64, upto: Position) {
        let mut known = self.acknowledged.lock();
        let entry = known.entry(raft_id).or_insert((term, upto));
        // By term first: what an earlier leader was told does not count any more.
        *entry = (*entry).max((term, upto));
    }

    /// Forgets what a replica has acknowledged, because it was removed. When it comes back in the same
    /// term it begins with nothing, and has lost nothing.
    pub fn forget(&self, raft_id: RaftId) {
        self.acknowledged.lock().remove(&raft_id);
        self.snapshots.forget(raft_id);
    }

    /// Where snapshots come from and go to.
    pub fn sink(&self) -> &dyn ApplySink {
        &*self.sink
    }

    /// The room on this node's disk for what others send.
    pub fn copies(&self) -> &CopyRoom {
        &self.copies
    }

    /// The log of this node.
    pub fn log(&self) -> &Log {
        &self.log
    }

    pub fn group(&self) -> GroupId {
        self.group
    }

    /// Gives the number of the next transfer of a snapshot.
    pub fn next_transfer(&self) -> u64 {
        self.transfers.fetch_add(1, Ordering::Relaxed)
    }

    pub fn replica(&self, raft_id: RaftId) -> Replica {
        let batch = BatchLimit::default();
        Replica { network: self.clone(), raft_id, batch, sends_heartbeats: false }
    }
}

impl Replica {
    /// Calls the replica about the group. `base` is the time it may take beside the time for the
    /// bytes.
    pub async fn call(&self, body: RequestBody, base: Duration) -> Result<Response, PeerError> {
        let service = body.service();
        let request = wire::encode(&Request { group: self.network.group, body });
        let deadline = Instant::now() + time_allowed(base, request.len());
        let call = self.network.peers.call(self.raft_id, service, request, deadline);
        let to = self.raft_id;
        // The time is bounded here, too: what a transport does with a deadline is its own matter.
        let answer = tokio::time::timeout_at(deadline, call)
            .await
            .map_err(|_| PeerError::Lost { to, why: "too late".into() })??;
        // A peer whose answer cannot be decoded is left alone for a while, like one that declines.
        wire::decode(&answer).map_err(|why| PeerError::Declined { to, why })
    }

    pub(super) fn unexpected_reply(&self) -> PeerError {
        PeerError::Declined { to: self.raft_id, why: "the answer is for another question".into() }
    }

    async fn append(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: &RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, PeerError> {
        let prev = request.prev_log_id.as_ref().map(position);
        let (sender, last) =
            (vote(&request.vote), request.entries.last().map(|entry| position(&entry.log_id)));
        // Read before the request is sent. An answer may be overtaken by a later one, and the
        // conflict of an old request must not be judged by what was acknowledged after it.
        let acknowledged = self.network.acknowledged(self.raft_id, sender.term);
        let (append, left_off_after) = Append::new(
            self.network.group,
            sender,
            prev,
            request.leader_commit.as_ref().map(position),
            request.entries.into_iter().map(log_entry),
            self.batch.bytes_max(),
        );
        let answer = if self.sends_heartbeats {
            self.heartbeat(append, option.soft_ttl()).await
        } else if append.is_heartbeat() {
            self.call(RequestBody::Append(append), option.soft_ttl()).await
        } else {
            self.send_entries(append, option.hard_ttl() * HEARTBEATS_PER_TIMEOUT).await
        };
        match answer? {
            // 'I do not have `prev`', of an entry that it has acknowledged in this very term.
            Response::Append(AppendReply::Conflict) if prev.is_some() && prev <= acknowledged => {
                Err(self.reverted(sender, acknowledged, option).await)
            }
            Response::Append(AppendReply::Done) => {
                Ok(match self.done(sender, prev, last, left_off_after) {
                    Some(last) => AppendEntriesResponse::PartialSuccess(Some(log_id(last))),
                    None => AppendEntriesResponse::Success,
                })
            }
            // Nothing comes before the first entry, so nothing can be in conflict with it.
            Response::Append(AppendReply::Conflict) if prev.is_some() => {
                Ok(AppendEntriesResponse::Conflict)
            }
            Response::Append(AppendReply::HigherVote(vote)) => {
                Ok(AppendEntriesResponse::HigherVote(raft_vote(vote)))
            }
            _ => Err(self.unexpected_reply()),
        }
    }

    /// Sends entries, and learns from the answer how many to send at once.
    async fn send_entries(
        &mut self,
        append: Append,
        election_timeout: Duration,
    ) -> Result<Response, PeerError> {
        let (bytes, sent) = (append.bytes(), Instant::now());
        let base = election_timeout / ENTRIES_TIMEOUT_DIVISOR;
        let answer = self.call(RequestBody::Append(append), base).await;
        let soon = election_timeout / ENTRIES_SOON_DIVISOR;
        match &answer {
            Ok(_) => self.batch.answered(bytes, sent.elapsed(), soon),
            Err(PeerError::Lost { .. }) => self.batch.lost(),
            // Nothing was sent, which says nothing about the link.
            Err(PeerError::Unreachable { .. } | PeerError::Declined { .. }) => {}
        }
        answer
    }

    /// Notes what a replica has acknowledged. Gives the last entry sent, if not all were.
    fn done(
        &self,
        sender: Vote,
        prev: Option<Position>,
        last: Option<Position>,
        left_off_after: Option<Position>,
    ) -> Option<Position> {
        if let Some(upto) = left_off_after.or(last).or(prev) {
            self.network.acknowledge(self.raft_id, sender.term, upto);
        }
        left_off_after
    }

    /// Tells a replica that it has lost an entry that it acknowledged.
    async fn reverted(
        &self,
        vote: Vote,
        acknowledged: Option<Position>,
        option: &RPCOption,
    ) -> PeerError {
        let (to, group) = (self.raft_id, self.network.group);
        tracing::error!(
            %group, member = to.0,
            "a member has lost entries that it had acknowledged: it is sent nothing more; remove its \
             directory and have it join anew"
        );
        if let Some(acknowledged) = acknowledged {
            // The notice may be lost: the replica is refused all the same.
            let notice = RequestBody::LogReverted(LogReverted { vote, acknowledged });
            let _ = self.call(notice, option.soft_ttl()).await;
        }
        PeerError::Declined { to, why: "it lacks what it has acknowledged".into() }
    }

    async fn ballot(
        &self,
        request: RequestBody,
        option: &RPCOption,
    ) -> Result<RaftVoteReply, PeerError> {
        match self.call(request, option.soft_ttl()).await? {
            Response::Vote(voted) => Ok(convert::voted_from_wire(voted)),
            _ => Err(self.unexpected_reply()),
        }
    }
}

type RaftVoteReply = VoteResponse<TypeConfig>;

pub(super) fn rpc_error(error: PeerError) -> RPCError<TypeConfig> {
    match error {
        PeerError::Unreachable { .. } | PeerError::Declined { .. } => {
            Unreachable::from_string(error).into()
        }
        PeerError::Lost { .. } => NetworkError::from_string(error).into(),
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Replica;

    async fn new_client(&mut self, target: RaftId, _node: &EmptyNode) -> Replica {
        self.replica(target)
    }

    async fn new_heartbeat_client(&mut self, target: RaftId, _node: &EmptyNode) -> Replica {
        Replica { sends_heartbeats: true, ..self.replica(target) }
    }
}

impl RaftNetworkV2<TypeConfig> for Replica {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.append(request, &option).await.map_err(rpc_error)
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<RaftVoteReply, RPCError<TypeConfig>> {
        let ballot = convert::ballot_to_wire(&request);
        self.ballot(RequestBody::Vote(ballot), &option).await.map_err(rpc_error)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<RaftVoteReply, RPCError<TypeConfig>> {
        let ballot = convert::ballot_to_wire(&request);
        self.ballot(RequestBody::PreVote(ballot), &option).await.map_err(rpc_error)
    }

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, SnapshotHandle>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // Biased: a leader that has lost its term is to send nothing more, and a simulation takes the
        // same branch each time. A transfer that ends in the middle is begun anew, never gone on with.
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let transfer = Transfer {
            vote: vote(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(position),
        };
        match self
            .call(RequestBody::Transfer(transfer), option.soft_ttl())
            .await
            .map_err(rpc_error)?
        {
            Response::Transfer(answer) => Ok(convert::transferred_from_wire(answer, &request)),
            _ => Err(rpc_error(self.unexpected_reply())),
        }
    }
}

//! The way to the other replicas of a group. For now there is none: every group has one voter,
//! this node, and whoever is called is unreachable.

use std::future::Future;

use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{EmptyNode, OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use super::machine::SnapshotHandle;
use super::types::{RaftVote, TypeConfig};

/// Reaches nobody.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoPeers;

/// A node that cannot be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoPeer {
    target: u64,
}

impl NoPeer {
    fn unreachable(self) -> Unreachable<TypeConfig> {
        Unreachable::from_string(format!("no way leads to node {}", self.target))
    }
}

impl RaftNetworkFactory<TypeConfig> for NoPeers {
    type Network = NoPeer;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> NoPeer {
        NoPeer { target }
    }
}

impl RaftNetworkV2<TypeConfig> for NoPeer {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        _request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn vote(
        &mut self,
        _request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    // The default grants a pre-vote, which is right for a peer that does not know it, not for one
    // that cannot be asked.
    async fn pre_vote(
        &mut self,
        _request: VoteRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        Err(self.unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: RaftVote,
        _snapshot: SnapshotOf<TypeConfig, SnapshotHandle>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(self.unreachable().into())
    }
}

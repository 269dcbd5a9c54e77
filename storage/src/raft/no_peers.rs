//! The peers of a lone node.

use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::seams::ByteStream;
use shiioo_actors::ports::{BoxFuture, Peer, PeerError, Peers, Service, StreamService};
use tokio::time::Instant;

/// The peers of a node that knows no other.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn call(
        &self,
        to: RaftId,
        _service: Service,
        _request: Vec<u8>,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(async move {
            Err(PeerError::Unreachable { to, why: "this node knows no other".into() })
        })
    }

    fn open_stream(
        &self,
        to: RaftId,
        _service: StreamService,
        _deadline: Instant,
    ) -> BoxFuture<'_, Result<Box<dyn ByteStream>, PeerError>> {
        Box::pin(async move {
            Err(PeerError::Unreachable { to, why: "this node knows no other".into() })
        })
    }

    fn set_members(&self, _members: Vec<Peer>) {}
}

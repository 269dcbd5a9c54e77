//! Dispatches the calls of other nodes to the service that answers each.

use std::sync::{Arc, OnceLock};

use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::handles::Handles;
use shiioo_actors::node::RpcHandlers;
use shiioo_actors::ports::seams::ByteStream;
use shiioo_actors::ports::{
    BoxFuture, Declined, JoinService, PeerService, Service, StreamService, UnauthenticatedPeer,
};
use shiioo_api::Api;
use shiioo_storage::Groups;
use tokio::time::Instant;

use crate::client_threads::ClientThreads;

/// Dispatches calls by service. Groups and API answer from the start, the actors once they run.
pub(crate) struct RpcDispatcher {
    groups: Arc<Groups>,
    api: Arc<Api>,
    client_threads: ClientThreads,
    actors: OnceLock<RpcHandlers>,
}

impl RpcDispatcher {
    pub(crate) fn new(
        groups: Arc<Groups>,
        api: Arc<Api>,
        client_threads: ClientThreads,
    ) -> Arc<Self> {
        Arc::new(Self { groups, api, client_threads, actors: OnceLock::new() })
    }

    /// Opens the way to the actors, once, and with `handles` that of the API's clients.
    pub(crate) fn open(&self, actors: RpcHandlers, handles: Option<Handles>) {
        let _ = self.actors.set(actors);
        if let Some(handles) = handles {
            self.api.open(handles);
        }
    }

    fn actors(&self) -> Result<&RpcHandlers, Declined> {
        self.actors.get().ok_or_else(|| Declined("the node is starting".to_owned()))
    }
}

impl PeerService for RpcDispatcher {
    fn serve(
        &self,
        from: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, Declined>> {
        Box::pin(async move {
            match service {
                Service::Raft | Service::GroupHeartbeats | Service::Snapshot => {
                    self.groups.serve(from, service, request, deadline).await
                }
                Service::Ping => self.actors()?.heartbeats.pinged(from, &request, deadline).await,
                Service::Hello => self.actors()?.heartbeats.greeted(from, &request, deadline).await,
                Service::Node => self.actors()?.calls.serve(&request, deadline).await,
            }
        })
    }

    fn serve_stream(
        &self,
        from: RaftId,
        service: StreamService,
        stream: Box<dyn ByteStream>,
        deadline: Instant,
    ) -> BoxFuture<'_, ()> {
        match service {
            StreamService::Http => {
                let api = Arc::clone(&self.api);
                let served = async move { api.serve_forwarded(from, stream, deadline).await };
                Box::pin(self.client_threads.run(served))
            }
        }
    }
}

impl JoinService for RpcDispatcher {
    fn join(
        &self,
        peer: UnauthenticatedPeer,
        request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, Declined>> {
        Box::pin(async move { self.actors()?.join.join(peer, request).await })
    }
}

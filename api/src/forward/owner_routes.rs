//! Looks up where requests have to go, and opens streams there.

use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::cluster::rpc_ids::InFlight;
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::handles::{Owner, Route};
use shiioo_actors::ports::PeerError;
use shiioo_actors::ports::error::CallError;
use shiioo_actors::ports::seams::ByteStream;
use tokio::time::Instant;

use crate::server::app::App;

/// Where requests have to go, and how they get there. A trait, so that tests can say where the
/// lead is and what becomes of a call.
pub(crate) trait OwnerRoutes: Clone + Send + Sync + 'static {
    /// A look-up's result, to be told from later ones.
    type Found: Copy + Send + Sync;

    /// Tells whether the node's actors run.
    fn is_open(&self) -> bool;

    /// Tells whether the cluster has noted that this node has started. A node that has not been
    /// noted may have missed much, an admin token for example: it tells what its own disk knows,
    /// and changes nothing.
    fn has_started(&self) -> bool;

    /// Tells how far this node's own view of the cluster is.
    fn applied_index(&self, deadline: Instant) -> impl Future<Output = Option<u64>> + Send;

    /// Names a write that is about to be tried, perhaps a long poll.
    fn begin(&self, is_long: bool) -> Option<InFlight>;

    /// Looks up where a request has to go now.
    fn find(
        &self,
        owner: Owner,
        deadline: Instant,
    ) -> impl Future<Output = Result<(Self::Found, Lead), CallError>> + Send;

    /// Waits until a request has to go elsewhere than `found` says.
    fn moved(&self, found: Self::Found) -> impl Future<Output = ()> + Send;

    /// Opens a stream to another node. An error says that the other node has done nothing.
    fn open(
        &self,
        to: RaftId,
        deadline: Instant,
    ) -> impl Future<Output = Result<Box<dyn ByteStream>, PeerError>> + Send;
}

impl OwnerRoutes for App {
    type Found = Route;

    fn is_open(&self) -> bool {
        self.node().is_ok()
    }

    fn has_started(&self) -> bool {
        self.node().is_ok_and(|handles| handles.cluster.has_started())
    }

    async fn applied_index(&self, deadline: Instant) -> Option<u64> {
        self.node().ok()?.cluster.applied_index(deadline).await.ok()
    }

    fn begin(&self, is_long: bool) -> Option<InFlight> {
        self.node().ok().map(|handles| handles.routes.begin(is_long))
    }

    async fn find(&self, owner: Owner, deadline: Instant) -> Result<(Route, Lead), CallError> {
        let route = self.node()?.routes.find(owner, deadline).await?;
        Ok((route, route.lead))
    }

    async fn moved(&self, found: Route) {
        match self.node() {
            Ok(handles) => handles.routes.moved(found).await,
            Err(_) => std::future::pending().await,
        }
    }

    async fn open(&self, to: RaftId, deadline: Instant) -> Result<Box<dyn ByteStream>, PeerError> {
        match self.node() {
            Ok(handles) => handles.routes.open(to, deadline).await,
            Err(starting) => Err(PeerError::Unreachable { to, why: starting.to_string() }),
        }
    }
}

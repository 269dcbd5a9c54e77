//! What all requests of a node share: the handles, the seams, the bounds.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::HeaderValue;
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::handles::{Handles, Owner};
use shiioo_actors::ports::error::CallError;
use shiioo_actors::ports::seams::Seams;
use tokio::sync::watch;

use crate::docs::Documents;
use crate::server::auth::{Guard, Who};
use crate::server::declaration::{Declaration, RouteTable};
use crate::server::metrics::Metrics;
use crate::server::pacing::Pacing;
use crate::server::pool::{Pool, Share, Whose};
use crate::server::same_origin::OwnNames;

/// Longest wait for a place among the requests that wait on purpose. A client that asks again and again gets
/// its refusals no faster.
const LONG_POLL_PLACE_MAX: Duration = Duration::from_millis(100);

/// Shared by all requests; cheap to clone.
#[derive(Clone)]
pub(crate) struct App(Arc<Shared>);

/// What a layer around one route works with.
#[derive(Clone)]
pub(crate) struct RouteLayer {
    pub(crate) app: App,
    pub(crate) declared: Arc<Declaration>,
}

/// What [`App`] points to.
pub(crate) struct Shared {
    /// The handles of the node, once its actors run.
    pub(crate) handles: OnceLock<Handles>,
    pub(crate) seams: Seams,
    pub(crate) version: &'static str,
    pub(crate) request_timeout: Duration,
    /// How often nodes registered over HTTP should send a heartbeat.
    pub(crate) heartbeat_interval: Duration,
    /// The declarations of all routes.
    pub(crate) routes: RouteTable,
    pub(crate) guard: Guard,
    /// The names that requests may call this node by, where it asks for no credential.
    pub(crate) own_names: OwnNames,
    /// The tenant of requests at short paths that name none, once it is known.
    pub(crate) default_tenant: Option<Arc<OnceLock<TenantId>>>,
    /// Bytes of the bodies that are in memory.
    pub(crate) bodies: Pool,
    /// Bytes of large answers that are in memory.
    pub(crate) answers: Pool,
    pub(crate) metrics: Metrics,
    /// Places of requests that wait on purpose.
    pub(crate) long_polls: Pool,
    /// Places of answers that have no end: of those made here, and of those that come from other nodes.
    pub(crate) streams: Pool,
    pub(crate) pacing: Pacing,
    /// Places of requests that are handed over to other nodes, or whose answers stream from there.
    pub(crate) handed_over: Pool,
    /// Whether the server stops. Requests that wait on purpose are then answered at once.
    pub(crate) stopping: watch::Sender<bool>,
    pub(crate) documents: Documents,
}

impl App {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// Gives the handles of the node, or refuses while its actors do not run yet.
    pub(crate) fn node(&self) -> Result<&Handles, CallError> {
        self.handles.get().ok_or(CallError::Starting { what: "the node" })
    }

    /// Finds whose share of bounded things a request takes from.
    pub(crate) fn whose(&self, owner: Owner) -> Whose {
        let is_known = |tenant| self.node().is_ok_and(|handles| handles.tenants.is_known(tenant));
        Whose::of(owner, is_known)
    }

    /// Takes a place for a request that waits on purpose, once there is one. There are fewer places than
    /// connections, so that short requests find room however many wait, and no tenant can take all of them.
    pub(crate) async fn long_poll(&self, whose: Whose) -> Option<Share> {
        let mut place = self.long_polls.share(whose);
        place.take_within(1, LONG_POLL_PLACE_MAX).await.then_some(place)
    }

    /// Waits until the server stops.
    pub(crate) async fn stopped(&self) {
        // The wait cannot fail: the sender lives as long as this.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// The caller of a request and the request's id. The middleware puts it into every request that
/// it lets in.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) who: Who,
    pub(crate) request_id: HeaderValue,
}

//! The HTTP facade of shiioo: JSON in, a call of a handle, JSON out.
//!
//! Architecture invariants: no decision about tenants, runs or locks is made here, and no state
//! of them is kept; this is the only crate that knows axum. What clients may rely on is written
//! down in the OpenAPI document, which is generated from the handlers.
//!
//! The walk of a request: `server/listener` reads it, `server/middleware` (request id, credential,
//! panics, metrics) lets it in, `forward/outbound` brings it to the node that owns what it is about
//! (where `forward/inbound` takes it), for a tenant's own resources `request/admission` has the
//! tenant admit it, extractors (`input`) turn it into values that cannot be bad, the handler in the
//! resource's file (`routes`) calls a handle, and `output` writes the answer.
//!
//! Folders, from the top down; a file imports from its own folder and from those below only:
//!
//! 1. `routes`: a file a resource; the builder of routes, and their assembly
//! 2. `forward`: brings requests to their owners
//! 3. `request`: what stands behind one request
//! 4. `server`: connections, middleware, credentials, bounds; what a route declares
//! 5. `docs`: the OpenAPI document and the pages
//! 6. `input`: reads what clients send
//! 7. `output`: writes answers and errors

mod docs;
mod forward;
mod input;
mod output;
mod request;
mod routes;
mod server;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use shiioo_actors::domain::ids::{RaftId, TenantId};
use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::handles::Handles;
use shiioo_actors::ports::PEER_HTTP_STREAMS_MAX;
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::ports::seams::{ByteStream, Seams, TcpListen};
use tokio::sync::watch;
use tokio::time::Instant;

pub use crate::server::metrics::ExtraMetrics;

use crate::docs::Documents;
use crate::forward::inbound;
use crate::routes::router::RouteList;
use crate::server::app::{App, Shared};
use crate::server::auth::Guard;
use crate::server::connections::Bounds;
use crate::server::listener;
use crate::server::metrics::Metrics;
use crate::server::pacing::Pacing;
use crate::server::pool::{ANSWERS_BYTES_MAX, BODIES_BYTES_MAX, PLACES_MULTIPLE, Pool};
use crate::server::same_origin::OwnNames;

/// Answers without an end at once, at most: each takes a stream between two nodes, of which there are
/// [`PEER_HTTP_STREAMS_MAX`] for everything.
const STREAMS_MAX: usize = PEER_HTTP_STREAMS_MAX / 4;

/// How the API behaves.
pub struct ApiConfig {
    /// Version of the program, shown by `/api/health`.
    pub version: &'static str,
    /// How long a request may take; long polls take their own time beside it.
    pub request_timeout: Duration,
    /// How often nodes registered over HTTP are told to send a heartbeat.
    pub heartbeat_interval: Duration,
    /// Hash of the cluster's admin token, which everything needs but liveness, readiness and the
    /// start page. `None` lets everybody in.
    pub admin_token: watch::Receiver<Option<SecretHash>>,
    /// Names and addresses, beside localhost and the loopback addresses, that requests may ask
    /// this node by while there is no admin token.
    pub api_hosts: Vec<String>,
    /// The tenant of requests at short paths that name none, once it is known; `None` where they are refused.
    pub default_tenant: Option<Arc<OnceLock<TenantId>>>,
    /// Whether there are test hooks, at `/test/tenants/{tenant_id}/{act}`.
    pub test_hooks: bool,
    /// The number of connections that there may be, and of requests that wait on purpose.
    pub descriptors: DescriptorBudget,
    /// Metrics of the rest of the node, written behind the API's own.
    pub extra_metrics: Vec<ExtraMetrics>,
}

/// The API of one node.
pub struct Api {
    app: App,
    bounds: Bounds,
    router: Router,
    inbound_router: Router,
}

impl Api {
    /// Makes the API of a node whose actors do not run yet: it says that it is alive and not ready,
    /// and refuses the rest with 503 `starting`.
    pub fn new(seams: Seams, config: ApiConfig) -> Self {
        let routes = RouteList::new(config.test_hooks);
        let streams = config.descriptors.long_polls.min(STREAMS_MAX);
        let app = App::new(Shared {
            handles: OnceLock::new(),
            seams,
            version: config.version,
            request_timeout: config.request_timeout,
            heartbeat_interval: config.heartbeat_interval,
            routes: routes.table(),
            guard: Guard::new(config.admin_token),
            own_names: OwnNames::new(&config.api_hosts),
            default_tenant: config.default_tenant,
            bodies: Pool::new(BODIES_BYTES_MAX, 1),
            answers: Pool::new(ANSWERS_BYTES_MAX, 1),
            metrics: Metrics::new(config.extra_metrics),
            long_polls: Pool::new(config.descriptors.long_polls, PLACES_MULTIPLE),
            streams: Pool::new(streams, PLACES_MULTIPLE),
            pacing: Pacing::default(),
            // As many in all as there are streams to one member: no tenant can take all of these.
            handed_over: Pool::new(PEER_HTTP_STREAMS_MAX, PLACES_MULTIPLE),
            stopping: watch::Sender::new(false),
            documents: Documents::new(config.version, routes.documented()),
        });
        let bounds = Bounds {
            places: config.descriptors.api_connections,
            entrance: config.descriptors.api_refusals,
        };
        Self {
            bounds,
            router: routes.router(&app),
            inbound_router: routes.inbound_router(&app),
            app,
        }
    }

    /// Lets requests reach the node's actors from now on. Handles that came first stay.
    pub fn open(&self, handles: Handles) {
        self.app.handles.get_or_init(|| handles);
    }

    /// Gives the router, to be called without a socket.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Answers the request that the member with raft id `from` sends on a stream, because this node
    /// owns what it is about: the service
    /// [`StreamService::Http`](shiioo_actors::ports::StreamService::Http). A node that is starting
    /// says that it has done nothing.
    pub async fn serve_forwarded(
        &self,
        from: RaftId,
        stream: Box<dyn ByteStream>,
        deadline: Instant,
    ) {
        let (router, is_open) = (self.inbound_router.clone(), self.app.node().is_ok());
        inbound::serve(router, from, stream, deadline, is_open).await;
    }

    /// Serves connections until `stop` is ready; then accepts no more, and returns once running
    /// requests have ended (or were cut off after a while).
    pub async fn serve(&self, listener: Box<dyn TcpListen>, stop: impl Future<Output = ()>) {
        let stop = async {
            stop.await;
            // Requests that wait on purpose are answered first: the listener waits for them.
            self.app.stopping.send_replace(true);
        };
        listener::serve(listener, self.router(), self.bounds, &self.app.metrics, stop).await;
    }
}

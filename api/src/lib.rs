//! The HTTP facade of shiioo: JSON in, a call of a handle, JSON out.
//!
//! Architecture invariants: no decision about tenants, runs or locks is made here, and no state
//! of them is kept; this is the only crate that knows axum. What clients may rely on is written
//! down in the OpenAPI document, which is generated from the handlers.
//!
//! The walk of a request: `server` reads it, `edge` (request id, credential, panics, metrics)
//! lets it in, `forward` brings it to the node that owns what it is about (where `handed_over`
//! takes it), for a tenant's own resources `tenant_scope` has the tenant's owner admit it,
//! extractors (`extract`, `payload`, `fields`) turn it into values that cannot be bad, the
//! handler in the resource's file calls a handle, and `reply` or `problem` writes the answer.

mod app;
mod attempt;
mod auth;
mod carried;
mod cluster;
mod cursors;
mod date;
mod edge;
mod extract;
mod fields;
mod forward;
mod handed_over;
mod hooks;
mod jobs;
mod join_tokens;
mod locks;
mod metrics;
mod openapi;
mod operations;
mod pages;
mod payload;
mod pool;
mod problem;
mod refusals;
mod reply;
mod rest;
mod routes;
mod runs;
mod same_origin;
mod server;
mod tenant_scope;
mod tenants;
mod values;
mod wire;
mod wording;
mod workflows;

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use axum::Router;
use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::handles::Handles;
use shiioo_actors::ports::Declined;
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::ports::seams::{Seams, TcpListen};
use tokio::sync::watch;
use tokio::time::Instant;

pub use crate::metrics::ExtraMetrics;

/// How the API behaves.
pub struct ApiConfig {
    /// Version of the program, as `/api/health` says it.
    pub version: &'static str,
    /// How long a request may take; long polls take their own time beside it.
    pub request_timeout: Duration,
    /// How often nodes registered over HTTP are told to send a heartbeat.
    pub heartbeat_interval: Duration,
    /// Hash of the token that everything needs but liveness, readiness and the start page, as the
    /// cluster has it. `None` lets everybody in.
    pub admin_token: watch::Receiver<Option<SecretHash>>,
    /// Names and addresses, beside localhost and the loopback addresses, that requests may ask
    /// this node by while there is no admin token.
    pub api_hosts: Vec<String>,
    /// Whether tests may have a tenant misbehave, at `/test/tenants/{tenant_id}/{act}`.
    pub test_hooks: bool,
    /// How many connections there may be, and how many requests that wait on purpose.
    pub descriptors: DescriptorBudget,
    /// Metrics of the rest of the node, written behind the API's own.
    pub extra_metrics: Vec<ExtraMetrics>,
}

impl fmt::Debug for ApiConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiConfig")
            .field("version", &self.version)
            .field("request_timeout", &self.request_timeout)
            .field("heartbeat_interval", &self.heartbeat_interval)
            .field("admin_token", &self.admin_token.borrow().is_some())
            .field("api_hosts", &self.api_hosts)
            .field("test_hooks", &self.test_hooks)
            .field("extra_metrics", &self.extra_metrics.len())
            .finish()
    }
}

/// The API of one node.
#[derive(Debug)]
pub struct Api {
    app: app::App,
    bounds: server::Bounds,
    router: Router,
    inner_router: Router,
}

impl Api {
    /// The API of a node whose actors do not run yet: it says that it is alive and not ready, and
    /// refuses the rest with 503 `starting`.
    pub fn new(seams: Seams, config: ApiConfig) -> Self {
        let templates = routes::table().into_iter().map(|(_, template)| template);
        let app = app::App::new(app::Shared {
            handles: OnceLock::new(),
            seams,
            version: config.version,
            request_timeout: config.request_timeout,
            heartbeat_interval: config.heartbeat_interval,
            guard: auth::Guard::new(config.admin_token),
            own_names: same_origin::OwnNames::new(&config.api_hosts),
            bodies: pool::Pool::new(pool::BODIES_BYTES_MAX, 1),
            metrics: metrics::Metrics::new(templates, config.extra_metrics),
            long_polls: pool::Pool::new(config.descriptors.long_polls, pool::LONG_POLLS_MULTIPLE),
            stopping: watch::Sender::new(false),
            openapi: OnceLock::new(),
        });
        let bounds = server::Bounds {
            connections: config.descriptors.api_connections,
            refusals: config.descriptors.api_refusals,
        };
        Self {
            bounds,
            router: routes::router(app.clone(), config.test_hooks),
            inner_router: routes::inner_router(app.clone()),
            app,
        }
    }

    /// The node's actors run: from now on requests reach them. Handles that came first stay.
    pub fn open(&self, handles: Handles) {
        self.app.handles.get_or_init(|| handles);
    }

    /// The router, to be called without a socket.
    pub fn router(&self) -> Router {
        self.router.clone()
    }

    /// Answers a request that the member with raft id `from` hands over, because this node owns
    /// what it is about: what [`Service::Api`](shiioo_actors::ports::Service::Api) is for.
    ///
    /// # Errors
    /// When nothing was done and nothing will be: the node is starting, or cannot read the request.
    pub async fn serve_forwarded(
        &self,
        from: u64,
        request: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, Declined> {
        self.app.node().map_err(|starting| Declined(starting.to_string()))?;
        handed_over::serve(self.inner_router.clone(), from, &request, deadline).await
    }

    /// Serves connections until `stop` is ready; then accepts no more, and returns once running
    /// requests have ended (or were cut off after a while).
    pub async fn serve(&self, listener: Box<dyn TcpListen>, stop: impl Future<Output = ()>) {
        let routers =
            server::Routers { all: self.router(), busy: routes::busy_router(self.app.clone()) };
        let stop = async {
            stop.await;
            self.app.stopping.send_replace(true);
        };
        server::serve(listener, routers, self.bounds, &self.app.metrics, stop).await;
    }
}

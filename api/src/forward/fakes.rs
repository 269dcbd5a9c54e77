//! Fakes of two nodes' layers around small handlers. The test says where the lead is, and what
//! becomes of a call between the nodes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::cluster::rpc_ids::{InFlight, RpcIdSource};
use shiioo_actors::command::RpcId;
use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::handles::Owner;
use shiioo_actors::ports::error::CallError;
use shiioo_actors::ports::seams::{Clock, Entropy, Seams};
use shiioo_actors::ports::{BoxFuture, PeerError};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tower::ServiceExt;

use super::*;
use crate::docs::Documents;
use crate::forward::owner_routes::OwnerRoutes;
use crate::forward::wire::WireRequest;
use crate::server::app::Shared;
use crate::server::auth::Guard;
use crate::server::declaration::{Credential, RouteOwner, RouteTable, TenantIn};
use crate::server::metrics::Metrics;
use crate::server::middleware;
use crate::server::pool::{ANSWERS_BYTES_MAX, BODIES_BYTES_MAX, Pool};
use crate::server::same_origin::OwnNames;

const TENANT: &str = "550e8400-e29b-41d4-a716-446655440000";
/// A route that a tenant owns.
pub(super) const PATH: &str = "/api/tenants/{tenant_id}/things";
/// A long poll on the cluster: its body says how long it waits.
pub(super) const LONG_POLL: &str = "/api/locks/{key}/acquire";
/// A route of the cluster whose requests are not tried again.
pub(super) const ONCE: &str = "/api/cluster/once";
/// Requests that may wait on purpose.
pub(super) const LONG_POLLS: usize = 3;
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Fixed;

impl Clock for Fixed {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }
}

impl Entropy for Fixed {
    fn fill(&self, buffer: &mut [u8]) {
        buffer.fill(7);
    }
}

fn app(admin_token: Option<&str>) -> App {
    App::new(Shared {
        handles: OnceLock::new(),
        seams: Seams { clock: Arc::new(Fixed), entropy: Arc::new(Fixed) },
        version: "1.2.3",
        request_timeout: TIMEOUT,
        heartbeat_interval: TIMEOUT,
        guard: Guard::new(
            watch::channel(admin_token.map(|it| SecretHash::of_admin_token(it.as_bytes()))).1,
        ),
        routes: RouteTable::default(),
        own_names: OwnNames::default(),
        bodies: Pool::new(BODIES_BYTES_MAX, 1),
        answers: Pool::new(ANSWERS_BYTES_MAX, 1),
        metrics: Metrics::new(Vec::new()),
        long_polls: Pool::new(LONG_POLLS, 1 << 20),
        stopping: watch::Sender::new(false),
        documents: Documents::new("1.2.3", Vec::new()),
    })
}

type Called = Result<Vec<u8>, PeerError>;
pub(super) type Peer = Box<dyn Fn(Vec<u8>) -> BoxFuture<'static, Called> + Send + Sync>;

/// OwnerRoutes whose every turn the test decides.
#[derive(Clone)]
pub(super) struct FakeRoutes(Arc<Inner>);

struct Inner {
    lead: watch::Sender<Lead>,
    rpc_ids: Arc<RpcIdSource>,
    peers: BTreeMap<u64, Peer>,
    /// What was handed over, to whom.
    sent: Mutex<Vec<(u64, WireRequest)>>,
}

impl FakeRoutes {
    pub(super) fn new(lead: Lead) -> Self {
        Self::with(lead, BTreeMap::new())
    }

    pub(super) fn with(lead: Lead, peers: BTreeMap<u64, Peer>) -> Self {
        let seams = Seams { clock: Arc::new(Fixed), entropy: Arc::new(Fixed) };
        let rpc_ids = Arc::new(RpcIdSource::new(&seams));
        let lead = watch::Sender::new(lead);
        Self(Arc::new(Inner { lead, rpc_ids, peers, sent: Mutex::default() }))
    }

    pub(super) fn lead_at(&self, lead: Lead) {
        self.0.lead.send_replace(lead);
    }

    pub(super) fn sent(&self) -> Vec<(u64, WireRequest)> {
        self.0.sent.lock().unwrap().clone()
    }

    /// Lists the attempts: at which node, under which sequence, and whether an earlier one may have
    /// been applied.
    pub(super) fn attempts(&self) -> Vec<(u64, Option<u64>, bool)> {
        let attempt = |(to, request): (u64, WireRequest)| {
            let request = request.into_request(Instant::now()).unwrap();
            let attempt = Attempt::of(&request.into_parts().0).unwrap();
            (to, attempt.rpc_id.map(|rpc_id: RpcId| rpc_id.sequence), attempt.maybe_applied)
        };
        self.sent().into_iter().map(attempt).collect()
    }

    pub(super) fn first_incomplete(&self) -> u64 {
        self.0.rpc_ids.begin(false).rpc_id().first_incomplete
    }
}

impl OwnerRoutes for FakeRoutes {
    type Found = Lead;

    fn is_open(&self) -> bool {
        true
    }

    fn has_started(&self) -> bool {
        true
    }

    async fn applied_index(&self, _: Instant) -> Option<u64> {
        Some(7)
    }

    fn begin(&self, is_long: bool) -> Option<InFlight> {
        Some(self.0.rpc_ids.begin(is_long))
    }

    async fn find(&self, _: Owner, _: Instant) -> Result<(Lead, Lead), CallError> {
        let lead = *self.0.lead.borrow();
        Ok((lead, lead))
    }

    async fn moved(&self, found: Lead) {
        let mut lead = self.0.lead.subscribe();
        drop(lead.wait_for(|lead| *lead != found).await);
    }

    async fn forward(&self, to: u64, request: Vec<u8>, _: Instant) -> Called {
        self.0.sent.lock().unwrap().push((to, WireRequest::decode(&request).unwrap()));
        match self.0.peers.get(&to) {
            Some(peer) => peer(request).await,
            None => Err(PeerError::Unreachable { to, why: "nobody is there".into() }),
        }
    }
}

pub(super) fn peers<const N: usize>(peers: [(u64, Peer); N]) -> BTreeMap<u64, Peer> {
    peers.into_iter().collect()
}

pub(super) fn lost() -> Peer {
    Box::new(|_| Box::pin(async { Err(PeerError::Lost { to: 2, why: "cut".into() }) }))
}

pub(super) fn silent() -> Peer {
    Box::new(|_| Box::pin(std::future::pending()))
}

/// A node that takes what is handed over, with these routes of its own.
pub(super) fn node(routes: &FakeRoutes, path: &'static str, handler: MethodRouter<App>) -> Peer {
    let layer = layer(routes, path, app(None));
    let router = Router::new()
        .route(path, handler)
        .route_layer(from_fn_with_state(layer, inbound::only_here::<FakeRoutes>))
        .layer(from_fn_with_state(app(None), middleware::inbound))
        .with_state(app(None));
    Box::new(move |request| {
        let router = router.clone();
        Box::pin(async move {
            let deadline = Instant::now() + TIMEOUT;
            let served = inbound::serve(router, 1, &request, deadline).await;
            served.map_err(|declined| PeerError::Declined { to: 2, why: declined.0 })
        })
    })
}

/// The node that the client asks.
pub(super) fn asking(
    routes: &FakeRoutes,
    path: &'static str,
    handler: MethodRouter<App>,
) -> Router {
    with_token(routes, path, handler, None)
}

/// The same, and what its layers share.
pub(super) fn asking_app(
    routes: &FakeRoutes,
    path: &'static str,
    handler: MethodRouter<App>,
) -> (Router, App) {
    let app = app(None);
    (routed(routes, path, handler, app.clone()), app)
}

pub(super) fn with_token(
    routes: &FakeRoutes,
    path: &'static str,
    handler: MethodRouter<App>,
    token: Option<&str>,
) -> Router {
    routed(routes, path, handler, app(token))
}

fn routed(routes: &FakeRoutes, path: &'static str, handler: MethodRouter<App>, app: App) -> Router {
    let layer = layer(routes, path, app.clone());
    Router::new()
        .route(path, handler)
        .route_layer(from_fn_with_state(layer, outbound::to_owner::<FakeRoutes>))
        .layer(from_fn_with_state(app.clone(), middleware::ingress))
        .with_state(app)
}

fn layer(routes: &FakeRoutes, path: &'static str, app: App) -> ForwardLayer<FakeRoutes> {
    let owner = match path {
        ONCE => RouteOwner::SystemGroupOnce,
        PATH => RouteOwner::TenantGroup,
        _ => RouteOwner::SystemGroup,
    };
    let declared = Declaration {
        method: Method::POST,
        path,
        resource: path,
        owner,
        credential: Credential::Admin,
        tenant_in: TenantIn::Path,
        wait_of: (path == LONG_POLL).then_some(wait_of),
        is_metered: false,
        is_page: false,
        is_probe: false,
    };
    ForwardLayer { app, routes: routes.clone(), declared: Arc::new(declared) }
}

fn wait_of(_: &Parts, body: &[u8]) -> Duration {
    let body: Value = serde_json::from_slice(body).unwrap();
    Duration::from_secs(body["wait_secs"].as_u64().unwrap_or_default())
}

/// A request for the path of the tests, ended by `end`.
pub(super) fn request(method: &str, path: &str, body: &'static str) -> Request {
    let uri = path.replace("{tenant_id}", TENANT).replace("{key}", "k");
    let request = Request::builder().method(method).uri(uri).header("X-Request-Id", "r-1");
    request.header("Content-Type", "application/json").body(Body::from(body)).unwrap()
}

async fn shown(response: Response) -> (StatusCode, HeaderMap, Value) {
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    (parts.status, parts.headers, serde_json::from_slice(&bytes).unwrap_or_default())
}

pub(super) async fn send(router: &Router, request: Request) -> (StatusCode, HeaderMap, Value) {
    shown(router.clone().oneshot(request).await.unwrap()).await
}

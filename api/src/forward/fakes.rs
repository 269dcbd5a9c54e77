//! Two nodes' layers around small handlers; where the lead is, and the way between the nodes, is
//! the test's to say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use http::{HeaderMap, StatusCode};
use serde_json::Value;
use shiioo_actors::cluster::rpc_ids::RpcIdSource;
use shiioo_actors::command::RpcId;
use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::BoxFuture;
use shiioo_actors::ports::seams::{Clock, Entropy, Seams};
use tokio::sync::watch;
use tower::ServiceExt;

use super::*;
use crate::app::Shared;
use crate::auth::Guard;
use crate::metrics::Metrics;
use crate::{edge, handed_over};

const TENANT: &str = "550e8400-e29b-41d4-a716-446655440000";
pub(super) const PATH: &str = "/api/tenants/{tenant_id}/things";
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
        own_names: crate::same_origin::OwnNames::default(),
        bodies: crate::pool::Pool::new(crate::pool::BODIES_BYTES_MAX, 1),
        metrics: Metrics::new([PATH].into_iter(), Vec::new()),
        long_polls: crate::pool::Pool::new(LONG_POLLS, 1 << 20),
        stopping: watch::Sender::new(false),
        openapi: OnceLock::new(),
    })
}

type Called = Result<Vec<u8>, PeerError>;
pub(super) type Peer = Box<dyn Fn(Vec<u8>) -> BoxFuture<'static, Called> + Send + Sync>;

/// Ways whose every turn the test decides.
#[derive(Clone)]
pub(super) struct Fake(Arc<Inner>);

struct Inner {
    lead: watch::Sender<Lead>,
    origins: Arc<RpcIdSource>,
    peers: BTreeMap<u64, Peer>,
    /// What was handed over, to whom.
    sent: Mutex<Vec<(u64, Asked)>>,
}

impl Fake {
    pub(super) fn new(lead: Lead) -> Self {
        Self::with(lead, BTreeMap::new())
    }

    pub(super) fn with(lead: Lead, peers: BTreeMap<u64, Peer>) -> Self {
        let seams = Seams { clock: Arc::new(Fixed), entropy: Arc::new(Fixed) };
        let origins = Arc::new(RpcIdSource::new(&seams));
        let lead = watch::Sender::new(lead);
        Self(Arc::new(Inner { lead, origins, peers, sent: Mutex::default() }))
    }

    pub(super) fn lead_at(&self, lead: Lead) {
        self.0.lead.send_replace(lead);
    }

    pub(super) fn sent(&self) -> Vec<(u64, Asked)> {
        self.0.sent.lock().unwrap().clone()
    }

    /// Who was asked, under which sequence, and whether it may have been done before.
    pub(super) fn asked(&self) -> Vec<(u64, Option<u64>, bool)> {
        let asked = |(to, asked): (u64, Asked)| {
            let attempt = asked.into_request(Instant::now()).unwrap();
            let attempt = Attempt::of(&attempt.into_parts().0).unwrap();
            (to, attempt.origin.map(|rpc_id: RpcId| rpc_id.sequence), attempt.again)
        };
        self.sent().into_iter().map(asked).collect()
    }

    pub(super) fn answered_below(&self) -> u64 {
        self.0.origins.begin(false).rpc_id().first_incomplete
    }
}

impl Ways for Fake {
    type Way = Lead;

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
        Some(self.0.origins.begin(is_long))
    }

    async fn find(&self, _: Owner, _: Instant) -> Result<(Lead, Lead), CallError> {
        let lead = *self.0.lead.borrow();
        Ok((lead, lead))
    }

    async fn moved(&self, way: Lead) {
        let mut lead = self.0.lead.subscribe();
        drop(lead.wait_for(|lead| *lead != way).await);
    }

    async fn forward(&self, to: u64, request: Vec<u8>, _: Instant) -> Called {
        self.0.sent.lock().unwrap().push((to, Asked::decode(&request).unwrap()));
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

/// A node that takes what is handed over, with these ways of its own.
pub(super) fn node(ways: &Fake, path: &'static str, handler: MethodRouter<App>) -> Peer {
    let layer = Layer { app: app(None), ways: ways.clone(), owned_by: owned_by(path) };
    let router = Router::new()
        .route(path, handler)
        .route_layer(from_fn_with_state(layer, handed_over::only_here::<Fake>))
        .layer(from_fn_with_state(app(None), edge::inner_edge))
        .with_state(app(None));
    Box::new(move |request| {
        let router = router.clone();
        Box::pin(async move {
            let deadline = Instant::now() + TIMEOUT;
            let served = handed_over::serve(router, 1, &request, deadline).await;
            served.map_err(|declined| PeerError::Declined { to: 2, why: declined.0 })
        })
    })
}

/// The node that the client asks.
pub(super) fn asking(ways: &Fake, path: &'static str, handler: MethodRouter<App>) -> Router {
    with_token(ways, path, handler, None)
}

/// The same, and what its layers share.
pub(super) fn asking_app(
    ways: &Fake,
    path: &'static str,
    handler: MethodRouter<App>,
) -> (Router, App) {
    let app = app(None);
    (routed(ways, path, handler, app.clone()), app)
}

pub(super) fn with_token(
    ways: &Fake,
    path: &'static str,
    handler: MethodRouter<App>,
    token: Option<&str>,
) -> Router {
    routed(ways, path, handler, app(token))
}

fn routed(ways: &Fake, path: &'static str, handler: MethodRouter<App>, app: App) -> Router {
    let layer = Layer { app: app.clone(), ways: ways.clone(), owned_by: owned_by(path) };
    Router::new()
        .route(path, handler)
        .route_layer(from_fn_with_state(layer, to_owner::<Fake>))
        .layer(from_fn_with_state(app.clone(), edge::edge))
        .with_state(app)
}

fn owned_by(path: &str) -> OwnedBy {
    match path {
        "/api/cluster/once" => OwnedBy::ClusterOnce,
        path if path.contains("{tenant_id}") => OwnedBy::Tenant,
        _ => OwnedBy::Cluster,
    }
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

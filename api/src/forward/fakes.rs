//! Fakes of two nodes' layers around small handlers. The test says where the lead is, and what
//! becomes of a call between the nodes.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::cluster::rpc_ids::{InFlight, RpcIdSource};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::handles::Owner;
use shiioo_actors::ports::PeerError;
use shiioo_actors::ports::error::CallError;
use shiioo_actors::ports::seams::ByteStream;
use shiioo_actors::testing::fixed_seams;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tower::ServiceExt;

use super::*;
use crate::docs::Documents;
use crate::forward::owner_routes::OwnerRoutes;
use crate::server::app::Shared;
use crate::server::auth::Guard;
use crate::server::declaration::{Credential, RouteOwner, RouteTable, TenantIn};
use crate::server::metrics::Metrics;
use crate::server::middleware;
use crate::server::pacing::Pacing;
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
/// Requests that may be handed over at a time: a tenant gets half of them.
pub(super) const HANDED_OVER: usize = 20;
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

fn app(admin_token: Option<&str>) -> App {
    with_bodies(admin_token, BODIES_BYTES_MAX)
}

fn with_bodies(admin_token: Option<&str>, bodies_bytes: usize) -> App {
    App::new(Shared {
        handles: OnceLock::new(),
        seams: fixed_seams(Timestamp(0)),
        version: "1.2.3",
        request_timeout: TIMEOUT,
        heartbeat_interval: TIMEOUT,
        guard: Guard::new(
            watch::channel(admin_token.map(|it| SecretHash::of_admin_token(it.as_bytes()))).1,
        ),
        routes: RouteTable::default(),
        own_names: OwnNames::default(),
        default_tenant: None,
        bodies: Pool::new(bodies_bytes, 1),
        answers: Pool::new(ANSWERS_BYTES_MAX, 1),
        metrics: Metrics::new(Vec::new()),
        long_polls: Pool::new(LONG_POLLS, 1 << 20),
        streams: Pool::new(2, 3),
        pacing: Pacing::default(),
        handed_over: Pool::new(HANDED_OVER, 1),
        stopping: watch::Sender::new(false),
        documents: Documents::new("1.2.3", Vec::new()),
    })
}

/// A node that streams are opened to: it is given the other end.
pub(super) type Peer = Box<dyn Fn(DuplexStream) + Send + Sync>;
/// Bytes that a stream holds in one direction.
const STREAM_BYTES: usize = 64 * 1024;

/// What has been written to a stream.
type Written = Arc<Mutex<Vec<u8>>>;

/// The asking end of a stream. Keeps what is written, and says when it is dropped.
struct Tapped {
    stream: DuplexStream,
    written: Written,
    open: watch::Sender<usize>,
}

impl Drop for Tapped {
    fn drop(&mut self) {
        self.open.send_modify(|open| *open -= 1);
    }
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.written.lock().unwrap().extend_from_slice(&bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// OwnerRoutes whose every turn the test decides.
#[derive(Clone)]
pub(super) struct FakeRoutes(Arc<Inner>);

struct Inner {
    lead: watch::Sender<Lead>,
    rpc_ids: Arc<RpcIdSource>,
    peers: BTreeMap<RaftId, Peer>,
    /// What was handed over, to whom.
    sent: Mutex<Vec<(RaftId, Written)>>,
    /// The number of streams that are open.
    open: watch::Sender<usize>,
}

impl FakeRoutes {
    pub(super) fn new(lead: Lead) -> Self {
        Self::with(lead, BTreeMap::new())
    }

    pub(super) fn with(lead: Lead, peers: BTreeMap<RaftId, Peer>) -> Self {
        let rpc_ids = Arc::new(RpcIdSource::new(&fixed_seams(Timestamp(0))));
        let lead = watch::Sender::new(lead);
        Self(Arc::new(Inner {
            lead,
            rpc_ids,
            peers,
            sent: Mutex::default(),
            open: watch::Sender::new(0),
        }))
    }

    pub(super) fn lead_at(&self, lead: Lead) {
        self.0.lead.send_replace(lead);
    }

    /// Has the lead be elsewhere in a while.
    pub(super) fn move_lead(&self, after: Duration, lead: Lead) {
        let moving = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            moving.lead_at(lead);
        });
    }

    /// Lists what was handed over, as text, and to whom.
    pub(super) fn sent(&self) -> Vec<(u64, String)> {
        let sent = self.0.sent.lock().unwrap();
        let text = |bytes: &Mutex<Vec<u8>>| String::from_utf8_lossy(&bytes.lock().unwrap()).into();
        sent.iter().map(|(to, bytes)| (to.0, text(bytes))).collect()
    }

    /// Lists the attempts: at which node, under which sequence, and whether an earlier one may have
    /// been applied.
    pub(super) fn attempts(&self) -> Vec<(u64, Option<u64>, bool)> {
        let attempt = |(to, text): (u64, String)| {
            let line = text.lines().find_map(|line| line.strip_prefix("x-shiioo-attempt: "));
            let numbers: Vec<u64> =
                line.unwrap().split(' ').map(|it| it.parse().unwrap()).collect();
            (to, numbers.get(5).copied(), numbers[3] == 1)
        };
        self.sent().into_iter().map(attempt).collect()
    }

    /// Waits until no stream is open.
    pub(super) async fn all_closed(&self) {
        self.0.open.subscribe().wait_for(|open| *open == 0).await.unwrap();
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

    async fn open(&self, to: RaftId, _: Instant) -> Result<Box<dyn ByteStream>, PeerError> {
        let Some(peer) = self.0.peers.get(&to) else {
            return Err(PeerError::Unreachable { to, why: "nobody is there".into() });
        };
        let written = Written::default();
        self.0.sent.lock().unwrap().push((to, Arc::clone(&written)));
        self.0.open.send_modify(|open| *open += 1);
        let (stream, theirs) = tokio::io::duplex(STREAM_BYTES);
        peer(theirs);
        Ok(Box::new(Tapped { stream, written, open: self.0.open.clone() }))
    }
}

pub(super) fn peers<const N: usize>(peers: [(u64, Peer); N]) -> BTreeMap<RaftId, Peer> {
    peers.into_iter().map(|(id, peer)| (RaftId(id), peer)).collect()
}

pub(super) fn lost() -> Peer {
    Box::new(drop)
}

pub(super) fn silent() -> Peer {
    Box::new(|stream| {
        tokio::spawn(async move {
            let _stream = stream;
            std::future::pending::<()>().await;
        });
    })
}

/// Routes on which node 2, this one, leads.
pub(super) fn led_by(peer: Peer) -> FakeRoutes {
    FakeRoutes::with(Lead::There(RaftId(2)), peers([(2, peer)]))
}

/// A node that leads.
pub(super) fn owner(path: &'static str, handler: MethodRouter<App>) -> Peer {
    node(&FakeRoutes::new(Lead::Here), path, handler)
}

/// A node that takes what is handed over, with these routes of its own.
pub(super) fn node(routes: &FakeRoutes, path: &'static str, handler: MethodRouter<App>) -> Peer {
    served(routes, path, handler, BODIES_BYTES_MAX)
}

/// A node that leads and has no room for a body.
pub(super) fn full_owner(path: &'static str, handler: MethodRouter<App>) -> Peer {
    served(&FakeRoutes::new(Lead::Here), path, handler, 0)
}

fn served(
    routes: &FakeRoutes,
    path: &'static str,
    handler: MethodRouter<App>,
    bodies_bytes: usize,
) -> Peer {
    let layer = layer(routes, path, with_bodies(None, bodies_bytes));
    let router = Router::new()
        .route(path, handler)
        .route_layer(from_fn_with_state(layer, inbound::only_here::<FakeRoutes>))
        .layer(from_fn_with_state(app(None), middleware::inbound))
        .with_state(app(None));
    Box::new(move |stream| {
        let deadline = Instant::now() + TIMEOUT;
        tokio::spawn(inbound::serve(router.clone(), RaftId(1), Box::new(stream), deadline, true));
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

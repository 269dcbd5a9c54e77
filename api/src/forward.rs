//! Any node answers: brings a request whole to the node that leads the group that owns what it
//! is about, and tries again, unseen by the client, while the lead moves.
//!
//! Invariants:
//! - a write that may have been applied is tried again under the same origin only, which makes a
//!   second application impossible; what has no such protection (`OwnedBy::ClusterOnce`) is not
//!   tried again;
//! - `applied: false` leaves the node only when no attempt at all can have been applied;
//! - the body is read once, and the deadline counts from then: no attempt moves it;
//! - everything hangs on one future: a client that goes away cancels every attempt.

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use serde::Deserialize;
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::cluster::rpc_ids::InFlight;
use shiioo_actors::handles::{Owner, Route};
use shiioo_actors::ports::error::CallError;
use shiioo_actors::ports::{PEER_CALL_MAX, PeerError};
use tokio::time::{Duration, Instant, sleep_until};

use crate::app::App;
use crate::attempt::Attempt;
use crate::payload::read_body;
use crate::problem::{Problem, Retry};
use crate::tenant_scope::named_tenant;
use crate::wire::{Answer, Asked};
use crate::{locks, runs};

/// Wait before the next attempt, at first and at least.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// Wait before the next attempt, at most.
const RETRY_MAX: Duration = Duration::from_millis(200);
/// On answers from this node's own view: how far that is.
const APPLIED_INDEX: HeaderName = HeaderName::from_static("shiioo-applied-index");
/// How much longer than its deadline a request that was handed over is waited for, so that what
/// the other node says at the deadline arrives.
const ANSWER_GRACE: Duration = Duration::from_millis(200);

/// Where requests have to go, and how they get there.
pub(crate) trait Ways: Clone + Send + Sync + 'static {
    /// A way that was found, to be told from later ones.
    type Way: Copy + Send + Sync;

    /// Whether the node's actors run.
    fn is_open(&self) -> bool;

    /// Whether the cluster has noted that this node has started. Before that it may not have heard
    /// of much, as of an admin token: it tells what its own disk knows, and changes nothing.
    fn has_started(&self) -> bool;

    /// How far this node's own view of the cluster is.
    fn applied_index(&self, deadline: Instant) -> impl Future<Output = Option<u64>> + Send;

    /// Names a write that is about to be tried, perhaps a long poll.
    fn begin(&self, is_long: bool) -> Option<InFlight>;

    /// Where a request has to go now.
    fn find(
        &self,
        owner: Owner,
        deadline: Instant,
    ) -> impl Future<Output = Result<(Self::Way, Lead), CallError>> + Send;

    /// Waits until a request has to go elsewhere.
    fn moved(&self, way: Self::Way) -> impl Future<Output = ()> + Send;

    /// Hands a request over.
    fn forward(
        &self,
        to: u64,
        request: Vec<u8>,
        deadline: Instant,
    ) -> impl Future<Output = Result<Vec<u8>, PeerError>> + Send;
}

impl Ways for App {
    type Way = Route;

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

    async fn moved(&self, way: Route) {
        match self.node() {
            Ok(handles) => handles.routes.moved(way).await,
            Err(_) => std::future::pending().await,
        }
    }

    async fn forward(
        &self,
        to: u64,
        request: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, PeerError> {
        match self.node() {
            Ok(handles) => handles.routes.forward(to, request, deadline).await,
            Err(starting) => Err(PeerError::Unreachable { to, why: starting.to_string() }),
        }
    }
}

/// Who owns what a route is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnedBy {
    /// The cluster.
    Cluster,
    /// The cluster; what came to an unknown outcome is not tried again.
    ClusterOnce,
    /// The tenant that the request names.
    Tenant,
}

impl OwnedBy {
    /// The owner of what this request is about.
    pub(crate) fn owner(self, parts: &Parts) -> Result<Owner, Problem> {
        match self {
            Self::Cluster | Self::ClusterOnce => Ok(Owner::Cluster),
            Self::Tenant => named_tenant(parts).map(Owner::Tenant),
        }
    }
}

/// What the layers around routes with an owner work with.
#[derive(Debug, Clone)]
pub(crate) struct Layer<W> {
    pub(crate) app: App,
    pub(crate) ways: W,
    pub(crate) owned_by: OwnedBy,
}

/// Middleware around every route that has an owner.
pub(crate) async fn to_owner<W: Ways>(
    State(layer): State<Layer<W>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let owner = match layer.owned_by.owner(&parts) {
        Ok(owner) => owner,
        Err(problem) => return problem.into_response(),
    };
    let whose = match owner {
        Owner::Tenant(tenant) => Some(tenant),
        Owner::Cluster => None,
    };
    // Held as long as the body is: to the answer.
    let mut share = layer.app.bodies.share(whose);
    let body = match read_body(body, &mut share).await {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    if !layer.ways.is_open() {
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    }
    let stale = match wants_stale(&parts) {
        Ok(stale) => stale,
        Err(problem) => return problem.into_response(),
    };
    if owner == Owner::Cluster && stale {
        let attempt = Attempt { stale: true, ..Attempt::only(layer.app.request_timeout) };
        // Before the read, which then sees at least that much.
        let applied = layer.ways.applied_index(attempt.deadline).await;
        let request = Request::from_parts(parts, Body::from(body));
        let mut response = run_here(&attempt, request, next).await;
        if let Some(applied) = applied {
            response.headers_mut().insert(APPLIED_INDEX, HeaderValue::from(applied));
        }
        return response;
    }
    // A tenant whose group is led here can be read without the others.
    let reads_tenant = matches!(owner, Owner::Tenant(_)) && is_read(&parts.method);
    if !layer.ways.has_started() && !reads_tenant {
        return Problem::from(CallError::Starting { what: "the node" }).into_response();
    }
    if wait_of(&parts, &body).is_zero() {
        return Journey::new(&layer, owner, parts, body).go(&next).await;
    }
    let _place = match layer.app.long_poll(whose) {
        Ok(place) => place,
        Err(busy) => return Problem::from(busy).into_response(),
    };
    tokio::select! {
        biased;
        answer = Journey::new(&layer, owner, parts, body).go(&next) => answer,
        // What it waited for has not come; what it did before it waited may stand.
        () = layer.app.stopped() => {
            let why = "the node stopped while the request waited".to_owned();
            Problem::from(CallError::Unknown { why }).into_response()
        }
    }
}

/// Answers an attempt on this node.
pub(crate) async fn run_here(attempt: &Attempt, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(*attempt);
    let mut response = next.run(request).await;
    if attempt.again
        && let Some(problem) = response.extensions_mut().get_mut::<Problem>()
    {
        problem.perhaps_applied();
    }
    response
}

/// A request on its way to its owner.
struct Journey<'a, W> {
    layer: &'a Layer<W>,
    owner: Owner,
    parts: Parts,
    body: Bytes,
    arrived: Instant,
    /// When the client is to have an answer.
    until: Instant,
    /// On writes: names all attempts. Every attempt has been answered when it is dropped.
    under_way: Option<InFlight>,
    /// Whether an attempt at this write may have been applied.
    again: bool,
}

/// What came of an attempt.
enum Attempted {
    /// The answer.
    Answered(Response),
    /// Another attempt may end better; until then, this is the answer.
    Again(Retry, Response),
}

impl<'a, W: Ways> Journey<'a, W> {
    fn new(layer: &'a Layer<W>, owner: Owner, parts: Parts, body: Bytes) -> Self {
        let arrived = Instant::now();
        let wait = wait_of(&parts, &body);
        let until = arrived + layer.app.request_timeout + wait;
        let under_way =
            if is_read(&parts.method) { None } else { layer.ways.begin(!wait.is_zero()) };
        Self { layer, owner, parts, body, arrived, until, under_way, again: false }
    }

    /// Tries until there is an answer or the time is up.
    async fn go(mut self, next: &Next) -> Response {
        let mut pause = RETRY_MIN;
        loop {
            let (way, attempted) = self.attempt(next).await;
            let (retry, answer) = match attempted {
                Attempted::Answered(answer) => return answer,
                Attempted::Again(retry, answer) => (retry, answer),
            };
            let once = self.layer.owned_by == OwnedBy::ClusterOnce;
            let is_final = once && retry == Retry::Unknown;
            if is_final || Instant::now() + RETRY_MIN >= self.until {
                return answer;
            }
            self.again |= self.under_way.is_some() && retry == Retry::Unknown;
            self.rest(way, pause).await;
            if Instant::now() >= self.until {
                return answer;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn attempt(&self, next: &Next) -> (Option<W::Way>, Attempted) {
        let attempt = self.this_attempt();
        let (way, lead) = match self.layer.ways.find(self.owner, attempt.deadline).await {
            Ok(found) => found,
            // Whatever it is, nothing was done yet.
            Err(error) => {
                let problem = Problem::from(error).not_applied();
                return (None, Attempted::Again(Retry::Safe, self.refused(problem)));
            }
        };
        let attempted = match lead {
            Lead::Here => {
                let body = Body::from(self.body.clone());
                let request = Request::from_parts(self.parts.clone(), body);
                judged(run_here(&attempt, request, next.clone()).await)
            }
            Lead::There(to) => tokio::select! {
                biased;
                attempted = self.hand_over(to, &attempt) => attempted,
                () = self.moved(way) => self.unknown("the lead moved before it answered"),
            },
            Lead::Unknown => self.no_leader(),
        };
        (Some(way), attempted)
    }

    fn this_attempt(&self) -> Attempt {
        let now = Instant::now();
        Attempt {
            began: self.arrived,
            waited_before: Duration::ZERO,
            // Of a long poll, which has more time, every attempt gets the usual.
            deadline: (now + self.layer.app.request_timeout).min(self.until),
            origin: self.under_way.as_ref().map(InFlight::rpc_id),
            again: self.again,
            asked: None,
            stale: false,
        }
    }

    async fn hand_over(&self, to: u64, attempt: &Attempt) -> Attempted {
        let request = Asked::new(&self.parts, &self.body, attempt).encode();
        let deadline = (self.until + ANSWER_GRACE).min(Instant::now() + PEER_CALL_MAX);
        let answer = match self.layer.ways.forward(to, request, deadline).await {
            Ok(answer) => Answer::decode(&answer),
            Err(error @ (PeerError::Unreachable { .. } | PeerError::Declined { .. })) => {
                tracing::debug!(%error, "not handed over");
                return self.no_leader();
            }
            Err(error @ PeerError::Lost { .. }) => {
                tracing::debug!(%error, "handed over, and lost");
                return self.unknown("the node that owns this did not answer");
            }
        };
        let response = answer.and_then(|answer| match answer {
            Answer::NotHere => Ok(None),
            Answer::Answered(answered) => answered.into_response().map(Some),
        });
        match response {
            Ok(Some(response)) => judged(response),
            Ok(None) => self.no_leader(),
            Err(error) => {
                tracing::warn!(to, %error, "an answer of another node cannot be read");
                self.unknown("the node that owns this answered in another language")
            }
        }
    }

    /// Waits until the lead has moved, but not for ever; and not for nothing, for what is known
    /// here may stay wrong for a while.
    async fn rest(&self, way: Option<W::Way>, pause: Duration) {
        let now = Instant::now();
        sleep_until(self.until.min(now + RETRY_MIN)).await;
        tokio::select! {
            () = async {
                match way {
                    Some(way) => self.layer.ways.moved(way).await,
                    None => std::future::pending().await,
                }
            } => {}
            () = sleep_until(self.until.min(now + pause)) => {}
        }
    }

    /// As long as the lead stays, never; nor for what is not tried again.
    async fn moved(&self, way: W::Way) {
        if self.layer.owned_by == OwnedBy::ClusterOnce {
            return std::future::pending().await;
        }
        self.layer.ways.moved(way).await;
    }

    fn no_leader(&self) -> Attempted {
        Attempted::Again(Retry::Safe, self.refused(CallError::NoLeader.into()))
    }

    fn unknown(&self, why: &str) -> Attempted {
        let problem = CallError::Unknown { why: why.to_owned() }.into();
        Attempted::Again(Retry::Unknown, self.refused(problem))
    }

    /// The answer for now; it may have been done in an earlier attempt.
    fn refused(&self, mut problem: Problem) -> Response {
        if self.again {
            problem.perhaps_applied();
        }
        problem.into_response()
    }
}

fn judged(response: Response) -> Attempted {
    match response.extensions().get::<Retry>().copied() {
        Some(retry) => Attempted::Again(retry, response),
        None => Attempted::Answered(response),
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Whether the client is content with what this node knows: on reads.
fn wants_stale(parts: &Parts) -> Result<bool, Problem> {
    #[derive(Deserialize)]
    struct Consistency {
        consistency: Option<String>,
    }

    // What is wrong with a query otherwise is for its reader to say.
    let query = axum::extract::Query::<Consistency>::try_from_uri(&parts.uri).ok();
    match query.and_then(|query| query.0.consistency).filter(|_| is_read(&parts.method)) {
        None => Ok(false),
        Some(wanted) if wanted == "stale" => Ok(true),
        Some(_) => Err(Problem::parameter("consistency", "must be stale, or left out")),
    }
}

/// How long the request waits for something to happen, beside the time it may take.
fn wait_of(parts: &Parts, body: &[u8]) -> Duration {
    let template = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    match parts.method {
        Method::POST if template.ends_with("/locks/{key}/acquire") => locks::wait_of(body),
        Method::POST if template.ends_with("/runs") => runs::wait_of(&parts.uri),
        Method::GET if template.ends_with("/runs/{run_id}") => runs::wait_of(&parts.uri),
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod fakes;
#[cfg(test)]
mod tests;

//! Brings requests of clients to their owners.
//!
//! Invariant: every attempt at a request, its body's share of the pool and its place among the long
//! polls are held by one future. A client that goes away drops it.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method};
use hyper::body::Frame;
use serde::Deserialize;
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::cluster::rpc_ids::InFlight;
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::handles::Owner;
use shiioo_actors::ports::PEER_CALL_MAX;
use shiioo_actors::ports::error::CallError;
use tokio::time::{Duration, Instant, sleep};

use crate::forward::body::read_body;
use crate::forward::owner_routes::OwnerRoutes;
use crate::forward::retry::{Attempted, Pacing};
use crate::forward::transport::{self, Sent};
use crate::forward::{ForwardLayer, run_here};
use crate::output::problem::{Problem, Retry};
use crate::output::reply::Started;
use crate::request::attempt::Attempt;
use crate::server::connections::{Seat, parked};
use crate::server::declaration::RouteOwner;
use crate::server::pool::Share;

/// Tells how far the view of this node is, on answers from that view.
const APPLIED_INDEX: HeaderName = HeaderName::from_static("shiioo-applied-index");
/// How long a leader that was is given to answer a request that waits on purpose, once another leads: where it is well
/// it breaks the wait off at once, and says what it has started.
const LAST_WORD_AWAITED: Duration = Duration::from_millis(100);

/// How much longer than its deadline a request that was handed over is waited for, so that what
/// the other node says at the deadline arrives.
pub(super) const ANSWER_GRACE: Duration = Duration::from_millis(200);

/// Brings a request to its owner: the middleware around every route that has one.
pub(crate) async fn to_owner<R: OwnerRoutes>(
    State(layer): State<ForwardLayer<R>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let owner = match layer.declared.owner_of(&parts) {
        Ok(Some(owner)) => owner,
        Ok(None) => return next.run(Request::from_parts(parts, body)).await,
        Err(problem) => return problem.into_response(),
    };
    let whose = layer.app.whose(owner);
    // Held as long as the body is: to the answer.
    let mut share = layer.app.bodies.share(whose);
    let body = match read_body(body, &mut share).await {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    if !layer.routes.is_open() {
        // The handler checks the request as it always does, and then says that the node is starting.
        return next.run(Request::from_parts(parts, Body::from(body))).await;
    }
    let stale = match wants_stale(&parts) {
        Ok(stale) => stale,
        Err(problem) => return problem.into_response(),
    };
    if owner == Owner::Cluster && stale {
        return read_stale(&layer, Request::from_parts(parts, Body::from(body)), next).await;
    }
    // A tenant whose group is led here can be read without the rest of the cluster.
    let reads_tenant = matches!(owner, Owner::Tenant(_)) && is_read(&parts.method);
    if !layer.routes.has_started() && !reads_tenant {
        return Problem::from(CallError::Starting { what: "the node" }).into_response();
    }
    let wait = layer.declared.wait_of(&parts, &body);
    if wait.is_zero() {
        return ForwardedRequest::new(&layer, owner, parts, body, wait).run(&next).await;
    }
    let seat = Seat::of(&parts.extensions).cloned();
    let answered = async {
        let Some(_place) = layer.app.long_poll(whose).await else {
            return Problem::from(CallError::NodeBusy).into_response();
        };
        tokio::select! {
            // A race of the answer and the end of the server: an answer that is there is given.
            biased;
            answer = ForwardedRequest::new(&layer, owner, parts, body, wait).run(&next) => answer,
            () = layer.app.stopped() => gave_up("the node stopped while the request waited"),
        }
    };
    let answer = parked(seat, answered).await;
    answer.unwrap_or_else(|| gave_up("others needed the place of the connection that waited"))
}

/// Answers a request that waits no longer. What it waits for has not come, but its effect before the
/// wait may stand (a run that was started): the outcome is unknown.
fn gave_up(why: &str) -> Response {
    Problem::from(CallError::Unknown { why: why.to_owned() }).into_response()
}

/// Answers a read of the cluster from this node's own view, however old.
async fn read_stale<R: OwnerRoutes>(
    layer: &ForwardLayer<R>,
    request: Request,
    next: Next,
) -> Response {
    let attempt = Attempt { stale: true, ..Attempt::only(layer.app.request_timeout) };
    // The index is taken before the read, which then sees at least that much.
    let applied = layer.routes.applied_index(attempt.deadline).await;
    let mut response = run_here(&attempt, request, next).await;
    if let Some(applied) = applied {
        response.headers_mut().insert(APPLIED_INDEX, HeaderValue::from(applied));
    }
    response
}

/// A request on its way to its owner.
struct ForwardedRequest<'a, R> {
    layer: &'a ForwardLayer<R>,
    owner: Owner,
    parts: Parts,
    body: Bytes,
    arrived: Instant,
    /// When the client is to have an answer.
    until: Instant,
    /// Whether it waits on purpose.
    is_long_poll: bool,
    /// The name of all attempts, on writes. Dropping it says that the client has its answer.
    under_way: Option<InFlight>,
    /// Whether an attempt at this write may have been applied.
    maybe_applied: bool,
    /// What an attempt has started. It stands whatever becomes of those that wait for it.
    started: Option<Started>,
}

impl<'a, R: OwnerRoutes> ForwardedRequest<'a, R> {
    /// Fixes the deadline, and names a write. `wait` is the time that it waits on purpose.
    fn new(
        layer: &'a ForwardLayer<R>,
        owner: Owner,
        parts: Parts,
        body: Bytes,
        wait: Duration,
    ) -> Self {
        let arrived = Instant::now();
        let until = arrived + layer.app.request_timeout + wait;
        let under_way =
            if is_read(&parts.method) { None } else { layer.routes.begin(!wait.is_zero()) };
        Self {
            layer,
            owner,
            parts,
            body,
            arrived,
            until,
            is_long_poll: !wait.is_zero(),
            under_way,
            maybe_applied: false,
            started: None,
        }
    }

    /// Tries until there is an answer or the time is up.
    async fn run(mut self, next: &Next) -> Response {
        let mut pacing = Pacing::new(self.until);
        // What an attempt answered that did what it was to do, and broke off a wait. It stands whatever
        // becomes of the attempts after it, which are made for the sake of the wait alone.
        let mut done: Option<Response> = None;
        loop {
            let (found, attempted) = self.attempt(next).await;
            let (retry, answer) = match attempted {
                Attempted::Answered(answer) => (None, answer),
                Attempted::Retry(retry, answer) => (Some(retry), answer),
            };
            let answer = match answer.status().is_success() {
                true => answer,
                false => done.take().unwrap_or(answer),
            };
            let Some(retry) = retry else { return answer };
            self.started = answer.extensions().get().copied().or(self.started);
            let is_final = self.is_once() && retry == Retry::Unknown;
            if is_final || pacing.is_over() {
                return answer;
            }
            self.maybe_applied |= self.under_way.is_some() && retry == Retry::Unknown;
            let moved = async {
                match found {
                    Some(found) => self.layer.routes.moved(found).await,
                    None => std::future::pending().await,
                }
            };
            if !pacing.rest(moved).await {
                return answer;
            }
            done = Some(answer).filter(|answer| answer.status().is_success());
        }
    }

    async fn attempt(&self, next: &Next) -> (Option<R::Found>, Attempted) {
        let attempt = self.this_attempt();
        let (found, lead) = match self.layer.routes.find(self.owner, attempt.deadline).await {
            Ok(found) => found,
            // Whatever the error is, this attempt has done nothing yet.
            Err(error) => {
                let problem = Problem::from(error).not_applied();
                return (None, Attempted::Retry(Retry::Safe, self.refused(problem)));
            }
        };
        let attempted = match lead {
            Lead::Here => {
                let body = Body::from(self.body.clone());
                let request = Request::from_parts(self.parts.clone(), body);
                Attempted::judge(run_here(&attempt, request, next.clone()).await)
            }
            Lead::There(to) => tokio::select! {
                // A race of the answer and the next election: an answer that is there is taken.
                // Without one the attempt is given up, for the old leader may never answer; what
                // it has done is unknown.
                biased;
                attempted = self.deliver(to, &attempt) => attempted,
                () = self.moved(found) => self.unknown("the lead moved before it answered"),
            },
            Lead::Unknown => self.no_leader(),
        };
        (Some(found), attempted)
    }

    fn this_attempt(&self) -> Attempt {
        let now = Instant::now();
        Attempt {
            began: self.arrived,
            elapsed_upstream: Duration::ZERO,
            // A long poll has more time than `request_timeout`; each of its attempts has the usual.
            deadline: (now + self.layer.app.request_timeout).min(self.until),
            rpc_id: self.under_way.as_ref().map(InFlight::rpc_id),
            maybe_applied: self.maybe_applied,
            ingress_node: None,
            stale: false,
            started: self.started,
        }
    }

    async fn deliver(&self, to: RaftId, attempt: &Attempt) -> Attempted {
        let Some(place) = self.layer.app.handed_over.place(self.layer.app.whose(self.owner)) else {
            let problem = Problem::from(CallError::NodeBusy).not_applied();
            return Attempted::Retry(Retry::Safe, self.refused(problem));
        };
        let deadline = (self.until + ANSWER_GRACE).min(Instant::now() + PEER_CALL_MAX);
        let request = (&self.parts, &self.body);
        match transport::send(&self.layer.routes, to, request, attempt, deadline, place).await {
            Sent::Answered(response) if transport::is_endless(response.body()) => {
                self.pass_on(response)
            }
            Sent::Answered(response) => Attempted::judge(response),
            Sent::NotDone => self.no_leader(),
            Sent::Unknown(why) => self.unknown(why),
        }
    }

    /// Passes an answer on that goes on, until this node stops: the owner does not know that it does.
    fn pass_on(&self, response: Response) -> Attempted {
        let app = self.layer.app.clone();
        let Some(place) = app.streams.place(app.whose(self.owner)) else {
            return Attempted::Answered(self.refused(CallError::NodeBusy.into()));
        };
        let stopped = Box::pin(async move { app.stopped().await });
        let pass_on = |body| Body::new(UntilStopped { body, stopped, _place: place });
        Attempted::Answered(response.map(pass_on))
    }

    /// Waits until the lead moves away from `found`, and whoever had it has had time to answer a long poll. Never
    /// ends for a request that is not tried again: the answer of its one attempt is waited for, whoever leads
    /// meanwhile.
    async fn moved(&self, found: R::Found) {
        if self.is_once() {
            return std::future::pending().await;
        }
        self.layer.routes.moved(found).await;
        if self.is_long_poll {
            sleep(LAST_WORD_AWAITED).await;
        }
    }

    fn is_once(&self) -> bool {
        self.layer.declared.owner == RouteOwner::SystemGroupOnce
    }

    fn no_leader(&self) -> Attempted {
        Attempted::Retry(Retry::Safe, self.refused(CallError::NoLeader.into()))
    }

    fn unknown(&self, why: &str) -> Attempted {
        let problem = CallError::Unknown { why: why.to_owned() }.into();
        Attempted::Retry(Retry::Unknown, self.refused(problem))
    }

    /// Writes the answer for now. An earlier attempt may have been applied.
    fn refused(&self, mut problem: Problem) -> Response {
        if self.maybe_applied {
            problem.perhaps_applied();
        }
        problem.into_response()
    }
}

/// A body that ends when the node stops.
struct UntilStopped {
    body: Body,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: Share,
}

impl HttpBody for UntilStopped {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.stopped.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }
}

fn is_read(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// Tells whether the client asks for this node's own view, which only reads can.
fn wants_stale(parts: &Parts) -> Result<bool, Problem> {
    #[derive(Deserialize)]
    struct Consistency {
        consistency: Option<String>,
    }

    // A query that is wrong otherwise is refused by the handler that reads it.
    let query = axum::extract::Query::<Consistency>::try_from_uri(&parts.uri).ok();
    match query.and_then(|query| query.0.consistency).filter(|_| is_read(&parts.method)) {
        None => Ok(false),
        Some(wanted) if wanted == "stale" => Ok(true),
        Some(_) => Err(Problem::parameter("consistency", "must be stale, or left out")),
    }
}

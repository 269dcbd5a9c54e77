//! Answers requests that other nodes hand over, because this node owns what they are about.
//!
//! Invariants:
//! - such a request is answered here or not at all: the router that it meets hands nothing on, so
//!   that no two nodes can send it to and fro;
//! - its body is read at once, whatever its tenant does meanwhile: bytes that nobody reads would
//!   hold up what else the same node sends;
//! - the ingress node has let the client in: its credential is not looked at again.

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::seams::ByteStream;
use tokio::time::{Instant, timeout_at};
use tower::ServiceExt;

use crate::forward::body::read_body;
use crate::forward::headers::{self, Said};
use crate::forward::owner_routes::OwnerRoutes;
use crate::forward::{ForwardLayer, run_here, transport};
use crate::output::problem::{Problem, Retry};
use crate::output::reply::Started;
use crate::request::attempt::Attempt;

/// Marks a response that is no answer: this node does not lead the group that owns the request.
#[derive(Debug, Clone, Copy)]
struct NotHere;

/// Answers the request that the node with raft id `from` sends on a stream, through a router of such
/// requests. `is_open` tells whether the node's actors run.
pub(crate) async fn serve(
    router: Router,
    from: RaftId,
    stream: Box<dyn ByteStream>,
    deadline: Instant,
    is_open: bool,
) {
    let answer = |request: Request| {
        let router = router.clone();
        async move {
            if !is_open {
                return Some(not_done());
            }
            timeout_at(deadline, answered(router, from, request, deadline)).await.ok()
        }
    };
    transport::serve(stream, answer).await;
}

async fn answered(
    router: Router,
    from: RaftId,
    mut request: Request,
    deadline: Instant,
) -> Response {
    let Some((caller, attempt)) = headers::take_request(request.headers_mut(), from, deadline)
    else {
        return not_done();
    };
    tracing::debug!(from = from.0, method = %request.method(), "a request was handed over");
    request.extensions_mut().insert(caller);
    request.extensions_mut().insert(attempt);
    let Ok(mut response) = router.oneshot(request).await;
    if response.extensions().get::<NotHere>().is_some() {
        return not_done();
    }
    if let Some(retry) = response.extensions().get::<Retry>().copied() {
        Said::Retry(retry).write(response.headers_mut());
    }
    if let Some(started) = response.extensions().get::<Started>().copied() {
        headers::write_started(response.headers_mut(), started);
    }
    response
}

/// Says that this node has done nothing.
fn not_done() -> Response {
    let mut response = StatusCode::MISDIRECTED_REQUEST.into_response();
    Said::NotDone.write(response.headers_mut());
    response
}

/// Runs a request if this node leads its owner: the middleware around every route with an owner.
pub(crate) async fn only_here<R: OwnerRoutes>(
    State(layer): State<ForwardLayer<R>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let attempt = Attempt::of(&parts).unwrap_or_else(|| Attempt::only(layer.app.request_timeout));
    let owner = match layer.declared.owner_of(&parts) {
        Ok(Some(owner)) => owner,
        Ok(None) => return next.run(Request::from_parts(parts, body)).await,
        Err(problem) => return problem.into_response(),
    };
    let undone = |problem: Problem| {
        let mut problem = problem.not_applied().retry(Retry::Safe);
        if attempt.maybe_applied {
            problem.perhaps_applied();
        }
        problem.into_response()
    };
    let mut share = layer.app.bodies.share(layer.app.whose(owner));
    let request = match read_body(body, &mut share).await {
        Ok(body) => Request::from_parts(parts, Body::from(body)),
        Err(problem) => return undone(problem),
    };
    // A race: the lead may move after this look-up. The handler's proposal then fails at the group
    // itself, and its answer says whether a retry may help.
    match layer.routes.find(owner, attempt.deadline).await {
        Ok((_, Lead::Here)) => run_here(&attempt, request, next).await,
        Ok((_, Lead::There(_) | Lead::Unknown)) => {
            let mut response = StatusCode::MISDIRECTED_REQUEST.into_response();
            response.extensions_mut().insert(NotHere);
            response
        }
        Err(error) => undone(error.into()),
    }
}

//! Answers requests that other nodes hand over, because this node owns what they are about.
//!
//! Invariants:
//! - such a request is answered here or not at all: the router that it meets hands nothing on, so
//!   that no two nodes can send it to and fro;
//! - the ingress node has let the client in: its credential is not looked at again.

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::ports::Declined;
use tokio::time::Instant;
use tower::ServiceExt;

use crate::forward::owner_routes::OwnerRoutes;
use crate::forward::{ForwardLayer, run_here, transport};
use crate::output::problem::{Problem, Retry};
use crate::request::attempt::Attempt;
use crate::server::app::Caller;

/// Marks a response that is no answer: this node does not lead the group that owns the request.
#[derive(Debug, Clone, Copy)]
struct NotHere;

/// Answers a request of the node with raft id `from`, through a router of such requests.
pub(crate) async fn serve(
    router: Router,
    from: u64,
    request: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, Declined> {
    let mut request = transport::receive(request, deadline).map_err(Declined)?;
    if let Some(attempt) = request.extensions_mut().get_mut::<Attempt>() {
        attempt.ingress_node = Some(from);
    }
    tracing::debug!(from, method = %request.method(), "a request was handed over");
    let method = request.method().clone();
    let caller = request.extensions().get::<Caller>();
    let request_id = caller.map(|caller| caller.request_id.clone());
    let Ok(response) = router.oneshot(request).await;
    if response.extensions().get::<NotHere>().is_some() {
        return Ok(transport::not_here());
    }
    let request_id = request_id.as_ref().and_then(|id| id.to_str().ok());
    Ok(transport::answer(&method, request_id.unwrap_or_default(), response).await)
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
    // A race: the lead may move after this look-up. The handler's proposal then fails at the group
    // itself, and its answer says whether a retry may help.
    match layer.routes.find(owner, attempt.deadline).await {
        Ok((_, Lead::Here)) => run_here(&attempt, Request::from_parts(parts, body), next).await,
        Ok((_, Lead::There(_) | Lead::Unknown)) => {
            let mut response = StatusCode::MISDIRECTED_REQUEST.into_response();
            response.extensions_mut().insert(NotHere);
            response
        }
        Err(error) => {
            let mut problem = Problem::from(error).not_applied().retry(Retry::Safe);
            if attempt.maybe_applied {
                problem.perhaps_applied();
            }
            problem.into_response()
        }
    }
}

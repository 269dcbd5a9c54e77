//! Takes requests that other nodes hand over, because this node owns what they are about.
//!
//! Invariants:
//! - such a request is answered here or not at all: the router it meets hands nothing on, so that
//!   no two nodes can send it to and fro;
//! - the node that the client asked has let it in: its credential is not looked at again.

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::ports::{API_ANSWER_BYTES_MAX, Declined};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::app::Caller;
use crate::attempt::Attempt;
use crate::forward::{Layer, Ways, run_here};
use crate::problem::{Code, Problem, Retry};
use crate::wire::{Answer, Answered, Asked};

/// What the envelope of an answer may take beside its body.
const ENVELOPE_BYTES_MAX: usize = 64 * 1024;
/// Largest answer that is handed back.
const ANSWER_BYTES_MAX: usize = API_ANSWER_BYTES_MAX - ENVELOPE_BYTES_MAX;

/// Marks an answer that is none: this node does not lead the group that owns it.
#[derive(Debug, Clone, Copy)]
struct NotHere;

/// Answers a request of the node with raft id `from`, through a router of such requests.
pub(crate) async fn serve(
    router: Router,
    from: u64,
    request: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, Declined> {
    let request = Asked::decode(request).and_then(|asked| asked.into_request(deadline));
    let mut request = request.map_err(Declined)?;
    if let Some(attempt) = request.extensions_mut().get_mut::<Attempt>() {
        attempt.asked = Some(from);
    }
    tracing::debug!(from, method = %request.method(), "a request was handed over");
    let method = request.method().clone();
    let caller = request.extensions().get::<Caller>();
    let request_id = caller.map(|caller| caller.request_id.clone());
    let Ok(response) = router.oneshot(request).await;
    if response.extensions().get::<NotHere>().is_some() {
        return Ok(Answer::NotHere.encode());
    }
    let (parts, body) = response.into_parts();
    let answered = match to_bytes(body, ANSWER_BYTES_MAX).await {
        Ok(body) => Answered::new(&method, parts, body),
        Err(_) => {
            let request_id = request_id.as_ref().and_then(|id| id.to_str().ok());
            let (parts, body) = too_large().render(request_id.unwrap_or_default()).into_parts();
            // A problem is a few hundred bytes.
            let body = to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_else(|_| Bytes::new());
            Answered::new(&method, parts, body)
        }
    };
    Ok(Answer::Answered(answered).encode())
}

/// Middleware around every route that has an owner.
pub(crate) async fn only_here<W: Ways>(
    State(layer): State<Layer<W>>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let attempt = Attempt::of(&parts).unwrap_or_else(|| Attempt::only(layer.app.request_timeout));
    let owner = match layer.owned_by.owner(&parts) {
        Ok(owner) => owner,
        Err(problem) => return problem.into_response(),
    };
    match layer.ways.find(owner, attempt.deadline).await {
        Ok((_, Lead::Here)) => run_here(&attempt, Request::from_parts(parts, body), next).await,
        Ok((_, Lead::There(_) | Lead::Unknown)) => {
            let mut response = StatusCode::MISDIRECTED_REQUEST.into_response();
            response.extensions_mut().insert(NotHere);
            response
        }
        Err(error) => {
            let mut problem = Problem::from(error).not_applied().retry(Retry::Safe);
            if attempt.again {
                problem.perhaps_applied();
            }
            problem.into_response()
        }
    }
}

fn too_large() -> Problem {
    let text = "the answer is beyond the limit of what is handed from node to node";
    Problem::new(Code::TooLarge, text)
        .status(StatusCode::INTERNAL_SERVER_ERROR)
        .facts(|facts| facts.limit = Some(ANSWER_BYTES_MAX as u64))
}

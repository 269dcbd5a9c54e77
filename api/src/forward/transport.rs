//! Carries one request to its owner and the answer back.
//!
//! This is the only file that knows how requests and answers are encoded between nodes: `outbound`
//! and `inbound` see requests and responses of `http`.

use axum::body::to_bytes;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{Method, StatusCode};
use shiioo_actors::ports::{API_ANSWER_BYTES_MAX, PeerError};
use tokio::time::Instant;

use crate::forward::owner_routes::OwnerRoutes;
use crate::forward::wire::{WireAnswer, WireRequest, WireResponse};
use crate::output::problem::{Code, Problem};
use crate::request::attempt::Attempt;

/// What the head of an answer may take beside its body, bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Largest body of an answer that is handed back, bytes.
const ANSWER_BYTES_MAX: usize = API_ANSWER_BYTES_MAX - HEAD_BYTES_MAX;

/// The result of handing a request over.
pub(super) enum Sent {
    /// The owner's answer.
    Answered(Response),
    /// The other node has done nothing: it was not reached, declined, or does not lead the group.
    NotDone,
    /// What the other node has done is unknown.
    Unknown(&'static str),
}

/// Hands a request over to the node with raft id `to`, and waits for its answer until `deadline`.
pub(super) async fn send(
    routes: &impl OwnerRoutes,
    to: u64,
    (parts, body): (&Parts, &Bytes),
    attempt: &Attempt,
    deadline: Instant,
) -> Sent {
    let request = WireRequest::new(parts, body, attempt).encode();
    let answer = match routes.forward(to, request, deadline).await {
        Ok(answer) => WireAnswer::decode(&answer),
        Err(error @ (PeerError::Unreachable { .. } | PeerError::Declined { .. })) => {
            tracing::debug!(%error, "a request was not handed over");
            return Sent::NotDone;
        }
        Err(error @ PeerError::Lost { .. }) => {
            tracing::debug!(%error, "a request was handed over, and its answer was lost");
            return Sent::Unknown("the node that owns this did not answer");
        }
    };
    let response = answer.and_then(|answer| match answer {
        WireAnswer::NotHere => Ok(None),
        WireAnswer::Answered(response) => response.into_response().map(Some),
    });
    match response {
        Ok(Some(response)) => Sent::Answered(response),
        Ok(None) => Sent::NotDone,
        Err(error) => {
            tracing::warn!(to, %error, "an answer of another node cannot be read");
            Sent::Unknown(
                "the owning node's reply could not be decoded (different version?); retry with the \
                 same Idempotency-Key",
            )
        }
    }
}

/// Reads a request that another node has handed over, for a router: answered by `deadline` at the
/// latest.
pub(super) fn receive(bytes: &[u8], deadline: Instant) -> Result<Request, String> {
    WireRequest::decode(bytes)?.into_request(deadline)
}

/// Writes that this node does not lead the group that owns the request.
pub(super) fn not_here() -> Vec<u8> {
    WireAnswer::NotHere.encode()
}

/// Writes the answer to a request that another node has handed over.
pub(super) async fn answer(method: &Method, request_id: &str, response: Response) -> Vec<u8> {
    let (parts, body) = response.into_parts();
    let response = match to_bytes(body, ANSWER_BYTES_MAX).await {
        Ok(body) => WireResponse::new(method, parts, body),
        Err(_) => {
            let (parts, body) = too_large().render(request_id).into_parts();
            // A problem is a few hundred bytes.
            let body = to_bytes(body, ANSWER_BYTES_MAX).await.unwrap_or_else(|_| Bytes::new());
            WireResponse::new(method, parts, body)
        }
    };
    WireAnswer::Answered(response).encode()
}

fn too_large() -> Problem {
    let text = "the answer is beyond the limit of what is handed from node to node";
    Problem::new(Code::TooLarge, text)
        .status(StatusCode::INTERNAL_SERVER_ERROR)
        .facts(|facts| facts.limit = Some(ANSWER_BYTES_MAX as u64))
}

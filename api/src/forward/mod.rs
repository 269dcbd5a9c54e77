//! Any node answers: brings a request whole to the node that leads the group that owns it, and
//! tries again, unseen by the client, while the lead moves.
//!
//! # The problem
//!
//! A client may ask any node. What it asks about is owned by one group, and only the leader of
//! that group can serve it. The leader changes at any time: between the look-up and the arrival,
//! or while the request is under way, when its outcome may be lost with the leader. A client must
//! notice nothing but time, and must be told the truth when the time is up: 'this was not done'
//! only when it is certain, 'unknown' otherwise.
//!
//! # The protocol
//!
//! ```text
//! client --HTTP--> ingress node                          owner
//!                  read the body; give a write an origin
//!             ,--> find the leader
//!             |    here:  run the handler
//!             |    there: HTTP/1.1 ---one stream--->     does it lead the group?
//!             |                                          no:  not done
//!             |                                          yes: run the handler
//!             |    <-------------HTTP/1.1------------    the answer, and whether a retry may help
//!             `--- retry: pause, or until the lead moves
//! ```
//!
//! - The ingress node (`outbound`) checks the credential, reads the body once, fixes the deadline,
//!   and gives a write an [`RpcId`](shiioo_actors::command::RpcId): one name for all its attempts.
//! - `owner_routes` looks up who leads the group now. An attempt is an answer or a reason to try
//!   again ([`Retry`](crate::output::problem::Retry)): *safe*, it certainly changed nothing, or
//!   *unknown*.
//! - `transport` carries one request and its answer, as HTTP/1.1 over a stream between nodes; what
//!   nodes tell each other beside it is in `headers`. A request that could not be sent, or was
//!   declined, is safe; one that was lost is unknown.
//! - The owner (`inbound`) reads the body at once and runs the request through the same handlers, if
//!   it leads the group at that moment, and says that it has done nothing otherwise.
//! - An answer of up to a MiB is read whole before the client gets any of it: one that breaks off is
//!   an attempt whose outcome is unknown. A longer one streams to the client.
//! - A run that was started, and whose wait for its end broke off, is an answer and a reason to try again.
//!   The attempts that follow carry the run's id and only wait ([`Started`](crate::output::reply::Started)).
//! - Between two attempts the ingress node pauses (`retry`): until the lead moves, at most a
//!   doubling back-off, at least `RETRY_MIN`.
//!
//! # Invariants
//!
//! - A write that may have been applied is tried again under the same origin only. The state machine
//!   keeps the outcome of an origin, so a second application is impossible. A route that has no such
//!   protection (`RouteOwner::SystemGroupOnce`) is not tried again.
//! - `applied: false` leaves the node only when no attempt at all can have been applied. An attempt
//!   that was unknown makes the whole request 'maybe applied' until it is answered.
//! - The body is read once, and the deadline counts from then: no attempt moves it. Time that the
//!   client has waited at the ingress node counts on the owner as well.
//! - A request is handed over once: the owner answers it or says that it has done nothing, and never
//!   hands it on, so that no two nodes can send it to and fro.
//! - Only members hand requests over: mutual TLS says which. Credentials do not travel. The ingress
//!   node checks them and sends who the caller is, in a header that it takes from no client.
//! - Everything hangs on one future: a client that goes away resets the stream, which drops the
//!   handler on the owner, where it runs on clients' threads soon after.
//!
//! # Bounds
//!
//! | of what | where | bound |
//! |---|---|---|
//! | requests handed over, and answers that stream | ingress node | [`PEER_HTTP_STREAMS_MAX`] in all, three quarters for one tenant |
//! | answers that have no end | both nodes | `STREAMS_MAX` (`lib.rs`), three quarters for one tenant; on the ingress node instead of the place above |
//! | streams between two nodes | transport | the same number; Raft's calls have their own, and go first |
//! | bytes of bodies | both nodes | each tenant's share of `BODIES_BYTES_MAX` |
//! | bytes of an answer that are not read | ingress node | a window a stream, beside that of other traffic |
//! | heads | both nodes | 64 KiB |
//! | head of the request | owner | 5 s |
//! | head of the answer | both nodes | the attempt's deadline, told to the owner |
//! | pause in an answer | ingress node | 30 s |
//! | client that does not read | owner | 30 s without progress |
//!
//! # What is not done
//!
//! - No redirect: clients may not be able to reach the other nodes.
//! - No request streams from the client: its body is whole in memory before the first attempt, so that
//!   it can be sent again.
//! - No stream is used for a second request: its end and its reset are what both nodes go by.
//! - No task behind a stream: the ingress node drives hyper's client within the request's own future.
//!
//! [`PEER_HTTP_STREAMS_MAX`]: shiioo_actors::ports::PEER_HTTP_STREAMS_MAX

pub(crate) mod body;
mod headers;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod owner_routes;
mod retry;
mod transport;

#[cfg(test)]
mod fakes;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;

use crate::output::problem::Problem;
use crate::request::attempt::Attempt;
use crate::server::app::App;
use crate::server::declaration::Declaration;

/// What the layers around a route with an owner work with.
#[derive(Clone)]
pub(crate) struct ForwardLayer<R> {
    pub(crate) app: App,
    pub(crate) routes: R,
    pub(crate) declared: Arc<Declaration>,
}

/// Runs one attempt on this node.
async fn run_here(attempt: &Attempt, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(*attempt);
    let mut response = next.run(request).await;
    // An earlier attempt may have been applied though this one was not: `applied: false` would be
    // a promise for all of them.
    if attempt.maybe_applied
        && let Some(problem) = response.extensions_mut().get_mut::<Problem>()
    {
        problem.perhaps_applied();
    }
    response
}

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
//!             |    there: WireRequest ---one call--->    does it lead the group?
//!             |                                          no:  NotHere
//!             |                                          yes: run the handler
//!             |    <----------WireResponse-----------    the answer, and whether a retry may help
//!             `--- retry: pause, or until the lead moves
//! ```
//!
//! - The ingress node (`outbound`) checks the credential, reads the body once, fixes the deadline,
//!   and gives a write an [`RpcId`](shiioo_actors::command::RpcId): one name for all its attempts.
//! - `owner_routes` looks up who leads the group now. An attempt is an answer or a reason to try
//!   again ([`Retry`](crate::output::problem::Retry)): *safe*, it certainly changed nothing, or
//!   *unknown*.
//! - `transport` carries one request and its answer; all that is known of the encoding (`wire`) is
//!   there. A call that could not be sent, or was declined, is safe; one that was lost is unknown.
//! - The owner (`inbound`) runs the request through the same handlers, if it leads the group at
//!   that moment, and says `NotHere` otherwise.
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
//! - A request is handed over once: the owner answers it or says `NotHere`, and never hands it on,
//!   so that no two nodes can send it to and fro.
//! - Credentials do not travel. The ingress node checks them and sends who the caller is.
//! - Everything hangs on one future: a client that goes away cancels every attempt.
//!
//! # What is not done
//!
//! - No redirect: clients may not be able to reach the other nodes.
//! - No streaming: a body is whole in memory before its first attempt, so that it can be sent again,
//!   and an answer is whole before it travels back. Both are bounded.
//! - No cancellation on the owner by the ingress node but the end of the call itself.

pub(crate) mod body;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod owner_routes;
mod retry;
mod transport;
mod wire;

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
#[derive(Debug, Clone)]
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

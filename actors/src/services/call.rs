//! What a client's call brings along, and what a creating one answers.

use std::time::Duration;

use tokio::time::Instant;

use crate::command::{Cause, Idempotency, RpcId};
use crate::domain::ids::RaftId;

/// What comes with every call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who asks, under which request id.
    pub cause: Cause,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The idempotency key, on calls that create.
    pub idempotency: Option<Idempotency>,
    /// Names the request, when it may be sent again: on writes.
    pub rpc_id: Option<RpcId>,
    /// Whether an earlier attempt at this write may have been applied.
    pub maybe_applied: bool,
    /// How long the client had been waiting when the request came to this node.
    pub elapsed_upstream: Duration,
    /// Raft id of the node that the client asked, when it is not this one.
    pub ingress_node: Option<RaftId>,
    /// Whether a read may see this node's own view, however old.
    pub stale: bool,
}

/// A resource that a creating call made, or found under its idempotency key.
#[derive(Debug, Clone, PartialEq)]
pub struct Created<T> {
    /// The resource, as it is now.
    pub resource: T,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

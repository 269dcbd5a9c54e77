//! How the edge talks to the actors: typed calls, with a deadline each. That a mailbox and a
//! replicated log lie behind them is nobody's business.

mod cluster;
mod locks;
mod membership;
mod routes;
mod tenant;
mod tenants;

use std::time::Duration;

use tokio::time::Instant;

pub use cluster::{Cluster, NewNode};
pub use locks::{AcquireLock, LockSpace, Locks};
pub use routes::{Owner, Route, Routes};
pub use tenant::{NewJob, NewRun, TenantHandle};
pub(crate) use tenants::Inner as TenantsInner;
pub use tenants::{Admitted, DEFAULT_REGION, NewTenant, NotAdmitted, StorageStats, Tenants};

use crate::command::{Cause, Idempotency, Origin};

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
    pub origin: Option<Origin>,
    /// How long the client had been waiting when the request came to this node.
    pub waited: Duration,
    /// Raft id of the node that the client asked, when it is not this one.
    pub asked: Option<u64>,
    /// Whether a read may see this node's own view, however old.
    pub stale: bool,
}

/// Everything the edge may call.
#[derive(Debug, Clone)]
pub struct Handles {
    /// Tenants and what is in them.
    pub tenants: Tenants,
    /// Locks of the cluster and of tenants.
    pub locks: Locks,
    /// Nodes, leadership, health.
    pub cluster: Cluster,
    /// Where requests have to go.
    pub routes: Routes,
}

/// A resource that a creating call made, or found under its idempotency key.
#[derive(Debug, Clone, PartialEq)]
pub struct Created<T> {
    /// The resource, as it is now.
    pub resource: T,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

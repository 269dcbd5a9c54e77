//! How the edge talks to the actors: typed calls, with a deadline each. That a mailbox and a
//! replicated log lie behind them is nobody's business.

mod cluster;
mod locks;
mod tenant;
mod tenants;

use tokio::time::Instant;

pub use cluster::{Cluster, NewNode};
pub use locks::{AcquireLock, LockSpace, Locks};
pub use tenant::{NewJob, NewRun, TenantHandle};
pub(crate) use tenants::Inner as TenantsInner;
pub use tenants::{Admitted, DEFAULT_REGION, NewTenant, NotAdmitted, Tenants};

use crate::command::{Cause, Idempotency};

/// What comes with every call.
#[derive(Debug, Clone)]
pub struct Call {
    /// Who asks, under which request id.
    pub cause: Cause,
    /// When the caller stops waiting.
    pub deadline: Instant,
    /// The idempotency key, on calls that create.
    pub idempotency: Option<Idempotency>,
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
}

/// A resource that a creating call made, or found under its idempotency key.
#[derive(Debug, Clone, PartialEq)]
pub struct Created<T> {
    /// The resource, as it is now.
    pub resource: T,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

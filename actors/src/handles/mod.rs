//! How the edge talks to the actors: typed calls, with a deadline each. That a mailbox and a
//! replicated log lie behind them is nobody's business.

mod cluster;
mod events;
mod health;
mod locks;
mod membership;
mod routes;
mod tenant;
mod tenants;

pub use cluster::{Cluster, NewNode};
pub(crate) use events::WATCHERS_MAX;
pub use events::{ClusterEvent, PlacementView, Watcher};
pub use locks::{AcquireLock, LockSpace, Locks};
pub use routes::{Owner, Route, Routes};
pub use tenant::{NewJob, NewRun, TenantHandle};
pub(crate) use tenants::Inner as TenantsInner;
pub use tenants::{Admitted, NewTenant, NotAdmitted, StorageStats, Tenants};

pub use crate::services::{Call, Created};

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

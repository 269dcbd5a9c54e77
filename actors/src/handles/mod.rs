//! How the edge talks to the actors: typed calls, with a deadline each. That a mailbox and a
//! replicated log lie behind them is nobody's business.

mod cluster;
mod default_tenant;
mod definitions;
mod events;
mod health;
mod locks;
mod membership;
mod reach;
mod routes;
mod runs;
mod tenant;
mod tenant_events;
mod tenants;

pub use cluster::{Cluster, NewNode};
pub use definitions::NewJob;
pub(crate) use events::WATCHERS_MAX;
pub use events::{ClusterEvent, PlacementView, Watcher};
pub use locks::{AcquireLock, LockSpace, Locks};
pub use reach::{Admitted, NotAdmitted, StorageStats};
pub use routes::{Owner, Route, Routes};
pub use runs::NewRun;
pub use tenant::TenantHandle;
pub use tenant_events::EventFollower;
pub(crate) use tenants::Inner as TenantsInner;
pub use tenants::{NewTenant, Tenants};

pub use crate::services::{Call, Created};

/// Everything the edge may call.
#[derive(Clone)]
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

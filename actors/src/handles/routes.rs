//! Where a request has to go: to the node that owns what it is about.

use std::sync::Arc;

use tokio::time::Instant;

use super::Tenants;
use crate::cluster::routing::{Lead, Router};
use crate::cluster::rpc_ids::{InFlight, RpcIdSource};
use crate::domain::ids::{GroupId, RaftId, TenantId};
use crate::ports::error::CallError;
use crate::ports::seams::ByteStream;
use crate::ports::{PeerError, StreamService};

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The cluster: tenants' records, nodes, locks of the cluster.
    Cluster,
    /// What belongs to one tenant.
    Tenant(TenantId),
}

/// Where a request has to go now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    group: GroupId,
    /// Where the group that owns it is led.
    pub lead: Lead,
}

/// Handle to the routes of this node.
#[derive(Clone)]
pub struct Routes {
    pub(crate) router: Router,
    pub(crate) tenants: Tenants,
    pub(crate) rpc_ids: Arc<RpcIdSource>,
}

impl Routes {
    /// Names a write that is about to be tried, perhaps a long poll. It counts as answered when the
    /// name is dropped.
    pub fn begin(&self, is_long: bool) -> InFlight {
        self.rpc_ids.begin(is_long)
    }

    /// Where a request has to go now. A tenant that does not exist is at home everywhere: whoever
    /// is asked can say so.
    ///
    /// # Errors
    /// When it is not known by `deadline` whether the tenant exists.
    pub async fn find(&self, owner: Owner, deadline: Instant) -> Result<Route, CallError> {
        let group = match owner {
            Owner::Cluster => GroupId::SYSTEM,
            Owner::Tenant(tenant) => match self.tenants.group_of(tenant, deadline).await? {
                Some(group) => group,
                None => return Ok(Route { group: GroupId::SYSTEM, lead: Lead::Here }),
            },
        };
        Ok(Route { group, lead: self.router.lead(group) })
    }

    /// Waits until the request has to go elsewhere than `route` says.
    pub async fn moved(&self, route: Route) {
        self.router.moved(route.group, route.lead).await;
    }

    /// Opens a stream to the node with raft id `to`, to hand a request on to it.
    ///
    /// # Errors
    /// When the other node has done nothing, and will not.
    pub async fn open(
        &self,
        to: RaftId,
        deadline: Instant,
    ) -> Result<Box<dyn ByteStream>, PeerError> {
        self.router.peers().open_stream(to, StreamService::Http, deadline).await
    }
}

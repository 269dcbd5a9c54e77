//! Reads the files of all tenants from time to time, so that rot and losses are found while another
//! replica can still make them good.
//!
//! A tenant that nobody asks for keeps its files closed, and a follower reads little of what it wrote.
//! Damage there would be found when the follower has to lead, or when the other replicas are damaged
//! too. So each tenant is read whole, one after another and piece by piece: between two pieces its actor
//! serves others. What is found damaged is rebuilt like any other damage (`supervisor`). What is well-formed
//! and wrong is found by comparing replicas (`compare`).
//!
//! What a node keeps of a group that was assigned to others is not read: nobody sends that again.
//!
//! Not done: the control plane's own index is not read. It is read whole at each start, where its damage heals
//! (`services/control/healing.rs`).

use std::sync::Arc;
use std::time::Duration;

use super::{Registry, TenantDeps};
use crate::cluster::routing::Router;
use crate::domain::ids::{GroupId, RaftId, StateMachineId};
use crate::replica::{ReplicaRequest, ScrubCursor};

/// Time from the start to the first pass: losses on a disk show when a node comes back.
const FIRST_AFTER: Duration = Duration::from_secs(5);
/// Time between two passes.
const EVERY: Duration = Duration::from_secs(6 * 60 * 60);
/// Pause between two tenants.
const TENANT_PAUSE: Duration = Duration::from_millis(20);
/// Pause between two pieces of one tenant: some 50 MB are read a second.
const PIECE_PAUSE: Duration = Duration::from_millis(20);
/// Pause before a list of tenants that failed is read again.
const LIST_RETRY: Duration = Duration::from_secs(10);

/// Reads all tenants, again and again.
pub(super) async fn scrub_for_ever(
    registry: Arc<Registry>,
    deps: Arc<TenantDeps>,
    router: Router,
    raft_id: RaftId,
) {
    // As the group's leader says. While nobody says that it leads, the replica may be needed.
    let has_replica = |group| {
        router.known_voters(group).is_none_or(|voters| voters.replicas().contains(&raft_id))
    };
    tokio::time::sleep(FIRST_AFTER).await;
    loop {
        match registry.tenants_here() {
            Ok(tenants) => {
                for (tenant, group) in tenants {
                    // A group that is not open yet would be waited for, and its tenants come up again.
                    if let Some(group) = group
                        && deps.executor.log.leadership(group).is_some()
                        && has_replica(group)
                    {
                        scrub(&registry, group, StateMachineId::Tenant(tenant)).await;
                        tokio::time::sleep(TENANT_PAUSE).await;
                    }
                }
                registry.note_scrub();
                tokio::time::sleep(EVERY).await;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot list the tenants to look for damage; trying again");
                tokio::time::sleep(LIST_RETRY).await;
            }
        }
    }
}

/// Reads one tenant. Damage ends the tenant's actor, whose supervisor sees to the rest.
async fn scrub(registry: &Registry, group: GroupId, part: StateMachineId) {
    let mut cursor = ScrubCursor::default();
    loop {
        let read = |reply| ReplicaRequest::Scrub(cursor, reply);
        match registry.ask(group, part, read).await {
            Ok(Some(next)) => cursor = next,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%part, %error, "not read to the end");
                return;
            }
        }
        tokio::time::sleep(PIECE_PAUSE).await;
    }
}

//! Finds the tenants that have unfinished work when a new term begins, and starts them.
//!
//! Nothing is delivered for a run that waits, or for a lock that is held: their entries were applied long
//! ago. So whoever leads anew has to start their tenants. The files of a tenant without work have a mark
//! (`mark_idle`); all others are started, a few at a time. A mark may be missing where it should be,
//! which costs a start, and is never there where it should not be.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Activation, SupervisorArguments, TenantDeps};
use crate::domain::ids::{GroupId, RaftId, StateMachineId, TenantId};
use crate::ports::StoreError;

/// Tenants that are opened at the same time to look for unfinished work.
pub(super) const OPEN_AT_ONCE_MAX: usize = 8;
/// Longest time that a tenant may take to open when it is looked at for unfinished work.
const OPEN_DEADLINE: Duration = Duration::from_secs(60);
/// First wait before a list of tenants that failed, or was not complete, is read again.
const LOOK_RETRY: Duration = Duration::from_secs(1);
/// Longest wait before tenants that group 0 does not know yet are looked for again.
const LOOK_RETRY_MAX: Duration = Duration::from_secs(32);

/// Starts the group's tenants whose files are not marked as idle. Entries start the others when they
/// are needed.
pub(super) fn start(arguments: &SupervisorArguments, group: GroupId, openings: &Arc<Semaphore>) {
    let deps = Arc::clone(&arguments.deps);
    let directory = Arc::clone(&arguments.directory);
    let registry = Arc::clone(&arguments.registry);
    let raft_id = arguments.raft_id;
    let openings = Arc::clone(openings);
    tokio::spawn(async move {
        let mut unplaced = with_work(&deps).await;
        let mut wait = LOOK_RETRY;
        // A later term looks again by itself. A lease that lapses for a moment ends nothing: the same term
        // may go on, and nobody would look again.
        while leads(&deps, group, raft_id) {
            let look = |tenant: &TenantId| directory.get(*tenant);
            let placed = unplaced.iter().filter(|tenant| look(tenant).is_some());
            for tenant in placed.copied().collect::<Vec<_>>() {
                // One that moved here may have come before group 0 here has said so.
                let is_here = look(&tenant).is_some_and(|placed| placed.group == group)
                    || directory.group_in_own_region(tenant) == Some(group);
                if is_here && let Some(activation) = registry.activation(group, tenant) {
                    start_in_turn(activation, Arc::clone(&openings));
                }
            }
            // A tenant that was made shortly before this node stopped may be on the disk before group 0
            // has told this node where it belongs, and group 0 may have no quorum for long.
            unplaced.retain(|tenant| look(tenant).is_none());
            if unplaced.is_empty() {
                return;
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LOOK_RETRY_MAX);
            if wait == LOOK_RETRY_MAX {
                // The files of deleted tenants go, and would be looked for for ever.
                let listed = with_work(&deps).await;
                unplaced.retain(|tenant| listed.contains(tenant));
            }
        }
    });
}

/// Tells whether this node leads a group, confirmed by a quorum or not at the moment.
fn leads(deps: &TenantDeps, group: GroupId, raft_id: RaftId) -> bool {
    let log = &deps.executor.log;
    let is_leader = log.leadership(group).is_some_and(|it| it.borrow().leader == Some(raft_id));
    is_leader || log.leads(group).is_some()
}

/// Lists the tenants that have work, or may have: those whose files are not marked as idle, and those
/// whose files are gone, so that the loss is found at once and not when somebody asks for the tenant.
async fn with_work(deps: &TenantDeps) -> Vec<TenantId> {
    let part = &deps.part;
    let look = async || {
        let mut tenants = part.stores.tenants_with_work().await?;
        let listed: BTreeSet<TenantId> = part.stores.tenants()?.into_iter().collect();
        tenants.extend(part.log.with_files().into_iter().filter_map(|part| match part {
            StateMachineId::Tenant(tenant) if !listed.contains(&tenant) => Some(tenant),
            StateMachineId::Tenant(_) | StateMachineId::System => None,
        }));
        Ok::<_, StoreError>(tenants)
    };
    loop {
        match look().await {
            Ok(tenants) => return tenants,
            Err(error) => tracing::warn!(%error, "cannot list the tenants; trying again"),
        }
        tokio::time::sleep(LOOK_RETRY).await;
    }
}

/// Starts a tenant in its turn.
fn start_in_turn(activation: Arc<Activation>, openings: Arc<Semaphore>) {
    tokio::spawn(async move {
        let Ok(_opening) = openings.acquire_owned().await else { return };
        let deadline = Instant::now() + OPEN_DEADLINE;
        if let Err(error) = activation.actor(deadline).await {
            tracing::warn!(tenant = %activation.tenant, %error, "cannot look for unfinished runs");
        }
    });
}

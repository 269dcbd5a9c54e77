//! What the control plane tells the rest of the node: where tenants live, who the members are, which groups
//! are on this node, the cluster's admin token.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::actor::ControlState;
use crate::cluster::routing::TenantLocation;
use crate::domain::ids::TenantId;
use crate::ports::Peer;

/// How long a member that was removed is kept reachable.
const REMOVED_KEPT: Duration = Duration::from_secs(4);
/// Wait between two attempts to start a group.
const OPEN_GROUP_RETRY: Duration = Duration::from_secs(5);

/// This node was removed from its cluster.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node was removed from the cluster, and what it has on disk lets it in nowhere; to join the \
     cluster again as a new node, start it with --join and an empty data directory: move this one away, or \
     name another with --data-dir"
)]
pub struct Removed;

impl ControlState {
    pub(super) fn publish_all(&mut self) -> Result<(), Removed> {
        self.arguments.directory.clear();
        self.publish_own_groups();
        for (tenant, _) in self.runner.machine.tenants() {
            self.publish(*tenant);
        }
        // Before the groups: a node that was removed ends here, and opens none any more.
        self.publish_members()?;
        self.open_groups();
        self.publish_admin_token();
        Ok(())
    }

    /// Until the cluster has one, the token that the node was started with stands.
    pub(super) fn publish_admin_token(&self) {
        if let Some(hash) = self.runner.machine.admin_token() {
            self.arguments.admin_token.send_replace(Some(hash));
        }
    }

    /// Tells who the members are. Fails when this node is none any more. Keeps a removed member
    /// connected for `REMOVED_KEPT`, so that it learns of its removal from the log.
    pub(super) fn publish_members(&mut self) -> Result<(), Removed> {
        let me = self.arguments.raft_id;
        let (others, own): (Vec<_>, Vec<_>) =
            self.runner.machine.peers().into_iter().partition(|peer| peer.raft_id != me);
        if own.is_empty() {
            // Ids are given in order: one that was given and is not listed was removed. Before
            // that, as long as the log has not come to it, this node knows who let it in.
            let was_admitted = self.runner.machine.last_raft_id() >= me;
            return if was_admitted { Err(Removed) } else { Ok(()) };
        }
        self.arguments.heartbeats.set_members(others.iter().map(|peer| peer.raft_id).collect());
        let is_listed = |peer: &Peer| others.iter().any(|other| other.raft_id == peer.raft_id);
        let now = Instant::now();
        let gone = self.published.iter().filter(|peer| !is_listed(peer)).cloned();
        self.removed.extend(gone.map(|peer| (now + REMOVED_KEPT, peer)));
        self.removed.retain(|(until, _)| *until > now);
        let kept = self.removed.iter().map(|(_, peer)| peer.clone());
        let members = others.iter().cloned().chain(kept).collect();
        self.arguments.peers.set_members(members, self.runner.machine.last_raft_id());
        self.published = others;
        self.arguments.members_changed.send_replace(());
        Ok(())
    }

    pub(super) fn publish(&self, tenant: TenantId) {
        let entry = self.runner.machine.tenant(tenant);
        let exists = entry.filter(|entry| entry.record.is_some());
        let placed = exists.map(|entry| TenantLocation { group: entry.group, epoch: entry.epoch });
        if let Some(entry) = entry.filter(|entry| entry.record.is_none()) {
            self.arguments.directory.set_deleted(tenant, entry.group);
        }
        self.arguments.directory.set(tenant, placed);
    }

    /// Tells which groups are of this node's region.
    pub(super) fn publish_own_groups(&self) {
        let machine = &self.runner.machine;
        let own = machine.members().find(|(_, _, it)| it.raft_id == self.arguments.raft_id);
        // Before this node is listed it has no tenants.
        let groups = own.map(|(_, node, _)| machine.groups_of(&node.region));
        self.arguments.directory.set_own_groups(groups.unwrap_or_default());
    }

    /// Starts the groups that are assigned to this node, and those that it has a log of: it may still
    /// vote where others are to take its place.
    pub(super) fn open_groups(&self) {
        let raft_id = self.arguments.raft_id;
        for (group, placement) in self.runner.machine.groups() {
            let is_assigned = placement.replicas.contains(&raft_id);
            if !is_assigned && self.arguments.log.last_index(*group).is_none() {
                continue;
            }
            // A first voter that was moved away and back, without its log, must not begin the group
            // anew.
            let is_new = !placement.is_assigned;
            let founders = if is_new { placement.members.clone() } else { Vec::new() };
            let (group, members) = (*group, founders);
            // Weak: a node that has stopped opens nothing any more.
            let log = Arc::downgrade(&self.arguments.log);
            tokio::spawn(async move {
                while let Some(log) = log.upgrade() {
                    match log.open_group(group, members.clone()).await {
                        Ok(()) => return,
                        Err(error) => tracing::error!(%group, %error, "cannot start a group yet"),
                    }
                    drop(log);
                    tokio::time::sleep(OPEN_GROUP_RETRY).await;
                }
            });
        }
    }
}

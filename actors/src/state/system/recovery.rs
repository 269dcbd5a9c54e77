//! Forced recovery: one member goes on alone, as another cluster, with what it has.
//!
//! What comes of it is a function of the state and the command, so that the program that writes the
//! command can tell before what will be lost, and what the tenants have to be told.
//!
//! Invariants:
//! - there is one member, it alone is to have replicas, and no group is left that waits for others;
//! - a tenant whose group has no replica left is deleted. It is never taken for one that is empty. A move that
//!   was not committed does not count, and is forgotten;
//! - every tenant that is left is in a new epoch: what its group learns of it counts for more than
//!   whatever the former cluster said. Its group learns it from its own log, so it is confirmed;
//! - no fencing token of the former cluster is as great as one that is given from here on.

use std::collections::BTreeSet;

use super::{SystemEffect, SystemState};
use crate::command::Outcome;
use crate::domain::ids::{Epoch, GroupId, NodeId, RaftId, TenantId};
use crate::domain::lock::FENCING_STEP;
use crate::domain::membership::{Authority, SHARED_SECRET};
use crate::state::tables::lock_table::LockNotice;

impl SystemState {
    pub(super) fn recover(
        &mut self,
        authority: &Authority,
        raft_id: RaftId,
        groups: &[GroupId],
    ) -> (Outcome, Vec<SystemEffect>) {
        let is_done = self.authority.as_ref().is_some_and(|it| it.cluster == authority.cluster);
        let Some(own) = self.member(raft_id).filter(|_| !is_done) else {
            return (Outcome::Ignored, Vec::new());
        };
        self.authority = Some(authority.clone());
        self.dirty.authority = true;
        let kept: BTreeSet<GroupId> = groups.iter().copied().collect();
        let mut effects = self.remove_other_members(own);
        self.void_tokens();
        self.keep_groups(own, raft_id, &kept);
        effects.extend(self.keep_tenants(&kept));
        let locks = self.locks.raise_tokens(FENCING_STEP).into_iter();
        // The one that follows leadership has no lease.
        let locks = locks.filter(|lock| !lock.key.is_leader()).map(LockNotice::Held);
        effects.extend(locks.map(SystemEffect::Lock));
        effects.extend([SystemEffect::GroupsPlaced, SystemEffect::MembersChanged]);
        (Outcome::Done, effects)
    }

    fn remove_other_members(&mut self, own: NodeId) -> Vec<SystemEffect> {
        let others = self.members().map(|(node, ..)| node).filter(|node| *node != own);
        let others: Vec<NodeId> = others.collect();
        self.nodes.retain(|node, _| !others.contains(node));
        self.dirty.nodes.extend(others.iter().copied().chain([own]));
        if let Some(member) = self.nodes.get_mut(&own).and_then(|node| node.member.as_mut()) {
            // Nobody is left who could have its replicas.
            member.leaving = false;
        }
        others.into_iter().map(SystemEffect::NodeRemoved).collect()
    }

    /// Forgets the join tokens that name the former authority: who has one would not believe this
    /// cluster.
    fn void_tokens(&mut self) {
        self.dirty.tokens.extend(self.tokens.keys().filter(|id| **id != SHARED_SECRET));
        self.tokens.retain(|id, _| *id == SHARED_SECRET);
        self.tokens_born.retain(|id, _| *id == SHARED_SECRET);
    }

    /// Places the groups on the only member. Those of its region that it has no replica of begin anew,
    /// so that there is room for new tenants as before; those of other regions are gone, and come
    /// again with a member there.
    fn keep_groups(&mut self, own: NodeId, raft_id: RaftId, kept: &BTreeSet<GroupId>) {
        let region = self.nodes.get(&own).map(|node| node.region.clone());
        self.dirty.groups.extend(self.groups.keys());
        self.groups.retain(|group, it| kept.contains(group) || Some(&it.region) == region.as_ref());
        for (group, placement) in &mut self.groups {
            placement.members = vec![raft_id];
            placement.replicas = vec![raft_id];
            placement.is_assigned = kept.contains(group);
        }
    }

    /// Puts the tenants that are left into a new epoch, and deletes the others.
    fn keep_tenants(&mut self, kept: &BTreeSet<GroupId>) -> Vec<SystemEffect> {
        let tenants: Vec<TenantId> = self.tenants.keys().copied().collect();
        let moved = self.forget_moves();
        for id in &tenants {
            // Beyond those of a move as well, or a source that is frozen would stay so.
            let used = moved.get(id).copied().unwrap_or_default();
            let lost = self.change_entry(*id, |entry| {
                let is_lost = !kept.contains(&entry.group) && entry.record.take().is_some();
                entry.version += u64::from(is_lost);
                entry.epoch = Epoch(entry.epoch.max(used).0 + 1);
                entry.confirmed = entry.version;
                is_lost.then_some(entry.created_seq)
            });
            if let Some(created_seq) = lost.flatten() {
                self.by_creation.remove(&created_seq);
            }
        }
        self.unconfirmed.clear();
        self.dirty.tenants.extend(tenants.iter().copied());
        tenants.into_iter().map(SystemEffect::TenantChanged).collect()
    }
}

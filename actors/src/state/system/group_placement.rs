//! Tenant groups: which there are, and who is to have a replica of each.
//!
//! Group 0 decides where replicas should be; the leader of each group brings it about, by the
//! group's own membership, which alone says who votes. So the two may differ for a while.
//!
//! Invariants:
//! - a group is initialised by its first voters, which never change here;
//! - replicas are on members of the group's region, and there is always one;
//! - a member to which a group is assigned is not removed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{SystemEffect, SystemState};
use crate::command::{Outcome, Refusal};
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::region::Region;
use crate::domain::voters::VOTERS_MAX;

/// Where a tenant group lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupPlacement {
    /// Region it serves.
    pub region: Region,
    /// Raft ids of its first voters. Exactly these initialise it, once.
    pub members: Vec<RaftId>,
    /// Raft ids of the members that are to have a replica. What a replica does, vote or learn, the
    /// group's own log says. A row of its own: those that were written first did not have it.
    #[serde(skip)]
    pub replicas: Vec<RaftId>,
    /// Whether replicas were ever assigned anew. Then the group has been initialised, and never is
    /// again.
    #[serde(skip)]
    pub is_assigned: bool,
}

impl SystemState {
    /// Where the tenant groups live.
    pub const fn groups(&self) -> &BTreeMap<GroupId, GroupPlacement> {
        &self.groups
    }

    pub(super) fn place_groups(
        &mut self,
        region: &Region,
        groups: &[GroupId],
        members: &[RaftId],
    ) -> (Outcome, Vec<SystemEffect>) {
        let is_staying = |id: &RaftId| {
            self.members().any(|(_, _, member)| member.raft_id == *id && !member.leaving)
        };
        if !members.iter().all(is_staying) {
            return (Outcome::Refused(Refusal::NotAMember), Vec::new());
        }
        let known = groups.iter().any(|group| self.groups.contains_key(group))
            || self.groups.values().any(|placement| placement.region == *region);
        if known {
            // Two leaders wanted the same: the first one's choice stands.
            return (Outcome::Ignored, Vec::new());
        }
        for group in groups {
            let (region, members) = (region.clone(), members.to_vec());
            let placement =
                GroupPlacement { region, replicas: members.clone(), members, is_assigned: false };
            self.groups.insert(*group, placement);
            self.dirty.groups.insert(*group);
        }
        (Outcome::Done, vec![SystemEffect::GroupsPlaced])
    }

    /// The choice of the leader: it knows who is alive. What can be judged without that is judged
    /// here, as the choice may be old.
    pub(super) fn assign_replicas(
        &mut self,
        group: GroupId,
        replicas: &[RaftId],
    ) -> (Outcome, Vec<SystemEffect>) {
        let Some(placement) = self.groups.get(&group) else {
            return (Outcome::Ignored, Vec::new());
        };
        let is_fit = |id: &RaftId| {
            placement.replicas.contains(id)
                || self.members().any(|(_, node, member)| {
                    member.raft_id == *id && !member.leaving && node.region == placement.region
                })
        };
        if replicas.is_empty() || replicas.len() > VOTERS_MAX || !replicas.iter().all(is_fit) {
            return (Outcome::Refused(Refusal::NotAMember), Vec::new());
        }
        if placement.replicas == replicas {
            return (Outcome::Ignored, Vec::new());
        }
        if let Some(placement) = self.groups.get_mut(&group) {
            placement.replicas = replicas.to_vec();
            placement.is_assigned = true;
        }
        self.dirty.groups.insert(group);
        (Outcome::Done, vec![SystemEffect::GroupsPlaced])
    }

    /// Whether tenant groups are assigned to a member.
    pub fn has_groups(&self, raft_id: RaftId) -> bool {
        self.groups.values().any(|group| group.replicas.contains(&raft_id))
    }

    /// Why a member cannot leave: nobody else could have its replicas.
    pub(super) fn needed_by_groups(&self, raft_id: RaftId) -> Option<Refusal> {
        // Also those who have a replica: not all of them may leave.
        let can_have = |region: &Region| {
            self.members().any(|(_, node, member)| {
                member.raft_id != raft_id && !member.leaving && node.region == *region
            })
        };
        let is_needed = |group: &&GroupPlacement| {
            let has = group.replicas.contains(&raft_id);
            has && (!self.moves_replicas || !can_have(&group.region))
        };
        let groups = self.groups.values().filter(is_needed).count() as u64;
        (groups > 0).then_some(Refusal::WouldLoseQuorum { groups })
    }
}

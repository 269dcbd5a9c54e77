//! States what placement aims at: which groups there are, where their replicas live, and how many
//! of them vote. The only file that says so: another policy is another text here.
//!
//! The system group lives on every member, so that each of them knows the cluster; few of them
//! vote, because a write waits for a majority of the voters' disks. A region has a fixed number of
//! tenant groups, so that the number of logs does not grow with the number of tenants.
//!
//! *A tenant group has one voter: the node that was first in its region.* Replicas of tenants need
//! snapshots of tenant groups, which do not exist yet. Until then a group does not move either.

use std::collections::{BTreeMap, BTreeSet};

use super::state::MemberView;
use crate::domain::ids::GroupId;
use crate::domain::voters::VOTERS_MAX;
use crate::state::system::GroupPlacement;

/// Tenant groups of a region.
pub(super) const GROUPS_PER_REGION: u32 = 8;

/// Voters of a tenant group.
const TENANT_GROUP_VOTERS: usize = 1;

/// What a group is to look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The members that should have a replica.
    pub(super) replicas: BTreeSet<u64>,
    /// Most replicas that vote; the rest stand by as learners.
    pub(super) voters_max: usize,
}

/// Gives the wish for a group; `None` for one that is placed nowhere.
pub(super) fn wish(
    group: GroupId,
    members: &BTreeMap<u64, MemberView>,
    placements: &BTreeMap<GroupId, GroupPlacement>,
) -> Option<Wish> {
    if group == GroupId::SYSTEM {
        return Some(Wish { replicas: members.keys().copied().collect(), voters_max: VOTERS_MAX });
    }
    let placement = placements.get(&group)?;
    let replicas = placement.members.iter().copied().collect();
    Some(Wish { replicas, voters_max: TENANT_GROUP_VOTERS })
}

/// Chooses the first voters of a region's new groups from the region's members that are there, in
/// the order in which they were admitted.
pub(super) fn first_voters(members: impl Iterator<Item = u64>) -> Vec<u64> {
    members.take(TENANT_GROUP_VOTERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_group_has_one_voter_the_first_of_its_region() {
        assert_eq!(first_voters([2, 4, 5].into_iter()), [2]);
        let placement = GroupPlacement { region: "eu".to_owned(), members: vec![2] };
        let placements = BTreeMap::from([(GroupId(7), placement)]);
        let wished = wish(GroupId(7), &BTreeMap::new(), &placements);
        assert_eq!(wished, Some(Wish { replicas: [2].into(), voters_max: 1 }));
        assert_eq!(wish(GroupId(8), &BTreeMap::new(), &placements), None);
    }
}

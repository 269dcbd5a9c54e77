//! States what placement aims at: which groups there are, where their replicas live, and how many
//! of them vote. The only file that says so: another policy is another text here.
//!
//! The system group lives on every member, so that each of them knows the cluster; few of them
//! vote, because a write waits for a majority of the voters' disks. A region has a fixed number of
//! tenant groups, so that the number of logs does not grow with the number of tenants.
//!
//! A tenant group has up to three replicas, on members of its region, and all of them vote. It
//! begins on the first member of its region and grows with it. A member that leaves is replaced; one
//! that has been silent for long, or gets nothing or lacks room as a learner, is replaced where another can
//! take its place. Otherwise replicas move for balance only, as seldom as that allows ([`balance`](super::balance)).
//!
//! A member counts as silent when the leader of the *group* does not hear it. Whether other nodes hear that
//! member does not matter to the group. A member that is to get a replica has to be heard by two leaders: that of
//! the system group, which tells it that it has a replica, and that of the group, which sends what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::balance::balanced;
use super::moves::{Moves, is_settled};
use super::state::{ClusterView, MemberView};
use super::untaken::Untaken;
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::voters::{TENANT_GROUP_VOTERS, VOTERS_MAX};
use crate::state::system::GroupPlacement;

/// Tenant groups of a region.
pub(super) const GROUPS_PER_REGION: u32 = 8;

/// A voter that its group's leader has not heard for so long is replaced, where another member can
/// vote.
pub(super) const VOTER_LOST_AFTER: Duration = Duration::from_secs(30);

/// Groups whose replicas are moved at the same time: each copies tenants over the network.
const MOVES_MAX: usize = 2;

/// What a group is to look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wish {
    /// The members that should have a replica.
    pub(super) replicas: BTreeSet<RaftId>,
    /// Most replicas that vote; the rest stand by as learners.
    pub(super) voters_max: usize,
}

/// Gives the wish for a group; `None` for one that is placed nowhere.
pub(super) fn wish(
    group: GroupId,
    members: &BTreeMap<RaftId, MemberView>,
    placements: &BTreeMap<GroupId, GroupPlacement>,
) -> Option<Wish> {
    if group == GroupId::SYSTEM {
        // Who leaves stays in the system group until the tenants have left it: it knows from there
        // what becomes of its groups.
        let stays = |member: &&MemberView| !member.is_leaving || member.has_groups;
        let replicas = members.values().filter(stays).map(|member| member.raft_id).collect();
        return Some(Wish { replicas, voters_max: VOTERS_MAX });
    }
    let replicas = placements.get(&group)?.replicas.iter().copied();
    let replicas = replicas.filter(|id| members.contains_key(id)).collect();
    Some(Wish { replicas, voters_max: TENANT_GROUP_VOTERS })
}

/// Chooses the first voter of a region's new groups from the region's members that are there, in
/// the order in which they were admitted. One, which can found a group alone; others join it.
pub(super) fn first_voters(members: impl Iterator<Item = RaftId>) -> Vec<RaftId> {
    members.take(1).collect()
}

/// Chooses the group whose replicas should change next, and who should have them then.
pub(super) fn assignment(
    view: &ClusterView<'_>,
    moves: &Moves,
    now: Instant,
) -> Option<(GroupId, Vec<RaftId>)> {
    let is_busy = moves.under_way(now) >= MOVES_MAX;
    let changes = view.placements.iter().filter_map(|(group, placement)| {
        // Without a leader nobody could bring it about, and a group that was never initialised must
        // be by the members that it was placed on.
        let voters = view.voters.get(group)?;
        // What is under way may be changed: it may wait for somebody who is lost.
        let may_change = !is_busy || !is_settled(voters, placement);
        let wished = replicas(view, *group, placement, (&moves.untaken, now));
        (may_change && wished != placement.replicas).then_some((*group, wished))
    });
    // Who has fewest replicas is in the greatest danger.
    let most_urgent = changes.min_by_key(|(group, _)| (view.voters[group].settled().len(), *group));
    most_urgent.or_else(|| if is_busy { None } else { balanced(view, &moves.untaken) })
}

/// Chooses the members that should have a replica of a group: those that have one, as long as they
/// are fit, then those with the fewest, and last of all those that stalled.
fn replicas(
    view: &ClusterView<'_>,
    group: GroupId,
    placement: &GroupPlacement,
    (untaken, now): (&Untaken, Instant),
) -> Vec<RaftId> {
    let in_region = |id: &RaftId| {
        view.members.get(id).filter(|it| !it.is_leaving && it.region == placement.region)
    };
    let leader = view.leaders.get(&group).copied();
    let is_lost = |id: RaftId| view.lost_for(leader, id) >= VOTER_LOST_AFTER;
    let has = |id: RaftId| placement.replicas.contains(&id);
    let mut spare: Vec<RaftId> = view.members.keys().copied().collect();
    spare.retain(|id| in_region(id).is_some() && !has(*id) && view.can_take(leader, *id));
    spare.sort_by_key(|id| (untaken.avoids(*id), view.load(*id), *id));
    let mut spare = spare.into_iter().peekable();
    let mut chosen = Vec::new();
    for id in placement.replicas.iter().copied() {
        let instead = if in_region(&id).is_none() || is_lost(id) {
            spare.next()
        } else if untaken.has(group, id, now) {
            // Two that cannot take it would have it in turn for ever.
            spare.next_if(|other| !untaken.avoids(*other))
        } else {
            None
        };
        // Where nobody else is there it stays: it may come back.
        chosen.extend(instead.or_else(|| in_region(&id).map(|_| id)));
    }
    let lacking = TENANT_GROUP_VOTERS.saturating_sub(chosen.len());
    chosen.extend(spare.take(lacking));
    if chosen.is_empty() { placement.replicas.clone() } else { chosen }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;

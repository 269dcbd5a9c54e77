//! Which voters should lead the tenant groups: so that each member of a region leads groups of about
//! as many tenants. Pure.
//!
//! Every leader looks by itself, from what all of them know: who leads which group, and how many
//! tenants that has. It begins with those who lead now and looks for the change of a lead, or for some
//! in a row, that even out the loads most. So all of them find the same change, and who leads that group
//! makes it. Below a margin everybody is content, so that it comes to rest.

use std::collections::{BTreeMap, BTreeSet};

use super::state::{ClusterView, MemberView};
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::region::Region;
use crate::domain::views::NodeStatus;
use crate::ports::{GroupStatus, ReplicaStatus};

/// What leading a group costs beside its tenants, counted as tenants. Nothing changes hands for less: else
/// each tenant that is created where there are few would move a lead.
const GROUP_LOAD: u64 = 5;
/// Nor for less than this part of the average load.
const MARGIN: u64 = 40;
/// Leads that change in a row, at most, for the sake of the last.
const ROW_MAX: usize = 3;

/// Entries that a voter may lack that takes the lead over from a damaged replica.
const LAG_MAX: u64 = 256;

/// A group of a region: its load, who leads it, and who could.
struct Led {
    group: GroupId,
    load: u64,
    leader: RaftId,
    others: Vec<RaftId>,
}

/// Finds a group that this node leads and another voter should lead, so that leads are even, and who.
pub(super) fn handed_on(view: &ClusterView<'_>) -> Option<(GroupId, RaftId)> {
    let mut changes = regions(view).into_values().filter_map(next_change);
    let can_go = |(group, to): &(GroupId, RaftId)| {
        settled(view).any(|led| led.group == *group && lacks_nothing(led, *to))
    };
    changes.find(can_go)
}

/// Finds a group that this node leads with a damaged replica, and a voter whose replica is whole.
pub(super) fn left_damaged(view: &ClusterView<'_>) -> Option<(GroupId, RaftId)> {
    settled(view).find_map(|led| Some((led.group, whole(view, led)?)))
}

/// The tenant groups that this node leads and whose members do not change.
fn settled<'a>(view: &'a ClusterView<'_>) -> impl Iterator<Item = &'a GroupStatus> {
    let is_settled = |led: &&GroupStatus| !led.is_changing && led.unfinished.is_none();
    view.led.iter().filter(|led| led.group != GroupId::SYSTEM).filter(is_settled)
}

/// Finds a voter that says that its replica is whole, where this node's own is damaged.
fn whole(view: &ClusterView<'_>, led: &GroupStatus) -> Option<RaftId> {
    let is_whole = |id: RaftId| view.damaged.get(&id).map(|groups| !groups.contains(&led.group));
    if is_whole(view.own_id) != Some(false) {
        return None;
    }
    let mut others = led.replicas.iter().map(|replica| replica.raft_id);
    others.find(|id| is_whole(*id) == Some(true) && is_fit(view, *id) && lacks_little(led, *id))
}

/// Whether a voter can take the lead over soon. A busy group seldom has one that lacks nothing.
fn lacks_little(led: &GroupStatus, raft_id: RaftId) -> bool {
    let is_it = |it: &ReplicaStatus| it.raft_id == raft_id && it.voter && it.lag <= LAG_MAX;
    led.replicas.iter().any(is_it)
}

fn lacks_nothing(led: &GroupStatus, raft_id: RaftId) -> bool {
    led.replicas.iter().any(|it| it.raft_id == raft_id && it.voter && it.lag == 0)
}

/// Whether a member is well enough to lead anything.
fn is_fit(view: &ClusterView<'_>, raft_id: RaftId) -> bool {
    let health = view.health.get(&raft_id);
    let is_well = health.is_some_and(|it| it.status == NodeStatus::Healthy && it.has_room);
    let stays = |member: &MemberView| !member.is_leaving && !member.is_offline;
    let stays = view.members.get(&raft_id).is_some_and(stays);
    stays && (raft_id == view.own_id || is_well)
}

/// Gives the groups of each region of which it is known who leads and who votes.
fn regions<'a>(view: &'a ClusterView<'_>) -> BTreeMap<&'a Region, Vec<Led>> {
    let mut regions: BTreeMap<&Region, Vec<Led>> = BTreeMap::new();
    for (group, placement) in view.placements {
        let (Some(leader), Some(voters)) = (view.leaders.get(group), view.voters.get(group)) else {
            continue;
        };
        let is_damaged =
            |id: &RaftId| view.damaged.get(id).is_some_and(|groups| groups.contains(group));
        let others = voters.settled().into_iter();
        let others = others.filter(|id| id != leader && is_fit(view, *id) && !is_damaged(id));
        let load = view.tenants.get(group).copied().unwrap_or_default() + GROUP_LOAD;
        let led = Led { group: *group, load, leader: *leader, others: others.collect() };
        regions.entry(&placement.region).or_default().push(led);
    }
    regions
}

/// Chooses the change of a lead in a region that comes next; `None` where the leads are even enough.
/// One at a time in the whole region: what is left of its row is then the best row, or a better one is.
fn next_change(mut groups: Vec<Led>) -> Option<(GroupId, RaftId)> {
    let mut loads: BTreeMap<RaftId, u64> = BTreeMap::new();
    for led in &groups {
        *loads.entry(led.leader).or_default() += led.load;
        for other in &led.others {
            loads.entry(*other).or_default();
        }
    }
    let greatest =
        |loads: &BTreeMap<RaftId, u64>| loads.values().copied().max().unwrap_or_default();
    let (before, mut next) = (greatest(&loads), None);
    while let Some(changes) = best_changes(&groups, &loads) {
        // The last of the row first: it makes room for the one before.
        next = next.or_else(|| changes.last().map(|(at, to)| (groups[*at].group, *to)));
        for (at, to) in changes {
            let led = &mut groups[at];
            shift(&mut loads, led.leader, to, led.load);
            led.others.retain(|id| *id != to);
            led.others.push(std::mem::replace(&mut led.leader, to));
        }
    }
    let (total, members): (u64, u64) = (loads.values().sum(), loads.len() as u64);
    let gain = before.saturating_sub(greatest(&loads));
    next.filter(|_| gain >= GROUP_LOAD && gain * MARGIN * members > total)
}

/// Finds the change of one lead, or of some in a row, that evens out the loads most. In a row, because
/// who leads too much may share its groups only with those who have no room until they give something on.
fn best_changes(groups: &[Led], loads: &BTreeMap<RaftId, u64>) -> Option<Vec<(usize, RaftId)>> {
    let mut best = (unevenness(loads), Vec::new());
    // The shortest of the best, so that each change brings the end nearer.
    let starts: BTreeSet<RaftId> = groups.iter().map(|led| led.leader).collect();
    for start in starts {
        weigh(groups, &mut loads.clone(), start, &mut Vec::new(), &mut best);
    }
    Some(best.1).filter(|changes| !changes.is_empty())
}

/// Weighs all rows of changes that go on from `changes`, the last of which gave a lead to `from`.
fn weigh(
    groups: &[Led],
    loads: &mut BTreeMap<RaftId, u64>,
    from: RaftId,
    changes: &mut Vec<(usize, RaftId)>,
    best: &mut (u128, Vec<(usize, RaftId)>),
) {
    for (at, led) in groups.iter().enumerate().filter(|(_, led)| led.leader == from) {
        if changes.iter().any(|(changed, _)| *changed == at) {
            continue;
        }
        for to in led.others.iter().copied() {
            shift(loads, from, to, led.load);
            changes.push((at, to));
            let after = unevenness(loads);
            if after < best.0 || after == best.0 && changes.len() < best.1.len() {
                *best = (after, changes.clone());
            }
            if changes.len() < ROW_MAX {
                weigh(groups, loads, to, changes, best);
            }
            changes.pop();
            shift(loads, to, from, led.load);
        }
    }
}

/// Measures how uneven loads are, by a high power: the greatest counts most.
fn unevenness(loads: &BTreeMap<RaftId, u64>) -> u128 {
    loads.values().map(|load| u128::from(*load).saturating_pow(4)).sum()
}

fn shift(loads: &mut BTreeMap<RaftId, u64>, from: RaftId, to: RaftId, load: u64) {
    *loads.entry(from).or_default() -= load;
    *loads.entry(to).or_default() += load;
}

#[cfg(test)]
#[path = "leaders_tests.rs"]
mod tests;

//! Which replica should move for balance alone: so that the members of a region have about as many. Pure.
//!
//! A replica that moves costs a copy of everything. So it moves only from who has at least two more than
//! who gets it, which also brings it to rest; while nothing else is to be done; and while every member
//! of the region is there: one that restarts has its replicas still, and should find them.

use std::collections::BTreeSet;

use super::moves::is_settled;
use super::state::ClusterView;
use super::untaken::Untaken;
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::region::Region;

/// Chooses a group and who should have its replicas then.
pub(super) fn balanced(
    view: &ClusterView<'_>,
    untaken: &Untaken,
) -> Option<(GroupId, Vec<RaftId>)> {
    let regions: BTreeSet<&Region> = view.placements.values().map(|it| &it.region).collect();
    regions.into_iter().find_map(|region| in_region(view, untaken, region))
}

fn in_region(
    view: &ClusterView<'_>,
    untaken: &Untaken,
    region: &Region,
) -> Option<(GroupId, Vec<RaftId>)> {
    let members = view.members.values().filter(|it| it.region == *region && !it.is_leaving);
    let mut members: Vec<RaftId> = members.map(|it| it.raft_id).collect();
    if !members.iter().all(|id| view.is_alive(*id)) {
        return None;
    }
    members.sort_by_key(|id| (view.load(*id), *id));
    // Who stalled would be given up again, after everything was copied for nothing.
    let can_take = |id: &RaftId| view.can_take(None, *id) && !untaken.avoids(*id);
    let to = members.iter().copied().find(can_take)?;
    let donors = members.into_iter().rev().filter(|id| view.load(*id) > view.load(to) + 1);
    donors.into_iter().find_map(|donor| given(view, region, donor, to))
}

/// Finds a group of which `donor` should give its replica to `to`: one that another leads, if there is
/// one, so that nobody notices.
fn given(
    view: &ClusterView<'_>,
    region: &Region,
    donor: RaftId,
    to: RaftId,
) -> Option<(GroupId, Vec<RaftId>)> {
    let can_go = view.placements.iter().filter(|(group, placement)| {
        let leader = view.leaders.get(group).copied();
        placement.region == *region
            && placement.replicas.contains(&donor)
            && !placement.replicas.contains(&to)
            && view.voters.get(group).is_some_and(|voters| is_settled(voters, placement))
            && view.can_take(leader, to)
    });
    let (group, placement) =
        can_go.min_by_key(|(group, _)| (view.leaders.get(group) == Some(&donor), **group))?;
    let instead = |id: &RaftId| if *id == donor { to } else { *id };
    Some((*group, placement.replicas.iter().map(instead).collect()))
}

//! Members that are to have a replica of a group and are given none, on the leader of the system group. Pure.
//!
//! The leader of a group makes a member a learner at once when the group is assigned to it, unless the member has
//! stalled there ([`stalls`](super::stalls)). So what the leader does not do for some time tells that. Another
//! member is chosen then that has not stalled itself, and the one that stalled comes last for a while: what was too
//! much for it in one group mostly is in the next.
//!
//! Nothing is lost with a leader that loses the lead: the next one tries the same member once more.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::state::ClusterView;
use crate::domain::ids::{GroupId, RaftId};

/// An assignment that its group's leader does not follow for so long is not followed: many looks of that leader,
/// and the time until it has heard of the assignment.
pub(super) const UNTAKEN_AFTER: Duration = Duration::from_secs(15);

/// A member that stalled comes last for so long.
const AVOIDED_FOR: Duration = Duration::from_secs(600);

/// Assignments that are not followed, and who stalled.
#[derive(Debug, Default)]
pub(super) struct Untaken {
    since: BTreeMap<(GroupId, RaftId), Instant>,
    avoided: BTreeMap<RaftId, Instant>,
}

impl Untaken {
    /// Looks at the groups that are known to be led. A member that the group's leader does not hear is another
    /// matter: it is given up for its silence, in that leader's groups. One that lacks room is not: it says so to
    /// everybody, and its group's leader gives it no replica for that.
    pub(super) fn look(&mut self, view: &ClusterView<'_>, now: Instant) {
        let is_untaken = |(group, id): &(GroupId, RaftId)| {
            let voters = view.voters.get(group);
            let leader = view.leaders.get(group).copied();
            voters.is_some_and(|it| !it.replicas().contains(id)) && view.is_reached(leader, *id)
        };
        let assigned = view.placements.iter();
        let assigned =
            assigned.flat_map(|(group, it)| it.replicas.iter().map(move |id| (*group, *id)));
        let untaken: Vec<(GroupId, RaftId)> = assigned.filter(is_untaken).collect();
        self.since.retain(|of, _| untaken.contains(of));
        self.avoided.retain(|_, since| now.duration_since(*since) < AVOIDED_FOR);
        for (group, id) in untaken {
            let since = *self.since.entry((group, id)).or_insert(now);
            if now.duration_since(since) >= UNTAKEN_AFTER {
                self.avoided.insert(id, now);
            }
        }
    }

    /// Tells whether a member was given no replica of a group that was assigned to it.
    pub(super) fn has(&self, group: GroupId, raft_id: RaftId, now: Instant) -> bool {
        let since = self.since.get(&(group, raft_id));
        since.is_some_and(|since| now.duration_since(*since) >= UNTAKEN_AFTER)
    }

    /// Tells whether a member has stalled not long ago, in any group.
    pub(super) fn avoids(&self, raft_id: RaftId) -> bool {
        self.avoided.contains_key(&raft_id)
    }
}

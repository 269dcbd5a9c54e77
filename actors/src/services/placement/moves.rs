//! Which groups are being moved, and since when nothing has come of it. Pure.
//!
//! Only so many groups are moved at a time. One that cannot come to its end, because a voter of it is
//! dead or who is to join it never answers, would keep its place for ever: after a while without
//! progress it has none any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::state::ClusterView;
use super::untaken::Untaken;
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::voters::Voters;
use crate::state::system::GroupPlacement;

/// A group that has not changed for so long does not count as moving. A copy of a large tenant may take
/// longer, and then one more group is copied beside it.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(60);

/// A group that does not look as it should.
#[derive(Debug)]
struct Move {
    /// Since when it has looked as it does. Who is to have its replicas instead is no progress yet.
    since: Instant,
    voters: Voters,
}

/// All of them, as the leader of the system group remembers them from look to look.
#[derive(Debug, Default)]
pub(super) struct Moves {
    under_way: BTreeMap<GroupId, Move>,
    /// What came of it that groups were assigned to members.
    pub(super) untaken: Untaken,
}

impl Moves {
    /// Looks at the groups. Of one that nobody leads at the moment nothing new is known.
    pub(super) fn look(&mut self, view: &ClusterView<'_>, now: Instant) {
        self.untaken.look(view, now);
        self.under_way.retain(|group, _| view.placements.contains_key(group));
        for (group, placement) in view.placements {
            let Some(voters) = view.voters.get(group) else { continue };
            if is_settled(voters, placement) {
                self.under_way.remove(group);
                continue;
            }
            if self.under_way.get(group).is_none_or(|it| it.voters != *voters) {
                self.under_way.insert(*group, Move { since: now, voters: voters.clone() });
            }
        }
    }

    /// How many groups are on their way.
    pub(super) fn under_way(&self, now: Instant) -> usize {
        self.under_way.values().filter(|it| now.duration_since(it.since) < STUCK_AFTER).count()
    }
}

/// Whether a group looks as it should.
pub(super) fn is_settled(voters: &Voters, placement: &GroupPlacement) -> bool {
    let is_wished = |voters: &BTreeSet<RaftId>| {
        voters.len() == placement.replicas.len()
            && placement.replicas.iter().all(|id| voters.contains(id))
    };
    voters.learners.is_empty() && voters.sets.iter().all(is_wished)
}

//! Lets go of the groups that were assigned to others: their log would be kept, and their tenants' files
//! would stay, for ever.
//!
//! A replica that was removed seldom learns of it from its own log, since nobody sends it the entry. So
//! this node asks two others: group 0, which assigns replicas, and the leader of the group, which says in
//! its heartbeats who has one. Both have to say 'not you' for a while, in which the replica hears nothing
//! of its group. A leader of an earlier term than the replica's own does not count: a later one may have
//! taken the replica back.
//!
//! The order: first the group ends and its log goes, then the tenants stop and their files go, all while
//! nobody can open the group, and after a last look whether it is right. After a crash in between the
//! files of a group without a log are left, which the next start looks for. The vote stays for ever, so
//! that a replica that comes back cannot vote twice in one term, and so does the position at which its log
//! ended: until the replica has come that far again it votes for nobody who has less.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::routing::LeaderHint;
use crate::domain::ids::{GroupId, RaftId};
use crate::ports::GroupStatus;
use crate::state::system::GroupPlacement;

/// For so long group 0 and the leader have to say that this node has no replica.
const LEFT_AFTER: Duration = Duration::from_secs(10);

/// What is remembered of groups that this node may have to let go of.
#[derive(Debug, Clone, Default)]
pub(super) struct Relieved {
    /// Since when, and what the replica had heard of its group then.
    since: BTreeMap<GroupId, (Instant, Heard)>,
    /// Whether files of groups without a log have been looked for.
    pub(super) is_clean: bool,
}

/// What a replica has heard of its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    term: u64,
    last: Option<u64>,
}

impl Relieved {
    /// Finds the groups to let go of, among those that run here.
    pub(super) fn look(
        &mut self,
        own_id: RaftId,
        here: &[GroupStatus],
        placements: &BTreeMap<GroupId, GroupPlacement>,
        last_index: impl Fn(GroupId) -> Option<u64>,
        hint: impl Fn(GroupId) -> Option<LeaderHint>,
        now: Instant,
    ) -> Vec<GroupId> {
        let is_relieved = |status: &GroupStatus| {
            let placement = placements.get(&status.group);
            let is_elsewhere = placement.is_some_and(|it| is_elsewhere(it, own_id));
            let is_told = hint(status.group).is_some_and(|hint| {
                let is_other = hint.raft_id != own_id && hint.term >= status.term;
                is_other && !hint.voters.replicas().contains(&own_id)
            });
            is_elsewhere && is_told
        };
        let relieved: BTreeMap<GroupId, Heard> = here
            .iter()
            .filter(|status| is_relieved(status))
            .map(|status| {
                (status.group, Heard { term: status.term, last: last_index(status.group) })
            })
            .collect();
        self.since.retain(|group, (_, then)| relieved.get(group) == Some(then));
        let mut over = Vec::new();
        for (group, heard) in relieved {
            let (since, _) = self.since.entry(group).or_insert((now, heard));
            if now.duration_since(*since) >= LEFT_AFTER {
                over.push(group);
            }
        }
        over
    }
}

/// Whether a group was assigned, and to others.
pub(super) fn is_elsewhere(placement: &GroupPlacement, own_id: RaftId) -> bool {
    placement.is_assigned && !placement.replicas.contains(&own_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::voters::Voters;
    use crate::ports::ReplicaStatus;
    use crate::services::placement::samples::placement;

    const GROUP: GroupId = GroupId(3);

    fn status(term: u64) -> GroupStatus {
        let replica = |raft_id| ReplicaStatus { raft_id, voter: true, applied: 7, lag: 0 };
        GroupStatus {
            group: GROUP,
            term,
            leader: Some(RaftId(2)),
            replicas: [1, 2, 3].map(RaftId).map(replica).to_vec(),
            is_changing: false,
            unfinished: None,
        }
    }

    /// What this node, 1, lets go of after `secs` in which it was told the same.
    fn left(own: &GroupStatus, assigned: &[u64], said: Option<(u64, &[u64])>, secs: u64) -> bool {
        let placements = BTreeMap::from([(GROUP, placement(assigned))]);
        let now = Instant::now();
        let hint = |_| {
            said.map(|(term, replicas)| LeaderHint {
                raft_id: RaftId(2),
                term,
                heard: now,
                voters: Voters::of(replicas.iter().copied().map(RaftId)),
            })
        };
        let mut memory = Relieved::default();
        let here = std::slice::from_ref(own);
        assert!(memory.look(RaftId(1), here, &placements, |_| Some(7), hint, now).is_empty());
        let later = now + Duration::from_secs(secs);
        !memory.look(RaftId(1), here, &placements, |_| Some(7), hint, later).is_empty()
    }

    #[tokio::test]
    async fn a_group_is_let_go_of_when_group_0_and_its_leader_have_said_so_for_long() {
        let own = status(4);
        assert!(left(&own, &[2, 3, 4], Some((4, &[2, 3, 4])), 10));
        assert!(left(&own, &[2, 3, 4], Some((5, &[2, 3, 4])), 10), "a later leader");
        assert!(!left(&own, &[2, 3, 4], Some((4, &[2, 3, 4])), 9), "not for long enough");
        assert!(!left(&own, &[1, 2, 3], Some((4, &[2, 3, 4])), 10), "assigned");
        assert!(
            !left(&own, &[2, 3, 4], Some((4, &[1, 2, 3])), 10),
            "the leader still counts on it"
        );
        assert!(!left(&own, &[2, 3, 4], Some((3, &[2, 3, 4])), 10), "a later one may count on it");
        assert!(!left(&own, &[2, 3, 4], None, 10), "nobody says that it leads");
    }

    #[tokio::test]
    async fn what_hears_of_its_group_meanwhile_is_kept() {
        let placements = BTreeMap::from([(GROUP, placement(&[2, 3, 4]))]);
        let now = Instant::now();
        let voters = Voters::of([2, 3, 4].map(RaftId));
        let hint = |_| {
            Some(LeaderHint { raft_id: RaftId(2), term: 9, heard: now, voters: voters.clone() })
        };
        let mut memory = Relieved::default();
        let mut look = |term, last, secs| {
            let now = now + Duration::from_secs(secs);
            memory.look(RaftId(1), &[status(term)], &placements, |_| Some(last), hint, now)
        };
        assert!(look(4, 7, 0).is_empty());
        assert!(look(4, 8, 10).is_empty(), "an entry came");
        assert!(look(5, 8, 20).is_empty(), "a term began");
        assert!(look(5, 8, 29).is_empty());
        assert_eq!(look(5, 8, 30), [GROUP]);
    }
}

//! Who votes in a group, what that allows, and what a node waits for. Pure.
//!
//! A change of voters is a joint membership for a while, and each membership counts from the moment
//! it is in a log. So several sets of voters may have to agree at once ([`Voters::sets`]), and a
//! node can be relied on as a voter only once every one of them has it ([`Voters::settled`]): three
//! nodes of which the third is a voter by a change under way cannot lose one of the other two.

use std::collections::BTreeSet;

use crate::domain::ids::RaftId;
use serde::{Deserialize, Serialize};

/// Most voters of the system group: more would make each write wait for more disks, and buy
/// nothing that five do not.
pub const VOTERS_MAX: usize = 5;

/// Most voters of a tenant group: it survives the loss of one node.
pub const TENANT_GROUP_VOTERS: usize = 3;

/// Who votes in a group, as this node knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voters {
    /// The sets of voters that may each have to agree: one, or more while a change is under way.
    pub sets: Vec<BTreeSet<RaftId>>,
    /// Those with a replica that does not vote.
    pub learners: BTreeSet<RaftId>,
}

impl Voters {
    /// A group whose voters nobody is changing.
    pub fn of(voters: impl IntoIterator<Item = RaftId>) -> Self {
        Self { sets: vec![voters.into_iter().collect()], learners: BTreeSet::new() }
    }

    /// Those who vote whatever becomes of a change that is under way.
    pub fn settled(&self) -> BTreeSet<RaftId> {
        let Some((first, rest)) = self.sets.split_first() else { return BTreeSet::new() };
        first.iter().copied().filter(|id| rest.iter().all(|set| set.contains(id))).collect()
    }

    /// Everybody who has a replica, or is to have one.
    pub fn replicas(&self) -> BTreeSet<RaftId> {
        self.sets.iter().flatten().chain(&self.learners).copied().collect()
    }

    /// Whether a member has the place that is meant for it: it votes, or it stands by because
    /// enough others do.
    pub fn is_placed(&self, raft_id: RaftId, voters_max: usize) -> bool {
        let settled = self.settled();
        settled.contains(&raft_id)
            || (self.learners.contains(&raft_id) && settled.len() >= voters_max)
    }

    /// How many voters may fail at this moment, whichever they are, before no quorum is left.
    pub fn can_lose(&self, is_alive: impl Fn(RaftId) -> bool) -> usize {
        let spare = |set: &BTreeSet<RaftId>| {
            let alive = set.iter().filter(|id| is_alive(**id)).count();
            alive.saturating_sub(quorum(set.len()))
        };
        self.sets.iter().map(spare).min().unwrap_or_default()
    }

    /// Whether those who are alive can agree on anything.
    pub fn has_quorum(&self, is_alive: impl Fn(RaftId) -> bool) -> bool {
        let agrees = |set: &BTreeSet<RaftId>| {
            set.iter().filter(|id| is_alive(**id)).count() >= quorum(set.len()) && !set.is_empty()
        };
        !self.sets.is_empty() && self.sets.iter().all(agrees)
    }

    /// What a node of which nobody is known to lead waits for, for a person.
    pub fn awaited(&self, is_alive: impl Fn(RaftId) -> bool) -> String {
        // Of the sets that have to agree, the one that is farthest from it.
        let lack = |set: &&BTreeSet<RaftId>| {
            let alive = set.iter().filter(|id| is_alive(**id)).count();
            (quorum(set.len()).saturating_sub(alive), set.len())
        };
        let Some(set) = self.sets.iter().max_by_key(lack).filter(|set| !set.is_empty()) else {
            return "waits for the cluster to tell this node who belongs to it".to_owned();
        };
        let (alive, all) = (set.iter().filter(|id| is_alive(**id)).count(), set.len());
        if alive < quorum(all) {
            format!("waits for a quorum: {alive} of {all} members reachable")
        } else {
            format!("waits for a leader: {alive} of {all} members reachable, and none leads yet")
        }
    }
}

/// How many of `voters` have to agree.
pub const fn quorum(voters: usize) -> usize {
    if voters == 0 { 0 } else { voters / 2 + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::raft_ids;

    fn joint(sets: &[&[u64]], learners: &[u64]) -> Voters {
        Voters {
            sets: sets.iter().map(|ids| raft_ids(ids)).collect(),
            learners: raft_ids(learners),
        }
    }

    #[test]
    fn a_voter_counts_once_every_set_has_it() {
        let voters = joint(&[&[1, 2], &[1, 2, 3]], &[]);
        assert_eq!(voters.settled(), BTreeSet::from([1, 2].map(RaftId)));
        assert!(
            voters.is_placed(RaftId(2), VOTERS_MAX) && !voters.is_placed(RaftId(3), VOTERS_MAX)
        );
        assert!(Voters::of([1, 2, 3].map(RaftId)).is_placed(RaftId(3), VOTERS_MAX));
        assert!(!Voters::default().is_placed(RaftId(1), VOTERS_MAX));
    }

    #[test]
    fn a_learner_stands_by_only_where_enough_vote() {
        assert!(!joint(&[&[1, 2]], &[3]).is_placed(RaftId(3), VOTERS_MAX));
        assert!(!joint(&[&[1, 2, 3, 4]], &[5]).is_placed(RaftId(5), VOTERS_MAX));
        assert!(joint(&[&[1, 2, 3, 4, 5]], &[6]).is_placed(RaftId(6), VOTERS_MAX));
        // Not yet: the fifth may not come to vote.
        assert!(!joint(&[&[1, 2, 3, 4, 5], &[1, 2, 3, 4]], &[6]).is_placed(RaftId(6), VOTERS_MAX));
        assert!(
            !joint(&[&[1, 2, 3, 4, 5]], &[]).is_placed(RaftId(6), VOTERS_MAX),
            "it has no replica"
        );
    }

    #[test]
    fn what_may_fail_is_counted_from_who_is_alive_now() {
        /// Sets of voters, who of them is alive, and how many may fail.
        type Case = (&'static [&'static [u64]], &'static [u64], usize);
        let table: [Case; 9] = [
            (&[&[1]], &[1], 0),
            (&[&[1, 2]], &[1, 2], 0),
            (&[&[1, 2, 3]], &[1, 2, 3], 1),
            (&[&[1, 2, 3]], &[1, 2], 0),
            (&[&[1, 2, 3]], &[1], 0),
            (&[&[1, 2, 3, 4]], &[1, 2, 3, 4], 1),
            (&[&[1, 2, 3, 4, 5]], &[1, 2, 3, 4, 5], 2),
            // Both sets have to agree, and the smaller cannot lose anybody.
            (&[&[1, 2], &[1, 2, 3]], &[1, 2, 3], 0),
            (&[], &[1], 0),
        ];
        for (sets, alive, expected) in table {
            let voters = joint(sets, &[]);
            assert_eq!(voters.can_lose(|id| alive.contains(&id.0)), expected, "{sets:?} {alive:?}");
        }
    }

    #[test]
    fn a_quorum_is_a_majority_of_every_set() {
        let has = |sets: &[&[u64]], alive: &[u64]| {
            joint(sets, &[]).has_quorum(|id| alive.contains(&id.0))
        };
        assert!(has(&[&[1, 2, 3]], &[1, 3]) && !has(&[&[1, 2, 3]], &[3]));
        assert!(!has(&[&[1, 2]], &[1]) && has(&[&[1]], &[1]));
        assert!(!has(&[&[1, 2, 3], &[1, 4, 5]], &[1, 2, 3]));
        assert!(!has(&[], &[1]) && !has(&[&[]], &[1]), "nothing is known");
    }

    #[test]
    fn what_is_waited_for_is_said_in_numbers() {
        let three = Voters::of([1, 2, 3].map(RaftId));
        let alone = three.awaited(|id| id == RaftId(1));
        assert_eq!(alone, "waits for a quorum: 1 of 3 members reachable");
        let two = three.awaited(|id| id < RaftId(3));
        assert_eq!(two, "waits for a leader: 2 of 3 members reachable, and none leads yet");
        // The set that lacks most, whichever comes first.
        for sets in [[&[1, 2][..], &[1, 2, 3]], [&[1, 2, 3], &[1, 2]]] {
            let joint = joint(&sets, &[]).awaited(|id| id != RaftId(2));
            assert_eq!(joint, "waits for a quorum: 1 of 2 members reachable");
        }
        assert!(Voters::default().awaited(|_| true).contains("who belongs to it"));
    }
}

//! What the elector has announced, and who could lead next. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::ids::{GroupId, RaftId};
use crate::domain::views::NodeStatus;
use crate::ports::{Leadership, ReplicaStatus};
use crate::services::heartbeat::MemberHealth;

/// The elector's state.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    announced: Option<u64>,
}

impl Announcements {
    /// The term that is to be announced now, once each.
    pub(super) fn changed(&mut self, now: Leadership) -> Option<u64> {
        let is_new = now.here && self.announced.is_none_or(|announced| announced < now.term);
        is_new.then(|| {
            self.announced = Some(now.term);
            now.term
        })
    }

    /// The announcement of a term has failed. Gives the term when it is worth another attempt now;
    /// else it is announced when the lead is confirmed again.
    pub(super) fn again(&mut self, term: u64, now: Leadership) -> Option<u64> {
        if self.announced != Some(term) {
            return None;
        }
        self.announced = None;
        self.changed(now)
    }
}

/// Mixes numbers that follow one another: 2^64 divided by the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Members that should not take a lead over.
#[derive(Debug, Default)]
pub(super) struct Unfit {
    /// Those whose replica of the group is damaged: only where all are.
    pub(super) damaged: BTreeSet<RaftId>,
    /// Those that have said goodbye: they would have to hand the lead on at once, or take it along.
    pub(super) stopping: BTreeSet<RaftId>,
}

/// Finds the voter that should lead after `leader`: well, with a replica that is not damaged, and least
/// behind. A damaged replica keeps some tenants out of service, a member that is not well all of them. Voters that are
/// alike take turns by group: a node that stops hands over all its leads at once.
pub(super) fn successor(
    group: GroupId,
    replicas: &[ReplicaStatus],
    health: &BTreeMap<RaftId, MemberHealth>,
    unfit: &Unfit,
    leader: RaftId,
) -> Option<RaftId> {
    let rank = |status: NodeStatus| match status {
        NodeStatus::Healthy => Some(0),
        NodeStatus::Degraded => Some(1),
        NodeStatus::Unhealthy | NodeStatus::Offline => None,
    };
    let candidates = replicas.iter().filter(|replica| replica.voter && replica.raft_id != leader);
    let candidates = candidates.filter(|replica| !unfit.stopping.contains(&replica.raft_id));
    let ranked = candidates.filter_map(|replica| {
        let rank = rank(health.get(&replica.raft_id)?.status)?;
        let is_damaged = unfit.damaged.contains(&replica.raft_id);
        Some(((rank, is_damaged, replica.lag), replica.raft_id))
    });
    let ranked: BTreeSet<_> = ranked.collect();
    let (best, _) = ranked.first()?;
    let alike: Vec<RaftId> =
        ranked.iter().take_while(|(rank, _)| rank == best).map(|(_, raft_id)| *raft_id).collect();
    // Mixed: the groups that this node leads may all be even, since turns were taken before.
    // The upper half is mixed best: as a fraction of 2^32 it is a place among the voters.
    let mixed = (u64::from(group.0) ^ (leader.0 << 32)).wrapping_mul(GOLDEN) >> 32;
    let place = (mixed * alike.len() as u64) >> 32;
    alike.get(usize::try_from(place).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::raft_ids;

    #[test]
    fn each_term_led_here_is_announced_once() {
        let leads = |term, here| Leadership { term, leader: Some(RaftId(1)), here };
        let mut state = Announcements::default();
        assert_eq!(state.changed(leads(1, false)), None);
        assert_eq!(state.changed(leads(2, true)), Some(2));
        assert_eq!(state.changed(leads(2, true)), None);
        assert_eq!(state.again(2, leads(2, true)), Some(2));
        // Not confirmed at the moment: announced once it is.
        assert_eq!(state.again(2, leads(2, false)), None);
        assert_eq!(state.changed(leads(2, true)), Some(2));
        assert_eq!(state.changed(leads(3, true)), Some(3));
        assert_eq!(state.again(2, leads(3, true)), None);
    }

    #[test]
    fn the_healthy_voter_that_is_least_behind_succeeds() {
        let replica = |raft_id, voter, lag| ReplicaStatus {
            raft_id: RaftId(raft_id),
            voter,
            applied: 0,
            lag,
        };
        let health = |status| MemberHealth {
            status,
            heard_at: None,
            unhealthy_for: std::time::Duration::ZERO,
            is_heard: true,
            has_room: true,
            lacks_room_for_copy: false,
            damaged: std::collections::BTreeSet::new(),
            silent_for: std::time::Duration::ZERO,
            silent_to_it: BTreeMap::new(),
        };
        let successor = |replicas: &[ReplicaStatus], all: &BTreeMap<RaftId, MemberHealth>| {
            successor(GroupId(0), replicas, all, &Unfit::default(), RaftId(1)).map(|id| id.0)
        };
        let replicas =
            [replica(1, true, 0), replica(2, true, 9), replica(3, true, 3), replica(4, false, 0)];
        let mut all: BTreeMap<RaftId, MemberHealth> =
            (2..=4).map(|id| (RaftId(id), health(NodeStatus::Healthy))).collect();
        assert_eq!(successor(&replicas, &all), Some(3));
        // Whoever leads is no successor of itself, also where it is the best.
        all.insert(RaftId(1), health(NodeStatus::Healthy));
        assert_eq!(successor(&replicas, &all), Some(3));
        // Nor is anybody whose health is not known.
        assert_eq!(successor(&replicas, &BTreeMap::new()), None);
        // Of two that are as well and as far, each succeeds in about half of the groups, whichever these are.
        let alike = [replica(1, true, 0), replica(3, true, 4), replica(2, true, 4)];
        let of_group = |group| {
            super::successor(GroupId(group), &alike, &all, &Unfit::default(), RaftId(1)).unwrap()
        };
        for step in 1..=4 {
            let first = (0..16).filter(|nth| of_group(nth * step) == RaftId(2)).count();
            assert!((4..=12).contains(&first), "{first} of 16 groups, every {step}.");
        }
        let but_for = |damaged: &[u64]| {
            let unfit = Unfit { damaged: raft_ids(damaged), ..Unfit::default() };
            let successor = super::successor(GroupId(0), &replicas, &all, &unfit, RaftId(1));
            successor.map(|id| id.0)
        };
        assert_eq!(but_for(&[3]), Some(2), "whose replica is whole, though it is behind");
        assert_eq!(but_for(&[2, 3]), Some(3));
        let but_who_stops = |stopping: &[u64]| {
            let unfit = Unfit { stopping: raft_ids(stopping), ..Unfit::default() };
            let successor = super::successor(GroupId(0), &replicas, &all, &unfit, RaftId(1));
            successor.map(|id| id.0)
        };
        assert_eq!(but_who_stops(&[3]), Some(2), "though it is behind");
        assert_eq!(but_who_stops(&[2, 3]), None);
        all.insert(RaftId(3), health(NodeStatus::Degraded));
        assert_eq!(successor(&replicas, &all), Some(2));
        all.insert(RaftId(2), health(NodeStatus::Unhealthy));
        assert_eq!(successor(&replicas, &all), Some(3));
        all.insert(RaftId(3), health(NodeStatus::Unhealthy));
        assert_eq!(successor(&replicas, &all), None);
    }
}

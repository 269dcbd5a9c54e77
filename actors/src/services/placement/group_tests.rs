//! Stories of members that come, go, and get lost.

#[path = "group_tests/stalled.rs"]
mod stalled;

use proptest::prelude::*;

use super::super::policy;
use super::super::samples::{self, node};
use super::*;
use crate::domain::ids::raft_ids;
use crate::domain::views::NodeStatus;
use crate::domain::voters::VOTERS_MAX;

const T: Duration = Duration::from_millis(500);

/// A cluster to decide about: this node is 1.
#[derive(Debug, Clone)]
pub(in super::super) struct Town {
    pub(in super::super) members: BTreeMap<RaftId, MemberView>,
    pub(in super::super) replicas: Vec<ReplicaStatus>,
    copies: BTreeMap<RaftId, CopyProgress>,
    pub(in super::super) health: BTreeMap<RaftId, MemberHealth>,
}

impl Town {
    pub(in super::super) fn new(members: u64, voters: u64) -> Self {
        let (members_of, replicas) = (BTreeMap::new(), Vec::new());
        let (copies, health) = (BTreeMap::new(), BTreeMap::new());
        let mut town = Self { members: members_of, replicas, copies, health };
        for raft_id in 1..=members {
            town.move_in(raft_id);
            if raft_id <= voters {
                town.replica(raft_id, true, 0);
            }
        }
        town
    }

    pub(in super::super) fn move_in(&mut self, raft_id: u64) {
        self.members.insert(RaftId(raft_id), samples::member(raft_id));
        self.set_health(raft_id, NodeStatus::Healthy, 0);
    }

    fn replica(&mut self, raft_id: u64, voter: bool, lag: u64) {
        let raft_id = RaftId(raft_id);
        self.replicas.push(ReplicaStatus { raft_id, voter, applied: 1, lag });
    }

    fn learner_without_anything(&mut self, raft_id: u64) {
        self.replicas.push(ReplicaStatus {
            raft_id: RaftId(raft_id),
            voter: false,
            applied: 0,
            lag: 9,
        });
    }

    fn set_health(&mut self, raft_id: u64, status: NodeStatus, secs: u64) {
        let is_heard = status == NodeStatus::Healthy;
        let health = MemberHealth { status, is_heard, ..samples::health(secs) };
        self.health.insert(RaftId(raft_id), health);
    }

    pub(in super::super) fn lose(&mut self, raft_id: u64, secs: u64) {
        self.set_health(raft_id, NodeStatus::Unhealthy, secs);
    }

    pub(in super::super) fn leave(&mut self, raft_id: u64) {
        self.members.get_mut(&RaftId(raft_id)).unwrap().is_leaving = true;
    }

    fn view(&self) -> GroupView<'_> {
        let Self { members, replicas, copies, health } = self;
        let (election_timeout, unfinished) = (T, None);
        let group = GroupId::SYSTEM;
        let wish = policy::wish(group, members, &BTreeMap::new()).unwrap();
        let leader = RaftId(1);
        GroupView {
            group,
            wish,
            leader,
            members,
            replicas,
            copies,
            health,
            election_timeout,
            unfinished,
        }
    }

    /// Looks twice, so that who has nothing to catch up with has caught up.
    fn next(&self) -> Option<Step> {
        let (mut memory, now) = (Memory::default(), Instant::now());
        memory.rounds.look(&self.replicas, now);
        self.view().next(&mut memory, now + T / 2)
    }
}

fn voters(ids: impl IntoIterator<Item = u64>) -> Option<Step> {
    Some(Step::SetVoters(ids.into_iter().map(RaftId).collect()))
}

#[tokio::test]
async fn a_member_becomes_a_learner_and_then_a_voter() {
    let mut town = Town::new(2, 1);
    assert_eq!(town.next(), Some(Step::AddLearner(RaftId(2))));
    town.replica(2, false, 1);
    assert_eq!(town.next(), None);
    town.replicas[1].lag = 0;
    assert_eq!(town.next(), voters([1, 2]));
    town.lose(2, 0);
    assert_eq!(town.next(), None);
}

#[tokio::test]
async fn the_sixth_stays_a_learner_until_a_voter_is_lost_for_long() {
    let mut town = Town::new(6, 5);
    town.replica(6, false, 0);
    assert_eq!(town.next(), None);
    town.lose(3, 29);
    assert_eq!(town.next(), None);
    town.lose(3, 30);
    assert_eq!(town.next(), voters([1, 2, 4, 5, 6]));
}

#[tokio::test]
async fn who_leaves_loses_its_vote_then_its_membership_then_its_replica() {
    let mut town = Town::new(3, 3);
    town.leave(2);
    assert_eq!(town.next(), voters([1, 3]));
    town.replicas[1].voter = false;
    assert_eq!(town.next(), Some(Step::Forget(node(2))));
    town.members.remove(&RaftId(2));
    let (mut memory, now) = (Memory::default(), Instant::now());
    assert_eq!(town.view().next(&mut memory, now), None);
    let later = now + ORPHAN_KEPT;
    assert_eq!(town.view().next(&mut memory, later), Some(Step::RemoveLearner(RaftId(2))));
}

#[tokio::test]
async fn a_leader_that_leaves_lets_another_lead() {
    let mut town = Town::new(3, 3);
    town.leave(1);
    assert_eq!(town.next(), Some(Step::HandOver));
}

#[tokio::test]
async fn who_is_known_by_hearsay_alone_does_not_count() {
    let mut town = Town::new(3, 3);
    town.leave(2);
    town.set_health(3, NodeStatus::Degraded, 0);
    assert_eq!(town.next(), None);
}

#[tokio::test]
async fn a_learner_that_acknowledged_nothing_gets_no_vote() {
    let mut town = Town::new(2, 1);
    town.replica(2, false, 0);
    town.replicas[1].applied = 0;
    assert_eq!(town.next(), None);
}

#[tokio::test]
async fn what_was_left_in_the_middle_is_finished_first() {
    let mut town = Town::new(3, 3);
    town.leave(2);
    let target = raft_ids(&[1, 3]);
    let view = GroupView { unfinished: Some(&target), ..town.view() };
    let step = view.next(&mut Memory::default(), Instant::now());
    assert_eq!(step, voters([1, 3]));
}

#[tokio::test]
async fn the_vote_of_who_is_no_member_is_taken_away() {
    let mut town = Town::new(3, 3);
    town.members.remove(&RaftId(3));
    assert_eq!(town.next(), voters([1, 2]));
}

#[tokio::test]
async fn who_has_tenants_stays_and_holds_nobody_up() {
    let mut town = Town::new(3, 2);
    town.leave(2);
    town.members.get_mut(&RaftId(2)).unwrap().has_groups = true;
    assert_eq!(town.next(), Some(Step::AddLearner(RaftId(3))));
}

#[tokio::test]
async fn nobody_leaves_where_the_rest_would_have_no_quorum() {
    let mut town = Town::new(3, 3);
    town.leave(2);
    town.lose(3, 5);
    assert_eq!(town.next(), None);
    let mut alone = Town::new(1, 1);
    alone.leave(1);
    assert_eq!(alone.next(), None);
}

#[tokio::test]
async fn a_member_that_lost_its_data_is_replaced_by_its_successor_at_its_address() {
    let mut town = Town::new(4, 4);
    town.members.get_mut(&RaftId(4)).unwrap().node_addr = "host-3".into();
    town.lose(3, 59);
    assert_eq!(town.view().replaced(), None);
    town.lose(3, 60);
    assert_eq!(town.view().replaced(), Some(Step::Drain(node(3))));
    // Somebody else's silence is not enough.
    town.members.get_mut(&RaftId(4)).unwrap().node_addr = "host-4".into();
    assert_eq!(town.view().replaced(), None);
}

#[tokio::test]
async fn who_may_not_leave_keeps_no_other_from_it() {
    let mut town = Town::new(7, 5);
    for (old, new) in [(2, 6), (3, 7)] {
        town.members.get_mut(&RaftId(new)).unwrap().node_addr = format!("host-{old}");
        town.lose(old, 60);
    }
    assert_eq!(town.view().replaced(), Some(Step::Drain(node(2))));
    // It has the replicas of a region where nobody else is.
    let old = town.members.get_mut(&RaftId(2)).unwrap();
    (old.region, old.has_groups) = ("eu".into(), true);
    assert_eq!(town.view().replaced(), Some(Step::Drain(node(3))));
}

/// A tenant group that should be on `wished`, looked at by its leader, 1.
fn tenant_group(town: &Town, wished: &[u64]) -> Option<Step> {
    let wish = Wish { replicas: raft_ids(wished), voters_max: 3 };
    let (mut memory, now) = (Memory::default(), Instant::now());
    memory.rounds.look(&town.replicas, now);
    let view = GroupView { group: GroupId(1), wish, ..town.view() };
    view.next(&mut memory, now + T / 2)
}

#[tokio::test]
async fn a_tenant_group_is_where_it_should_be_and_nowhere_else() {
    let mut town = Town::new(4, 1);
    assert_eq!(tenant_group(&town, &[1]), None);
    // Nor does its leader decide who belongs to the cluster.
    town.leave(2);
    assert_eq!(tenant_group(&town, &[1]), None);
    assert_eq!(tenant_group(&town, &[1, 4]), Some(Step::AddLearner(RaftId(4))));
    town.replica(4, false, 0);
    assert_eq!(tenant_group(&town, &[1, 4]), voters([1, 4]));
    assert_eq!(tenant_group(&town, &[1]), Some(Step::RemoveLearner(RaftId(4))));
}

#[tokio::test]
async fn a_tenant_group_goes_from_one_voter_to_three_at_once() {
    let mut town = Town::new(3, 1);
    let wished = &[1, 2, 3];
    town.replica(2, false, 0);
    assert_eq!(tenant_group(&town, wished), Some(Step::AddLearner(RaftId(3))));
    town.replica(3, false, 9);
    assert_eq!(tenant_group(&town, wished), None, "two would need each other");
    town.replicas[2].lag = 0;
    assert_eq!(tenant_group(&town, wished), voters([1, 2, 3]));
    town.replicas[2].lag = 9;
    town.lose(3, 1);
    assert_eq!(tenant_group(&town, wished), voters([1, 2]), "two hold more than one");
}

#[tokio::test]
async fn a_group_waits_for_its_third_voter_and_not_for_ever() {
    let mut town = Town::new(3, 1);
    town.replica(2, false, 0);
    town.replica(3, false, 9);
    let (mut memory, start) = (Memory::default(), Instant::now());
    let mut at = |town: &Town, secs: u64| {
        let wish = Wish { replicas: raft_ids(&[1, 2, 3]), voters_max: 3 };
        let now = start + Duration::from_secs(secs);
        // A look a moment before: the learner has caught up.
        memory.rounds.look(&town.replicas, now - T / 2);
        GroupView { group: GroupId(1), wish, ..town.view() }.next(&mut memory, now)
    };
    assert_eq!(at(&town, 10), None);
    assert_eq!(at(&town, 69), None);
    // Something else to do begins the wait anew.
    town.move_in(4);
    town.leave(4);
    town.replica(4, false, 0);
    assert_eq!(at(&town, 70), Some(Step::RemoveLearner(RaftId(4))));
    town.replicas.pop();
    assert_eq!(at(&town, 71), None);
    assert_eq!(at(&town, 130), None);
    assert_eq!(at(&town, 131), voters([1, 2]), "two hold more than one");
}

#[tokio::test]
async fn who_has_no_room_gets_no_vote() {
    let mut town = Town::new(2, 1);
    town.replica(2, false, 0);
    town.health.get_mut(&RaftId(2)).unwrap().has_room = false;
    assert_eq!(town.next(), None);
    let health = town.health.get_mut(&RaftId(2)).unwrap();
    (health.has_room, health.lacks_room_for_copy) = (true, true);
    assert_eq!(town.next(), voters([1, 2]), "it lacks room for something else");
}

#[tokio::test]
async fn who_is_silent_to_the_leader_is_lost_to_its_group_though_others_hear_it() {
    let mut town = Town::new(6, 5);
    town.replica(6, false, 0);
    town.set_health(3, NodeStatus::Degraded, 0);
    let silent = |town: &mut Town, secs| {
        town.health.get_mut(&RaftId(3)).unwrap().silent_for = Duration::from_secs(secs);
    };
    silent(&mut town, 29);
    assert_eq!(town.next(), None);
    silent(&mut town, 30);
    assert_eq!(town.next(), voters([1, 2, 4, 5, 6]));
}

#[tokio::test]
async fn a_replica_of_a_tenant_group_goes_when_another_votes_in_its_place() {
    let mut town = Town::new(4, 3);
    let wished = &[1, 2, 4];
    assert_eq!(tenant_group(&town, wished), Some(Step::AddLearner(RaftId(4))));
    town.replica(4, false, 9);
    assert_eq!(tenant_group(&town, wished), None, "it has not caught up");
    town.replicas[3].lag = 0;
    assert_eq!(tenant_group(&town, wished), voters([1, 2, 3, 4]));
    town.replicas[3].voter = true;
    assert_eq!(tenant_group(&town, wished), voters([1, 2, 4]));
    town.replicas[2].voter = false;
    assert_eq!(tenant_group(&town, wished), Some(Step::RemoveLearner(RaftId(3))));
    // The leader hands over before it goes.
    town.replicas.remove(2);
    assert_eq!(tenant_group(&town, &[2, 4]), Some(Step::HandOver));
}

/// 3 is well and stays in the cluster: its replica goes to 4 for balance, and 4 falls silent before it votes.
#[tokio::test]
async fn who_goes_for_balance_keeps_its_vote_until_another_votes() {
    let mut town = Town::new(4, 3);
    let wished = &[1, 2, 4];
    town.replica(4, false, 9);
    town.lose(4, 1);
    assert_eq!(tenant_group(&town, wished), None);
    // One that leaves does not wait for who is silent, and one that is lost is no help.
    town.leave(3);
    assert_eq!(tenant_group(&town, wished), voters([1, 2]));
    town.members.get_mut(&RaftId(3)).unwrap().is_leaving = false;
    town.lose(3, 1);
    town.set_health(4, NodeStatus::Healthy, 0);
    assert_eq!(tenant_group(&town, wished), None);
    town.lose(3, 30);
    town.replicas[3].lag = 0;
    assert_eq!(tenant_group(&town, wished), voters([1, 2, 4]));
}

#[tokio::test]
async fn a_lost_replica_of_a_tenant_group_is_replaced() {
    let mut town = Town::new(4, 3);
    town.lose(3, 30);
    town.replica(4, false, 0);
    assert_eq!(tenant_group(&town, &[1, 2, 4]), voters([1, 2, 4]));
    assert_eq!(tenant_group(&town, &[1, 2, 3]), Some(Step::RemoveLearner(RaftId(4))));
    // One that is to go is not waited for.
    town.lose(3, 1);
    assert_eq!(tenant_group(&town, &[1, 2, 4]), voters([1, 2, 4]));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the town looks like: voters that are chosen have a living majority, are members,
    /// and include the leader unless it leaves.
    #[test]
    fn chosen_voters_have_a_quorum(
        folk in prop::collection::vec((0_u8..4, 0_u8..3, any::<bool>(), 0_u64..100), 1..9),
    ) {
        let mut town = Town::new(folk.len() as u64, 1);
        for (raft_id, (place, health, leaves, secs)) in (1_u64..).zip(folk) {
            if raft_id > 1 {
                match place {
                    0 => {}
                    1 => town.replica(raft_id, false, secs * 50),
                    _ => town.replica(raft_id, true, 0),
                }
                if health == 2 {
                    town.lose(raft_id, secs);
                }
            }
            if leaves {
                town.leave(raft_id);
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _in_runtime = runtime.enter();
        if let Some(Step::SetVoters(chosen)) = town.next() {
            prop_assert!(town.view().keeps_quorum(&chosen));
            prop_assert!(chosen.contains(&RaftId(1)));
            prop_assert!(chosen.len() <= town.view().voters().len().max(VOTERS_MAX));
            prop_assert!(chosen.symmetric_difference(&town.view().voters()).count() <= 2);
        }
    }
}

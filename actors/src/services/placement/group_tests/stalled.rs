//! Learners that get nothing, or lack room.

use super::*;

/// A group on 1, 2 and 4 whose learner, 4, gets nothing: what its leader does after so many seconds each.
fn with_a_stalled_learner(town: &Town, secs: &[u64]) -> Vec<Option<Step>> {
    let (mut memory, start) = (Memory::default(), Instant::now());
    let step = |secs: &u64| {
        let wish = Wish { replicas: raft_ids(&[1, 2, 4]), voters_max: 3 };
        let view = GroupView { group: GroupId(1), wish, ..town.view() };
        view.next(&mut memory, start + Duration::from_secs(*secs))
    };
    secs.iter().map(step).collect()
}

#[tokio::test]
async fn a_learner_that_gets_nothing_makes_way_where_another_could_have_its_replica() {
    let mut town = Town::new(4, 2);
    town.learner_without_anything(4);
    let gone = Some(Step::RemoveLearner(RaftId(4)));
    assert_eq!(with_a_stalled_learner(&town, &[0, 119, 120]), [None, None, gone]);
    town.lose(3, 1);
    assert_eq!(with_a_stalled_learner(&town, &[0, 120]), [None, None], "3 is silent");
    town.set_health(3, NodeStatus::Healthy, 0);
    town.health.get_mut(&RaftId(3)).unwrap().lacks_room_for_copy = true;
    assert_eq!(with_a_stalled_learner(&town, &[0, 120]), [None, None], "3 has no room");
    town.members.get_mut(&RaftId(3)).unwrap().region = "eu".into();
    town.set_health(3, NodeStatus::Healthy, 0);
    assert_eq!(with_a_stalled_learner(&town, &[0, 120]), [None, None], "3 is elsewhere");
    // Of the system group everybody is to have a replica.
    let mut town = Town::new(4, 3);
    town.learner_without_anything(4);
    let (mut memory, now) = (Memory::default(), Instant::now());
    for secs in [0, 120, 600] {
        let now = now + Duration::from_secs(secs);
        assert_eq!(town.view().next(&mut memory, now), None);
    }
}

#[tokio::test]
async fn who_made_way_gets_no_replica_again_while_another_could_have_it() {
    let mut town = Town::new(4, 2);
    town.learner_without_anything(4);
    let (mut memory, start) = (Memory::default(), Instant::now());
    let mut at = |town: &Town, secs: u64| {
        let wish = Wish { replicas: raft_ids(&[1, 2, 4]), voters_max: 3 };
        let view = GroupView { group: GroupId(1), wish, ..town.view() };
        view.next(&mut memory, start + Duration::from_secs(secs))
    };
    assert_eq!(at(&town, 0), None);
    assert_eq!(at(&town, 120), Some(Step::RemoveLearner(RaftId(4))));
    town.replicas.pop();
    assert_eq!(at(&town, 121), None);
    let silent = {
        let mut town = town.clone();
        town.lose(3, 1);
        town
    };
    assert_eq!(at(&silent, 122), Some(Step::AddLearner(RaftId(4))), "nobody else is there");
    assert_eq!(at(&town, 719), None);
    assert_eq!(at(&town, 720), Some(Step::AddLearner(RaftId(4))), "it may be well by now");
}

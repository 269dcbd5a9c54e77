//! Stories of what a node does about all groups that it leads.

use super::super::group::tests::Town;
use super::*;
use crate::domain::ids::raft_ids;

const T: Duration = Duration::from_millis(500);

/// The groups that a leader of groups `led` creates, by region, with where they are placed already.
fn created(town: &Town, led: &[u32], placed: &[(u32, &str, u64)]) -> Option<Step> {
    let placements = placed.iter().map(|(group, region, member)| {
        let placement = GroupPlacement {
            region: (*region).into(),
            members: vec![RaftId(*member)],
            replicas: vec![RaftId(*member)],
            is_assigned: false,
        };
        (GroupId(*group), placement)
    });
    let placements = placements.collect();
    let led = led.iter().map(|group| GroupStatus {
        group: GroupId(*group),
        term: 1,
        leader: Some(RaftId(1)),
        replicas: vec![ReplicaStatus { raft_id: RaftId(1), voter: true, applied: 1, lag: 0 }],
        is_changing: true,
        unfinished: None,
    });
    let led: Vec<_> = led.collect();
    let view = ClusterView {
        own_id: RaftId(1),
        members: &town.members,
        placements: &placements,
        voters: &BTreeMap::new(),
        leaders: &BTreeMap::new(),
        led: &led,
        copies: &BTreeMap::new(),
        health: &town.health,
        has_room: true,
        lacks_room_for_copy: false,
        tenants: &BTreeMap::new(),
        damaged: &BTreeMap::new(),
        election_timeout: T,
    };
    let mut steps = view.next(&mut Memories::default(), Instant::now());
    assert!(steps.len() < 2, "{steps:?}");
    steps.pop().map(|(group, step)| {
        assert_eq!(group, GroupId::SYSTEM);
        step
    })
}

#[tokio::test]
async fn a_region_gets_its_groups_once_on_the_first_of_its_members_that_is_there() {
    let place = |region: &str, groups: std::ops::RangeInclusive<u32>, member| {
        let (region, groups) = (region.into(), groups.map(GroupId).collect());
        Some(Step::PlaceGroups { region, groups, members: vec![RaftId(member)] })
    };
    let mut town = Town::new(1, 1);
    assert_eq!(created(&town, &[0], &[]), place("default", 1..=8, 1));
    assert_eq!(created(&town, &[], &[]), None, "only where the system group is led");
    assert_eq!(created(&town, &[3], &[]), None, "only where the system group is led");
    let founded = [(1, "default", 1), (8, "default", 1)];
    assert_eq!(created(&town, &[0], &founded), None, "it has some");
    for raft_id in [2, 3, 4] {
        town.move_in(raft_id);
        town.members.get_mut(&RaftId(raft_id)).unwrap().region = "eu".into();
    }
    assert_eq!(created(&town, &[0, 1], &founded), place("eu", 9..=16, 2));
    town.leave(2);
    assert_eq!(created(&town, &[0], &founded), place("eu", 9..=16, 3));
    town.lose(3, 0);
    assert_eq!(created(&town, &[0], &founded), place("eu", 9..=16, 4));
    town.health.get_mut(&RaftId(4)).unwrap().has_room = false;
    assert_eq!(created(&town, &[0], &founded), None, "it could not write them down");
    town.health.get_mut(&RaftId(4)).unwrap().has_room = true;
    town.members.get_mut(&RaftId(4)).unwrap().is_offline = true;
    assert_eq!(created(&town, &[0], &founded), None, "nobody is there");
}

#[test]
fn a_leader_without_room_gives_way_only_where_the_others_can_vote() {
    let mut world = Town::new(3, 3);
    assert!(others_can_elect(&world.replicas, &world.health, RaftId(1)));
    world.health.get_mut(&RaftId(2)).unwrap().has_room = false;
    assert!(!others_can_elect(&world.replicas, &world.health, RaftId(1)));
    world.health.get_mut(&RaftId(2)).unwrap().has_room = true;
    world.health.get_mut(&RaftId(2)).unwrap().lacks_room_for_copy = true;
    assert!(others_can_elect(&world.replicas, &world.health, RaftId(1)), "it writes votes down");
    world.lose(3, 1);
    assert!(!others_can_elect(&world.replicas, &world.health, RaftId(1)));
}

/// A cluster of 4 where 3 has lost its data and 4 came in its place, and a group that 4 should join.
#[tokio::test]
async fn who_should_have_replicas_does_not_wait_for_who_is_to_leave() {
    let mut town = Town::new(4, 4);
    town.members.get_mut(&RaftId(4)).unwrap().node_addr = "host-3".into();
    town.lose(3, 60);
    let placement = GroupPlacement {
        region: "default".into(),
        members: vec![RaftId(1)],
        replicas: raft_ids(&[1, 2, 3]),
        is_assigned: true,
    };
    let led = GroupStatus {
        group: GroupId::SYSTEM,
        term: 1,
        leader: Some(RaftId(1)),
        replicas: town.replicas.clone(),
        is_changing: false,
        unfinished: None,
    };
    let group = GroupId(1);
    let view = ClusterView {
        own_id: RaftId(1),
        members: &town.members,
        placements: &BTreeMap::from([(group, placement)]),
        voters: &BTreeMap::from([(group, Voters::of([1, 2, 3].map(RaftId)))]),
        leaders: &BTreeMap::from([(group, RaftId(1))]),
        led: &[led],
        copies: &BTreeMap::new(),
        health: &town.health,
        has_room: true,
        lacks_room_for_copy: false,
        tenants: &BTreeMap::new(),
        damaged: &BTreeMap::new(),
        election_timeout: T,
    };
    let steps = view.next(&mut Memories::default(), Instant::now());
    let assign = Step::AssignReplicas { group, replicas: raft_ids(&[1, 2, 4]) };
    let drain = Step::Drain(town.members[&RaftId(3)].node);
    assert_eq!(steps, [(GroupId::SYSTEM, assign), (GroupId::SYSTEM, drain)]);
}

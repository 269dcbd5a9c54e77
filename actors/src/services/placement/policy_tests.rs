//! Who should have the replicas of tenant groups, by stories of members that come and go.

use super::*;
use crate::domain::views::NodeStatus;
use crate::services::heartbeat::MemberHealth;
use uuid::Uuid;

/// A cluster that this node, 1, leads.
#[derive(Default)]
struct Town {
    members: BTreeMap<u64, MemberView>,
    health: BTreeMap<u64, MemberHealth>,
    placements: BTreeMap<GroupId, GroupPlacement>,
    voters: BTreeMap<GroupId, Voters>,
}

impl Town {
    fn new(members: u64, groups: &[&[u64]]) -> Self {
        let mut town = Self::default();
        for raft_id in 1..=members {
            town.move_in(raft_id, "default");
        }
        for (group, replicas) in (1..).zip(groups) {
            town.place(group, replicas);
            town.voters.insert(GroupId(group), Voters::of(replicas.iter().copied()));
        }
        town
    }

    fn move_in(&mut self, raft_id: u64, region: &str) {
        let member = MemberView {
            node: crate::domain::ids::NodeId::from_uuid(Uuid::from_u128(raft_id.into())),
            raft_id,
            node_addr: format!("host-{raft_id}"),
            region: region.to_owned(),
            is_leaving: false,
            is_offline: false,
            has_groups: false,
        };
        self.members.insert(raft_id, member);
        self.silent_for(raft_id, 0);
    }

    fn place(&mut self, group: u32, replicas: &[u64]) {
        let placement = GroupPlacement {
            region: "default".to_owned(),
            members: vec![1],
            replicas: replicas.to_vec(),
            is_assigned: true,
        };
        self.placements.insert(GroupId(group), placement);
    }

    fn silent_for(&mut self, raft_id: u64, secs: u64) {
        let is_heard = secs == 0;
        let status = if is_heard { NodeStatus::Healthy } else { NodeStatus::Unhealthy };
        let unhealthy_for = Duration::from_secs(secs);
        let health = MemberHealth {
            status,
            heard_at: None,
            unhealthy_for,
            is_heard,
            has_room: true,
            damaged: BTreeSet::new(),
        };
        self.health.insert(raft_id, health);
    }

    fn next(&self) -> Option<(u32, Vec<u64>)> {
        let view = ClusterView {
            own_id: 1,
            members: &self.members,
            placements: &self.placements,
            voters: &self.voters,
            leads: &BTreeMap::new(),
            led: &[],
            health: &self.health,
            election_timeout: Duration::from_millis(500),
        };
        assignment(&view).map(|(group, replicas)| (group.0, replicas))
    }

    /// Follows the policy until it wants nothing more, each group being settled at once.
    fn settle(&mut self) {
        for _ in 0..100 {
            let Some((group, replicas)) = self.next() else { return };
            self.place(group, &replicas);
            self.voters.insert(GroupId(group), Voters::of(replicas));
        }
        panic!("no end");
    }
}

#[test]
fn a_tenant_group_begins_on_the_first_of_its_region_and_grows_to_three() {
    assert_eq!(first_voters([2, 4, 5].into_iter()), [2]);
    assert_eq!(Town::new(1, &[&[1]]).next(), None);
    assert_eq!(Town::new(2, &[&[1]]).next(), Some((1, vec![1, 2])));
    assert_eq!(Town::new(3, &[&[1]]).next(), Some((1, vec![1, 2, 3])));
    assert_eq!(Town::new(5, &[&[1, 2, 3]]).next(), None, "it stays where it is");
    let placements = Town::new(2, &[&[1, 2]]).placements;
    let wished = wish(GroupId(1), &Town::new(2, &[]).members, &placements);
    assert_eq!(wished, Some(Wish { replicas: [1, 2].into(), voters_max: 3 }));
    assert_eq!(wish(GroupId(8), &BTreeMap::new(), &placements), None);
}

#[test]
fn replicas_are_in_the_region_and_spread() {
    let alone: &[u64] = &[1];
    let mut town = Town::new(2, &[alone; 8]);
    for raft_id in 4..=9 {
        town.move_in(raft_id, if raft_id == 4 { "eu" } else { "default" });
    }
    town.settle();
    let load = |id: u64| town.placements.values().filter(|it| it.replicas.contains(&id)).count();
    assert_eq!(load(4), 0);
    for id in [2, 5, 6, 7, 8, 9] {
        assert!((2..=3).contains(&load(id)), "{id}: {}", load(id));
    }
}

#[test]
fn two_groups_move_at_a_time() {
    let mut town = Town::new(3, &[&[1], &[1], &[1]]);
    for group in [1, 2] {
        assert_eq!(town.next(), Some((group, vec![1, 2, 3])));
        town.place(group, &[1, 2, 3]);
    }
    assert_eq!(town.next(), None);
    // What waits for somebody who leaves is changed all the same.
    town.members.get_mut(&3).unwrap().is_leaving = true;
    assert_eq!(town.next(), Some((1, vec![1, 2])));
}

#[test]
fn nothing_is_changed_of_a_group_that_nobody_leads() {
    let mut town = Town::new(3, &[&[1]]);
    town.voters.clear();
    assert_eq!(town.next(), None);
}

#[test]
fn who_leaves_is_replaced_and_who_is_lost_where_somebody_else_is_there() {
    let mut town = Town::new(3, &[&[1, 2, 3]]);
    town.silent_for(3, 29);
    assert_eq!(town.next(), None);
    town.silent_for(3, 30);
    assert_eq!(town.next(), None, "nobody else is there");
    town.move_in(4, "eu");
    assert_eq!(town.next(), None, "nobody else of the region is there");
    town.move_in(5, "default");
    assert_eq!(town.next(), Some((1, vec![1, 2, 5])));
    town.silent_for(3, 0);
    town.members.get_mut(&2).unwrap().is_leaving = true;
    assert_eq!(town.next(), Some((1, vec![1, 5, 3])));
    town.silent_for(5, 1);
    assert_eq!(town.next(), Some((1, vec![1, 3])), "who is silent is not chosen");
    // The last one stays until there is another.
    let mut town = Town::new(1, &[&[1]]);
    town.members.get_mut(&1).unwrap().is_leaving = true;
    assert_eq!(town.next(), None);
    town.move_in(2, "default");
    assert_eq!(town.next(), Some((1, vec![2])));
}

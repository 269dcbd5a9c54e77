//! Who should have the replicas of tenant groups, by stories of members that come and go.

use super::super::samples;
use super::*;
use crate::domain::ids::raft_ids;
use crate::domain::voters::Voters;
use crate::services::heartbeat::MemberHealth;

/// A cluster that this node, 1, leads.
#[derive(Default)]
struct Town {
    members: BTreeMap<RaftId, MemberView>,
    health: BTreeMap<RaftId, MemberHealth>,
    placements: BTreeMap<GroupId, GroupPlacement>,
    voters: BTreeMap<GroupId, Voters>,
    leaders: BTreeMap<GroupId, RaftId>,
}

impl Town {
    fn new(members: u64, groups: &[&[u64]]) -> Self {
        let mut town = Self::default();
        for raft_id in 1..=members {
            town.move_in(raft_id, "default");
        }
        for (group, replicas) in (1..).zip(groups) {
            town.place(group, replicas);
            town.voters.insert(GroupId(group), Voters::of(raft_ids::<Vec<_>>(replicas)));
        }
        town
    }

    fn move_in(&mut self, raft_id: u64, region: &str) {
        let member = MemberView { region: region.into(), ..samples::member(raft_id) };
        self.members.insert(RaftId(raft_id), member);
        self.silent_for(raft_id, 0);
    }

    fn place(&mut self, group: u32, replicas: &[u64]) {
        self.placements.insert(GroupId(group), samples::placement(replicas));
    }

    fn learn(&mut self, group: u32, voters: &[u64], learners: &[u64]) {
        let voters = Voters::of(raft_ids::<Vec<_>>(voters));
        self.voters.insert(GroupId(group), Voters { learners: raft_ids(learners), ..voters });
    }

    fn silent_for(&mut self, raft_id: u64, secs: u64) {
        self.health.insert(RaftId(raft_id), samples::health(secs));
    }

    fn full(&mut self, raft_id: u64) {
        self.health.get_mut(&RaftId(raft_id)).unwrap().has_room = false;
    }

    fn lacks_room_for_copy(&mut self, raft_id: u64) {
        self.health.get_mut(&RaftId(raft_id)).unwrap().lacks_room_for_copy = true;
    }

    /// A member says for how long another has been silent to it, seconds.
    fn tell(&mut self, raft_id: u64, of: u64, secs: u64) {
        let told = &mut self.health.get_mut(&RaftId(raft_id)).unwrap().silent_to_it;
        told.insert(RaftId(of), Duration::from_secs(secs));
    }

    /// Looks at everything, with what was remembered.
    fn with_view<T>(&self, look: impl FnOnce(&ClusterView<'_>) -> T) -> T {
        look(&ClusterView {
            own_id: RaftId(1),
            members: &self.members,
            placements: &self.placements,
            voters: &self.voters,
            leaders: &self.leaders,
            led: &[],
            copies: &BTreeMap::new(),
            health: &self.health,
            has_room: true,
            lacks_room_for_copy: false,
            tenants: &BTreeMap::new(),
            damaged: &BTreeMap::new(),
            election_timeout: Duration::from_millis(500),
        })
    }

    fn look(&self, moves: &mut Moves, now: Instant) -> Option<(u32, Vec<u64>)> {
        self.with_view(|view| {
            moves.look(view, now);
            assignment(view, moves, now)
                .map(|(group, replicas)| (group.0, replicas.into_iter().map(|id| id.0).collect()))
        })
    }

    fn next(&self) -> Option<(u32, Vec<u64>)> {
        self.look(&mut Moves::default(), Instant::now())
    }

    /// Follows the policy until it wants nothing more, each group being settled at once.
    fn settle(&mut self) {
        for _ in 0..100 {
            let Some((group, replicas)) = self.next() else { return };
            self.place(group, &replicas);
            self.voters.insert(GroupId(group), Voters::of(raft_ids::<Vec<_>>(&replicas)));
        }
        panic!("no end");
    }
}

#[test]
fn a_tenant_group_begins_on_the_first_of_its_region_and_grows_to_three() {
    assert_eq!(first_voters([2, 4, 5].map(RaftId).into_iter()), [RaftId(2)]);
    assert_eq!(Town::new(1, &[&[1]]).next(), None);
    assert_eq!(Town::new(2, &[&[1]]).next(), Some((1, vec![1, 2])));
    assert_eq!(Town::new(3, &[&[1]]).next(), Some((1, vec![1, 2, 3])));
    assert_eq!(Town::new(5, &[&[1, 2, 3]]).next(), None, "it stays where it is");
    let placements = Town::new(2, &[&[1, 2]]).placements;
    let wished = wish(GroupId(1), &Town::new(2, &[]).members, &placements);
    assert_eq!(wished, Some(Wish { replicas: raft_ids(&[1, 2]), voters_max: 3 }));
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
    let load =
        |id: u64| town.placements.values().filter(|it| it.replicas.contains(&RaftId(id))).count();
    assert_eq!(load(4), 0);
    for id in [1, 2, 5, 6, 7, 8, 9] {
        assert!((3..=4).contains(&load(id)), "{id}: {}", load(id));
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
    town.members.get_mut(&RaftId(3)).unwrap().is_leaving = true;
    assert_eq!(town.next(), Some((1, vec![1, 2])));
}

#[test]
fn a_group_that_does_not_get_on_takes_no_place() {
    let mut town = Town::new(4, &[&[1, 2], &[1, 2], &[1], &[1]]);
    for group in [1, 2] {
        town.place(group, &[1, 2, 3]);
        town.learn(group, &[1, 2], &[3]);
    }
    let (mut moves, start) = (Moves::default(), Instant::now());
    let secs = |secs| start + Duration::from_secs(secs);
    assert_eq!(town.look(&mut moves, start), None);
    // One of the two gets on.
    town.learn(2, &[1, 2, 4], &[3]);
    assert_eq!(town.look(&mut moves, secs(59)), None);
    assert_eq!(town.look(&mut moves, secs(60)), Some((3, vec![1, 4, 2])));
    town.place(3, &[1, 4, 2]);
    town.learn(3, &[1], &[2, 4]);
    assert_eq!(town.look(&mut moves, secs(61)), None, "two are on their way again");
    // Of a group that nobody leads for a moment nothing new is known.
    town.voters.remove(&GroupId(1));
    assert_eq!(town.look(&mut moves, secs(62)), None);
    town.learn(1, &[1, 2], &[3]);
    assert_eq!(town.look(&mut moves, secs(118)), None);
    assert_eq!(town.look(&mut moves, secs(119)), Some((4, vec![1, 4, 3])));
}

/// The leader of a group that is assigned to 4 gives it no replica.
#[test]
fn who_is_given_no_replica_is_replaced_and_comes_last_for_a_while() {
    let mut town = Town::new(4, &[&[1, 2, 3]]);
    town.place(1, &[1, 2, 4]);
    let (mut moves, start) = (Moves::default(), Instant::now());
    let secs = |secs| start + Duration::from_secs(secs);
    assert_eq!(town.look(&mut moves, start), None);
    assert_eq!(town.look(&mut moves, secs(14)), None);
    assert_eq!(town.look(&mut moves, secs(15)), Some((1, vec![1, 2, 3])));
    town.place(1, &[1, 2, 3]);
    assert_eq!(town.look(&mut moves, secs(16)), None);
    // A place that becomes free is for another, where there is one.
    town.members.get_mut(&RaftId(2)).unwrap().is_leaving = true;
    assert_eq!(town.look(&mut moves, secs(17)), Some((1, vec![1, 4, 3])));
    town.move_in(5, "default");
    assert_eq!(town.look(&mut moves, secs(18)), Some((1, vec![1, 5, 3])));
    // One that is not heard is given up for its silence, and later.
    let mut town = Town::new(4, &[&[1, 2, 3]]);
    town.place(1, &[1, 2, 4]);
    town.silent_for(4, 20);
    let mut moves = Moves::default();
    assert_eq!(town.look(&mut moves, start), None);
    assert_eq!(town.look(&mut moves, secs(20)), None);
}

/// 4 and 5 can take nothing, and 3 is dead, which votes in another group.
#[test]
fn two_that_take_nothing_hold_up_no_other_group() {
    let mut town = Town::new(5, &[&[1, 2], &[1, 2], &[1, 2, 3]]);
    town.silent_for(3, 30);
    for group in [1, 2] {
        town.place(group, &[1, 2, 4]);
    }
    let (mut moves, start) = (Moves::default(), Instant::now());
    let mut changes = Vec::new();
    for secs in 0..=120 {
        if let Some((group, replicas)) = town.look(&mut moves, start + Duration::from_secs(secs)) {
            town.place(group, &replicas);
            changes.push((secs, group, replicas));
        }
    }
    let each_once = [(15, 1, vec![1, 2, 5]), (16, 2, vec![1, 2, 5]), (60, 3, vec![1, 2, 4])];
    assert_eq!(changes, each_once);
}

/// 2 leads group 1 and does not hear 4, which can take replicas of other groups all the same.
#[test]
fn who_is_silent_to_one_leader_is_not_avoided_by_the_others() {
    let mut town = Town::new(4, &[&[1, 2, 3], &[1, 2, 3]]);
    town.leaders.extend([(GroupId(1), RaftId(2)), (GroupId(2), RaftId(1))]);
    town.place(1, &[1, 2, 4]);
    for (is_heard, is_avoided) in [(false, false), (true, true)] {
        town.tell(2, 4, u64::from(!is_heard));
        let (mut moves, start) = (Moves::default(), Instant::now());
        town.look(&mut moves, start);
        town.look(&mut moves, start + Duration::from_secs(15));
        assert_eq!(moves.untaken.avoids(RaftId(4)), is_avoided, "heard: {is_heard}");
    }
}

#[test]
fn who_lacks_room_and_is_given_no_replica_is_replaced() {
    let mut town = Town::new(4, &[&[1, 2, 3]]);
    town.place(1, &[1, 2, 4]);
    town.full(4);
    let (mut moves, start) = (Moves::default(), Instant::now());
    assert_eq!(town.look(&mut moves, start), None);
    let later = start + Duration::from_secs(15);
    assert_eq!(town.look(&mut moves, later), Some((1, vec![1, 2, 3])));
}

#[test]
fn balance_gives_nothing_to_who_stalled_until_later() {
    let mut town = Town::new(4, &[&[1, 2, 3], &[1, 2, 3]]);
    town.place(1, &[1, 2, 4]);
    town.place(2, &[1, 2, 3]);
    let (mut moves, start) = (Moves::default(), Instant::now());
    let secs = |secs| start + Duration::from_secs(secs);
    town.look(&mut moves, start);
    assert_eq!(town.look(&mut moves, secs(15)), Some((1, vec![1, 2, 3])));
    town.place(1, &[1, 2, 3]);
    assert_eq!(town.look(&mut moves, secs(16)), None);
    assert_eq!(town.look(&mut moves, secs(614)), None);
    assert_eq!(
        town.look(&mut moves, secs(615)).map(|(_, replicas)| replicas.contains(&4)),
        Some(true)
    );
}

/// A learner is waited for: its group's leader says whether it gets on. So is a group that nobody leads, and
/// who is not heard is given up for that.
#[test]
fn who_is_a_learner_is_waited_for() {
    let mut town = Town::new(5, &[&[1, 2, 3]]);
    town.place(1, &[1, 2, 4]);
    town.learn(1, &[1, 2, 3], &[4]);
    let (mut moves, start) = (Moves::default(), Instant::now());
    for at in [0, 15, 600] {
        assert_eq!(town.look(&mut moves, start + Duration::from_secs(at)), None);
    }
}

#[test]
fn who_has_no_room_takes_no_replica() {
    let mut town = Town::new(4, &[&[1, 2, 3]]);
    town.silent_for(3, 30);
    town.full(4);
    assert_eq!(town.next(), None, "nobody could take its place");
    town.move_in(5, "default");
    assert_eq!(town.next(), Some((1, vec![1, 2, 5])));
    let mut town = Town::new(3, &[&[1]]);
    town.full(2);
    assert_eq!(town.next(), Some((1, vec![1, 3])));
}

#[test]
fn who_lacks_room_for_one_copy_takes_no_other() {
    let mut town = Town::new(5, &[&[1, 2, 3]]);
    town.silent_for(3, 30);
    town.lacks_room_for_copy(4);
    assert_eq!(town.next(), Some((1, vec![1, 2, 5])));
    town.lacks_room_for_copy(5);
    assert_eq!(town.next(), None, "nobody could take its place");
}

/// Who is silent to whom, for a group on 1, 2 and 3 that 2 leads; 1 leads the system group, and 4 and 5
/// have no replica.
#[test]
fn who_is_lost_is_said_by_the_leader_of_the_group() {
    type Silence = (u64, u64, u64);
    type Case = (&'static str, &'static [Silence], Option<Vec<u64>>);
    let table: [Case; 6] = [
        ("all is well", &[(2, 3, 0)], None),
        ("others hear it, the leader does not", &[(2, 3, 30)], Some(vec![1, 2, 4])),
        ("not for long enough", &[(2, 3, 29)], None),
        ("the leader hears it, the leader of the system group does not", &[(1, 3, 90)], None),
        ("nobody hears it", &[(1, 3, 90), (2, 3, 90)], Some(vec![1, 2, 4])),
        ("nor does it hear the first spare one", &[(2, 3, 30), (2, 4, 1)], Some(vec![1, 2, 5])),
    ];
    for (what, silences, expected) in table {
        let mut town = Town::new(5, &[&[1, 2, 3]]);
        town.leaders.insert(GroupId(1), RaftId(2));
        for other in [1, 3, 4, 5] {
            town.tell(2, other, 0);
        }
        for (to, of, secs) in silences {
            if *to == 1 {
                town.silent_for(*of, *secs);
            } else {
                town.tell(*to, *of, *secs);
            }
        }
        assert_eq!(town.next().map(|(_, replicas)| replicas), expected, "{what}");
    }
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
    town.members.get_mut(&RaftId(2)).unwrap().is_leaving = true;
    assert_eq!(town.next(), Some((1, vec![1, 5, 3])));
    town.silent_for(5, 1);
    assert_eq!(town.next(), Some((1, vec![1, 3])), "who is silent is not chosen");
    // The last one stays until there is another.
    let mut town = Town::new(1, &[&[1]]);
    town.members.get_mut(&RaftId(1)).unwrap().is_leaving = true;
    assert_eq!(town.next(), None);
    town.move_in(2, "default");
    assert_eq!(town.next(), Some((1, vec![2])));
}

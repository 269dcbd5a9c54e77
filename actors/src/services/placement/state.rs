//! Decides what is to be done next about the groups: where a region lacks its own, and which change
//! of membership brings a group nearer to its wish ([`policy`](super::policy)). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::group::{GroupView, Memory};
use super::leaders;
use super::moves::Moves;
use super::policy;
use crate::domain::ids::{GroupId, NodeId, RaftId};
use crate::domain::region::Region;
use crate::domain::voters::Voters;
use crate::ports::{CopyProgress, GroupStatus, ReplicaStatus};
use crate::services::heartbeat::MemberHealth;
use crate::state::system::GroupPlacement;

/// A leader looks this often whether another should lead one of its groups, and lets one go at a time.
const SPREAD_EVERY: Duration = Duration::from_secs(1);

/// Of a group that nothing is copied of.
static NO_COPIES: BTreeMap<RaftId, CopyProgress> = BTreeMap::new();

/// A member, as far as placement looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberView {
    pub(super) node: NodeId,
    pub(super) raft_id: RaftId,
    pub(super) node_addr: String,
    pub(super) region: Region,
    pub(super) is_leaving: bool,
    pub(super) is_offline: bool,
    /// Whether it has replicas of tenant groups, or is to have some: they leave it first.
    pub(super) has_groups: bool,
}

/// Everything a look decides from.
#[derive(Debug)]
pub(super) struct ClusterView<'a> {
    /// This node.
    pub(super) own_id: RaftId,
    /// The members, by id in Raft groups.
    pub(super) members: &'a BTreeMap<RaftId, MemberView>,
    /// Where the tenant groups are to be.
    pub(super) placements: &'a BTreeMap<GroupId, GroupPlacement>,
    /// Who votes in the groups that are known to be led.
    pub(super) voters: &'a BTreeMap<GroupId, Voters>,
    /// Who leads the tenant groups, as far as is known.
    pub(super) leaders: &'a BTreeMap<GroupId, RaftId>,
    /// The groups that this node leads.
    pub(super) led: &'a [GroupStatus],
    /// How much replicas of those groups have of the copies that are sent to them.
    pub(super) copies: &'a BTreeMap<GroupId, BTreeMap<RaftId, CopyProgress>>,
    /// How the other members are.
    pub(super) health: &'a BTreeMap<RaftId, MemberHealth>,
    /// Whether this node's own disk has room.
    pub(super) has_room: bool,
    /// Whether this node lacks room for what others send it.
    pub(super) lacks_room_for_copy: bool,
    /// How many tenants the groups have.
    pub(super) tenants: &'a BTreeMap<GroupId, u64>,
    /// Of which groups a member's replica is damaged, of the members that say so.
    pub(super) damaged: &'a BTreeMap<RaftId, BTreeSet<GroupId>>,
    /// After so long without a leader there is a new one.
    pub(super) election_timeout: Duration,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Create the groups of a region.
    PlaceGroups {
        /// The region.
        region: Region,
        /// The groups.
        groups: Vec<GroupId>,
        /// Their first voters.
        members: Vec<RaftId>,
    },
    /// Have these members have a replica of a tenant group.
    AssignReplicas {
        /// The group.
        group: GroupId,
        /// The members.
        replicas: Vec<RaftId>,
    },
    /// Give a member a replica.
    AddLearner(RaftId),
    /// Make these the voters.
    SetVoters(BTreeSet<RaftId>),
    /// Take away the replica of who is to have none.
    RemoveLearner(RaftId),
    /// Forget a member that has lost its vote.
    Forget(NodeId),
    /// Have a member leave.
    Drain(NodeId),
    /// Let another lead: the leader is to leave.
    HandOver,
    /// Let this voter lead, which leads fewer groups.
    LetLead(RaftId),
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(super) struct Memories {
    /// Of the groups that this node leads.
    groups: BTreeMap<GroupId, Memory>,
    /// When this node last looked whether another should lead one of its groups.
    spread: Option<Instant>,
    /// Of all tenant groups, while this node leads the system group.
    moves: Moves,
}

/// Whether a majority of `voters` is alive, as far as is known on `leader`.
pub fn keeps_quorum(
    voters: &BTreeSet<RaftId>,
    health: &BTreeMap<RaftId, MemberHealth>,
    leader: RaftId,
) -> bool {
    let alive = voters.iter().filter(|id| **id == leader || is_alive(health, **id)).count();
    !voters.is_empty() && alive > voters.len() / 2
}

/// Whether the voters beside `leader` that can write down a vote are a majority.
pub(super) fn others_can_elect(
    replicas: &[ReplicaStatus],
    health: &BTreeMap<RaftId, MemberHealth>,
    leader: RaftId,
) -> bool {
    let voters = || replicas.iter().filter(|replica| replica.voter);
    let can_write = |raft_id: RaftId| {
        health.get(&raft_id).is_some_and(|health| health.is_heard && health.has_room)
    };
    let able = voters().filter(|voter| voter.raft_id != leader && can_write(voter.raft_id));
    able.count() > voters().count() / 2
}

/// By what the leader itself hears: the word of others carries no entries.
pub(super) fn is_alive(health: &BTreeMap<RaftId, MemberHealth>, raft_id: RaftId) -> bool {
    health.get(&raft_id).is_some_and(|health| health.is_heard)
}

impl ClusterView<'_> {
    /// Decides on the next step of each group that this node leads, if any. The groups that a
    /// region lacks are a step of the system group, and its first one: a node without them is not
    /// ready. Who should have their replicas, and who is to leave, are its last: both are commands,
    /// and neither waits for the other, which may be refused.
    pub(super) fn next(&self, memories: &mut Memories, now: Instant) -> Vec<(GroupId, Step)> {
        let Memories { groups: memory, spread, moves } = memories;
        let is_led = |group| self.led.iter().any(|led| led.group == group);
        memory.retain(|group, _| is_led(*group));
        if !is_led(GroupId::SYSTEM) {
            // What it looked like when this node last led it says nothing about the time since then.
            *moves = Moves::default();
        }
        let is_time = spread.is_none_or(|last| last + SPREAD_EVERY <= now);
        let mut steps = Vec::new();
        for led in self.led {
            let group = self.group(led);
            let is_system = led.group == GroupId::SYSTEM;
            let missing = is_system.then(|| self.missing_groups()).flatten();
            let step =
                missing.or_else(|| group.as_ref()?.next(memory.entry(led.group).or_default(), now));
            if let Some(step) = step {
                steps.push((led.group, step));
            } else if is_system {
                moves.look(self, now);
                let drain = group.and_then(|group| group.replaced());
                let last = self.assignment(moves, now).into_iter().chain(drain);
                steps.extend(last.map(|step| (led.group, step)));
            }
        }
        // One group at a time: a lead that moves costs its tenants a moment. A tenant that is damaged here
        // is served by nobody until then; the rest has time until there is nothing else to do.
        if is_time {
            let damaged = leaders::left_damaged(self);
            let spread_out = || steps.is_empty().then(|| leaders::handed_on(self)).flatten();
            if let Some((group, to)) = damaged.or_else(spread_out) {
                *spread = Some(now);
                steps.retain(|(of, _)| *of != group);
                steps.push((group, Step::LetLead(to)));
            }
        }
        steps
    }

    /// Shows a group that this node leads; `None` while nothing is to be done about it.
    fn group<'a>(&'a self, led: &'a GroupStatus) -> Option<GroupView<'a>> {
        // A change that is not committed may not come to be: the next is decided when it has.
        if led.is_changing {
            return None;
        }
        Some(GroupView {
            group: led.group,
            wish: policy::wish(led.group, self.members, self.placements)?,
            leader: self.own_id,
            members: self.members,
            replicas: &led.replicas,
            copies: self.copies.get(&led.group).unwrap_or(&NO_COPIES),
            health: self.health,
            election_timeout: self.election_timeout,
            unfinished: led.unfinished.as_ref(),
        })
    }

    /// For how long a member has been no help to a group that `leader` leads: silent to the leader,
    /// which sends it everything. Where that is not known, silent to everybody.
    pub(super) fn lost_for(&self, leader: Option<RaftId>, raft_id: RaftId) -> Duration {
        let silence = leader.and_then(|leader| self.silent_to(leader, raft_id));
        let unhealthy_for = || self.health.get(&raft_id).map(|health| health.unhealthy_for);
        silence.or_else(unhealthy_for).unwrap_or_default()
    }

    /// For how long a member has been silent to another, as far as is known.
    fn silent_to(&self, other: RaftId, raft_id: RaftId) -> Option<Duration> {
        if other == raft_id {
            return Some(Duration::ZERO);
        }
        if other == self.own_id {
            return self.health.get(&raft_id).map(|health| health.silent_for);
        }
        self.health.get(&other)?.silent_to_it.get(&raft_id).copied()
    }

    /// Whether a member can take a replica of a group that `leader` leads: it is reached, and has room for it.
    pub(super) fn can_take(&self, leader: Option<RaftId>, raft_id: RaftId) -> bool {
        self.is_reached(leader, raft_id) && self.has_room_for_copy(raft_id)
    }

    /// Whether a replica of a group that `leader` leads would reach a member: it is heard here, so that it learns
    /// of it, and there, so that it gets it.
    pub(super) fn is_reached(&self, leader: Option<RaftId>, raft_id: RaftId) -> bool {
        let is_heard_there = leader
            .and_then(|leader| self.silent_to(leader, raft_id))
            .is_none_or(|silence| silence < self.election_timeout);
        self.is_alive(raft_id) && is_heard_there
    }

    /// How many replicas of tenant groups a member is to have.
    pub(super) fn load(&self, raft_id: RaftId) -> usize {
        self.placements.values().filter(|it| it.replicas.contains(&raft_id)).count()
    }

    /// Whether this node hears a member, or is it.
    pub(super) fn is_alive(&self, raft_id: RaftId) -> bool {
        raft_id == self.own_id || is_alive(self.health, raft_id)
    }

    /// Whether a member's disk has room, as far as is known.
    fn has_room(&self, raft_id: RaftId) -> bool {
        let room = self.health.get(&raft_id).map(|health| health.has_room);
        if raft_id == self.own_id { self.has_room } else { room.unwrap_or_default() }
    }

    /// Whether a member has room for a further replica, as far as is known. One that lacks it for what it is to have
    /// already may vote and lead.
    fn has_room_for_copy(&self, raft_id: RaftId) -> bool {
        let lacks = self.health.get(&raft_id).map(|health| health.lacks_room_for_copy);
        let lacks =
            if raft_id == self.own_id { self.lacks_room_for_copy } else { lacks.unwrap_or(true) };
        self.has_room(raft_id) && !lacks
    }

    fn assignment(&self, moves: &Moves, now: Instant) -> Option<Step> {
        let (group, replicas) = policy::assignment(self, moves, now)?;
        Some(Step::AssignReplicas { group, replicas })
    }

    /// Finds a region that has members and no groups, and chooses its groups and their voters.
    ///
    /// Two leaders may choose at the same moment, or a leader and one before it. The state machine
    /// decides: it ignores groups of a region that has some, and ids that are given.
    fn missing_groups(&self) -> Option<Step> {
        let mut regions: BTreeMap<&Region, Vec<RaftId>> = BTreeMap::new();
        // By id, which is the order in which they were admitted.
        for member in self.members.values() {
            let is_fit = self.is_alive(member.raft_id) && self.has_room(member.raft_id);
            if is_fit && !member.is_leaving && !member.is_offline {
                regions.entry(&member.region).or_default().push(member.raft_id);
            }
        }
        let is_placed = |region: &Region| self.placements.values().any(|it| it.region == *region);
        let (region, members) = regions.into_iter().find(|(region, _)| !is_placed(region))?;
        let last = self.placements.keys().max().map_or(GroupId::SYSTEM.0, |group| group.0);
        let groups = (last + 1..=last + policy::GROUPS_PER_REGION).map(GroupId).collect();
        let members = policy::first_voters(members.into_iter());
        Some(Step::PlaceGroups { region: region.clone(), groups, members })
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

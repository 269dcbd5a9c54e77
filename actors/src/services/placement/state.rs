//! Decides what is to be done next about the groups: where a region lacks its own, and which change
//! of membership brings a group nearer to its wish ([`policy`](super::policy)). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::policy::{self, VOTER_LOST_AFTER, Wish};
use super::rounds::Rounds;
use crate::domain::ids::{GroupId, NodeId};
use crate::domain::views::NodeStatus;
use crate::domain::voters::Voters;
use crate::ports::{GroupStatus, ReplicaStatus};
use crate::services::heartbeat::MemberHealth;
use crate::state::system::GroupPlacement;

/// A member that has been unhealthy for so long, and whose address another member has now, has
/// lost its data and does not come back.
const REPLACED_AFTER: Duration = Duration::from_secs(60);
/// So long a leader keeps the groups that it leads, after it has let another lead one of them.
const SPREAD_EVERY: Duration = Duration::from_secs(1);
/// So long a removed member's replica is kept: it learns of its removal from the log.
const ORPHAN_KEPT: Duration = Duration::from_secs(2);

/// A member, as far as placement looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemberView {
    pub(super) node: NodeId,
    pub(super) raft_id: u64,
    pub(super) node_addr: String,
    pub(super) region: String,
    pub(super) is_leaving: bool,
    pub(super) is_offline: bool,
    /// Whether it has replicas of tenant groups, or is to have some: they leave it first.
    pub(super) has_groups: bool,
}

/// Everything a look decides from.
#[derive(Debug)]
pub(super) struct ClusterView<'a> {
    /// This node.
    pub(super) own_id: u64,
    /// The members, by id in Raft groups.
    pub(super) members: &'a BTreeMap<u64, MemberView>,
    /// Where the tenant groups are to be.
    pub(super) placements: &'a BTreeMap<GroupId, GroupPlacement>,
    /// Who votes in the groups that are known to be led.
    pub(super) voters: &'a BTreeMap<GroupId, Voters>,
    /// How many tenant groups each member leads, as far as is known.
    pub(super) leads: &'a BTreeMap<u64, usize>,
    /// The groups that this node leads.
    pub(super) led: &'a [GroupStatus],
    /// How the other members are.
    pub(super) health: &'a BTreeMap<u64, MemberHealth>,
    /// After so long without a leader there is a new one.
    pub(super) election_timeout: Duration,
}

/// What a decision about one group is made from, on its leader.
#[derive(Debug)]
pub(super) struct GroupView<'a> {
    /// The group.
    pub(super) group: GroupId,
    /// What it is to look like.
    pub(super) wish: Wish,
    /// This node, the leader.
    pub(super) leader: u64,
    /// The members, by id in Raft groups.
    pub(super) members: &'a BTreeMap<u64, MemberView>,
    /// The replicas of the group.
    pub(super) replicas: &'a [ReplicaStatus],
    /// How the other members are.
    pub(super) health: &'a BTreeMap<u64, MemberHealth>,
    /// After so long without a leader there is a new one.
    pub(super) election_timeout: Duration,
    /// The voters that a change was to come to, when it was left in the middle.
    pub(super) unfinished: Option<&'a BTreeSet<u64>>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Create the groups of a region.
    PlaceGroups {
        /// The region.
        region: String,
        /// The groups.
        groups: Vec<GroupId>,
        /// Their first voters.
        members: Vec<u64>,
    },
    /// Have these members have a replica of a tenant group.
    AssignReplicas {
        /// The group.
        group: GroupId,
        /// The members.
        replicas: Vec<u64>,
    },
    /// Give a member a replica.
    AddLearner(u64),
    /// Make these the voters.
    SetVoters(BTreeSet<u64>),
    /// Take away the replica of who is to have none.
    RemoveLearner(u64),
    /// Forget a member that has lost its vote.
    Forget(NodeId),
    /// Have a member leave.
    Drain(NodeId),
    /// Let another lead: the leader is to leave.
    HandOver,
    /// Let this voter lead, which leads fewer groups.
    LetLead(u64),
}

/// What is remembered from look to look.
#[derive(Debug, Default)]
pub(super) struct Memories {
    /// Of the groups that this node leads.
    groups: BTreeMap<GroupId, Memory>,
    /// When this node last let another lead because it led more groups.
    spread: Option<Instant>,
}

/// What is remembered of a group from look to look, while this node leads it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Replicas of nodes that are no members any more, since when.
    orphans: BTreeMap<u64, Instant>,
    /// How learners catch up.
    rounds: Rounds,
}

/// Whether a majority of `voters` is alive, as far as is known on `leader`.
pub fn keeps_quorum(
    voters: &BTreeSet<u64>,
    health: &BTreeMap<u64, MemberHealth>,
    leader: u64,
) -> bool {
    let alive = voters.iter().filter(|id| **id == leader || is_alive(health, **id)).count();
    !voters.is_empty() && alive > voters.len() / 2
}

/// Whether the voters beside `leader` that can write down a vote are a majority.
pub(super) fn others_can_elect(
    replicas: &[ReplicaStatus],
    health: &BTreeMap<u64, MemberHealth>,
    leader: u64,
) -> bool {
    let voters = || replicas.iter().filter(|replica| replica.voter);
    let can_write = |raft_id: u64| {
        health.get(&raft_id).is_some_and(|health| health.is_heard && health.has_room)
    };
    let able = voters().filter(|voter| voter.raft_id != leader && can_write(voter.raft_id));
    able.count() > voters().count() / 2
}

/// By what the leader itself hears: the word of others carries no entries.
fn is_alive(health: &BTreeMap<u64, MemberHealth>, raft_id: u64) -> bool {
    health.get(&raft_id).is_some_and(|health| health.is_heard)
}

impl ClusterView<'_> {
    /// Decides on the next step of each group that this node leads, if any. The groups that a
    /// region lacks are a step of the system group, and its first one: a node without them is not
    /// ready. Who should have their replicas is its last.
    pub(super) fn next(&self, memories: &mut Memories, now: Instant) -> Vec<(GroupId, Step)> {
        let Memories { groups: memory, spread } = memories;
        memory.retain(|group, _| self.led.iter().any(|led| led.group == *group));
        let is_time = spread.is_none_or(|last| last + SPREAD_EVERY <= now);
        let steps = self.led.iter().filter_map(|led| {
            let is_system = led.group == GroupId::SYSTEM;
            let missing = is_system.then(|| self.missing_groups()).flatten();
            let step = missing.or_else(|| {
                let memory = memory.entry(led.group).or_default();
                self.group(led)?.next(memory, now)
            });
            let step = step.or_else(|| is_system.then(|| self.assignment()).flatten());
            step.map(|step| (led.group, step))
        });
        let mut steps: Vec<(GroupId, Step)> = steps.collect();
        // One group at a time, and none while there is something else to do: a lead that moves costs
        // its tenants a moment.
        if steps.is_empty()
            && is_time
            && let Some((group, to)) = self.led.iter().find_map(|led| self.spread(led))
        {
            *spread = Some(now);
            steps.push((group, Step::LetLead(to)));
        }
        steps
    }

    /// Finds a voter that should lead a tenant group instead of this node, for it leads fewer.
    fn spread(&self, led: &GroupStatus) -> Option<(GroupId, u64)> {
        let leads = |id: u64| self.leads.get(&id).copied().unwrap_or_default();
        let is_settled = !led.is_changing && led.unfinished.is_none();
        let others = led.replicas.iter().filter(|it| it.raft_id != self.own_id);
        let fit = others.filter(|it| {
            let health = self.health.get(&it.raft_id);
            let is_well = health.is_some_and(|it| it.status == NodeStatus::Healthy && it.has_room);
            let stays = self.members.get(&it.raft_id).is_some_and(|member| !member.is_leaving);
            it.voter && it.lag == 0 && is_well && stays
        });
        let least = fit.map(|it| it.raft_id).min_by_key(|id| (leads(*id), *id))?;
        // Of two that lead as many, give or take one, neither gives way.
        let is_worth_it = leads(self.own_id) > leads(least) + 1;
        (led.group != GroupId::SYSTEM && is_settled && is_worth_it).then_some((led.group, least))
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
            health: self.health,
            election_timeout: self.election_timeout,
            unfinished: led.unfinished.as_ref(),
        })
    }

    /// For how long a member has been unhealthy.
    pub(super) fn unhealthy_for(&self, raft_id: u64) -> Duration {
        self.health.get(&raft_id).map_or(Duration::ZERO, |health| health.unhealthy_for)
    }

    /// Whether this node hears a member, or is it.
    pub(super) fn is_alive(&self, raft_id: u64) -> bool {
        raft_id == self.own_id || is_alive(self.health, raft_id)
    }

    fn assignment(&self) -> Option<Step> {
        let (group, replicas) = policy::assignment(self)?;
        Some(Step::AssignReplicas { group, replicas })
    }

    /// Finds a region that has members and no groups, and chooses its groups and their voters.
    ///
    /// Two leaders may choose at the same moment, or a leader and one before it. The state machine
    /// decides: it ignores groups of a region that has some, and ids that are given.
    fn missing_groups(&self) -> Option<Step> {
        let mut regions: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        // By id, which is the order in which they were admitted.
        for member in self.members.values() {
            if self.is_alive(member.raft_id) && !member.is_leaving && !member.is_offline {
                regions.entry(&member.region).or_default().push(member.raft_id);
            }
        }
        let is_placed = |region: &str| self.placements.values().any(|it| it.region == region);
        let (region, members) = regions.into_iter().find(|(region, _)| !is_placed(region))?;
        let last = self.placements.keys().max().map_or(GroupId::SYSTEM.0, |group| group.0);
        let groups = (last + 1..=last + policy::GROUPS_PER_REGION).map(GroupId).collect();
        let members = policy::first_voters(members.into_iter());
        Some(Step::PlaceGroups { region: region.to_owned(), groups, members })
    }
}

impl GroupView<'_> {
    fn voters(&self) -> BTreeSet<u64> {
        self.replicas
            .iter()
            .filter(|replica| replica.voter)
            .map(|replica| replica.raft_id)
            .collect()
    }

    fn is_alive(&self, raft_id: u64) -> bool {
        raft_id == self.leader || is_alive(self.health, raft_id)
    }

    fn unhealthy_for(&self, raft_id: u64) -> Duration {
        self.health.get(&raft_id).map_or(Duration::ZERO, |health| health.unhealthy_for)
    }

    fn keeps_quorum(&self, voters: &BTreeSet<u64>) -> bool {
        keeps_quorum(voters, self.health, self.leader)
    }

    /// The next step, if any.
    pub(super) fn next(&self, memory: &mut Memory, now: Instant) -> Option<Step> {
        memory.rounds.look(self.replicas, now);
        if let Some(target) = self.unfinished {
            return Some(Step::SetVoters(target.clone()));
        }
        self.leaving()
            .or_else(|| self.orphaned(&mut memory.orphans, now))
            .or_else(|| self.joining())
            .or_else(|| self.promotable(&memory.rounds, now))
            .or_else(|| self.replaced())
    }

    /// A member that should have no replica loses its vote, then its replica. Of the system group it
    /// is forgotten instead: who is no member has no replica anyway.
    fn leaving(&self) -> Option<Step> {
        let voters = self.voters();
        let is_wished = |id: &u64| self.wish.replicas.contains(id);
        let replicas = self.replicas.iter().map(|replica| replica.raft_id);
        for id in replicas.filter(|id| !is_wished(id)) {
            let Some(member) = self.members.get(&id) else { continue };
            if !voters.contains(&id) {
                // Who belongs to the cluster is decided where the system group is led.
                let is_system = self.group == GroupId::SYSTEM;
                return Some(if is_system {
                    Step::Forget(member.node)
                } else {
                    Step::RemoveLearner(id)
                });
            }
            let mut rest = voters.clone();
            rest.remove(&id);
            if !self.keeps_quorum(&rest) || !self.is_replaced_in(&rest) {
                continue;
            }
            if id == self.leader {
                return Some(Step::HandOver);
            }
            return Some(Step::SetVoters(rest));
        }
        None
    }

    /// Whether all who are there and should vote do. A tenant's replica goes only then: it holds a
    /// copy of everything until somebody else does. In the system group everybody has a copy.
    fn is_replaced_in(&self, voters: &BTreeSet<u64>) -> bool {
        let there = self.wish.replicas.iter().filter(|id| self.is_alive(**id)).count();
        self.group == GroupId::SYSTEM || voters.len() >= there.min(self.wish.voters_max)
    }

    fn orphaned(&self, orphans: &mut BTreeMap<u64, Instant>, now: Instant) -> Option<Step> {
        let is_orphan = |id: &u64| !self.members.contains_key(id);
        let ids: BTreeSet<u64> = self.replicas.iter().map(|replica| replica.raft_id).collect();
        orphans.retain(|id, _| ids.contains(id) && is_orphan(id));
        let voters = self.voters();
        for id in ids.into_iter().filter(is_orphan) {
            let since = *orphans.entry(id).or_insert(now);
            let mut rest = voters.clone();
            if rest.remove(&id) && self.keeps_quorum(&rest) {
                return Some(Step::SetVoters(rest));
            }
            if !voters.contains(&id) && now.duration_since(since) >= ORPHAN_KEPT {
                return Some(Step::RemoveLearner(id));
            }
        }
        None
    }

    fn joining(&self) -> Option<Step> {
        let has_replica = |id: u64| self.replicas.iter().any(|replica| replica.raft_id == id);
        let mut joining = self.members.values().filter(|member| {
            self.wish.replicas.contains(&member.raft_id)
                && !member.is_leaving
                && !member.is_offline
                && !has_replica(member.raft_id)
        });
        joining.find(|member| self.is_alive(member.raft_id)).map(|m| Step::AddLearner(m.raft_id))
    }

    /// A learner becomes a voter, where there is room for one or a voter is lost.
    fn promotable(&self, rounds: &Rounds, now: Instant) -> Option<Step> {
        let candidates = self.replicas.iter().filter(|replica| {
            let member = self.members.get(&replica.raft_id);
            !replica.voter
                && self.wish.replicas.contains(&replica.raft_id)
                // A voter that is far behind would hold up every write.
                && rounds.has_caught_up(replica.raft_id, self.election_timeout, now)
                && self.is_alive(replica.raft_id)
                && member.is_some_and(|member| !member.is_leaving && !member.is_offline)
        });
        let candidates = candidates.map(|replica| replica.raft_id);
        let mut voters = self.voters();
        if voters.iter().all(|id| self.is_alive(*id)) {
            // Who votes and should not goes when somebody else votes in its place.
            let wished = voters.intersection(&self.wish.replicas).count();
            let room = self.wish.voters_max.saturating_sub(wished);
            let is_system = self.group == GroupId::SYSTEM;
            let chosen: Vec<u64> =
                candidates.take(if is_system { room.min(1) } else { room }).collect();
            // Two voters cannot do without each other: a tenant's group goes from one to three at once.
            let is_pair = !is_system && voters.len() + chosen.len() == 2;
            if is_pair && self.wish.replicas.iter().filter(|id| self.is_alive(**id)).count() > 2 {
                return None;
            }
            voters.extend(chosen);
        } else {
            // A further voter beside a dead one would make the quorum larger, not safer.
            // Unless it takes the place of one that is given up, or that goes anyway.
            let is_lost = |id: &u64| {
                let is_given_up = self.unhealthy_for(*id) >= VOTER_LOST_AFTER;
                is_given_up || !self.is_alive(*id) && !self.wish.replicas.contains(id)
            };
            let lost = voters.iter().copied().find(is_lost)?;
            voters.remove(&lost);
            voters.extend(candidates.take(1));
        }
        let is_change = voters.difference(&self.voters()).next().is_some();
        (is_change && self.keeps_quorum(&voters)).then_some(Step::SetVoters(voters))
    }

    /// A member whose address another has now, and that has long been silent, is to leave.
    fn replaced(&self) -> Option<Step> {
        if self.group != GroupId::SYSTEM {
            return None;
        }
        let is_replaced = |old: &&MemberView| {
            !old.is_leaving
                && self.unhealthy_for(old.raft_id) >= REPLACED_AFTER
                && self.members.values().any(|new| {
                    new.raft_id > old.raft_id
                        && new.node_addr == old.node_addr
                        && self.is_alive(new.raft_id)
                })
        };
        let old = self.members.values().find(is_replaced)?;
        let mut rest = self.voters();
        rest.remove(&old.raft_id);
        self.keeps_quorum(&rest).then_some(Step::Drain(old.node))
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;

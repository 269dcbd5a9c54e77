//! Decides which change of membership brings a group nearer to its wish, where it is led. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::policy::{VOTER_LOST_AFTER, Wish};
use super::rounds::Rounds;
use super::stalls::Stalls;
use super::state::{MemberView, Step, is_alive, keeps_quorum};
use crate::domain::ids::{GroupId, RaftId};
use crate::ports::{CopyProgress, ReplicaStatus};
use crate::services::heartbeat::MemberHealth;

/// A member that has been unhealthy for so long, and whose address another member has now, has
/// lost its data and does not come back.
const REPLACED_AFTER: Duration = Duration::from_secs(60);
/// So long a removed member's replica is kept: it learns of its removal from the log.
pub(super) const ORPHAN_KEPT: Duration = Duration::from_secs(2);
/// So long a group with one voter waits for a third one before it goes on with two.
pub(super) const THIRD_AWAITED: Duration = Duration::from_secs(60);

/// What a decision about one group is made from, on its leader.
#[derive(Debug)]
pub(super) struct GroupView<'a> {
    /// The group.
    pub(super) group: GroupId,
    /// What it is to look like.
    pub(super) wish: Wish,
    /// This node, the leader.
    pub(super) leader: RaftId,
    /// The members, by id in Raft groups.
    pub(super) members: &'a BTreeMap<RaftId, MemberView>,
    /// The replicas of the group.
    pub(super) replicas: &'a [ReplicaStatus],
    /// How much replicas have of the copies that are sent to them.
    pub(super) copies: &'a BTreeMap<RaftId, CopyProgress>,
    /// How the other members are.
    pub(super) health: &'a BTreeMap<RaftId, MemberHealth>,
    /// After so long without a leader there is a new one.
    pub(super) election_timeout: Duration,
    /// The voters that a change was to come to, when it was left in the middle.
    pub(super) unfinished: Option<&'a BTreeSet<RaftId>>,
}

/// What is remembered of a group from look to look, while this node leads it.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Replicas of nodes that are no members any more, since when.
    orphans: BTreeMap<RaftId, Instant>,
    /// How learners catch up.
    pub(super) rounds: Rounds,
    /// Which learners get nothing, or lack room.
    stalls: Stalls,
    /// Since when it has had one voter, one that could be the second, and a third to wait for.
    awaits_third: Option<Instant>,
}

impl GroupView<'_> {
    fn voters(&self) -> BTreeSet<RaftId> {
        self.replicas
            .iter()
            .filter(|replica| replica.voter)
            .map(|replica| replica.raft_id)
            .collect()
    }

    fn is_alive(&self, raft_id: RaftId) -> bool {
        raft_id == self.leader || is_alive(self.health, raft_id)
    }

    fn unhealthy_for(&self, raft_id: RaftId) -> Duration {
        self.health.get(&raft_id).map_or(Duration::ZERO, |health| health.unhealthy_for)
    }

    /// By what the leader itself hears, as with [`Self::is_alive`].
    fn silent_for(&self, raft_id: RaftId) -> Duration {
        self.health.get(&raft_id).map_or(Duration::ZERO, |health| health.silent_for)
    }

    fn has_room(&self, raft_id: RaftId) -> bool {
        raft_id == self.leader || self.health.get(&raft_id).is_some_and(|health| health.has_room)
    }

    fn has_room_for_copy(&self, raft_id: RaftId) -> bool {
        let lacks = self.health.get(&raft_id).is_some_and(|health| health.lacks_room_for_copy);
        self.has_room(raft_id) && !lacks
    }

    fn keeps_quorum(&self, voters: &BTreeSet<RaftId>) -> bool {
        keeps_quorum(voters, self.health, self.leader)
    }

    /// The next step, if any.
    pub(super) fn next(&self, memory: &mut Memory, now: Instant) -> Option<Step> {
        memory.rounds.look(self.replicas, now);
        memory.stalls.look(self.replicas, self.copies, self.health, now);
        // Set again below, as long as it waits.
        let awaits_third = memory.awaits_third.take();
        if let Some(target) = self.unfinished {
            return Some(Step::SetVoters(target.clone()));
        }
        self.leaving()
            .or_else(|| self.orphaned(&mut memory.orphans, now))
            .or_else(|| self.joining(&memory.stalls))
            .or_else(|| self.promotable(memory, awaits_third, now))
            .or_else(|| self.stalled(&mut memory.stalls, now))
    }

    /// A member that should have no replica loses its vote, then its replica. Of the system group it
    /// is forgotten instead: who is no member has no replica anyway.
    fn leaving(&self) -> Option<Step> {
        let voters = self.voters();
        let is_wished = |id: &RaftId| self.wish.replicas.contains(id);
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
            if !self.keeps_quorum(&rest) || !self.is_replaced_in(member, &rest) {
                continue;
            }
            if id == self.leader {
                return Some(Step::HandOver);
            }
            return Some(Step::SetVoters(rest));
        }
        None
    }

    /// Whether all who should vote in a member's place do. A tenant's replica goes only then: it holds a
    /// copy of everything until somebody else does. Who is silent is not waited for by a member that leaves
    /// or is lost; one that goes for balance alone has time: it keeps its vote until the silent one is back, or
    /// is given up and another is chosen. In the system group everybody has a copy.
    fn is_replaced_in(&self, member: &MemberView, voters: &BTreeSet<RaftId>) -> bool {
        let has_time = self.is_alive(member.raft_id) && !member.is_leaving && !member.is_offline;
        let is_there = |id: &&RaftId| has_time || self.is_alive(**id);
        let there = self.wish.replicas.iter().filter(is_there).count();
        self.group == GroupId::SYSTEM || voters.len() >= there.min(self.wish.voters_max)
    }

    fn orphaned(&self, orphans: &mut BTreeMap<RaftId, Instant>, now: Instant) -> Option<Step> {
        let is_orphan = |id: &RaftId| !self.members.contains_key(id);
        let ids: BTreeSet<RaftId> = self.replicas.iter().map(|replica| replica.raft_id).collect();
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

    fn joining(&self, stalls: &Stalls) -> Option<Step> {
        let has_replica = |id: RaftId| self.replicas.iter().any(|replica| replica.raft_id == id);
        let makes_way = |member: &MemberView| {
            stalls.is_given_up(member.raft_id) && self.could_have_instead(member)
        };
        let mut joining = self.members.values().filter(|member| {
            self.wish.replicas.contains(&member.raft_id)
                && !member.is_leaving
                && !member.is_offline
                && !has_replica(member.raft_id)
                && !makes_way(member)
        });
        joining.find(|member| self.is_alive(member.raft_id)).map(|m| Step::AddLearner(m.raft_id))
    }

    /// A learner that has stalled loses its replica, where another could have one: never in the system group, of
    /// which every member is to have a replica.
    fn stalled(&self, stalls: &mut Stalls, now: Instant) -> Option<Step> {
        let makes_way = |id: &RaftId| {
            self.wish.replicas.contains(id)
                && self.members.get(id).is_some_and(|member| self.could_have_instead(member))
        };
        let id = stalls.stalled(now).find(makes_way)?;
        stalls.give_up(id, now);
        Some(Step::RemoveLearner(id))
    }

    /// Whether some member could have the replica that another is to have.
    fn could_have_instead(&self, of: &MemberView) -> bool {
        self.members.values().any(|member| {
            member.region == of.region
                && !member.is_leaving
                && !member.is_offline
                && !self.wish.replicas.contains(&member.raft_id)
                && self.is_alive(member.raft_id)
                && self.has_room_for_copy(member.raft_id)
        })
    }

    /// A learner becomes a voter, where there is room for one or a voter is lost.
    fn promotable(
        &self,
        memory: &mut Memory,
        awaits_third: Option<Instant>,
        now: Instant,
    ) -> Option<Step> {
        let rounds = &memory.rounds;
        let candidates = self.replicas.iter().filter(|replica| {
            let member = self.members.get(&replica.raft_id);
            !replica.voter
                && self.wish.replicas.contains(&replica.raft_id)
                // A voter that is far behind would hold up every write.
                && rounds.has_caught_up(replica.raft_id, self.election_timeout, now)
                && self.is_alive(replica.raft_id)
                && self.has_room(replica.raft_id)
                && member.is_some_and(|member| !member.is_leaving && !member.is_offline)
        });
        let candidates: Vec<RaftId> = candidates.map(|replica| replica.raft_id).collect();
        let mut voters = self.voters();
        if voters.iter().all(|id| self.is_alive(*id)) {
            let chosen = self.further_voters(&voters, candidates);
            if self.may_become_three(&voters, &chosen) {
                let since = awaits_third.unwrap_or(now);
                if now.duration_since(since) < THIRD_AWAITED {
                    memory.awaits_third = Some(since);
                    return None;
                }
            }
            voters.extend(chosen);
        } else {
            // A further voter beside a dead one would make the quorum larger, not safer.
            // Unless it takes the place of one that is given up, or that goes anyway.
            let is_lost = |id: &RaftId| {
                let is_given_up = self.silent_for(*id) >= VOTER_LOST_AFTER;
                !self.is_alive(*id) && (is_given_up || !self.wish.replicas.contains(id))
            };
            let lost = voters.iter().copied().find(is_lost)?;
            voters.remove(&lost);
            voters.extend(candidates.into_iter().take(1));
        }
        let is_change = voters.difference(&self.voters()).next().is_some();
        (is_change && self.keeps_quorum(&voters)).then_some(Step::SetVoters(voters))
    }

    /// Chooses those of `candidates` for whom there is room beside `voters`, who are all alive. Who
    /// votes and should not takes no room: it goes when somebody else votes in its place.
    fn further_voters(&self, voters: &BTreeSet<RaftId>, candidates: Vec<RaftId>) -> Vec<RaftId> {
        let wished = voters.intersection(&self.wish.replicas).count();
        let room = self.wish.voters_max.saturating_sub(wished);
        let most = if self.group == GroupId::SYSTEM { room.min(1) } else { room };
        candidates.into_iter().take(most).collect()
    }

    /// Whether a tenant group would have two voters, and could soon have three. Two cannot do without
    /// each other, so it goes from one to three at once. But not to wait for ever: with one voter what
    /// was acknowledged is lost with one disk.
    fn may_become_three(&self, voters: &BTreeSet<RaftId>, chosen: &[RaftId]) -> bool {
        let is_pair = voters.len() == 1 && chosen.len() == 1;
        let there = self.wish.replicas.iter().filter(|id| self.is_alive(**id)).count();
        self.group != GroupId::SYSTEM && is_pair && there > 2
    }

    /// A member whose address another has now, and that has long been silent, is to leave. One that
    /// may not leave, because nobody else could have its replicas, keeps no other from it.
    pub(super) fn replaced(&self) -> Option<Step> {
        if self.group != GroupId::SYSTEM {
            return None;
        }
        let has_successor = |old: &MemberView| {
            self.members.values().any(|new| {
                new.raft_id > old.raft_id
                    && new.node_addr == old.node_addr
                    && self.is_alive(new.raft_id)
            })
        };
        let may_leave = |old: &MemberView| {
            let mut rest = self.voters();
            rest.remove(&old.raft_id);
            let is_other = |it: &MemberView| {
                it.raft_id != old.raft_id && !it.is_leaving && it.region == old.region
            };
            self.keeps_quorum(&rest) && (!old.has_groups || self.members.values().any(is_other))
        };
        let is_replaced = |old: &&MemberView| {
            !old.is_leaving
                && self.unhealthy_for(old.raft_id) >= REPLACED_AFTER
                && has_successor(old)
                && may_leave(old)
        };
        self.members.values().find(is_replaced).map(|old| Step::Drain(old.node))
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
pub(super) mod tests;

//! How the cluster is and whether this node is ready, from what this node knows by itself: both
//! are asked for most when there is no quorum.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use tokio::time::{Duration, Instant, timeout_at};

use super::Cluster;
use super::cluster::without_texts;
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::region::Region;
use crate::domain::views::{ClusterHealth, NodeRole, NodeStatus};
use crate::domain::voters::{TENANT_GROUP_VOTERS, VOTERS_MAX, Voters, quorum};
use crate::services::heartbeat::MemberHealth;
use crate::state::system::SystemState;

/// How long a look at this node's own view may take.
const LOCAL_DEADLINE: Duration = Duration::from_secs(2);

impl Cluster {
    /// How the cluster is, from this node's own view.
    pub async fn health(&self) -> ClusterHealth {
        let deadline = Instant::now() + LOCAL_DEADLINE;
        let records = self.control.read(deadline, without_texts).await.unwrap_or_default();
        let views = self.views(deadline, records).await.unwrap_or_default();
        let healthy = views.iter().filter(|node| node.status == NodeStatus::Healthy).count();
        let leader = views.iter().find(|node| node.role == NodeRole::Leader);
        let placed = self.control.read(deadline, groups).await.unwrap_or_default();
        let health = self.heartbeats.health(deadline).await.unwrap_or_default();
        let voters = self.log.voters(GroupId::SYSTEM).unwrap_or_default();
        let is_alive = |id: RaftId| self.is_alive(&health, id);
        let spare = |Assigned { group, replicas, .. }: Assigned| {
            self.router.voters(group, &replicas).can_lose(is_alive)
        };
        let least = placed.into_iter().map(spare).chain([voters.can_lose(is_alive)]).min();
        let voters = voters.settled().len();
        ClusterHealth {
            total_nodes: views.len() as u64,
            healthy_nodes: healthy as u64,
            leader: leader.map(|node| node.id),
            voters: voters as u64,
            quorum: quorum(voters) as u64,
            can_lose: least.unwrap_or_default() as u64,
        }
    }

    /// Whether the cluster has noted that this node has started.
    pub fn has_started(&self) -> bool {
        *self.registered.borrow()
    }

    /// What somebody should look at on this node, though it serves.
    pub fn warnings(&self) -> Vec<String> {
        self.log.lacks_room().into_iter().collect()
    }

    /// Why this node is not ready to serve; empty when it is. Answered within an election timeout,
    /// so that a probe hears of a lost quorum within two of them.
    pub async fn not_ready(&self) -> Vec<String> {
        let deadline = Instant::now() + LOCAL_DEADLINE.min(self.election_timeout);
        if self.elector.current().leader.is_none() {
            return vec![self.awaited(deadline).await];
        }
        let mut reasons = Vec::new();
        if !self.has_started() {
            reasons.push("waits for the cluster to note that this node has started".to_owned());
        }
        let voters = self.log.voters(GroupId::SYSTEM).unwrap_or_default();
        if !voters.is_placed(self.raft_id, VOTERS_MAX) {
            reasons.push("does not vote in the system group yet".to_owned());
        }
        match self.control.read(deadline, groups).await {
            Ok(groups) => {
                let health = self.heartbeats.health(deadline).await.unwrap_or_default();
                reasons.extend(self.lacks(&groups, &health, self.raft_id, &self.region));
                let is_needed = |it: &&Assigned| {
                    it.replicas.contains(&self.raft_id)
                        && is_needed(&self.voters_of(it), self.raft_id, |id| {
                            self.is_alive(&health, id)
                        })
                };
                let meant = groups.iter().filter(is_needed).map(|it| it.group);
                let meant = meant.chain([GroupId::SYSTEM]);
                let looks = join_all(meant.map(|group| self.not_caught_up(group, deadline))).await;
                reasons.extend(looks.into_iter().flatten());
            }
            Err(error) => reasons.push(format!("the control plane does not answer: {error}")),
        }
        reasons
    }

    /// What a member still lacks to be of help in the tenant groups when another fails: groups, a
    /// replica of one that has too few of them, or its vote.
    pub(super) fn lacks(
        &self,
        groups: &[Assigned],
        health: &BTreeMap<RaftId, MemberHealth>,
        raft_id: RaftId,
        region: &Region,
    ) -> Option<String> {
        let is_alive = |id| self.is_alive(health, id);
        lacks(groups, |group| self.voters_of(group), is_alive, raft_id, region)
    }

    fn voters_of(&self, assigned: &Assigned) -> Voters {
        self.router.voters(assigned.group, &assigned.replicas)
    }

    /// What keeps this node's replica of a group from being read; nothing when it can be.
    async fn not_caught_up(&self, group: GroupId, deadline: Instant) -> Option<String> {
        if self.log.leadership(group).is_none() {
            return Some(format!("group {group} has not started here"));
        }
        match timeout_at(deadline, self.log.read_index(group)).await {
            Ok(Ok(())) => None,
            // Lost while it was being asked.
            _ if group == GroupId::SYSTEM && self.elector.current().leader.is_none() => {
                Some(self.awaited(Instant::now() + LOCAL_DEADLINE).await)
            }
            Ok(Err(error)) => Some(format!("group {group}: {error}")),
            Err(_) => Some(format!("group {group} has not caught up")),
        }
    }

    /// What a node of which nobody is known to lead waits for.
    async fn awaited(&self, deadline: Instant) -> String {
        let health = self.heartbeats.health(deadline).await.unwrap_or_default();
        let voters = self.log.voters(GroupId::SYSTEM).unwrap_or_default();
        voters.awaited(|id| self.is_alive(&health, id))
    }

    pub(super) fn is_alive(
        &self,
        health: &BTreeMap<RaftId, MemberHealth>,
        raft_id: RaftId,
    ) -> bool {
        raft_id == self.raft_id || health.get(&raft_id).is_some_and(|health| health.is_heard)
    }
}

/// A tenant group, and who is to have a replica of it.
pub(super) struct Assigned {
    group: GroupId,
    region: Region,
    replicas: Vec<RaftId>,
}

/// Tells what a member lacks: see [`Cluster::lacks`].
fn lacks(
    groups: &[Assigned],
    voters: impl Fn(&Assigned) -> Voters,
    is_alive: impl Fn(RaftId) -> bool,
    raft_id: RaftId,
    region: &Region,
) -> Option<String> {
    // Those of other regions say nothing about this one, which gets its own when its first member has
    // been admitted.
    if !groups.iter().any(|assigned| assigned.region == *region) {
        return Some(format!("waits for the tenant groups of region {region}"));
    }
    groups.iter().find_map(|assigned| {
        let Assigned { group, region: of, replicas } = assigned;
        if !replicas.contains(&raft_id) {
            let is_wanted = of == region && replicas.len() < TENANT_GROUP_VOTERS;
            return is_wanted.then(|| format!("waits for a replica of group {group}"));
        }
        let voters = voters(assigned);
        let is_placed = voters.is_placed(raft_id, TENANT_GROUP_VOTERS)
            || !is_needed(&voters, raft_id, &is_alive);
        (!is_placed).then(|| format!("does not vote in group {group} yet"))
    })
}

/// Whether a group that is assigned to a member needs it already. One that comes to it for balance
/// alone has its voters elsewhere meanwhile.
fn is_needed(voters: &Voters, raft_id: RaftId, is_alive: impl Fn(RaftId) -> bool) -> bool {
    let settled = voters.settled();
    let alive = settled.iter().filter(|id| is_alive(**id)).count();
    settled.contains(&raft_id) || alive < TENANT_GROUP_VOTERS
}

/// All tenant groups.
pub(super) fn groups(state: &SystemState) -> Vec<Assigned> {
    let assigned = state.groups().iter().map(|(group, placement)| Assigned {
        group: *group,
        region: placement.region.clone(),
        replicas: placement.replicas.clone(),
    });
    assigned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ids::raft_ids;

    /// What member 4 of region `default` lacks of a group of `region` that is assigned to `replicas`, by
    /// who votes and who is alive.
    fn lacking(region: &str, replicas: &[u64], voters: &[u64], alive: &[u64]) -> Option<String> {
        let (group, region) = (GroupId(1), Region::from(region));
        let groups = [Assigned { group, region, replicas: raft_ids(replicas) }];
        let voters = |_: &Assigned| Voters::of(voters.iter().copied().map(RaftId));
        lacks(&groups, voters, |id| alive.contains(&id.0), RaftId(4), &Region::default())
    }

    #[test]
    fn a_member_without_groups_is_no_help_nor_is_one_without_its_vote() {
        let (all, three): (&[u64], &[u64]) = (&[1, 2, 3, 4], &[1, 2, 3]);
        let no_groups = lacking("eu", three, three, all);
        assert_eq!(no_groups.as_deref(), Some("waits for the tenant groups of region default"));
        assert_eq!(lacking("default", three, three, all), None);
        let too_few = lacking("default", &[1, 2], &[1, 2], all);
        assert_eq!(too_few.as_deref(), Some("waits for a replica of group 1"));
        assert_eq!(lacking("default", &[1, 2, 4], &[1, 2, 4], all), None);
        let no_vote = lacking("default", &[1, 2, 4], &[1, 2], all);
        assert_eq!(no_vote.as_deref(), Some("does not vote in group 1 yet"));
        assert_eq!(lacking("default", &[1, 2, 4], three, all), None, "it comes for balance");
        assert!(lacking("default", &[1, 2, 4], three, &[1, 2, 4]).is_some(), "it comes for 3");
    }
}

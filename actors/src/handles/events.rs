//! What changes in the cluster, as this node sees it: told to whoever watches.
//!
//! A watcher looks at the whole, some times a second, and tells what is different from the look before. So
//! nothing is kept for a watcher that does not ask for the next changes: it gets the difference to what it
//! was told last, however long ago. What begins and ends between two looks is not told.
//!
//! Deliberately not done: no change has a number to go on from. Who begins to watch reads the state after
//! that, and follows from there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use super::Cluster;
use super::cluster::without_texts;
use crate::domain::ids::{GroupId, NodeId, RaftId, TenantId};
use crate::domain::region::Region;
use crate::domain::views::{NodeStatus, NodeView};
use crate::ports::error::CallError;
use crate::state::system::{MovePhase, SystemState};

/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Watchers at once: each looks for itself.
pub(crate) const WATCHERS_MAX: usize = 32;
/// How long a look may take.
const LOOK_DEADLINE: Duration = Duration::from_secs(2);

/// A change.
#[derive(Debug, Clone, PartialEq)]
pub enum ClusterEvent {
    /// A node is listed that was not.
    NodeJoined(NodeView),
    /// A node is not listed any more.
    NodeLeft(NodeId),
    /// A node is better or worse than before.
    NodeStatus {
        /// Which.
        node: NodeId,
        /// How it is.
        status: NodeStatus,
    },
    /// Another node leads the cluster, or nobody is known to, or in another term.
    LeaderChanged {
        /// Who does.
        leader: Option<NodeId>,
        /// Raft term.
        term: u64,
    },
    /// A group is elsewhere, or led by another.
    PlacementChanged(PlacementView),
    /// A tenant is on its way to another region.
    TenantMoving {
        /// Which.
        tenant: TenantId,
        /// Where it moves to.
        region: Region,
    },
    /// A tenant lives in another region now.
    TenantMoved {
        /// Which.
        tenant: TenantId,
        /// Where it lives.
        region: Region,
        /// The group that it lives in.
        group: u32,
    },
}

/// Where a group is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementView {
    /// Its id.
    pub group: u32,
    /// Its region.
    pub region: Region,
    /// Who leads it, as far as is known.
    pub leader: Option<NodeId>,
    /// Who votes in it.
    pub voters: Vec<NodeId>,
    /// Who has a replica without a vote.
    pub learners: Vec<NodeId>,
}

/// What one look sees.
#[derive(Debug, Default)]
struct Look {
    nodes: BTreeMap<NodeId, NodeView>,
    leader: Option<NodeId>,
    term: u64,
    groups: BTreeMap<GroupId, PlacementView>,
    /// The tenants that are on their way to another region.
    moving: BTreeMap<TenantId, Region>,
}

/// Watches the cluster.
pub struct Watcher {
    cluster: Cluster,
    last: Look,
    /// How many moves of tenants had ended at the last look.
    moved: u64,
    _place: OwnedSemaphorePermit,
}

impl Cluster {
    /// Begins to watch: what changes from now on is told.
    ///
    /// # Errors
    /// When too many watch already, or no answer came in time.
    pub async fn watch(&self) -> Result<Watcher, CallError> {
        let place = Arc::clone(&self.watchers).try_acquire_owned();
        let _place = place.map_err(|_| CallError::NodeBusy)?;
        // Before the look: a move that ends in between is told, and not only seen to be over.
        let (_, moved) = self.directory.moved_after(0);
        Ok(Watcher { cluster: self.clone(), last: self.look().await?, moved, _place })
    }

    /// A node, with what its owner says of it; `None` when it is gone again.
    async fn whole(&self, id: NodeId) -> Option<NodeView> {
        let deadline = Instant::now() + LOOK_DEADLINE;
        let find = move |state: &SystemState| state.nodes().get(&id).cloned();
        let record = self.control.read(deadline, find).await.ok()??;
        self.views(deadline, vec![(id, record)]).await.ok()?.pop()
    }

    async fn look(&self) -> Result<Look, CallError> {
        let deadline = Instant::now() + LOOK_DEADLINE;
        let records = self.control.read(deadline, without_texts).await?;
        let views = self.views(deadline, records).await?;
        let placed = |state: &SystemState| {
            let ids = state.members().map(|(id, _, member)| (member.raft_id, id));
            let moves = state.moves().filter(|(_, it)| it.phase == MovePhase::Copying);
            let moving = moves.map(|(tenant, it)| (tenant, it.region.clone()));
            let ids = ids.collect::<BTreeMap<RaftId, NodeId>>();
            (ids, state.groups().clone(), moving.collect())
        };
        let (ids, placements, moving) = self.control.read(deadline, placed).await?;
        let now = self.elector.current();
        let known = |raft_ids: &mut dyn Iterator<Item = RaftId>| {
            raft_ids.filter_map(|id| ids.get(&id).copied()).collect()
        };
        let groups = placements.into_iter().map(|(group, placement)| {
            let voters = self.router.voters(group, &placement.replicas);
            let view = PlacementView {
                group: group.0,
                region: placement.region,
                leader: self.router.leader(group).and_then(|id| ids.get(&id).copied()),
                voters: known(&mut voters.settled().into_iter()),
                learners: known(&mut voters.learners.iter().copied()),
            };
            (group, view)
        });
        Ok(Look {
            groups: groups.collect(),
            nodes: views.into_iter().map(|view| (view.id, view)).collect(),
            leader: now.leader.and_then(|id| ids.get(&id).copied()),
            term: now.term,
            moving,
        })
    }
}

impl Watcher {
    /// Returns the next changes, once there are some.
    pub async fn changes(&mut self) -> Vec<ClusterEvent> {
        loop {
            sleep(LOOK_EVERY).await;
            // A node that is busy is looked at again.
            let Ok(now) = self.cluster.look().await else { continue };
            let mut changes = differences(&self.last, &now);
            // With what its owner says of it, which may be long: not every look copies that.
            for change in &mut changes {
                if let ClusterEvent::NodeJoined(view) = change
                    && let Some(whole) = self.cluster.whole(view.id).await
                {
                    *view = whole;
                }
            }
            let (moved, count) = self.cluster.directory.moved_after(self.moved);
            self.moved = count;
            changes.extend(moved.into_iter().filter_map(|(tenant, group)| {
                let region = now.groups.get(&group)?.region.clone();
                Some(ClusterEvent::TenantMoved { tenant, region, group: group.0 })
            }));
            self.last = now;
            if !changes.is_empty() {
                return changes;
            }
        }
    }
}

/// Tells how two looks differ.
fn differences(before: &Look, now: &Look) -> Vec<ClusterEvent> {
    let mut events = Vec::new();
    let left = before.nodes.keys().filter(|id| !now.nodes.contains_key(id));
    events.extend(left.map(|id| ClusterEvent::NodeLeft(*id)));
    for (node, view) in &now.nodes {
        match before.nodes.get(node) {
            None => events.push(ClusterEvent::NodeJoined(view.clone())),
            Some(known) if known.status != view.status => {
                events.push(ClusterEvent::NodeStatus { node: *node, status: view.status });
            }
            Some(_) => {}
        }
    }
    if (before.leader, before.term) != (now.leader, now.term) {
        let (leader, term) = (now.leader, now.term);
        events.push(ClusterEvent::LeaderChanged { leader, term });
    }
    let changed = now.groups.iter().filter(|(group, view)| before.groups.get(group) != Some(view));
    events.extend(changed.map(|(_, view)| ClusterEvent::PlacementChanged(view.clone())));
    let moving = now.moving.iter().filter(|(tenant, to)| before.moving.get(tenant) != Some(to));
    events.extend(moving.map(|(tenant, region)| {
        let (tenant, region) = (*tenant, region.clone());
        ClusterEvent::TenantMoving { tenant, region }
    }));
    events
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::json::Json;
    use crate::domain::time::Timestamp;
    use crate::domain::views::NodeRole;

    fn id(number: u128) -> NodeId {
        NodeId::from_uuid(Uuid::from_u128(number))
    }

    fn node(number: u128, status: NodeStatus) -> (NodeId, NodeView) {
        let view = NodeView {
            id: id(number),
            address: format!("host-{number}"),
            node_addr: None,
            region: "default".into(),
            status,
            is_leaving: false,
            role: NodeRole::Follower,
            last_heartbeat: Timestamp(0),
            started_at: Timestamp(0),
            metadata: Json::from_value(&serde_json::json!({})),
        };
        (view.id, view)
    }

    fn group(voters: &[u128], leader: u128) -> (GroupId, PlacementView) {
        let view = PlacementView {
            group: 1,
            region: "default".into(),
            leader: Some(id(leader)),
            voters: voters.iter().copied().map(id).collect(),
            learners: Vec::new(),
        };
        (GroupId(1), view)
    }

    #[test]
    fn what_changed_is_told_and_nothing_else() {
        let before = Look {
            nodes: [node(1, NodeStatus::Healthy), node(2, NodeStatus::Healthy)].into(),
            leader: Some(id(1)),
            term: 3,
            groups: [group(&[1, 2], 1)].into(),
            ..Look::default()
        };
        assert_eq!(differences(&before, &before), []);
        let tenant = TenantId::from_uuid(Uuid::from_u128(9));
        let now = Look {
            nodes: [node(1, NodeStatus::Degraded), node(3, NodeStatus::Degraded)].into(),
            leader: None,
            term: 3,
            groups: [group(&[1, 3], 1)].into(),
            moving: [(tenant, "eu".into())].into(),
        };
        let joined = node(3, NodeStatus::Degraded).1;
        let status = NodeStatus::Degraded;
        let expected = [
            ClusterEvent::NodeLeft(id(2)),
            ClusterEvent::NodeStatus { node: id(1), status },
            ClusterEvent::NodeJoined(joined),
            ClusterEvent::LeaderChanged { leader: None, term: 3 },
            ClusterEvent::PlacementChanged(group(&[1, 3], 1).1),
            ClusterEvent::TenantMoving { tenant, region: "eu".into() },
        ];
        assert_eq!(differences(&before, &now), expected);
        let led = Look { groups: [group(&[1, 3], 3)].into(), ..now };
        let before = Look { groups: [group(&[1, 3], 1)].into(), ..Look::default() };
        let told = differences(&before, &led);
        assert!(told.contains(&ClusterEvent::PlacementChanged(group(&[1, 3], 3).1)));
    }
}

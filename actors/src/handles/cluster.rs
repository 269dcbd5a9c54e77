//! The cluster: nodes, leadership, health, groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::command::SystemCommand;
use crate::control::{Control, Directory};
use crate::elector::Elector;
use crate::error::CallError;
use crate::handles::{Call, Created};
use crate::heartbeat::{Heard, Heartbeats};
use crate::ids::{GroupId, NodeId};
use crate::json::Json;
use crate::outcome::{Outcome, Refusal};
use crate::ports::Ledger;
use crate::seams::{Seams, Timestamp};
use crate::system::{NodeRecord, SystemState};
use crate::views::{
    ClusterHealth, GroupView, LeaderView, NodeRole, NodeStatus, NodeView, Page, PageRequest,
    ReplicaView,
};

/// How long a look at this node's own view may take.
const LOCAL_DEADLINE: Duration = Duration::from_secs(2);

/// Handle to the cluster.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) control: Control,
    pub(crate) directory: Arc<Directory>,
    pub(crate) elector: Elector,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) ledger: Arc<dyn Ledger>,
    pub(crate) seams: Seams,
    pub(crate) node: NodeId,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

/// A node that registers over HTTP.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Where its owner says it is; never dialled.
    pub address: String,
    /// Its region.
    pub region: String,
    /// Free text.
    pub metadata: BTreeMap<String, String>,
}

impl Cluster {
    /// Registers a node that heartbeats over HTTP.
    ///
    /// # Errors
    /// When too many are listed, or it came to no outcome by the deadline.
    pub async fn register(
        &self,
        call: &Call,
        new: NewNode,
    ) -> Result<Created<NodeView>, CallError> {
        let command = SystemCommand::RegisterNode {
            node: NodeId::from_uuid(self.seams.uuid()),
            address: new.address,
            region: new.region,
            metadata: new.metadata,
            idempotency: call.idempotency,
        };
        match self.control.ask(&call.cause, call.deadline, command).await? {
            Outcome::Node { node, replayed } => {
                if !replayed {
                    self.heartbeats.beat(node);
                }
                Ok(Created { resource: self.node(call, node).await?, replayed })
            }
            other => Err(super::tenants::unexpected(&other)),
        }
    }

    /// All nodes.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn nodes(&self, call: &Call, page: PageRequest) -> Result<Page<NodeView>, CallError> {
        let records = self.control.read_linearizable(call.deadline, by_start).await?;
        let from: usize = page.cursor.as_deref().and_then(|at| at.parse().ok()).unwrap_or(0);
        let total = records.len();
        let records = records.into_iter().skip(from).take(page.limit).collect();
        let items = self.views(call.deadline, records).await?;
        let next = from + items.len();
        Ok(Page { items, next_cursor: (next < total).then(|| next.to_string()) })
    }

    /// One node.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn node(&self, call: &Call, id: NodeId) -> Result<NodeView, CallError> {
        let record = self
            .control
            .read_linearizable(call.deadline, move |state| state.nodes().get(&id).cloned())
            .await?;
        self.view(call.deadline, id, record.ok_or(Refusal::NodeNotFound)?).await
    }

    /// Forgets a node.
    ///
    /// # Errors
    /// When there is none with this id, a quorum depends on it, or it came to no outcome by the
    /// deadline.
    pub async fn remove(&self, call: &Call, node: NodeId) -> Result<(), CallError> {
        let command = SystemCommand::RemoveNode { node };
        self.control.ask(&call.cause, call.deadline, command).await.map(drop)
    }

    /// A node registered over HTTP is alive. Members need not say so.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn heartbeat(&self, call: &Call, id: NodeId) -> Result<(), CallError> {
        let known = self.control.read(call.deadline, move |state| state.nodes().contains_key(&id));
        if !known.await? {
            return Err(Refusal::NodeNotFound.into());
        }
        self.heartbeats.beat(id);
        Ok(())
    }

    /// Who leads.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn leader(&self, call: &Call) -> Result<LeaderView, CallError> {
        let now = self.elector.current();
        let Some(raft_id) = now.leader else {
            return Ok(LeaderView { leader: None, term: now.term });
        };
        let record = self
            .control
            .read(call.deadline, move |state| {
                let node = state.member(raft_id)?;
                Some((node, state.nodes().get(&node)?.clone()))
            })
            .await?;
        let leader = match record {
            Some((node, record)) => Some(self.view(call.deadline, node, record).await?),
            None => None,
        };
        Ok(LeaderView { leader, term: now.term })
    }

    /// Hands leadership over.
    ///
    /// # Errors
    /// When nobody else could lead.
    pub async fn step_down(&self, call: &Call) -> Result<(), CallError> {
        // A voter that is alone has nobody to hand over to; others come with joining.
        self.control.read_linearizable(call.deadline, |_| ()).await?;
        Err(Refusal::NoOtherCandidate.into())
    }

    /// How the cluster is, from this node's own view.
    pub async fn health(&self) -> ClusterHealth {
        let deadline = Instant::now() + LOCAL_DEADLINE;
        let records = self.control.read(deadline, by_start).await.unwrap_or_default();
        let views = self.views(deadline, records).await.unwrap_or_default();
        let healthy = views.iter().filter(|node| node.status == NodeStatus::Healthy).count();
        let leader = views.iter().find(|node| node.role == NodeRole::Leader);
        ClusterHealth {
            total_nodes: views.len() as u64,
            healthy_nodes: healthy as u64,
            leader: leader.map(|node| node.id),
        }
    }

    /// The groups on this node.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn groups(&self, call: &Call) -> Result<Vec<GroupView>, CallError> {
        let (regions, nodes) = self
            .control
            .read(call.deadline, |state| {
                let regions = state.groups().iter();
                let regions = regions.map(|(id, placement)| (*id, placement.region.clone()));
                let members = state
                    .nodes()
                    .iter()
                    .filter_map(|(id, record)| Some((record.member.as_ref()?.raft_id, *id)));
                (regions.collect::<BTreeMap<_, _>>(), members.collect::<BTreeMap<_, _>>())
            })
            .await?;
        let tenants = self.directory.count_by_group();
        let view = |status: crate::ports::GroupStatus| GroupView {
            id: status.group.0,
            region: match regions.get(&status.group) {
                Some(region) => region.clone(),
                None => "system".to_owned(),
            },
            leader: status.leader.and_then(|raft_id| nodes.get(&raft_id).copied()),
            term: status.term,
            replicas: status
                .replicas
                .into_iter()
                .map(|replica| ReplicaView {
                    node: nodes.get(&replica.raft_id).copied(),
                    role: if replica.voter { "voter" } else { "learner" },
                    applied: replica.applied,
                    lag: replica.lag,
                })
                .collect(),
            tenants: tenants.get(&status.group).copied().unwrap_or_default(),
        };
        Ok(self.ledger.groups().into_iter().map(view).collect())
    }

    /// Why this node is not ready to serve; empty when it is.
    pub async fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.elector.current().leader.is_none() {
            reasons.push("the system group has no leader".to_owned());
        }
        let deadline = Instant::now() + LOCAL_DEADLINE;
        let groups = self
            .control
            .read(deadline, |state| state.groups().keys().copied().collect::<Vec<GroupId>>());
        match groups.await {
            Ok(groups) if groups.is_empty() => {
                reasons.push("tenant groups are not placed yet".to_owned());
            }
            Ok(groups) => {
                for group in groups {
                    let caught_up = self.ledger.read_index(group);
                    match tokio::time::timeout_at(deadline, caught_up).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => reasons.push(format!("group {group}: {error}")),
                        Err(_) => reasons.push(format!("group {group} has not caught up")),
                    }
                }
            }
            Err(error) => reasons.push(format!("the control plane does not answer: {error}")),
        }
        reasons
    }

    async fn view(
        &self,
        deadline: Instant,
        id: NodeId,
        record: NodeRecord,
    ) -> Result<NodeView, CallError> {
        let views = self.views(deadline, vec![(id, record)]).await?;
        views.into_iter().next().ok_or_else(|| Refusal::NodeNotFound.into())
    }

    async fn views(
        &self,
        deadline: Instant,
        records: Vec<(NodeId, NodeRecord)>,
    ) -> Result<Vec<NodeView>, CallError> {
        let over_http = records.iter().filter(|(_, record)| record.member.is_none());
        let over_http = over_http.map(|(id, _)| *id).collect();
        let heard = self.heartbeats.heard(over_http, deadline).await?;
        let leader = self.elector.current().leader;
        let now = self.seams.clock.now();
        let view = |(id, record): (NodeId, NodeRecord)| {
            let heard = heard.get(&id).copied();
            node_view(id, record, heard, leader, self.node, now)
        };
        Ok(records.into_iter().map(view).collect())
    }
}

/// Every node, by when it started.
fn by_start(state: &SystemState) -> Vec<(NodeId, NodeRecord)> {
    let nodes = state.nodes().iter().map(|(id, record)| (*id, record.clone()));
    let mut nodes: Vec<_> = nodes.collect();
    nodes.sort_by_key(|(id, record)| (record.started_at, *id));
    nodes
}

fn node_view(
    id: NodeId,
    record: NodeRecord,
    heard: Option<Heard>,
    leader: Option<u64>,
    this_node: NodeId,
    now: Timestamp,
) -> NodeView {
    let metadata: serde_json::Value = record
        .metadata
        .into_iter()
        .map(|(name, value)| (name, serde_json::Value::String(value)))
        .collect();
    let is_leader = record.member.as_ref().is_some_and(|member| Some(member.raft_id) == leader);
    let status = match (&record.member, heard) {
        (Some(member), _) if member.offline => NodeStatus::Offline,
        (None, Some(heard)) if heard.is_silent => NodeStatus::Unhealthy,
        _ => NodeStatus::Healthy,
    };
    let last_heartbeat = match heard.and_then(|heard| heard.at) {
        Some(at) => at,
        None if id == this_node => now,
        None => record.started_at,
    };
    NodeView {
        id,
        address: record.address,
        node_addr: record.member.map(|member| member.node_addr),
        region: record.region,
        status,
        role: if is_leader { NodeRole::Leader } else { NodeRole::Follower },
        last_heartbeat,
        started_at: record.started_at,
        metadata: Json::from_value(&metadata),
    }
}

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
use crate::heartbeat::Heartbeats;
use crate::ids::{GroupId, NodeId};
use crate::json::Json;
use crate::node_calls;
use crate::outcome::{Outcome, Refusal};
use crate::ports::{GroupStatus, Ledger};
use crate::router::Router;
use crate::seams::{Seams, Timestamp};
use crate::system::{NodeRecord, SystemState};
use crate::views::{
    ClusterHealth, GroupView, LeaderView, NodeRole, NodeStatus, NodeView, Page, PageRequest,
    ReplicaView,
};

/// How long the others are waited for when all are asked.
const GATHER_DEADLINE: Duration = Duration::from_secs(1);
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
    pub(crate) router: Router,
    pub(crate) seams: Seams,
    pub(crate) node: NodeId,
    pub(crate) raft_id: u64,
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
        match self.control.ask(call, command).await? {
            Outcome::Node { node, replayed } => {
                if !replayed {
                    self.heartbeats.beat(node);
                }
                let resource = self.node(call, node).await.map_err(CallError::after_write)?;
                Ok(Created { resource, replayed })
            }
            other => Err(super::tenants::unexpected(&other)),
        }
    }

    /// All nodes.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn nodes(&self, call: &Call, page: PageRequest) -> Result<Page<NodeView>, CallError> {
        let from: usize = page.cursor.as_deref().and_then(|at| at.parse().ok()).unwrap_or(0);
        let limit = page.limit;
        // Nodes may carry much text: only those of the page are copied.
        let find = move |state: &SystemState| {
            let all = by_start(state);
            let page = all.iter().skip(from).take(limit);
            let page = page.map(|(id, record)| (*id, (*record).clone())).collect::<Vec<_>>();
            (all.len(), page)
        };
        let (total, records) = self.control.read_for(call, find).await?;
        let items = self.views(call.deadline, records).await?;
        let next = from + items.len();
        Ok(Page { items, next_cursor: (next < total).then(|| next.to_string()) })
    }

    /// One node.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn node(&self, call: &Call, id: NodeId) -> Result<NodeView, CallError> {
        let record =
            self.control.read_for(call, move |state| state.nodes().get(&id).cloned()).await?;
        self.view(call.deadline, id, record.ok_or(Refusal::NodeNotFound)?).await
    }

    /// A node registered over HTTP is alive.
    ///
    /// # Errors
    /// When there is none with this id, it is a member, or no answer came by the deadline.
    pub async fn heartbeat(&self, call: &Call, id: NodeId) -> Result<(), CallError> {
        let find = move |state: &SystemState| state.nodes().get(&id).map(NodeRecord::raft_id);
        match self.control.read(call.deadline, find).await? {
            None => Err(Refusal::NodeNotFound.into()),
            // A member's own word counts for it, which comes over another way.
            Some(Some(_)) => Ok(()),
            Some(None) => {
                self.heartbeats.beat(id);
                Ok(())
            }
        }
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

    /// How far this node's own view of the cluster is: the index in the system group's log of the
    /// last entry in it.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn applied_index(&self, deadline: Instant) -> Result<u64, CallError> {
        self.control.applied(deadline).await
    }

    /// How the cluster is, from this node's own view.
    pub async fn health(&self) -> ClusterHealth {
        let deadline = Instant::now() + LOCAL_DEADLINE;
        let find = |state: &SystemState| {
            by_start(state).into_iter().map(|(id, record)| (id, record.outline())).collect()
        };
        let records = self.control.read(deadline, find).await.unwrap_or_default();
        let views = self.views(deadline, records).await.unwrap_or_default();
        let healthy = views.iter().filter(|node| node.status == NodeStatus::Healthy).count();
        let leader = views.iter().find(|node| node.role == NodeRole::Leader);
        ClusterHealth {
            total_nodes: views.len() as u64,
            healthy_nodes: healthy as u64,
            leader: leader.map(|node| node.id),
        }
    }

    /// All groups, as those who lead them see them.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn groups(&self, call: &Call) -> Result<Vec<GroupView>, CallError> {
        let (regions, nodes) = self
            .control
            .read(call.deadline, |state| {
                let regions = state.groups().iter();
                let regions = regions.map(|(id, placement)| (*id, placement.region.clone()));
                let nodes = state.members().map(|(id, _, member)| (member.raft_id, id));
                (regions.collect::<BTreeMap<_, _>>(), nodes.collect::<BTreeMap<_, _>>())
            })
            .await?;
        let others = nodes.keys().copied().filter(|raft_id| *raft_id != self.raft_id);
        let mut statuses = self.gather(others.collect(), call.deadline).await;
        // A group of which nobody tells exists all the same.
        for group in regions.keys().copied() {
            let unknown = GroupStatus {
                group,
                term: 0,
                leader: None,
                replicas: Vec::new(),
                is_changing: false,
                unfinished: None,
            };
            statuses.entry(group).or_insert(unknown);
        }
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
        Ok(statuses.into_values().map(view).collect())
    }

    /// The groups of this node and of the others: where several tell of one, its leader counts,
    /// and then the latest term.
    async fn gather(&self, others: Vec<u64>, deadline: Instant) -> BTreeMap<GroupId, GroupStatus> {
        let deadline = deadline.min(Instant::now() + GATHER_DEADLINE);
        let asked = others.into_iter().map(|raft_id| async move {
            (raft_id, node_calls::groups(self.router.peers(), raft_id, deadline).await)
        });
        let told = futures_util::future::join_all(asked).await;
        let told = told.into_iter().filter_map(|(id, groups)| Some((id, groups.ok()?)));
        let mut all: BTreeMap<GroupId, (u64, GroupStatus)> = BTreeMap::new();
        for (teller, groups) in told.chain([(self.raft_id, self.ledger.groups())]) {
            for status in groups {
                let weight = |teller: u64, status: &GroupStatus| {
                    (status.term, status.leader == Some(teller))
                };
                let known = all.get(&status.group);
                let is_better =
                    known.is_none_or(|(by, known)| weight(teller, &status) > weight(*by, known));
                if is_better {
                    all.insert(status.group, (teller, status));
                }
            }
        }
        all.into_iter().map(|(group, (_, status))| (group, status)).collect()
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
                let here = groups.into_iter().filter(|id| self.ledger.leadership(*id).is_some());
                for group in here.chain([GroupId::SYSTEM]) {
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
        let health = self.heartbeats.health(deadline).await?;
        let leader = self.elector.current().leader;
        let view = |(id, record): (NodeId, NodeRecord)| {
            let (status, heard_at) = match record.raft_id() {
                _ if id == self.node => (NodeStatus::Healthy, Some(self.seams.clock.now())),
                Some(raft_id) => {
                    let health = health.get(&raft_id);
                    let status = health.map_or(NodeStatus::Degraded, |health| health.status);
                    (status, health.and_then(|health| health.heard_at))
                }
                None => {
                    let heard = heard.get(&id);
                    let is_silent = heard.is_some_and(|heard| heard.is_silent);
                    let status =
                        if is_silent { NodeStatus::Unhealthy } else { NodeStatus::Healthy };
                    (status, heard.and_then(|heard| heard.at))
                }
            };
            node_view(id, record, status, heard_at, leader)
        };
        Ok(records.into_iter().map(view).collect())
    }
}

/// Every node, by when it started.
fn by_start(state: &SystemState) -> Vec<(NodeId, &NodeRecord)> {
    let mut nodes: Vec<_> = state.nodes().iter().map(|(id, record)| (*id, record)).collect();
    nodes.sort_by_key(|(id, record)| (record.started_at, *id));
    nodes
}

fn node_view(
    id: NodeId,
    record: NodeRecord,
    status: NodeStatus,
    heard_at: Option<Timestamp>,
    leader: Option<u64>,
) -> NodeView {
    let metadata: serde_json::Value = record
        .metadata
        .into_iter()
        .map(|(name, value)| (name, serde_json::Value::String(value)))
        .collect();
    let is_leader = record.member.as_ref().is_some_and(|member| Some(member.raft_id) == leader);
    let is_offline = record.member.as_ref().is_some_and(|member| member.offline);
    NodeView {
        id,
        address: record.address,
        node_addr: record.member.map(|member| member.node_addr),
        region: record.region,
        status: if is_offline { NodeStatus::Offline } else { status },
        role: if is_leader { NodeRole::Leader } else { NodeRole::Follower },
        last_heartbeat: heard_at.unwrap_or(record.started_at),
        started_at: record.started_at,
        metadata: Json::from_value(&metadata),
    }
}

//! The cluster: nodes, leadership, health, groups.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use crate::cluster::node_rpc;
use crate::cluster::routing::{Directory, Router};
use crate::command::{NodeRegistered, Refusal, RegisterNode};
use crate::domain::ids::{GroupId, NodeId, RaftId};
use crate::domain::json::Json;
use crate::domain::page::{JsonSize, Page, PageBudget, PageRequest};
use crate::domain::region::Region;
use crate::domain::time::Timestamp;
use crate::domain::views::{
    GroupView, GroupWorks, LeaderView, NodeRole, NodeStatus, NodeView, ReplicaView,
};
use crate::domain::voters::VOTERS_MAX;
use crate::handles::health::groups;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::ports::{GroupStatus, ReplicatedLog};
use crate::services::control::Control;
use crate::services::elector::Elector;
use crate::services::heartbeat::{Heartbeats, MemberHealth};
use crate::services::{Call, Created};
use crate::state::system::{GroupPlacement, NodeRecord, SystemState};

/// How long the others are waited for when all are asked.
const GATHER_DEADLINE: Duration = Duration::from_secs(1);

/// Handle to the cluster.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) control: Control,
    pub(crate) directory: Arc<Directory>,
    pub(crate) elector: Elector,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) log: Arc<dyn ReplicatedLog>,
    pub(crate) router: Router,
    pub(crate) seams: Seams,
    pub(crate) node: NodeId,
    pub(crate) raft_id: RaftId,
    pub(crate) region: Region,
    /// After so long without a leader there is a new one.
    pub(crate) election_timeout: Duration,
    /// Whether the cluster has noted that this node has started.
    pub(crate) registered: watch::Receiver<bool>,
    /// Places of those who watch what changes.
    pub(crate) watchers: Arc<Semaphore>,
}

/// A node that registers over HTTP.
#[derive(Debug, Clone)]
pub struct NewNode {
    /// Where its owner says it is; never dialled.
    pub address: String,
    /// Its region.
    pub region: Region,
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
        let command = RegisterNode {
            node: NodeId::from_uuid(self.seams.uuid()),
            address: new.address,
            region: new.region,
            metadata: new.metadata,
            idempotency: call.idempotency,
        };
        let NodeRegistered { node, replayed } = self.control.ask(call, command).await?;
        if !replayed {
            self.heartbeats.beat(node);
        }
        // A call that was done before shows the node as it is now, gone too.
        let resource = match self.node(call, node).await {
            Err(gone @ CallError::Refused(_)) if replayed => return Err(gone),
            shown => shown.map_err(CallError::after_write)?,
        };
        Ok(Created { resource, replayed })
    }

    /// All nodes.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn nodes(&self, call: &Call, page: PageRequest) -> Result<Page<NodeView>, CallError> {
        let read = move |state: &SystemState| {
            // What a member's restart does not change: its place among the members, then when a
            // node was registered.
            let nodes = state.nodes().iter().map(|(id, record)| {
                let key = match record.raft_id() {
                    Some(raft_id) => (raft_id, Timestamp(0)),
                    None => (RaftId(u64::MAX), record.started_at),
                };
                ((key, *id), (*id, record))
            });
            let page = page_by_key(nodes, &page);
            let items = page.items.into_iter().map(|(id, record)| (id, record.clone()));
            Page { items: items.collect::<Vec<_>>(), next_cursor: page.next_cursor }
        };
        let Page { items, next_cursor } = self.control.read_for(call, read).await?;
        Ok(Page { items: self.views(call.deadline, items).await?, next_cursor })
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

    /// All groups, as those who lead them see them.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn groups(&self, call: &Call) -> Result<Vec<GroupView>, CallError> {
        let (placements, nodes) = self
            .control
            .read(call.deadline, |state| {
                let nodes = state.members().map(|(id, _, member)| (member.raft_id, id));
                (state.groups().clone(), nodes.collect::<BTreeMap<_, _>>())
            })
            .await?;
        let health = self.heartbeats.health(call.deadline).await?;
        let others = nodes.keys().copied().filter(|raft_id| *raft_id != self.raft_id);
        let mut statuses = self.gather(others.collect(), call.deadline).await;
        // A group of which nobody tells exists all the same.
        for group in placements.keys().copied() {
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
            region: match placements.get(&status.group) {
                Some(placement) => placement.region.to_string(),
                None => "system".to_owned(),
            },
            status: self.works(status.group, placements.get(&status.group), &health),
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

    /// Whether a group works, by what this node hears.
    fn works(
        &self,
        group: GroupId,
        placement: Option<&GroupPlacement>,
        health: &BTreeMap<RaftId, MemberHealth>,
    ) -> GroupWorks {
        let placed = placement.map_or(&[][..], |placement| &placement.replicas);
        if !self.router.voters(group, placed).has_quorum(|id| self.is_alive(health, id)) {
            return GroupWorks::NoQuorum;
        }
        match self.router.leader(group) {
            Some(_) => GroupWorks::Ok,
            None => GroupWorks::NoLeader,
        }
    }

    /// The groups of this node and of the others: where several tell of one, its leader counts,
    /// and then the latest term.
    async fn gather(
        &self,
        others: Vec<RaftId>,
        deadline: Instant,
    ) -> BTreeMap<GroupId, GroupStatus> {
        let deadline = deadline.min(Instant::now() + GATHER_DEADLINE);
        let asked = others.into_iter().map(|raft_id| async move {
            (raft_id, node_rpc::groups(self.router.peers(), raft_id, deadline).await)
        });
        let told = futures_util::future::join_all(asked).await;
        let told = told.into_iter().filter_map(|(id, groups)| Some((id, groups.ok()?)));
        let mut all: BTreeMap<GroupId, (RaftId, GroupStatus)> = BTreeMap::new();
        for (teller, groups) in told.chain([(self.raft_id, self.log.groups())]) {
            for status in groups {
                let weight = |teller: RaftId, status: &GroupStatus| {
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

    async fn view(
        &self,
        deadline: Instant,
        id: NodeId,
        record: NodeRecord,
    ) -> Result<NodeView, CallError> {
        let views = self.views(deadline, vec![(id, record)]).await?;
        views.into_iter().next().ok_or_else(|| Refusal::NodeNotFound.into())
    }

    pub(super) async fn views(
        &self,
        deadline: Instant,
        records: Vec<(NodeId, NodeRecord)>,
    ) -> Result<Vec<NodeView>, CallError> {
        let over_http = records.iter().filter(|(_, record)| record.member.is_none());
        let over_http = over_http.map(|(id, _)| *id).collect();
        let heard = self.heartbeats.heard(over_http, deadline).await?;
        let health = self.heartbeats.health(deadline).await?;
        let leader = self.elector.current().leader;
        let voters = self.log.voters(GroupId::SYSTEM).unwrap_or_default();
        let groups = self.control.read(deadline, groups).await?;
        // Who does not vote yet is no help when another fails, however well it is.
        let placed = |raft_id, region: &Region, status| match status {
            NodeStatus::Healthy
                if !voters.is_placed(raft_id, VOTERS_MAX)
                    || self.lacks(&groups, &health, raft_id, region).is_some() =>
            {
                NodeStatus::Degraded
            }
            status => status,
        };
        let view = |(id, record): (NodeId, NodeRecord)| {
            let (status, heard_at) = match record.raft_id() {
                Some(raft_id) if id == self.node => {
                    let has_room = self.log.has_room() && self.log.lacks_room().is_none();
                    let own = if has_room { NodeStatus::Healthy } else { NodeStatus::Degraded };
                    (placed(raft_id, &record.region, own), Some(self.seams.clock.now()))
                }
                Some(raft_id) => {
                    let health = health.get(&raft_id);
                    let status = health.map_or(NodeStatus::Degraded, MemberHealth::shown);
                    (
                        placed(raft_id, &record.region, status),
                        health.and_then(|health| health.heard_at),
                    )
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

/// Every node, without what its owner says of it: that may be a lot.
pub(super) fn without_texts(state: &SystemState) -> Vec<(NodeId, NodeRecord)> {
    state.nodes().iter().map(|(id, record)| (*id, record.outline())).collect()
}

/// A page of what is not kept in the order it is listed in: by a key that each item has for as
/// long as it is there, so that pages neither skip nor repeat what stays. The cursor is the key
/// of the page's last item.
pub(super) fn page_by_key<K, T>(items: impl Iterator<Item = (K, T)>, page: &PageRequest) -> Page<T>
where
    K: Ord + Serialize + DeserializeOwned,
    T: JsonSize,
{
    let after = page.cursor.as_deref().and_then(|key| serde_json::from_str::<K>(key).ok());
    let later = items.filter(|(key, _)| after.as_ref().is_none_or(|after| key > after));
    let mut later: Vec<_> = later.collect();
    later.sort_by(|(a, _), (b, _)| a.cmp(b));
    let (items, more) = PageBudget::new(page.limit).fill(later);
    let last = items.last().filter(|_| more);
    let next_cursor = last.and_then(|(key, _)| serde_json::to_string(key).ok());
    Page { items: items.into_iter().map(|(_, item)| item).collect(), next_cursor }
}

fn node_view(
    id: NodeId,
    record: NodeRecord,
    status: NodeStatus,
    heard_at: Option<Timestamp>,
    leader: Option<RaftId>,
) -> NodeView {
    let metadata: serde_json::Value = record
        .metadata
        .into_iter()
        .map(|(name, value)| (name, serde_json::Value::String(value)))
        .collect();
    let is_leader = record.member.as_ref().is_some_and(|member| Some(member.raft_id) == leader);
    let is_offline = record.member.as_ref().is_some_and(|member| member.offline);
    let is_leaving = record.member.as_ref().is_some_and(|member| member.leaving);
    NodeView {
        id,
        address: record.address,
        node_addr: record.member.map(|member| member.node_addr),
        region: record.region,
        status: if is_offline { NodeStatus::Offline } else { status },
        is_leaving,
        role: if is_leader { NodeRole::Leader } else { NodeRole::Follower },
        last_heartbeat: heard_at.unwrap_or(record.started_at),
        started_at: record.started_at,
        metadata: Json::from_value(&metadata),
    }
}

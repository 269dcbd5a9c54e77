//! Nodes: members of the cluster, and those registered over HTTP.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Made, SystemEffect, SystemState};
use crate::command::{Idempotency, Member};
use crate::ids::NodeId;
use crate::outcome::{Outcome, Refusal};
use crate::seams::Timestamp;

/// Most nodes listed.
const NODES_MAX: usize = 10_000;

/// A node as group 0 knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Address of its API.
    pub address: String,
    /// Its region.
    pub region: String,
    /// Labels or metadata.
    pub metadata: BTreeMap<String, String>,
    /// When it started or was registered.
    pub started_at: Timestamp,
    /// What makes it a member; `None` for nodes registered over HTTP.
    pub member: Option<MemberRecord>,
}

/// What group 0 knows of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// Its id in Raft groups.
    pub raft_id: u64,
    /// Where the other nodes reach it.
    pub node_addr: String,
    /// Version of its program.
    pub version: String,
    /// Whether it said goodbye.
    pub offline: bool,
}

impl NodeRecord {
    /// A node that heartbeats over HTTP.
    pub fn http(
        address: &str,
        region: &str,
        metadata: &BTreeMap<String, String>,
        at: Timestamp,
    ) -> Self {
        Self {
            address: address.to_owned(),
            region: region.to_owned(),
            metadata: metadata.clone(),
            started_at: at,
            member: None,
        }
    }
}

impl SystemState {
    /// Every node.
    pub const fn nodes(&self) -> &BTreeMap<NodeId, NodeRecord> {
        &self.nodes
    }

    /// The member with this id in Raft groups.
    pub fn member(&self, raft_id: u64) -> Option<NodeId> {
        let is_it = |record: &NodeRecord| {
            record.member.as_ref().is_some_and(|member| member.raft_id == raft_id)
        };
        self.nodes.iter().find(|(_, record)| is_it(record)).map(|(node, _)| *node)
    }

    /// Whether a member is in the region.
    pub(super) fn has_region(&self, region: &str) -> bool {
        self.nodes.values().any(|node| node.member.is_some() && node.region == region)
    }

    pub(super) fn register_member(
        &mut self,
        member: &Member,
        at: Timestamp,
    ) -> (Outcome, Vec<SystemEffect>) {
        let record = NodeRecord {
            address: member.api_addr.clone(),
            region: member.region.clone(),
            metadata: member.labels.clone(),
            started_at: at,
            member: Some(MemberRecord {
                raft_id: member.raft_id,
                node_addr: member.node_addr.clone(),
                version: member.version.clone(),
                offline: false,
            }),
        };
        self.nodes.insert(member.node, record);
        self.dirty.nodes.insert(member.node);
        (Outcome::Node { node: member.node, replayed: false }, Vec::new())
    }

    pub(super) fn member_offline(&mut self, node: NodeId) -> (Outcome, Vec<SystemEffect>) {
        let member = self.nodes.get_mut(&node).and_then(|record| record.member.as_mut());
        let Some(member) = member else { return (Outcome::Ignored, Vec::new()) };
        member.offline = true;
        self.dirty.nodes.insert(node);
        (Outcome::Done, Vec::new())
    }

    pub(super) fn register_node(
        &mut self,
        node: NodeId,
        record: NodeRecord,
        idempotency: Option<&Idempotency>,
        at: Timestamp,
    ) -> (Outcome, Vec<SystemEffect>) {
        match self.calls.check(idempotency, at) {
            Err(refusal) => return (Outcome::Refused(refusal), Vec::new()),
            Ok(Some(Made::Node(node))) => {
                return (Outcome::Node { node, replayed: true }, Vec::new());
            }
            Ok(Some(Made::Tenant(_)) | None) => {}
        }
        if self.nodes.len() >= NODES_MAX {
            let refusal = Refusal::TooMany { what: "nodes".to_owned(), limit: NODES_MAX as u64 };
            return (Outcome::Refused(refusal), Vec::new());
        }
        self.nodes.insert(node, record);
        self.dirty.nodes.insert(node);
        self.calls.remember(idempotency, at, Made::Node(node));
        (Outcome::Node { node, replayed: false }, Vec::new())
    }

    pub(super) fn remove_node(&mut self, node: NodeId) -> (Outcome, Vec<SystemEffect>) {
        let Some(record) = self.nodes.get(&node) else {
            return (Outcome::Refused(Refusal::NodeNotFound), Vec::new());
        };
        if let Some(member) = &record.member {
            // Every group the member votes in counts on it until members can be moved.
            let groups =
                self.groups.values().filter(|group| group.members.contains(&member.raft_id));
            let refusal = Refusal::WouldLoseQuorum { groups: groups.count() as u64 + 1 };
            return (Outcome::Refused(refusal), Vec::new());
        }
        self.nodes.remove(&node);
        self.dirty.nodes.insert(node);
        (Outcome::Done, vec![SystemEffect::NodeRemoved(node)])
    }
}

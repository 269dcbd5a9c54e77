//! Nodes: members of the cluster, and those registered over HTTP.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{CreatedResource, SystemEffect, SystemState};
use crate::command::{Idempotency, NodeRegistered, Outcome, Refusal};
use crate::domain::ids::{NodeId, RaftId};
use crate::domain::page::{ITEM_FRAME_BYTES, JsonSize, quoted_bytes};
use crate::domain::region::Region;
use crate::domain::time::Timestamp;

/// Most nodes listed.
const NODES_MAX: usize = 10_000;

/// Bytes of the rows of all nodes registered over HTTP. With what the other tables of group 0 may
/// hold it stays below what a snapshot carries.
pub(super) const HTTP_NODES_BYTES_MAX: u64 = 64 << 20;

/// What a node counts in [`HTTP_NODES_BYTES_MAX`].
pub(super) fn http_bytes(node: NodeId, record: &NodeRecord) -> u64 {
    if record.member.is_some() { 0 } else { super::row_bytes(&(node, record)) }
}

/// A node as group 0 knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Address of its API.
    pub address: String,
    /// Its region.
    pub region: Region,
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
    pub raft_id: RaftId,
    /// Where the other nodes reach it.
    pub node_addr: String,
    /// Version of its program.
    pub version: String,
    /// Its public key (ed25519): what it was admitted with.
    pub public_key: [u8; 32],
    /// Whether it said goodbye.
    pub offline: bool,
    /// Whether it is to leave the cluster.
    pub leaving: bool,
}

impl NodeRecord {
    /// Its id in Raft groups, if it is a member.
    pub fn raft_id(&self) -> Option<RaftId> {
        self.member.as_ref().map(|member| member.raft_id)
    }

    /// The record without the text that its owner gave it, but for the region, which is short.
    #[must_use]
    pub fn outline(&self) -> Self {
        Self {
            address: String::new(),
            region: self.region.clone(),
            metadata: BTreeMap::new(),
            started_at: self.started_at,
            member: self.member.clone(),
        }
    }

    /// A node that heartbeats over HTTP.
    pub fn http(
        address: &str,
        region: &Region,
        metadata: &BTreeMap<String, String>,
        at: Timestamp,
    ) -> Self {
        Self {
            address: address.to_owned(),
            region: region.clone(),
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
    pub fn member(&self, raft_id: RaftId) -> Option<NodeId> {
        let is_it = |record: &NodeRecord| record.raft_id() == Some(raft_id);
        self.nodes.iter().find(|(_, record)| is_it(record)).map(|(node, _)| *node)
    }

    pub(super) fn adopt_node(&mut self, node: NodeId, record: NodeRecord) {
        self.http_nodes_bytes += http_bytes(node, &record);
        if let Some(before) = self.nodes.insert(node, record) {
            self.http_nodes_bytes -= http_bytes(node, &before);
        }
    }

    /// Whether a member is in the region.
    pub(super) fn has_region(&self, region: &Region) -> bool {
        self.nodes.values().any(|node| node.member.is_some() && node.region == *region)
    }

    pub(super) fn register_node(
        &mut self,
        node: NodeId,
        record: NodeRecord,
        idempotency: Option<&Idempotency>,
    ) -> (Outcome, Vec<SystemEffect>) {
        match self.calls.check(idempotency, self.time.aged()) {
            Err(refusal) => return (Outcome::Refused(refusal), Vec::new()),
            Ok(Some(CreatedResource::Node(node))) => {
                return (Outcome::Node(NodeRegistered { node, replayed: true }), Vec::new());
            }
            Ok(Some(CreatedResource::Tenant(_) | CreatedResource::Token(_)) | None) => {}
        }
        if self.nodes.len() >= NODES_MAX {
            let refusal = Refusal::TooMany { what: "nodes".to_owned(), limit: NODES_MAX as u64 };
            return (Outcome::Refused(refusal), Vec::new());
        }
        let bytes = http_bytes(node, &record);
        if self.bounds_tables && self.http_nodes_bytes + bytes > HTTP_NODES_BYTES_MAX {
            let what = "bytes of nodes' addresses and metadata".to_owned();
            let refusal = Refusal::TooMany { what, limit: HTTP_NODES_BYTES_MAX };
            return (Outcome::Refused(refusal), Vec::new());
        }
        self.adopt_node(node, record);
        self.dirty.nodes.insert(node);
        self.calls.remember(idempotency, self.time.aged(), CreatedResource::Node(node));
        (Outcome::Node(NodeRegistered { node, replayed: false }), Vec::new())
    }
}

impl JsonSize for NodeRecord {
    fn json_bytes(&self) -> usize {
        let node_addr = self.member.as_ref().map_or(0, |member| quoted_bytes(&member.node_addr));
        let own = quoted_bytes(&self.address) + quoted_bytes(self.region.as_str()) + node_addr;
        let metadata = self.metadata.iter();
        let metadata = metadata.map(|(name, text)| quoted_bytes(name) + quoted_bytes(text) + 2);
        ITEM_FRAME_BYTES + own + metadata.sum::<usize>()
    }
}

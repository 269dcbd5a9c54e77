//! The cluster: nodes, leadership, health, groups.

use std::collections::BTreeMap;

use crate::error::CallError;
use crate::handles::{Call, Created};
use crate::ids::NodeId;
use crate::views::{ClusterHealth, GroupView, LeaderView, NodeView, Page, PageRequest};

/// Handle to the cluster.
#[derive(Debug, Clone)]
pub struct Cluster {}

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
    pub async fn register(&self, _: &Call, _: NewNode) -> Result<Created<NodeView>, CallError> {
        todo!()
    }
    /// All nodes.
    pub async fn nodes(&self, _: &Call, _: PageRequest) -> Result<Page<NodeView>, CallError> {
        todo!()
    }
    /// One node.
    pub async fn node(&self, _: &Call, _: NodeId) -> Result<NodeView, CallError> {
        todo!()
    }
    /// Forgets a node.
    pub async fn remove(&self, _: &Call, _: NodeId) -> Result<(), CallError> {
        todo!()
    }
    /// A node registered over HTTP is alive.
    pub async fn heartbeat(&self, _: &Call, _: NodeId) -> Result<(), CallError> {
        todo!()
    }
    /// Who leads.
    pub async fn leader(&self, _: &Call) -> Result<LeaderView, CallError> {
        todo!()
    }
    /// Hands leadership over.
    pub async fn step_down(&self, _: &Call) -> Result<(), CallError> {
        todo!()
    }
    /// How the cluster is, from this node's own view.
    pub async fn health(&self) -> ClusterHealth {
        todo!()
    }
    /// The groups on this node.
    pub async fn groups(&self, _: &Call) -> Result<Vec<GroupView>, CallError> {
        todo!()
    }
    /// Why this node is not ready to serve; empty when it is.
    pub async fn not_ready(&self) -> Vec<String> {
        todo!()
    }
}

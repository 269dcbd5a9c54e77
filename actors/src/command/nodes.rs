//! Commands about nodes that heartbeat over HTTP.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::Idempotency;
use crate::domain::ids::NodeId;
use crate::domain::region::Region;

/// A node that heartbeats over HTTP.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct RegisterNode {
    /// Its new id.
    pub node: NodeId,
    /// Where its owner says it is; never dialled.
    pub address: String,
    /// Its region.
    pub region: Region,
    /// Free text.
    pub metadata: BTreeMap<String, String>,
    /// Remembers the call.
    pub idempotency: Option<Idempotency>,
}

/// Forgets a node registered over HTTP, or a member that has been drained.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoveNode {
    /// Which.
    pub node: NodeId,
}

/// A node was registered or found under its idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRegistered {
    /// Which.
    pub node: NodeId,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

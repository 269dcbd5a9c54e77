//! What the heartbeat monitor is told and asked.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::Heard;
use crate::ids::NodeId;

/// A message to the heartbeat monitor.
#[derive(Debug)]
pub enum HeartbeatMessage {
    /// A node is alive.
    Beat(NodeId),
    /// A node was removed.
    Forget(NodeId),
    /// What has been heard?
    Heard {
        /// Of whom.
        nodes: Vec<NodeId>,
        /// Whom to tell.
        reply: oneshot::Sender<BTreeMap<NodeId, Heard>>,
    },
}

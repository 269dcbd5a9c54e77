//! What the heartbeat monitor is told and asked.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Beat, Heard, MemberHealth};
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
    /// Who the other members are now, by raft id.
    SetMembers(Vec<u64>),
    /// Ping them.
    Ping,
    /// A member pings.
    Pinged {
        /// Raft id of who does.
        from: u64,
        /// What it says.
        beat: Beat,
        /// What to answer.
        reply: oneshot::Sender<Beat>,
    },
    /// A ping came to its end.
    Ponged {
        /// Raft id of who was pinged.
        from: u64,
        /// What it answered and how far its clock is from ours, milliseconds; nothing when it did
        /// not.
        pong: Option<(Beat, u64)>,
    },
    /// How are the members?
    Health(oneshot::Sender<BTreeMap<u64, MemberHealth>>),
}

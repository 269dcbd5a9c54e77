//! What the heartbeat monitor is told and asked.

use std::collections::BTreeMap;

use tokio::sync::oneshot;

use super::{Heard, Heartbeat, Hello, HelloReply, Incarnation, MemberHealth};
use crate::domain::ids::{NodeId, RaftId};

/// A message to the heartbeat monitor.
#[derive(Debug)]
pub enum HeartbeatMessage {
    /// A node is alive.
    HttpHeartbeat(NodeId),
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
    SetMembers(Vec<RaftId>),
    /// Ping them.
    Ping,
    /// This node leads a group, or does not any more: the members are to hear of it.
    News,
    /// A member pings.
    Pinged {
        /// Raft id of who does.
        from: RaftId,
        /// What it says.
        beat: Heartbeat,
        /// What to answer.
        reply: oneshot::Sender<Heartbeat>,
    },
    /// A ping came to its end.
    Ponged {
        /// Raft id of who was pinged.
        from: RaftId,
        /// What it answered and how far its clock is from ours, milliseconds; nothing when it did
        /// not.
        pong: Option<(Heartbeat, u64)>,
    },
    /// A member says hello.
    Hello {
        /// Raft id of who does.
        from: RaftId,
        /// What it says.
        hello: Hello,
        /// What to answer.
        reply: oneshot::Sender<HelloReply>,
    },
    /// A hello came to its end.
    Welcomed {
        /// Raft id of who was greeted.
        by: RaftId,
        /// The incarnation that was told.
        said: Incarnation,
        /// The answer; nothing when there was none.
        welcome: Option<HelloReply>,
    },
    /// How are the members?
    Health(oneshot::Sender<BTreeMap<RaftId, MemberHealth>>),
}

//! The heartbeat monitor: who has been heard of, and when. It suspects; it never votes.
//!
//! Nodes registered over HTTP heartbeat over HTTP. What they last said is kept in memory by the
//! leader alone: a status is no promise, and no heartbeat costs a write to the log. Silence is
//! measured by the monotonic clock; after a restart or a new leader every node gets the full time
//! again.

mod actor;
mod message;
mod state;

use std::collections::BTreeMap;

use ractor::ActorRef;
use tokio::time::Instant;

pub use actor::{HeartbeatActor, HeartbeatArguments};
pub use message::HeartbeatMessage;
pub use state::Heard;

use crate::error::CallError;
use crate::ids::NodeId;
use crate::mailbox::call;

/// Handle to the heartbeat monitor.
#[derive(Debug, Clone)]
pub struct Heartbeats {
    actor: ActorRef<HeartbeatMessage>,
}

impl Heartbeats {
    /// A handle to `actor`.
    pub const fn new(actor: ActorRef<HeartbeatMessage>) -> Self {
        Self { actor }
    }

    /// A node said that it is alive.
    pub fn beat(&self, node: NodeId) {
        self.tell(HeartbeatMessage::Beat(node));
    }

    /// A node was removed.
    pub fn forget(&self, node: NodeId) {
        self.tell(HeartbeatMessage::Forget(node));
    }

    /// What has been heard of each of `nodes`.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn heard(
        &self,
        nodes: Vec<NodeId>,
        deadline: Instant,
    ) -> Result<BTreeMap<NodeId, Heard>, CallError> {
        call(&self.actor, deadline, |reply| HeartbeatMessage::Heard { nodes, reply }).await
    }

    fn tell(&self, message: HeartbeatMessage) {
        if self.actor.send_message(message).is_err() {
            tracing::debug!("the heartbeat monitor has stopped");
        }
    }
}

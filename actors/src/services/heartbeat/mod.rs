//! The heartbeat monitor: who has been heard of, and when. It suspects; it never votes.
//!
//! Members ping each other five times in an election timeout, over the lane that nothing large
//! takes. A ping tells what its sender knows of the others, so that 'dead' can be told from 'cut
//! off from me only', and whether it leads.
//!
//! Members also say hello to each other: which process they are, and where. Of two processes with
//! one identity the earlier stops.
//!
//! Nodes registered over HTTP heartbeat over HTTP. What they last said is kept in memory by the
//! leader alone: a status is no promise, and no heartbeat costs a write to the log. Silence is
//! measured by the monotonic clock; after a restart or a new leader every node gets the full time
//! again.

mod actor;
mod failure_detector;
mod http_nodes;
mod incarnations;
mod message;

use std::collections::BTreeMap;

use ractor::ActorRef;
use tokio::time::Instant;

pub use actor::{HeartbeatActor, HeartbeatArguments};
pub use failure_detector::{Heartbeat, MemberHealth};
pub use http_nodes::Heard;
pub use incarnations::{Hello, HelloReply, Incarnation};
pub use message::HeartbeatMessage;

use crate::domain::codec;
use crate::domain::ids::NodeId;
use crate::ports::Declined;
use crate::ports::error::CallError;
use crate::services::mailbox::call;

/// The shape of pings and their answers that this program speaks.
const HEARTBEAT_VERSION: u16 = 2;
/// The shape of hellos and their answers that this program speaks.
const HELLO_VERSION: u16 = 1;

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
        self.tell(HeartbeatMessage::HttpHeartbeat(node));
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

    /// Who the other members are now, by raft id.
    pub fn set_members(&self, raft_ids: Vec<u64>) {
        self.tell(HeartbeatMessage::SetMembers(raft_ids));
    }

    /// How each other member is, by raft id.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn health(
        &self,
        deadline: Instant,
    ) -> Result<BTreeMap<u64, MemberHealth>, CallError> {
        call(&self.actor, deadline, HeartbeatMessage::Health).await
    }

    /// Answers the ping of the member with raft id `from`.
    ///
    /// # Errors
    /// When it is none, or this node stops.
    pub async fn pinged(
        &self,
        from: u64,
        ping: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Declined> {
        let beat = decode_beat(ping).map_err(Declined)?;
        let answer =
            call(&self.actor, deadline, |reply| HeartbeatMessage::Pinged { from, beat, reply });
        let beat = answer.await.map_err(|error| Declined(error.to_string()))?;
        Ok(codec::encode(&(HEARTBEAT_VERSION, beat)))
    }

    /// Answers the hello of the member with raft id `from`.
    ///
    /// # Errors
    /// When it is none, or this node stops.
    pub async fn greeted(
        &self,
        from: u64,
        hello: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Declined> {
        let (version, hello): (u16, Hello) =
            codec::decode(hello).map_err(|error| Declined(error.to_string()))?;
        if version != HELLO_VERSION {
            return Err(Declined(format!("version {version} of hello is not spoken here")));
        }
        let answer =
            call(&self.actor, deadline, |reply| HeartbeatMessage::Hello { from, hello, reply });
        let welcome = answer.await.map_err(|error| Declined(error.to_string()))?;
        Ok(codec::encode(&(HELLO_VERSION, welcome)))
    }

    fn tell(&self, message: HeartbeatMessage) {
        if self.actor.send_message(message).is_err() {
            tracing::debug!("the heartbeat monitor has stopped");
        }
    }
}

/// Reads a ping or its answer.
fn decode_beat(bytes: &[u8]) -> Result<Heartbeat, String> {
    let (version, beat): (u16, Heartbeat) =
        codec::decode(bytes).map_err(|error| error.to_string())?;
    if version == HEARTBEAT_VERSION {
        return Ok(beat);
    }
    Err(format!("version {version} of heartbeats is not spoken here"))
}

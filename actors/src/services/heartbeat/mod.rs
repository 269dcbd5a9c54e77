//! The heartbeat monitor: how the other members are, which process each of them is, and who says
//! that it leads. It suspects; it never votes.
//!
//! The problem: Raft knows whether a quorum answers. It does not say which member is dead, cut off
//! from one node only, short of disk, or running twice. Operators, placement and the elector ask
//! that.
//!
//! # Pings
//!
//! A member pings each other member five times in an election timeout T, and at once when
//! leadership of the system group changes; pings go over the lane that nothing large takes. A ping
//! and its answer say the same ([`Heartbeat`]): what the wall clock says, in which term the speaker
//! leads, for how long each other member has been silent to it, whether its disk has room, whether
//! it lacks room for what others send it, and in which groups it has a damaged replica of a tenant.
//! Either counts as having been heard. The speaker's words about the others tell 'dead' from 'cut
//! off from me only':
//!
//! | silent to this node for | and | status |
//! |---|---|---|
//! | less than T | none of what the next row says | `Healthy` |
//! | less than T | a clock off by over 500 ms, or a full disk, or silent to somebody for T | `Degraded` |
//! | T to 4 T | | `Degraded` |
//! | 4 T and more | somebody has heard it within T | `Degraded` |
//! | 4 T and more | nobody has | `Unhealthy` |
//!
//! 'Somebody' is another member that was heard within T itself. A member that lacks room for a copy, and not for its
//! log, votes and leads as any other: it is given no further replica, and is shown as `Degraded` to people only.
//!
//! Who is new, and everybody after a start, has the full time before it, and is `Degraded` until it
//! is heard. `Offline` is not decided here: a member that stops says goodbye, and group 0 notes it.
//!
//! # Incarnations
//!
//! A data directory may be copied, and then two processes prove one identity; neither can see the
//! other, because a member does not call itself. So each start of the program is an *incarnation*,
//! which it tells every other member each second in a *hello*. Each member remembers the latest of
//! every other; of two that speak the one that started later is the member, and the earlier stops
//! the node. How a clock that was set back is told from a copy is in `incarnations`, and in
//! decision 14.
//!
//! # Nodes registered over HTTP
//!
//! They heartbeat over HTTP. What they last said is kept in memory by the leader alone: a status is
//! no promise, and no heartbeat costs a write to the log. After a restart or a new leader every
//! node gets the full time again.
//!
//! # Invariants
//!
//! - Silence is measured by the monotonic clock. Wall clocks are compared with each other, and
//!   number incarnations; a wrong one makes a member `Degraded`, or costs a start one more hello.
//! - Who speaks comes from the certificate of its connection, never from what it says.
//! - One ping and one hello to each member are under way at a time, each for T at most.
//! - Nothing here is on disk, and nothing here changes who leads, votes or belongs to the cluster.
//!
//! # Not done
//!
//! Suspicion is not spread: what a member says of another counts while that member is heard itself.
//! A lone node, or one that reaches nobody, is not told of a copy of itself.

mod actor;
mod failure_detector;
mod http_nodes;
mod incarnations;
mod message;
mod wire;

use std::collections::BTreeMap;

use ractor::ActorRef;
use tokio::time::Instant;

pub use actor::{HeartbeatActor, HeartbeatArguments};
pub use failure_detector::{Heartbeat, MemberHealth};
pub use http_nodes::Heard;
pub use incarnations::{Hello, HelloReply, Incarnation};
pub use message::HeartbeatMessage;

use crate::domain::codec;
use crate::domain::ids::{NodeId, RaftId};
use crate::ports::Declined;
use crate::ports::error::CallError;
use crate::services::mailbox::call;

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
    pub fn set_members(&self, raft_ids: Vec<RaftId>) {
        self.tell(HeartbeatMessage::SetMembers(raft_ids));
    }

    /// How each other member is, by raft id.
    ///
    /// # Errors
    /// When no answer came by `deadline`.
    pub async fn health(
        &self,
        deadline: Instant,
    ) -> Result<BTreeMap<RaftId, MemberHealth>, CallError> {
        call(&self.actor, deadline, HeartbeatMessage::Health).await
    }

    /// Answers the ping of the member with raft id `from`.
    ///
    /// # Errors
    /// When it is none, or this node stops.
    pub async fn pinged(
        &self,
        from: RaftId,
        ping: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Declined> {
        let (version, beat) = wire::decode(ping).map_err(Declined)?;
        let answer =
            call(&self.actor, deadline, |reply| HeartbeatMessage::Pinged { from, beat, reply });
        let beat = answer.await.map_err(|error| Declined(error.to_string()))?;
        Ok(wire::encode(version, &beat))
    }

    /// Answers the hello of the member with raft id `from`.
    ///
    /// # Errors
    /// When it is none, or this node stops.
    pub async fn greeted(
        &self,
        from: RaftId,
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

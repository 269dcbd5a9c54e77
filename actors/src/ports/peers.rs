//! The way to the other nodes, as the actors and the log see it: bytes to a member, bytes back.
//!
//! A *call* is one request and its answer, both whole in memory. A *stream* carries bytes in both
//! directions for as long as its two ends want. What the bytes mean is agreed between the two ends
//! that speak a [`Service`] or a [`StreamService`]; the codec is the same for all calls. Who a
//! member is comes from its certificate, never from what it says.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::BoxFuture;
use super::seams::ByteStream;
use crate::domain::ids::{NodeId, RaftId};

/// What a call between nodes is for. The number is on the wire: never given to another service, nor
/// to a [`StreamService`]. 5 was API requests in an encoding of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Service {
    /// Heartbeats, between heartbeat monitors.
    Ping = 1,
    /// Votes and entries of groups, between their logs.
    Raft = 2,
    /// Contents of snapshots, between logs.
    Snapshot = 3,
    /// Questions and proposals between nodes' actors.
    Node = 4,
    /// Which process a member is and where, between heartbeat monitors.
    Hello = 6,
    /// Heartbeats of the groups that one node leads, between logs.
    GroupHeartbeats = 8,
}

/// What a stream between nodes is for. Its numbers are not those of a [`Service`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum StreamService {
    /// One API request and its answer in HTTP/1.1, handed on to the node that owns what it is about.
    Http = 7,
}

/// A request between logs that is no longer than this is urgent, bytes: votes and heartbeats are a
/// few hundred at most.
const URGENT_BYTES_MAX: usize = 1 << 10;

/// Requests in one lane do not wait for those in another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Small and urgent.
    Control,
    /// Entries, and what the actors of two nodes say to each other.
    Raft,
    /// Requests of clients.
    Http,
    /// Large, and in no hurry.
    Bulk,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Ping, Self::Raft, Self::Snapshot, Self::Node, Self::Hello, Self::GroupHeartbeats];

    /// The lane that a request of so many bytes takes. Votes and heartbeats do not wait behind
    /// megabytes of entries: whoever is not heard in time is not followed.
    pub const fn lane(self, bytes: usize) -> Lane {
        match self {
            Self::Ping | Self::Hello | Self::GroupHeartbeats => Lane::Control,
            Self::Raft if bytes <= URGENT_BYTES_MAX => Lane::Control,
            Self::Raft | Self::Node => Lane::Raft,
            Self::Snapshot => Lane::Bulk,
        }
    }

    /// Longest time that a call may take. What ends a snapshot is answered once files of any size are in their place.
    pub const fn call_max(self) -> Duration {
        match self {
            Self::Snapshot => PEER_SNAPSHOT_CALL_MAX,
            _ => PEER_CALL_MAX,
        }
    }

    /// The service with this number on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|service| *service as u8 == number)
    }
}

impl StreamService {
    /// All of them.
    pub const ALL: [Self; 1] = [Self::Http];

    /// The lane that its streams take.
    pub const fn lane(self) -> Lane {
        match self {
            Self::Http => Lane::Http,
        }
    }

    /// The service with this number on the wire.
    pub fn from_wire(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|service| *service as u8 == number)
    }
}

/// A member of the cluster, to whoever calls it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Its id in Raft groups.
    pub raft_id: RaftId,
    /// Its node id: both are in its certificate.
    pub node: NodeId,
    /// `host:port` of its QUIC socket.
    pub addr: String,
}

/// Why a call between nodes brought no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The request did not reach the other node: it did nothing.
    #[error("node {to} cannot be reached: {why}")]
    Unreachable {
        /// Raft id of the node.
        to: RaftId,
        /// What failed.
        why: String,
    },
    /// The other node declined before it did anything.
    #[error("node {to} declined: {why}")]
    Declined {
        /// Raft id of the node.
        to: RaftId,
        /// Its words.
        why: String,
    },
    /// The request was sent and the answer did not come: it may have been done or not.
    #[error("node {to} was asked and did not answer: {why}")]
    Lost {
        /// Raft id of the node.
        to: RaftId,
        /// What failed.
        why: String,
    },
}

/// Calls other members.
pub trait Peers: Send + Sync + 'static {
    /// Sends a request to the member with raft id `to` and waits for its answer until `deadline`.
    /// Dropping the future tells the other node that nobody waits any more.
    fn call(
        &self,
        to: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>>;

    /// Opens a stream to the member with raft id `to`; `deadline` bounds the opening and is told to
    /// the other node. An error says that the other node did nothing. Reading from the stream fails
    /// with [`PeerError::Declined`] inside the error when the other node did nothing; any other
    /// failure leaves it open. Dropping the stream tells the other node that nobody waits any more.
    fn open_stream(
        &self,
        to: RaftId,
        service: StreamService,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Box<dyn ByteStream>, PeerError>>;

    /// Tells who the members are now, this node left out. Only they are dialled, and only their
    /// calls are taken; connections of others are closed. Members with an id up to `last_given` that are not
    /// listed were removed, and are told so.
    fn set_members(&self, members: Vec<Peer>, last_given: RaftId);
}

/// Takes the calls of other members. A call whose caller has gone is dropped at its next await.
pub trait PeerService: Send + Sync + 'static {
    /// Answers a request of the member with raft id `from`, who waits until `deadline`.
    fn serve(
        &self,
        from: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, Declined>>;

    /// Serves a stream of the member with raft id `from`, who waits for the beginning of an answer
    /// until `deadline`. Ends when nothing is left to say.
    fn serve_stream(
        &self,
        from: RaftId,
        service: StreamService,
        stream: Box<dyn ByteStream>,
        deadline: Instant,
    ) -> BoxFuture<'_, ()>;
}

/// A request that was not done, and will not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Declined(pub String);

/// Takes the request of a node that is no member and wants to be one.
pub trait JoinService: Send + Sync + 'static {
    /// Answers it.
    fn join(
        &self,
        stranger: UnauthenticatedPeer,
        request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, Declined>>;
}

/// Who wants to join, as far as the connection tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnauthenticatedPeer {
    /// Where its packets come from.
    pub addr: SocketAddr,
    /// A secret of this connection that only its two ends know (RFC 8446, 7.5): what is proven
    /// over it cannot be shown elsewhere.
    pub binding: [u8; 32],
}

/// Longest request or answer between nodes, bytes.
pub const PEER_MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Streams with requests of clients that a node has open to one member, at most: long polls and
/// answers that clients read slowly are among them.
pub const PEER_HTTP_STREAMS_MAX: usize = 2_048;

/// Longest time a call between nodes may take, and a stream until its answer begins: long polls take
/// up to 300 s.
pub const PEER_CALL_MAX: Duration = Duration::from_secs(330);

/// Longest time a call about a snapshot may take. Its deadline grows with the bytes that were sent: here it has grown
/// with some 690 GiB. A caller that has gone ends it earlier.
pub const PEER_SNAPSHOT_CALL_MAX: Duration = Duration::from_hours(24);

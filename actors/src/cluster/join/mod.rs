//! Joining: how a node that is no member becomes one.
//!
//! The problem: whoever joins has no certificate yet, so neither side knows whom it talks to. The
//! secret that admits the joiner must not reach whoever happens to listen at an address, and a
//! joiner that dies at any point must not become two members.
//!
//! ```text
//! joiner                                       a member (any)
//!  id and key are durable
//!  connects, ALPN shiioo-join/1 ───────────>   shows its certificate, and the authority's
//!  has a fingerprint? it must match, or it
//!  says nothing and ends
//!  request: who it is, its public key,
//!   token id, proof(Joiner) ───────────────>   is the token known, and the proof right?
//!                                              group 0: AdmitMember, which decides
//!                                              signs a certificate for the joiner's key
//!  <───────── raft id, certificate, members, proof(Member)
//!  is the proof right?
//!  the identity is durable; it is a member
//! ```
//!
//! A *proof* is a hash over the hash of the secret, a binding that belongs to this one TLS
//! connection (RFC 8446, section 7.5), and who proves. Whoever sits between two connections learns
//! nothing that it could use on another, and neither side's proof can be sent back as the other's.
//!
//! | the joiner has | it believes the authority | it is admitted by |
//! |---|---|---|
//! | `SHK1.<fingerprint>.<id>.<secret>`, made by the cluster | whose fingerprint that is | its proof |
//! | another text, which the cluster was founded with | whose member proves to know it | its proof |
//! | nothing | any | loopback: see below |
//!
//! Without a token a node joins only where every address in play is loopback: that of its
//! connection, the one that it gives for itself, and those of all members. And only a cluster that
//! was founded without a secret, and has no admin token. A host name is no loopback address: it may
//! be anywhere.
//!
//! Two things are for the member to check, because they belong to this connection: the proof, and
//! that the addresses are loopback. Everything else it looks at may have changed by then, so
//! `AdmitMember` (`state/system/members.rs`) decides it, in the order of the log: whether the token
//! is there, in time and not used up, or none is needed. It counts one use and gives the next raft
//! id. The same node id with the same key is given the same place again, and no use is counted;
//! with another key it is refused.
//!
//! Invariants:
//! - neither side shows the secret, and group 0 keeps its hash only;
//! - a peer without a valid proof changes nothing, and costs a hash and perhaps one read;
//! - id and key of a joiner are durable before it asks, its identity before it acts as a member;
//! - a raft id is given once and never again.
//!
//! Deliberately not done: a secret of one's own choice can be guessed offline by whoever intercepts
//! a join; tokens that the cluster makes cannot (decision 8). Certificates are not renewed.
//!
//! The connections are bounded in `transport/src/quic`; the joiner's side is `transport/src/join`
//! and `node/src/joining.rs`, the member's `services/join.rs`.

mod token;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use token::{JoinSecret, ParseTokenError, Prover, proof};

use crate::domain::codec;
use crate::domain::ids::{RaftId, TokenId};
use crate::domain::membership::Member;
use crate::ports::Peer;

/// The shape of requests and answers that this program speaks.
const VERSION: u16 = 1;

/// What a node asks that wants to join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The node; its `raft_id` is not looked at.
    pub member: Member,
    /// Its public key (ed25519).
    pub public_key: [u8; 32],
    /// The token it has, and the proof that it knows the token's secret.
    pub token: Option<(TokenId, [u8; 32])>,
}

/// What a node is given that may join.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinReply {
    /// The cluster.
    pub cluster: Uuid,
    /// Its id in Raft groups.
    pub raft_id: RaftId,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// The members, with this one.
    pub peers: Vec<PeerRow>,
    /// The proof that the cluster knows the token's secret, where one was asked for.
    pub proof: Option<[u8; 32]>,
}

/// A member, as it is written to who joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Its id in Raft groups.
    pub raft_id: RaftId,
    /// Its node id.
    pub node: crate::domain::ids::NodeId,
    /// `host:port` of its QUIC socket.
    pub addr: String,
}

impl From<Peer> for PeerRow {
    fn from(Peer { raft_id, node, addr }: Peer) -> Self {
        Self { raft_id, node, addr }
    }
}

impl From<PeerRow> for Peer {
    fn from(PeerRow { raft_id, node, addr }: PeerRow) -> Self {
        Self { raft_id, node, addr }
    }
}

/// What a request to join comes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinAnswer {
    /// The node is a member.
    Admitted(JoinReply),
    /// It is not, and asking again in the same way will not help.
    Refused(String),
    /// It is not yet: ask again.
    NotYet(String),
}

impl JoinRequest {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&(VERSION, self))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }
}

impl JoinAnswer {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(&(VERSION, self))
    }

    /// As it came.
    ///
    /// # Errors
    /// When it is none that this program understands.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }
}

fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    // The version first: what follows it in another version is not ours to read.
    let version = bytes.first().copied().map(u16::from);
    if version != Some(VERSION) {
        return Err(format!("version {version:?} is not spoken here"));
    }
    let (_, body): (u16, T) = codec::decode(bytes).map_err(|error| error.to_string())?;
    Ok(body)
}

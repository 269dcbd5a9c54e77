//! Joining: how a node that is no member becomes one.
//!
//! The joiner makes its key and its node id first and keeps them, so that it can ask again after
//! a crash at any point and is given the same place. It asks any member; the member checks the
//! token, has group 0 admit the node, and signs a certificate.
//!
//! Neither side shows the join secret. Each proves that it knows it over a binding that belongs to
//! this one TLS connection (RFC 8446, section 7.5), so that whoever sits between two connections
//! learns nothing it could use on another. A token made by the cluster also carries the
//! fingerprint of the cluster's authority, which the joiner checks before it says anything.
//!
//! Invariants:
//! - a peer without a valid proof costs a hash and changes nothing;
//! - without a token a node joins only where every address in play is loopback, and only a
//!   cluster that was founded without a secret and has no admin token.

mod token;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use token::{JoinSecret, ParseTokenError, Prover, proof};

use crate::domain::codec;
use crate::domain::ids::TokenId;
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
    pub raft_id: u64,
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
    pub raft_id: u64,
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

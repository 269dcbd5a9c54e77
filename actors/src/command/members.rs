//! Commands about members: who belongs to the cluster, and who leads it.

use serde::{Deserialize, Serialize};

use crate::domain::ids::{GroupId, NodeId, RaftId, TokenId};
use crate::domain::membership::{Authority, Member};
use crate::domain::secret::SecretHash;

/// Founds the cluster, with its first member. A second founding does nothing.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Who signs the members' certificates.
    pub authority: Authority,
    /// The first member.
    pub member: Member,
    /// Its public key.
    pub public_key: [u8; 32],
    /// Hash of the secret that admits others, if one was chosen.
    pub secret_hash: Option<SecretHash>,
}

/// Lets a node in and gives it an id in Raft groups.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct AdmitMember {
    /// The node; its `raft_id` is not looked at.
    pub member: Member,
    /// Its public key.
    pub public_key: [u8; 32],
    /// The token whose secret it proved.
    pub token: Option<TokenId>,
}

/// A member said goodbye.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberOffline {
    /// Which.
    pub node: NodeId,
}

/// A member is to lose its vote and then be removed.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DrainMember {
    /// Which.
    pub node: NodeId,
}

/// A node leads the system group in the entry's own term.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct LeaderElected {
    /// The leader.
    pub node: NodeId,
}

/// Goes on with one member alone, as another cluster: `shiioo recover --force` writes it into that
/// member's log. A second one of the same authority does nothing.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Recover {
    /// Who signs the members' certificates from here on.
    pub authority: Authority,
    /// Raft id of the member.
    pub raft_id: RaftId,
    /// The tenant groups that it has a replica of. What the others held is lost.
    pub groups: Vec<GroupId>,
}

/// A node was admitted, now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAdmitted {
    /// Its id in Raft groups.
    pub raft_id: RaftId,
}

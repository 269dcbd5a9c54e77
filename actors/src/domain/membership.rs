//! Who belongs to a cluster, who signs that it does, and what lets others in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::ids::{NodeId, RaftId, TokenId};
use crate::domain::region::Region;
use crate::domain::secret::{SecretBytes, SecretHash};
use crate::domain::time::Timestamp;

/// A node that runs this program and is a member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its node id.
    pub node: NodeId,
    /// Its id in Raft groups.
    pub raft_id: RaftId,
    /// Where its HTTP API listens.
    pub api_addr: String,
    /// Where the other nodes reach it.
    pub node_addr: String,
    /// Placement region.
    pub region: Region,
    /// Labels from the command line.
    pub labels: BTreeMap<String, String>,
    /// Version of the program.
    pub version: String,
}

/// What founds a cluster: who signs its members' certificates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    /// The cluster.
    pub cluster: Uuid,
    /// Certificate of the cluster's authority, DER.
    pub certificate: Vec<u8>,
    /// Its private key, PKCS #8 DER. Every member has it, so that any can admit others.
    pub key: SecretBytes,
}

/// Admits nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Hash of its secret.
    pub secret_hash: SecretHash,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// How many nodes it still admits.
    pub uses_left: Option<u32>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// Said of a token whose time is over.
pub(crate) const EXPIRED: &str = "it has expired";

impl JoinToken {
    /// Why it does not admit a node at time `at`, if it does not.
    pub fn why_not(&self, at: Timestamp) -> Option<&'static str> {
        if self.expires_at.is_some_and(|end| at >= end) {
            return Some(EXPIRED);
        }
        (self.uses_left == Some(0)).then_some("it is used up")
    }
}

/// The token that stands for the secret of the cluster's own choice.
pub const SHARED_SECRET: TokenId = TokenId::from_uuid(Uuid::nil());

//! Commands about what lets others in: join tokens and the admin token.

use serde::{Deserialize, Serialize};

use crate::command::Idempotency;
use crate::domain::ids::TokenId;
use crate::domain::membership::JoinToken;
use crate::domain::secret::SecretHash;

/// A new join token.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateJoinToken {
    /// Its new id.
    pub id: TokenId,
    /// What it is.
    pub token: JoinToken,
    /// Remembers the call.
    pub idempotency: Option<Idempotency>,
}

/// Revokes a join token.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct RemoveJoinToken {
    /// Which.
    pub id: TokenId,
}

/// Sets the cluster's admin token, where it has none.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SetAdminToken {
    /// Hash of the token.
    pub hash: SecretHash,
}

/// A join token was made, or found under its idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenCreated {
    /// Which.
    pub token: TokenId,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

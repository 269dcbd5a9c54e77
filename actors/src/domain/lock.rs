//! A lock, as everybody sees it.

use serde::{Deserialize, Serialize};

use crate::domain::ids::NodeId;
use crate::domain::json::Json;
use crate::domain::text::{check_bytes, checked_text};
use crate::domain::time::Timestamp;

/// Longest key of a lock, bytes.
pub const LOCK_KEY_BYTES_MAX: usize = 512;
/// Longest holder of a lock, bytes.
const HOLDER_BYTES_MAX: usize = 256;
/// Keys of the cluster's own space that only the cluster itself may take.
const RESERVED_PREFIX: &str = "cluster/";
/// The lock that follows leadership of the system group.
const LEADER_LOCK: &str = "cluster/leader";

/// Fencing tokens rise by so much where those may have been given that are not known any more: more
/// than a key space gives in years.
pub const FENCING_STEP: u64 = 1 << 32;

checked_text!(
    /// The key of a lock, 1-512 bytes.
    LockKey, check_key
);

checked_text!(
    /// Who holds a lock, 1-256 bytes.
    Holder, check_holder
);

impl LockKey {
    /// The key of the lock that follows leadership of the system group.
    pub fn leader() -> Self {
        Self(LEADER_LOCK.to_owned())
    }

    /// Whether it is the key of the lock that follows leadership of the system group.
    pub fn is_leader(&self) -> bool {
        self.0 == LEADER_LOCK
    }

    /// Whether only the cluster itself may take the key in its own key space.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with(RESERVED_PREFIX)
    }
}

// So that a table of locks is also searched by the beginning of a key.
impl std::borrow::Borrow<str> for LockKey {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<NodeId> for Holder {
    fn from(node: NodeId) -> Self {
        Self(node.to_string())
    }
}

fn check_key(key: &str) -> Result<(), String> {
    check_bytes(key, LOCK_KEY_BYTES_MAX)
}

fn check_holder(holder: &str) -> Result<(), String> {
    check_bytes(holder, HOLDER_BYTES_MAX)
}

/// A number that grows with each grant of a lock in a key space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(pub u64);

impl FencingToken {
    /// The token so many grants later.
    pub const fn raised(self, by: u64) -> Self {
        Self(self.0.saturating_add(by))
    }
}

/// A lock as its table holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// Key.
    pub key: LockKey,
    /// Who holds it.
    pub holder: Holder,
    /// Fencing token of this grant.
    pub token: FencingToken,
    /// Renewals of this grant.
    pub renewal: u64,
    /// Length of a lease, milliseconds.
    pub ttl_ms: u64,
    /// When it was granted (a label: leases are measured by the leader's monotonic clock).
    pub acquired_at: Timestamp,
    /// When the present lease ends, by the same label. The leader shows the end of the lease that it measures,
    /// which is later where it has begun to lead since.
    pub expires_at: Timestamp,
    /// The holder's JSON.
    pub metadata: Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_and_keys_end_at_the_exact_byte() {
        let (key, holder) = ("k".repeat(LOCK_KEY_BYTES_MAX), "h".repeat(HOLDER_BYTES_MAX));
        assert!(LockKey::try_from(key.clone()).is_ok() && Holder::try_from(holder.clone()).is_ok());
        assert!(LockKey::try_from(key + "k").is_err() && Holder::try_from(holder + "h").is_err());
        assert!(LockKey::try_from(String::new()).is_err());
        assert!(Holder::try_from(String::new()).is_err());
    }
}

//! Commands about locks, of the cluster or of a tenant.

use serde::{Deserialize, Serialize};

use crate::domain::json::Json;
use crate::domain::lock::{FencingToken, Holder, LockKey};

/// A change to a lock table: the cluster's, or a tenant's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(strum::VariantNames))]
pub enum LockCommand {
    /// Takes the lock if it is free; renews it if `holder` has it.
    Acquire {
        /// Key.
        key: LockKey,
        /// Who wants it.
        holder: Holder,
        /// Length of a lease, milliseconds.
        ttl_ms: u64,
        /// Free JSON shown with the lock.
        metadata: Json,
    },
    /// Begins the holder's lease again.
    Renew {
        /// Key.
        key: LockKey,
        /// Who must hold it.
        holder: Holder,
        /// The token it must be held with, if the holder gives one.
        token: Option<FencingToken>,
        /// New length of a lease, milliseconds; the present one if not given.
        ttl_ms: Option<u64>,
    },
    /// Gives the lock back.
    Release {
        /// Key.
        key: LockKey,
        /// Who must hold it.
        holder: Holder,
        /// The token it must be held with, if the holder gives one.
        token: Option<FencingToken>,
    },
    /// The leader's timer for one lease of the lock has run out. Does nothing unless token and
    /// renewal still match: a renewal that came first wins.
    Expire {
        /// Key.
        key: LockKey,
        /// The token of the grant.
        token: FencingToken,
        /// The count of renewals the timer was armed for.
        renewal: u64,
    },
}

//! A lock, as everybody sees it.

use serde::{Deserialize, Serialize};

use crate::domain::json::Json;
use crate::domain::time::Timestamp;

/// Fencing tokens rise by so much where those may have been given that are not known any more: more
/// than a key space gives in years.
pub const FENCING_STEP: u64 = 1 << 32;

/// A lock as its table holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockView {
    /// Key.
    pub key: String,
    /// Who holds it.
    pub holder: String,
    /// Fencing token of this grant.
    pub token: u64,
    /// Renewals of this grant.
    pub renewal: u64,
    /// Length of a lease, milliseconds.
    pub ttl_ms: u64,
    /// When it was granted (a label: leases are measured by the leader's monotonic clock).
    pub acquired_at: Timestamp,
    /// When the present lease ends, by the same label.
    pub expires_at: Timestamp,
    /// The holder's JSON.
    pub metadata: Json,
}

//! Who says that it leads the cluster.

use tokio::time::Instant;

/// Who says that it leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaderHint {
    /// Raft id of who says so.
    pub raft_id: u64,
    /// Its term.
    pub term: u64,
    /// When it was heard.
    pub heard: Instant,
}

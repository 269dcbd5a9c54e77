//! What the leaders of groups say of themselves, to those who have no replica of the group or whose
//! replica is behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use crate::domain::ids::{GroupId, RaftId};
use crate::domain::voters::Voters;

/// What a leader said of its group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderHint {
    /// Raft id of the leader.
    pub raft_id: RaftId,
    /// Its term.
    pub term: u64,
    /// When it was heard.
    pub heard: Instant,
    /// Who votes in the group, as the leader's log has it.
    pub voters: Voters,
}

/// Holds the newest hint of each group, by term. Cheap to clone.
pub type LeaderHints = Arc<BTreeMap<GroupId, LeaderHint>>;

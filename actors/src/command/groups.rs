//! Commands about where tenant groups live.

use serde::{Deserialize, Serialize};

use crate::domain::ids::GroupId;

/// The initial members of new tenant groups; exactly these initialise them.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceGroups {
    /// Region the groups serve.
    pub region: String,
    /// The groups, none of them known before.
    pub groups: Vec<GroupId>,
    /// Raft ids of their first voters.
    pub members: Vec<u64>,
}

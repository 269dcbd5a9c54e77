//! Commands about where tenant groups live.

use serde::{Deserialize, Serialize};

use crate::domain::ids::GroupId;
use crate::domain::region::Region;

/// Says which members are to have a replica of a tenant group. The group's leader makes it so.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct AssignReplicas {
    /// The group.
    pub group: GroupId,
    /// Raft ids of the members, all of the group's region.
    pub replicas: Vec<u64>,
}

/// The initial members of new tenant groups; exactly these initialise them.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceGroups {
    /// Region the groups serve.
    pub region: Region,
    /// The groups, none of them known before.
    pub groups: Vec<GroupId>,
    /// Raft ids of their first voters.
    pub members: Vec<u64>,
}

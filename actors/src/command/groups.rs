//! Commands about where tenant groups live.

use serde::{Deserialize, Serialize};

use crate::domain::ids::{GroupId, RaftId};
use crate::domain::region::Region;

/// Says which members are to have a replica of a tenant group. The group's leader makes it so.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct AssignReplicas {
    /// The group.
    pub group: GroupId,
    /// Raft ids of the members, all of the group's region.
    pub replicas: Vec<RaftId>,
}

/// The initial members of new tenant groups; exactly these initialise them.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct PlaceGroups {
    /// Region the groups serve.
    pub region: Region,
    /// The groups, none of them known before.
    pub groups: Vec<GroupId>,
    /// Raft ids of their first voters.
    pub members: Vec<RaftId>,
}

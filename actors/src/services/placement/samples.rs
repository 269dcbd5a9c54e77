//! Members, their health and placements, for the tests of placement.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::state::MemberView;
use crate::domain::ids::{NodeId, RaftId, raft_ids};
use crate::domain::views::NodeStatus;
use crate::services::heartbeat::MemberHealth;
use crate::state::system::GroupPlacement;

/// Makes the node id of a member.
pub(super) fn node(raft_id: u64) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(raft_id.into()))
}

/// Makes a member that stays.
pub(super) fn member(raft_id: u64) -> MemberView {
    MemberView {
        node: node(raft_id),
        raft_id: RaftId(raft_id),
        node_addr: format!("host-{raft_id}"),
        region: "default".into(),
        is_leaving: false,
        is_offline: false,
        has_groups: false,
    }
}

/// Makes the health of a member that has been silent for `secs`, or is healthy.
pub(super) fn health(secs: u64) -> MemberHealth {
    let silent_for = Duration::from_secs(secs);
    let is_heard = secs == 0;
    MemberHealth {
        status: if is_heard { NodeStatus::Healthy } else { NodeStatus::Unhealthy },
        heard_at: None,
        unhealthy_for: silent_for,
        is_heard,
        has_room: true,
        lacks_room_for_copy: false,
        damaged: BTreeSet::new(),
        silent_for,
        silent_to_it: BTreeMap::new(),
    }
}

/// Makes the placement of a group that member 1 founded.
pub(super) fn placement(replicas: &[u64]) -> GroupPlacement {
    GroupPlacement {
        region: "default".into(),
        members: vec![RaftId(1)],
        replicas: raft_ids(replicas),
        is_assigned: true,
    }
}

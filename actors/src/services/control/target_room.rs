//! Whether the nodes that are to take a tenant in have room for it.
//!
//! Each of them writes the copy to its log and to files, and what it has no room for holds up every tenant there. So
//! they are asked before anything is sent, and again and again meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use crate::cluster::node_rpc;
use crate::domain::ids::RaftId;
use crate::ports::{LogStatus, Peers};

/// Longest wait for a node's answer. One that does not answer, or does not know the question, is not waited for: what it
/// lacks it says when it is sent something.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Says that a node has no room for a tenant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "member {node} of the target has room for {free} bytes beside its log, and {needed} are needed; make room there, \
     or leave the tenant where it is"
)]
pub(super) struct NoRoom {
    pub node: RaftId,
    pub free: u64,
    pub needed: u64,
}

/// Asks nodes for their room.
#[derive(Clone)]
pub(super) struct TargetRoom {
    pub log: Arc<dyn LogStatus>,
    pub peers: Arc<dyn Peers>,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
}

impl TargetRoom {
    /// Asks all of `nodes` whether they have room for so many bytes.
    pub async fn look(&self, nodes: &[RaftId], needed: u64) -> Result<(), NoRoom> {
        let deadline = Instant::now() + ANSWER_MAX;
        let looks = nodes.iter().map(|node| async {
            let free = match *node == self.raft_id {
                true => self.log.room_for_copies(),
                false => node_rpc::room(&*self.peers, *node, deadline).await.ok()?,
            };
            (free <= needed).then_some(NoRoom { node: *node, free, needed })
        });
        join_all(looks).await.into_iter().flatten().next().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;
    use crate::cluster::node_rpc::{NodeResponse, VERSION};
    use crate::domain::codec;
    use crate::domain::ids::GroupId;
    use crate::domain::voters::Voters;
    use crate::ports::{GroupLead, GroupStatus, PeerError};
    use crate::testing::AnsweringPeers;

    /// A node with so much room.
    struct Own(u64);

    impl LogStatus for Own {
        fn groups(&self) -> Vec<GroupStatus> {
            Vec::new()
        }
        fn last_index(&self, _: GroupId) -> Option<u64> {
            None
        }
        fn led(&self) -> Vec<GroupLead> {
            Vec::new()
        }
        fn leads_changed(&self) -> watch::Receiver<()> {
            watch::Sender::new(()).subscribe()
        }
        fn voters(&self, _: GroupId) -> Option<Voters> {
            None
        }
        fn room_for_copies(&self) -> u64 {
            self.0
        }
    }

    /// Member 2 has so much room, member 3 is of another version, and nobody else is there.
    fn others(room: u64) -> Arc<dyn Peers> {
        Arc::new(AnsweringPeers(move |to: RaftId, _| match to.0 {
            2 => Ok(codec::encode(&(VERSION, NodeResponse::Room(room)))),
            3 => Err(PeerError::Declined { to, why: "not known".to_owned() }),
            _ => Err(PeerError::Unreachable { to, why: "not there".to_owned() }),
        }))
    }

    #[tokio::test]
    async fn every_node_of_the_target_has_to_have_room() {
        let room = TargetRoom { log: Arc::new(Own(100)), peers: others(50), raft_id: RaftId(1) };
        let look = async |nodes: &[u64], needed| {
            let nodes: Vec<RaftId> = nodes.iter().copied().map(RaftId).collect();
            room.look(&nodes, needed).await.map_err(|lacking| (lacking.node.0, lacking.free))
        };
        assert_eq!(look(&[1], 99).await, Ok(()));
        assert_eq!(look(&[1], 100).await, Err((1, 100)));
        assert_eq!(look(&[1, 2], 49).await, Ok(()));
        assert_eq!(look(&[1, 2], 50).await, Err((2, 50)));
        // What is not known stops nothing.
        assert_eq!(look(&[3, 4], 1 << 40).await, Ok(()));
    }
}

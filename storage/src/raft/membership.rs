//! Changes the members of a group, on its leader.
//!
//! Invariants:
//! - Voters change through openraft's joint membership only, so that any two quorums have a member
//!   in common.
//! - A change that finds the membership as it wants it appends nothing, so that a reconciler may
//!   ask again as often as it likes.
//! - A voter that loses its vote stays as a learner.
//! - A leader that loses its own vote hands over: openraft would let it lead on without one.

use std::collections::{BTreeMap, BTreeSet};

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode, RaftMetrics, ServerState};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::ProposeError;

use super::group::Group;
use super::types::TypeConfig;

/// Entries that the next leader may lack when leadership is transferred to it. It has to fetch them
/// while the group takes no proposals.
const TRANSFER_LAG_ENTRIES_MAX: u64 = 1024;

type Change = ChangeMembers<RaftId, EmptyNode>;

impl Group {
    pub async fn add_learner(&self, raft_id: RaftId) -> Result<(), ProposeError> {
        let metrics = self.leading()?;
        if is_settled(&metrics) && has_node(&metrics, raft_id) {
            return Ok(());
        }
        if !has_node(&metrics, raft_id) {
            // Whatever it acknowledged to this leader before it was removed, it may have nothing now.
            self.network().forget(raft_id);
        }
        let added = BTreeMap::from([(raft_id, EmptyNode {})]);
        self.change(ChangeMembers::AddNodes(added)).await
    }

    pub async fn set_voters(&self, voters: BTreeSet<RaftId>) -> Result<(), ProposeError> {
        let metrics = self.leading()?;
        let now = metrics.membership_config.membership().get_joint_config();
        if is_settled(&metrics) && now.len() == 1 && now[0] == voters {
            return Ok(());
        }
        let keeps_vote = voters.contains(&self.raft_id());
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await?;
        if !keeps_vote {
            // After the change is committed: until then this node's own vote may be needed for it.
            self.transfer_to_best().await;
        }
        Ok(())
    }

    pub async fn remove_learner(&self, raft_id: RaftId) -> Result<(), ProposeError> {
        let metrics = self.leading()?;
        if is_settled(&metrics) && !has_node(&metrics, raft_id) {
            return Ok(());
        }
        self.change(ChangeMembers::RemoveNodes(BTreeSet::from([raft_id]))).await
    }

    /// Transfers leadership to a voter. Refuses where that would leave the group without a leader
    /// for long: from then on this node neither takes proposals nor sends heartbeats, whether the
    /// other takes over or not.
    pub async fn transfer(&self, to: RaftId) -> Result<(), ProposeError> {
        let metrics = self.leading()?;
        if to == self.raft_id() {
            return Ok(());
        }
        let is_voter = metrics.membership_config.voter_ids().any(|voter| voter == to);
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&to)?.as_ref());
        let matched = matched.map_or(0, openraft::LogId::index);
        let lag = metrics.last_log_index.unwrap_or(0).saturating_sub(matched);
        if !is_voter || lag > TRANSFER_LAG_ENTRIES_MAX {
            tracing::info!(
                group = %self.id(), to = to.0, is_voter, lag,
                "leadership is not transferred: no voter, or too far behind"
            );
            return Err(ProposeError::NoLeader);
        }
        self.raft().trigger().transfer_leader(to).await.map_err(|_| ProposeError::Stopping)
    }

    /// Transfers leadership to the voter that lacks least. Where there is none the group goes on
    /// with this node, until it is asked again.
    async fn transfer_to_best(&self) {
        let Ok(metrics) = self.leading() else { return };
        let matched = metrics.replication.unwrap_or_default();
        let voters = metrics.membership_config.voter_ids();
        let best = voters.max_by_key(|voter| matched.get(voter).cloned().flatten());
        if let Some(best) = best
            && let Err(error) = self.transfer(best).await
        {
            tracing::warn!(group = %self.id(), %error, "this node leads on without a vote");
        }
    }

    /// Gives openraft's metrics of the group, if this node leads it.
    fn leading(&self) -> Result<RaftMetrics<TypeConfig>, ProposeError> {
        let metrics = self.raft().metrics().borrow_watched().clone();
        match metrics.current_leader {
            Some(leader) if leader != self.raft_id() => Err(ProposeError::NotLeader),
            Some(_) if metrics.state == ServerState::Leader => Ok(metrics),
            _ => Err(ProposeError::NoLeader),
        }
    }

    async fn change(&self, change: Change) -> Result<(), ProposeError> {
        let told = change.to_string();
        match self.raft().change_membership(change, true).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                Err(self.not_here(&forward))
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(refused))) => {
                // Nothing was appended. A change under way ends by itself. Anything else is a
                // mistake of the caller's, and the port has no word for it: it is logged, and may
                // be tried again.
                if !matches!(refused, ChangeMembershipError::InProgress(_)) {
                    tracing::error!(group = %self.id(), change = told, %refused, "refused");
                }
                Err(ProposeError::NoLeader)
            }
            Err(error) => Err(ProposeError::Unknown(error.to_string())),
        }
    }
}

/// Tells whether the membership in force is committed.
fn is_settled(metrics: &RaftMetrics<TypeConfig>) -> bool {
    metrics.membership_config.log_id() == metrics.committed_membership_config.log_id()
}

fn has_node(metrics: &RaftMetrics<TypeConfig>, raft_id: RaftId) -> bool {
    metrics.membership_config.nodes().any(|(id, _)| *id == raft_id)
}

//! Who belongs to the cluster: join tokens, removal, handing over the lead.

use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Cluster;
use crate::cluster::join::JoinSecret;
use crate::cluster::node_rpc::{self, StepDownError};
use crate::command::{CreateJoinToken, DrainMember, Refusal, RemoveJoinToken, RemoveNode};
use crate::domain::ids::{GroupId, NodeId, RaftId, TokenId};
use crate::domain::membership::JoinToken;
use crate::domain::page::{Page, PageRequest};
use crate::domain::region::Region;
use crate::domain::views::{JoinTokenView, NewJoinToken};
use crate::domain::voters::TENANT_GROUP_VOTERS;
use crate::handles::cluster::page_by_key;
use crate::ports::PeerError;
use crate::ports::error::CallError;
use crate::services::placement::keeps_quorum;
use crate::services::{Call, Created};
use crate::state::system::SystemState;

/// Wait before it is looked again whether a node is gone.
const GONE_POLL: Duration = Duration::from_millis(50);

impl Cluster {
    /// Forgets a node. A member is drained first: returns when it is gone.
    ///
    /// # Errors
    /// When there is none with this id, a quorum depends on it, or it is not gone by the deadline.
    pub async fn remove(&self, call: &Call, node: NodeId) -> Result<(), CallError> {
        let find = move |state: &SystemState| {
            let found = state.members().find(|(id, _, _)| *id == node);
            found.map(|(_, _, member)| (member.raft_id, member.leaving))
        };
        let found = self.control.read_linearizable(call.deadline, find).await?;
        let Some((raft_id, is_leaving)) = found else {
            return self.control.ask(call, RemoveNode { node }).await;
        };
        // Who leaves is not told to stay: this very request may have been tried before, at a leader
        // that saw more of the others.
        if !is_leaving {
            self.check_quorum_without(call, raft_id).await?;
        }
        self.control.ask(call, DrainMember { node }).await?;
        loop {
            let exists = move |state: &SystemState| state.nodes().contains_key(&node);
            match self.control.read_linearizable(call.deadline, exists).await {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) => return Err(still_leaving(node, error)),
            }
            tokio::time::sleep(GONE_POLL).await;
        }
    }

    async fn check_quorum_without(&self, call: &Call, raft_id: RaftId) -> Result<(), CallError> {
        let health = self.heartbeats.health(call.deadline).await?;
        // Who could have the replicas of each tenant group instead.
        let read = move |state: &SystemState| {
            let others = |region: &Region| -> Vec<RaftId> {
                let members = state.members().filter(|(_, node, member)| {
                    node.region == *region && !member.leaving && member.raft_id != raft_id
                });
                members.map(|(_, _, member)| member.raft_id).collect()
            };
            let groups = state.groups().iter();
            let groups = groups.map(|(id, it)| (*id, it.replicas.clone(), others(&it.region)));
            groups.collect::<Vec<_>>()
        };
        let groups = self.control.read(call.deadline, read).await?;
        let is_alive = |id: &RaftId| self.is_alive(&health, *id);
        let loses = |(group, placed, others): &(GroupId, Vec<RaftId>, Vec<RaftId>)| {
            let mut sets = self.router.voters(*group, placed).sets.into_iter();
            sets.any(|voters| {
                let mut rest = voters.clone();
                if !rest.remove(&raft_id) || keeps_quorum(&rest, &health, self.raft_id) {
                    return false;
                }
                // It has to have a quorum now, to take others in, and then with them.
                let lacking = TENANT_GROUP_VOTERS.saturating_sub(rest.len());
                let instead = others.iter().filter(|id| !voters.contains(id) && is_alive(id));
                rest.extend(instead.take(lacking));
                !keeps_quorum(&voters, &health, self.raft_id)
                    || !keeps_quorum(&rest, &health, self.raft_id)
            })
        };
        let system = (GroupId::SYSTEM, Vec::new(), Vec::new());
        match groups.iter().chain([&system]).filter(|group| loses(group)).count() {
            0 => Ok(()),
            groups => Err(Refusal::WouldLoseQuorum { groups: groups as u64 }.into()),
        }
    }

    /// Makes a token that admits nodes.
    ///
    /// # Errors
    /// When too many are kept, or it came to no outcome by the deadline.
    pub async fn create_join_token(
        &self,
        call: &Call,
        ttl: Option<Duration>,
        uses: Option<u32>,
    ) -> Result<Created<NewJoinToken>, CallError> {
        let read = |state: &SystemState| state.authority().map(|it| it.certificate.clone());
        let authority = self.control.read_linearizable(call.deadline, read).await?;
        let authority = authority.ok_or(CallError::Starting { what: "the cluster" })?;
        let id = TokenId::from_uuid(self.seams.uuid());
        let fingerprint = Sha256::digest(&authority).into();
        let secret = JoinSecret::generate(&*self.seams.entropy, id, fingerprint);
        let millis = |ttl: Duration| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let now = self.seams.clock.now();
        let token = JoinToken {
            secret_hash: secret.hash(),
            expires_at: ttl.map(|ttl| now.plus_ms(millis(ttl))),
            uses_left: uses,
            created_at: now,
        };
        let expires_at = token.expires_at;
        let command = CreateJoinToken { id, token, idempotency: call.idempotency };
        let made = self.control.ask(call, command).await?.token;
        if made == id {
            let token = Some(secret.reveal());
            let resource = NewJoinToken { id, token, expires_at, uses };
            return Ok(Created { resource, replayed: false });
        }
        // Another attempt of the same request made one, with a secret that is lost.
        let find = move |state: &SystemState| state.join_token(made).cloned();
        let known = self.control.read(call.deadline, find).await?;
        let known = known.ok_or(Refusal::TokenNotFound)?;
        let JoinToken { expires_at, uses_left: uses, .. } = known;
        let resource = NewJoinToken { id: made, token: None, expires_at, uses };
        Ok(Created { resource, replayed: true })
    }

    /// The join tokens, without their secrets.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn join_tokens(
        &self,
        call: &Call,
        page: PageRequest,
    ) -> Result<Page<JoinTokenView>, CallError> {
        let read = move |state: &SystemState| {
            let tokens = state.join_tokens().map(|(id, token)| {
                let JoinToken { created_at, expires_at, uses_left, .. } = *token;
                ((created_at.0, id), JoinTokenView { id, expires_at, uses_left })
            });
            page_by_key(tokens, &page)
        };
        self.control.read_for(call, read).await
    }

    /// Revokes a join token.
    ///
    /// # Errors
    /// When there is none with this id, or it came to no outcome by the deadline.
    pub async fn remove_join_token(&self, call: &Call, id: TokenId) -> Result<(), CallError> {
        self.control.ask(call, RemoveJoinToken { id }).await
    }

    /// Hands leadership over: whoever leads now does not any more when this returns. Asked of any
    /// node; it means the leader of the term that this node knows, so that asking twice does not
    /// take the lead from the next one.
    ///
    /// # Errors
    /// When nobody else could lead, or nobody does by the deadline.
    pub async fn step_down(&self, call: &Call) -> Result<(), CallError> {
        let known = self.elector.led(call.deadline).await?;
        let Some(leader) = known.leader.filter(|leader| *leader != self.raft_id) else {
            return self.elector.step_down(GroupId::SYSTEM, call.deadline).await;
        };
        let asked = node_rpc::step_down(self.router.peers(), leader, known.term, call.deadline);
        match asked.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(StepDownError::NoOtherCandidate)) => Err(Refusal::NoOtherCandidate.into()),
            Ok(Err(StepDownError::NotYet(why))) => Err(CallError::Unknown { why }),
            Err(PeerError::Lost { why, .. }) => Err(CallError::Unknown { why }),
            Err(PeerError::Unreachable { .. } | PeerError::Declined { .. }) => {
                Err(CallError::NoLeader)
            }
        }
    }
}

/// Says that a node which is being removed is not gone by the deadline. It is drained meanwhile, whatever the caller does.
fn still_leaving(node: NodeId, error: CallError) -> CallError {
    match error.after_write() {
        CallError::Unknown { why } => CallError::Unknown {
            why: format!(
                "{node} is being removed, which goes on: its replicas are given to others first; \
                 GET /api/cluster/nodes/{node} shows it as leaving, and answers 404 once it is gone ({why})"
            ),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_that_takes_long_says_that_it_goes_on() {
        let node = NodeId::from_uuid(uuid::Uuid::from_u128(7));
        let told = still_leaving(node, CallError::NoLeader);
        let CallError::Unknown { why } = told else { panic!("{told:?}: the removal was accepted") };
        assert!(why.starts_with(&format!("{node} is being removed")), "{why}");
        assert!(why.contains("no leader at the moment"), "{why}");
    }
}

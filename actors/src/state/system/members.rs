//! Members: who belongs to the cluster, who is admitted, and who leaves.
//!
//! Invariants:
//! - an id in Raft groups is given once and never again;
//! - a member is admitted by its key: who has another key is another node;
//! - a member that votes alone in a group is not removed;
//! - join secrets and the admin token are kept as hashes only.

use super::nodes::{MemberRecord, NodeRecord};
use super::{CreatedResource, SystemEffect, SystemState};
use crate::command::{Idempotency, MemberAdmitted, NodeRegistered, Outcome, Refusal, TokenCreated};
use crate::domain::ids::{NodeId, RaftId, TokenId};
use crate::domain::membership::{Authority, EXPIRED, JoinToken, Member, SHARED_SECRET};
use crate::domain::secret::SecretHash;
use crate::domain::time::Timestamp;
use crate::ports::Peer;
use crate::state::AGE_STEP_MS_MAX;

/// Most members.
pub const MEMBERS_MAX: usize = 64;
/// Most join tokens.
const TOKENS_MAX: usize = 1000;

type Applied = (Outcome, Vec<SystemEffect>);

const fn refused(refusal: Refusal) -> Applied {
    (Outcome::Refused(refusal), Vec::new())
}

impl SystemState {
    /// Who signs certificates; `None` before the cluster is founded.
    pub const fn authority(&self) -> Option<&Authority> {
        self.authority.as_ref()
    }

    /// A join token.
    pub fn join_token(&self, id: TokenId) -> Option<&JoinToken> {
        self.tokens.get(&id)
    }

    /// All join tokens.
    pub fn join_tokens(&self) -> impl Iterator<Item = (TokenId, &JoinToken)> {
        self.tokens.iter().map(|(id, token)| (*id, token))
    }

    /// Whether a node on the same machine may join without a token.
    pub const fn is_open_to_loopback(&self) -> bool {
        !self.meta.needs_token && self.admin_token.is_none()
    }

    /// Hash of the token that management calls need; `None` where nobody set one.
    pub const fn admin_token(&self) -> Option<SecretHash> {
        self.admin_token
    }

    /// The last id in Raft groups that was given.
    pub const fn last_raft_id(&self) -> RaftId {
        self.meta.last_raft_id
    }

    /// All members, by node id.
    pub fn members(&self) -> impl Iterator<Item = (NodeId, &NodeRecord, &MemberRecord)> {
        let nodes = self.nodes.iter();
        nodes.filter_map(|(id, record)| Some((*id, record, record.member.as_ref()?)))
    }

    /// All members, as those who call them need to know them.
    pub fn peers(&self) -> Vec<Peer> {
        let peer = |(node, _, member): (NodeId, &NodeRecord, &MemberRecord)| Peer {
            raft_id: member.raft_id,
            node,
            addr: member.node_addr.clone(),
        };
        self.members().map(peer).collect()
    }

    /// The first member, and with it the cluster.
    pub(super) fn found(
        &mut self,
        authority: &Authority,
        member: &Member,
        key: [u8; 32],
        secret_hash: Option<SecretHash>,
        at: Timestamp,
    ) -> Applied {
        if self.authority.is_some() {
            return (Outcome::Ignored, Vec::new());
        }
        self.authority = Some(authority.clone());
        self.dirty.authority = true;
        if let Some(secret_hash) = secret_hash {
            let token =
                JoinToken { secret_hash, expires_at: None, uses_left: None, created_at: at };
            self.tokens.insert(SHARED_SECRET, token);
            self.dirty.tokens.insert(SHARED_SECRET);
            self.meta.needs_token = true;
        }
        self.meta.last_raft_id = self.meta.last_raft_id.max(member.raft_id);
        self.list(member, member.raft_id, key, at);
        (Outcome::Done, vec![SystemEffect::MembersChanged])
    }

    /// The first token stands: a node that was started with another one learns that.
    pub(super) fn set_admin_token(&mut self, hash: SecretHash) -> Applied {
        match self.admin_token {
            Some(known) if known == hash => (Outcome::Done, Vec::new()),
            Some(_) => refused(Refusal::OtherAdminToken),
            None => {
                self.admin_token = Some(hash);
                self.dirty.admin_token = true;
                (Outcome::Done, vec![SystemEffect::AdminTokenSet])
            }
        }
    }

    /// Lets a node in, once: the same node with the same key gets the same answer again.
    pub(super) fn admit_member(
        &mut self,
        member: &Member,
        key: [u8; 32],
        token: Option<TokenId>,
        at: Timestamp,
    ) -> Applied {
        let invalid = |why: &str| refused(Refusal::TokenInvalid { why: why.to_owned() });
        if self.authority.is_none() {
            // The first id is the founder's, and its rules are not known yet.
            return (Outcome::Ignored, Vec::new());
        }
        if let Some(known) = self.nodes.get(&member.node) {
            return match &known.member {
                Some(known) if known.public_key == key => {
                    (Outcome::Admitted(MemberAdmitted { raft_id: known.raft_id }), Vec::new())
                }
                _ => invalid("another node has this node's id"),
            };
        }
        match token.map(|id| (id, self.tokens.get(&id))) {
            None if !self.is_open_to_loopback() => return invalid("this cluster asks for one"),
            None => {}
            Some((_, None)) => return invalid("it is not known"),
            Some((id, Some(token))) => {
                // By the command's own time: a clock that was ahead before says nothing now.
                if let Some(why) = token.why_not(self.time.own()) {
                    return invalid(why);
                }
                if self.has_outlived_its_label(id, token) {
                    return invalid(EXPIRED);
                }
            }
        }
        if self.members().count() >= MEMBERS_MAX {
            let limit = MEMBERS_MAX as u64;
            return refused(Refusal::TooMany { what: "members".to_owned(), limit });
        }
        if let Some(id) = token
            && let Some(uses) = self.tokens.get_mut(&id).and_then(|token| token.uses_left.as_mut())
        {
            *uses -= 1;
            self.dirty.tokens.insert(id);
        }
        self.meta.last_raft_id.0 += 1;
        let raft_id = self.meta.last_raft_id;
        self.list(member, raft_id, key, at);
        (Outcome::Admitted(MemberAdmitted { raft_id }), vec![SystemEffect::MembersChanged])
    }

    fn list(&mut self, member: &Member, raft_id: RaftId, public_key: [u8; 32], at: Timestamp) {
        let record = NodeRecord {
            address: member.api_addr.clone(),
            region: member.region.clone(),
            metadata: member.labels.clone(),
            started_at: at,
            member: Some(MemberRecord {
                raft_id,
                node_addr: member.node_addr.clone(),
                version: member.version.clone(),
                public_key,
                offline: false,
                leaving: false,
            }),
        };
        self.adopt_node(member.node, record);
        self.dirty.nodes.insert(member.node);
    }

    /// A member has started.
    pub(super) fn register_member(&mut self, member: &Member, at: Timestamp) -> Applied {
        let known = self.nodes.get(&member.node).and_then(|node| node.member.as_ref());
        let Some(known) = known.filter(|known| known.raft_id == member.raft_id) else {
            return refused(Refusal::NotAMember);
        };
        let (public_key, leaving) = (known.public_key, known.leaving);
        self.list(member, member.raft_id, public_key, at);
        if let Some(record) = self.nodes.get_mut(&member.node).and_then(|node| node.member.as_mut())
        {
            record.leaving = leaving;
        }
        let outcome = Outcome::Node(NodeRegistered { node: member.node, replayed: false });
        (outcome, vec![SystemEffect::MembersChanged])
    }

    pub(super) fn member_offline(&mut self, node: NodeId) -> Applied {
        let member = self.nodes.get_mut(&node).and_then(|record| record.member.as_mut());
        let Some(member) = member else { return (Outcome::Ignored, Vec::new()) };
        member.offline = true;
        self.dirty.nodes.insert(node);
        (Outcome::Done, vec![SystemEffect::MembersChanged])
    }

    /// A member is to leave: the leader takes its vote away, and then removes it.
    pub(super) fn drain_member(&mut self, node: NodeId) -> Applied {
        let Some(raft_id) = self.nodes.get(&node).and_then(|record| record.raft_id()) else {
            return refused(Refusal::NodeNotFound);
        };
        if let Some(refusal) = self.needed_by_groups(raft_id) {
            return refused(refusal);
        }
        if let Some(member) = self.nodes.get_mut(&node).and_then(|record| record.member.as_mut()) {
            member.leaving = true;
        }
        self.dirty.nodes.insert(node);
        (Outcome::Done, vec![SystemEffect::MembersChanged])
    }

    /// Forgets a node. A member has lost its vote before.
    pub(super) fn remove_node(&mut self, node: NodeId) -> Applied {
        let Some(record) = self.nodes.get(&node) else {
            return refused(Refusal::NodeNotFound);
        };
        let mut effects = vec![SystemEffect::NodeRemoved(node)];
        if let Some(member) = &record.member {
            let groups = self.groups.values().filter(|it| it.replicas.contains(&member.raft_id));
            let groups = groups.count() as u64;
            if groups > 0 {
                return refused(Refusal::WouldLoseQuorum { groups });
            }
            if !member.leaving {
                return refused(Refusal::WouldLoseQuorum { groups: 1 });
            }
            effects.push(SystemEffect::MembersChanged);
        }
        if let Some(record) = self.nodes.remove(&node) {
            self.http_nodes_bytes -= super::nodes::http_bytes(node, &record);
        }
        self.dirty.nodes.insert(node);
        (Outcome::Done, effects)
    }

    pub(super) fn create_token(
        &mut self,
        id: TokenId,
        token: &JoinToken,
        idempotency: Option<&Idempotency>,
    ) -> Applied {
        match self.calls.check(idempotency, self.time.aged()) {
            Err(refusal) => return refused(refusal),
            Ok(Some(CreatedResource::Token(token))) => {
                return (Outcome::Token(TokenCreated { token, replayed: true }), Vec::new());
            }
            Ok(Some(CreatedResource::Tenant(_) | CreatedResource::Node(_)) | None) => {}
        }
        self.forget_spent_tokens();
        if self.tokens.len() >= TOKENS_MAX {
            let limit = TOKENS_MAX as u64;
            return refused(Refusal::TooMany { what: "join tokens".to_owned(), limit });
        }
        // `created_at` and `expires_at` are of one clock, the proposer's: their difference is how
        // long the token lives.
        self.tokens.insert(id, token.clone());
        self.tokens_born.insert(id, self.time.aged());
        self.dirty.tokens.insert(id);
        self.calls.remember(idempotency, self.time.aged(), CreatedResource::Token(id));
        (Outcome::Token(TokenCreated { token: id, replayed: false }), Vec::new())
    }

    pub(super) fn remove_token(&mut self, id: TokenId) -> Applied {
        if self.tokens.remove(&id).is_none() {
            return refused(Refusal::TokenNotFound);
        }
        self.tokens_born.remove(&id);
        self.dirty.tokens.insert(id);
        (Outcome::Done, Vec::new())
    }

    /// Whether a token that was made while the clock was ahead, so that its label lies ahead as well,
    /// has been there for longer than it was to live. A step more is for a clock that is ahead
    /// meanwhile.
    fn has_outlived_its_label(&self, id: TokenId, token: &JoinToken) -> bool {
        if token.created_at <= self.time.own() {
            return false;
        }
        let lifetime = token.expires_at.map(|end| end.ms_since(token.created_at));
        let born = self.tokens_born.get(&id);
        lifetime.zip(born).is_some_and(|(lifetime, born)| {
            self.time.aged().ms_since(*born) > lifetime.saturating_add(AGE_STEP_MS_MAX)
        })
    }

    /// Forgets tokens that are used up. One whose time is over may be good again once the clock is
    /// right: it goes only where the table is full.
    fn forget_spent_tokens(&mut self) {
        let is_full = self.tokens.len() >= TOKENS_MAX;
        let now = self.time.own();
        let spent = self.tokens.iter().filter(|(id, token)| {
            let is_over =
                || token.why_not(now).is_some() || self.has_outlived_its_label(**id, token);
            token.uses_left == Some(0) || is_full && is_over()
        });
        let spent: Vec<TokenId> = spent.map(|(id, _)| *id).collect();
        for id in spent {
            self.tokens.remove(&id);
            self.tokens_born.remove(&id);
            self.dirty.tokens.insert(id);
        }
    }
}

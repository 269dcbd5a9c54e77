//! The control plane's state machine: tenants, nodes, locks, placement. Pure; group 0 replicates
//! it on every node.
//!
//! Group 0 is the authority on tenants: what it decides travels to a tenant's own group as
//! `(epoch, version, record)`, and `unconfirmed` remembers what has not arrived there yet. That
//! protocol is told in `services/control/mod.rs`, admission in `cluster/join/mod.rs`.
//!
//! Every member has this state in memory, whole, and a member that is far behind is sent all of it
//! at once. So each table is bounded, in entries or in bytes; a tombstone counts as well.

mod group_placement;
mod members;
mod moves;
mod nodes;
mod recovery;
mod tenants;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use group_placement::GroupPlacement;
pub use members::MEMBERS_MAX;
pub use moves::{MovePhase, TenantMove};
pub use nodes::{MemberRecord, NodeRecord};
pub use tenants::{TenantEntry, group_among};

use crate::command::{
    AdmitMember, AssignReplicas, BOUNDS_TABLES_FROM, Command, ConfirmTenant, CreateJoinToken,
    CreateTenant, DeleteTenant, DrainMember, Envelope, Found, LeaderElected, MOVES_REPLICAS_FROM,
    MOVES_TENANTS_FROM, MemberOffline, Outcome, PlaceGroups, Recover, RegisterNode,
    RemoveJoinToken, RemoveNode, SetAdminToken, SystemCommand, UpdateTenant,
};
use crate::domain::codec;
use crate::domain::ids::{GroupId, NodeId, Position, RaftId, TenantId, TokenId};
use crate::domain::lock::{FencingToken, Holder, LockKey};
use crate::domain::membership::{Authority, JoinToken};
use crate::domain::secret::SecretHash;
use crate::domain::time::Timestamp;
use crate::ports::{Row, StoreError};
use crate::state::machine::{self, Rules};
use crate::state::tables::completion_records::CompletionRecords;
use crate::state::tables::idempotency::IdempotencyTable;
use crate::state::tables::lock_table::{LockNotice, LockTable};
use crate::state::{RowBuffer, StateClock, StateMachine, row_key};

/// The kind of a row: the first byte of its key. `completion_records.rs` has `a` and `v`,
/// `lock_table.rs` `l`, `clock.rs` `y`.
mod kind {
    pub const ADMIN_TOKEN: u8 = b'p';
    pub const AUTHORITY: u8 = b'c';
    pub const GROUP: u8 = b'g';
    pub const IDEMPOTENCY: u8 = b'i';
    pub const META: u8 = b'm';
    pub const MOVE: u8 = b'w';
    pub const NODE: u8 = b'n';
    pub const REPLICAS: u8 = b'r';
    pub const TENANT: u8 = b't';
    pub const TOKEN: u8 = b'j';
    pub const TOKEN_BORN: u8 = b'b';
}

/// What a creating call on the control plane made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CreatedResource {
    /// A tenant.
    Tenant(TenantId),
    /// A node.
    Node(NodeId),
    /// A join token.
    Token(TokenId),
}

/// Counters of the control plane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Meta {
    /// What labels are made with: `SystemState::time` says.
    last_at: Timestamp,
    last_lock_token: FencingToken,
    tenants_created: u64,
    /// The last id in Raft groups that was given.
    last_raft_id: RaftId,
    /// Whether also nodes on the same machine need a token to join.
    needs_token: bool,
}

/// What the leader, or this node, is to do after a command.
#[derive(Debug, Clone, PartialEq)]
pub enum SystemEffect {
    /// A tenant was created, changed or deleted: its group is to learn it.
    TenantChanged(TenantId),
    /// A tenant's move began, came further or ended: who leads its source carries it out.
    MoveChanged(TenantId),
    /// Groups were placed: their first members start them.
    GroupsPlaced,
    /// Members came, went, or changed their addresses.
    MembersChanged,
    /// A node is gone.
    NodeRemoved(NodeId),
    /// A lock changed.
    Lock(LockNotice),
    /// The cluster has an admin token now.
    AdminTokenSet,
}

/// The control plane.
#[derive(Debug, Default)]
pub struct SystemState {
    meta: Meta,
    time: StateClock,
    tenants: BTreeMap<TenantId, TenantEntry>,
    /// Tenants that exist, by the order they were created in.
    by_creation: BTreeMap<u64, TenantId>,
    /// Tenants whose group may not have the newest version yet.
    unconfirmed: BTreeSet<TenantId>,
    moves: BTreeMap<TenantId, TenantMove>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    groups: BTreeMap<GroupId, GroupPlacement>,
    locks: LockTable,
    calls: IdempotencyTable<CreatedResource>,
    completions: CompletionRecords,
    authority: Option<Authority>,
    tokens: BTreeMap<TokenId, JoinToken>,
    /// When each token was made, by [`StateClock::aged`].
    tokens_born: BTreeMap<TokenId, Timestamp>,
    admin_token: Option<SecretHash>,
    /// Bytes of the rows of tenants, tombstones too.
    tenants_bytes: u64,
    /// Bytes of the rows of nodes that are no members.
    http_nodes_bytes: u64,
    /// Whether the command at hand is judged by bounds in bytes.
    bounds_tables: bool,
    /// Whether the command at hand counts on replicas being moved.
    moves_replicas: bool,
    /// Whether the command at hand may move a tenant.
    moves_tenants: bool,
    dirty: Dirty,
}

/// What a row is taken to cost beside its value, bytes.
const ROW_BYTES: u64 = 96;

/// Bytes of the row of a value.
fn row_bytes<T: Serialize>(value: &T) -> u64 {
    codec::encoded_len(value) as u64 + ROW_BYTES
}

#[derive(Debug, Default)]
struct Dirty {
    meta: bool,
    authority: bool,
    admin_token: bool,
    tokens: BTreeSet<TokenId>,
    tenants: BTreeSet<TenantId>,
    moves: BTreeSet<TenantId>,
    nodes: BTreeSet<NodeId>,
    groups: BTreeSet<GroupId>,
}

impl SystemState {
    /// The locks of the cluster.
    pub const fn locks(&self) -> &LockTable {
        &self.locks
    }

    fn apply_command(
        &mut self,
        term: u64,
        command: &SystemCommand,
        at: Timestamp,
    ) -> (Outcome, Vec<SystemEffect>) {
        match command {
            SystemCommand::Found(Found { authority, member, public_key, secret_hash }) => {
                self.found(authority, member, *public_key, *secret_hash, at)
            }
            SystemCommand::AdmitMember(AdmitMember { member, public_key, token }) => {
                self.admit_member(member, *public_key, *token, at)
            }
            SystemCommand::RegisterMember(member) => self.register_member(member, at),
            SystemCommand::MemberOffline(MemberOffline { node }) => self.member_offline(*node),
            SystemCommand::DrainMember(DrainMember { node }) => self.drain_member(*node),
            SystemCommand::CreateJoinToken(CreateJoinToken { id, token, idempotency }) => {
                self.create_token(*id, token, idempotency.as_ref())
            }
            SystemCommand::RemoveJoinToken(RemoveJoinToken { id }) => self.remove_token(*id),
            SystemCommand::RegisterNode(RegisterNode {
                node,
                address,
                region,
                metadata,
                idempotency,
            }) => {
                let record = NodeRecord::http(address, region, metadata, at);
                self.register_node(*node, record, idempotency.as_ref())
            }
            SystemCommand::RemoveNode(RemoveNode { node }) => self.remove_node(*node),
            SystemCommand::LeaderElected(LeaderElected { node }) => {
                let lock = self.locks.seize(LockKey::leader(), Holder::from(*node), at);
                tracing::debug!(term, %node, token = lock.token.0, "leader of the cluster");
                (Outcome::Locked(lock), Vec::new())
            }
            SystemCommand::PlaceGroups(PlaceGroups { region, groups, members }) => {
                self.place_groups(region, groups, members)
            }
            SystemCommand::CreateTenant(CreateTenant {
                tenant,
                record,
                strict_region,
                fallback_region,
                idempotency,
            }) => {
                let fallback = (!strict_region).then_some(fallback_region);
                self.create_tenant(*tenant, record, fallback, idempotency.as_ref(), at)
            }
            SystemCommand::UpdateTenant(UpdateTenant { tenant, change, if_version }) => {
                self.update_tenant(*tenant, change, *if_version, at)
            }
            SystemCommand::DeleteTenant(DeleteTenant { tenant, if_version }) => {
                self.delete_tenant(*tenant, *if_version)
            }
            SystemCommand::ConfirmTenant(ConfirmTenant { tenant, version }) => {
                self.confirm_tenant(*tenant, *version)
            }
            SystemCommand::Lock(command) => {
                let (outcome, notice) = self.locks.apply(command, at);
                (outcome, notice.map(SystemEffect::Lock).into_iter().collect())
            }
            SystemCommand::TimePassed(_) => (Outcome::Done, Vec::new()),
            SystemCommand::SetAdminToken(SetAdminToken { hash }) => self.set_admin_token(*hash),
            SystemCommand::AssignReplicas(AssignReplicas { group, replicas }) => {
                self.assign_replicas(*group, replicas)
            }
            SystemCommand::Recover(Recover { authority, raft_id, groups }) => {
                self.recover(authority, *raft_id, groups)
            }
            SystemCommand::StepMove(step) => self.step_move(step, at),
        }
    }
}

impl Rules for SystemState {
    type Effect = SystemEffect;

    fn takes(&self, envelope: &Envelope) -> Result<(), Outcome> {
        match &envelope.command {
            Command::System(_) => Ok(()),
            Command::Tenant { .. } => Err(Outcome::Ignored),
        }
    }

    fn begin(&mut self, envelope: &Envelope) {
        self.bounds_tables = envelope.version >= BOUNDS_TABLES_FROM;
        self.moves_replicas = envelope.version >= MOVES_REPLICAS_FROM;
        self.moves_tenants = envelope.version >= MOVES_TENANTS_FROM;
        self.time.tell(envelope.at, envelope.pause());
        self.meta.last_at = self.time.now();
        self.dirty.meta = true;
    }

    fn completions(&mut self) -> &mut CompletionRecords {
        &mut self.completions
    }

    fn execute(&mut self, term: u64, envelope: &Envelope) -> (Outcome, Vec<SystemEffect>) {
        match &envelope.command {
            Command::System(command) => self.apply_command(term, command, self.time.now()),
            Command::Tenant { .. } => (Outcome::Ignored, Vec::new()),
        }
    }
}

impl StateMachine for SystemState {
    type Effect = SystemEffect;

    fn load(rows: &RowBuffer) -> Result<Self, StoreError> {
        let meta: Meta = rows.get(&[kind::META])?.unwrap_or_default();
        let mut state = Self {
            meta,
            time: StateClock::load(rows, meta.last_at)?,
            locks: LockTable::load(rows, meta.last_lock_token)?,
            calls: IdempotencyTable::load(rows, kind::IDEMPOTENCY)?,
            completions: CompletionRecords::load(rows)?,
            authority: rows.get(&[kind::AUTHORITY])?,
            admin_token: rows.get(&[kind::ADMIN_TOKEN])?,
            ..Self::default()
        };
        for (_, (group, placement)) in rows.all::<(GroupId, GroupPlacement)>(kind::GROUP)? {
            let replicas = placement.members.clone();
            state.groups.insert(group, GroupPlacement { replicas, ..placement });
        }
        for (_, (group, replicas)) in rows.all::<(GroupId, Vec<RaftId>)>(kind::REPLICAS)? {
            if let Some(placement) = state.groups.get_mut(&group) {
                placement.replicas = replicas;
                placement.is_assigned = true;
            }
        }
        for (_, (node, record)) in rows.all::<(NodeId, NodeRecord)>(kind::NODE)? {
            state.adopt_node(node, record);
        }
        for (_, (id, token)) in rows.all::<(TokenId, JoinToken)>(kind::TOKEN)? {
            state.tokens.insert(id, token);
        }
        for (_, (id, born)) in rows.all::<(TokenId, Timestamp)>(kind::TOKEN_BORN)? {
            state.tokens_born.insert(id, born);
        }
        for (_, (tenant, entry)) in rows.all::<(TenantId, TenantEntry)>(kind::TENANT)? {
            state.adopt_tenant(tenant, entry);
        }
        for (_, (tenant, it)) in rows.all::<(TenantId, TenantMove)>(kind::MOVE)? {
            state.moves.insert(tenant, it);
        }
        Ok(state)
    }

    fn apply(&mut self, position: Position, envelope: &Envelope) -> (Outcome, Vec<SystemEffect>) {
        machine::apply(self, position, envelope)
    }

    fn check_events(bytes: &[u8], _: &mut bool) -> Result<usize, usize> {
        // It writes none.
        if bytes.is_empty() { Ok(0) } else { Err(0) }
    }

    fn take_events(&mut self) -> Vec<u8> {
        Vec::new()
    }

    fn take_final_rows(&mut self) -> Vec<Row> {
        Vec::new()
    }

    fn take_dirty_rows(&mut self) -> Vec<Row> {
        let dirty = std::mem::take(&mut self.dirty);
        let mut rows = Vec::new();
        if dirty.meta {
            self.meta.last_lock_token = self.locks.last_token();
            rows.push((vec![kind::META], Some(codec::encode(&self.meta))));
            rows.push(self.time.row());
        }
        for id in dirty.tenants {
            let entry = self.tenants.get(&id).map(|entry| codec::encode(&(id, entry)));
            rows.push((row_key(kind::TENANT, id.uuid().as_bytes()), entry));
        }
        for id in dirty.moves {
            let it = self.moves.get(&id).map(|it| codec::encode(&(id, it)));
            rows.push((row_key(kind::MOVE, id.uuid().as_bytes()), it));
        }
        for id in dirty.nodes {
            let record = self.nodes.get(&id).map(|record| codec::encode(&(id, record)));
            rows.push((row_key(kind::NODE, id.uuid().as_bytes()), record));
        }
        if dirty.authority {
            rows.push((vec![kind::AUTHORITY], self.authority.as_ref().map(codec::encode)));
        }
        if dirty.admin_token {
            rows.push((vec![kind::ADMIN_TOKEN], self.admin_token.as_ref().map(codec::encode)));
        }
        for id in dirty.tokens {
            let token = self.tokens.get(&id).map(|token| codec::encode(&(id, token)));
            rows.push((row_key(kind::TOKEN, id.uuid().as_bytes()), token));
            let born = self.tokens_born.get(&id).map(|born| codec::encode(&(id, born)));
            rows.push((row_key(kind::TOKEN_BORN, id.uuid().as_bytes()), born));
        }
        for id in dirty.groups {
            let placement = self.groups.get(&id);
            let assigned = placement.filter(|it| it.is_assigned);
            let assigned = assigned.map(|it| codec::encode(&(id, &it.replicas)));
            let placement = placement.map(|placement| codec::encode(&(id, placement)));
            rows.push((row_key(kind::GROUP, &id.0.to_be_bytes()), placement));
            rows.push((row_key(kind::REPLICAS, &id.0.to_be_bytes()), assigned));
        }
        rows.extend(self.locks.take_rows());
        rows.extend(self.calls.take_rows(kind::IDEMPOTENCY));
        rows.extend(self.completions.take_rows());
        rows
    }

    fn needs_files(&self) -> bool {
        true
    }

    fn has_work(&self) -> bool {
        true
    }
}

#[cfg(test)]
pub(crate) mod tests;

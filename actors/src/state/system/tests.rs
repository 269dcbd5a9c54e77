//! Table tests of the control plane.

use super::*;
use crate::command::{
    AdmitMember, AssignReplicas, ConfirmTenant, CreateJoinToken, CreateTenant, DeleteTenant,
    DrainMember, Found, Idempotency, LeaderElected, MOVES_REPLICAS_FROM, MemberAdmitted,
    MemberOffline, NodeRegistered, PlaceGroups, Refusal, RemoveJoinToken, RemoveNode,
    SetAdminToken, TenantKnown, TenantWritten, UpdateTenant,
};
use crate::domain::ids::raft_ids;
use crate::domain::membership::Member;
use crate::domain::secret::{SecretBytes, SecretHash};
use crate::domain::tenant::{TenantChange, TenantRecord};
use crate::testing::{self, member, tenant, tenant_record};
use uuid::Uuid;

mod clock;
mod members;
mod moves;
mod recovery;
mod whole;

fn envelope(command: SystemCommand) -> Envelope {
    Envelope { at: Timestamp(5), ..testing::envelope(Command::System(command)) }
}

fn apply(state: &mut SystemState, command: SystemCommand) -> (Outcome, Vec<SystemEffect>) {
    state.apply(Position { term: 1, index: 1 }, &envelope(command))
}

fn node(n: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(n))
}

fn authority(cluster: u128, certificate: u8, key: u8) -> Authority {
    Authority {
        cluster: Uuid::from_u128(cluster),
        certificate: vec![certificate],
        key: SecretBytes::new(vec![key]),
    }
}

/// Founds the cluster with its first member.
pub(crate) fn found() -> SystemCommand {
    let (authority, member) = (authority(9, 1, 2), member(1));
    SystemCommand::Found(Found { authority, member, public_key: [1; 32], secret_hash: None })
}

/// Gives the region `default` two groups.
fn place() -> SystemCommand {
    let (groups, members) = (vec![GroupId(1), GroupId(2)], vec![RaftId(1)]);
    SystemCommand::PlaceGroups(PlaceGroups { region: "default".into(), groups, members })
}

fn placed() -> SystemState {
    let mut state = SystemState::default();
    apply(&mut state, found());
    assert_eq!(apply(&mut state, place()).0, Outcome::Done);
    assert_eq!(apply(&mut state, place()).0, Outcome::Ignored);
    state
}

fn create(id: u128, region: &str, strict: bool, key: Option<(u8, u8)>) -> SystemCommand {
    let record = TenantRecord { region: region.into(), ..tenant_record() };
    SystemCommand::CreateTenant(CreateTenant {
        tenant: tenant(id),
        record,
        strict_region: strict,
        fallback_region: "default".into(),
        idempotency: key.map(|(key, body)| Idempotency { key: [key; 16], body: [body; 16] }),
    })
}

/// The tenant of [`with_a_tenant`].
pub(crate) const TENANT: TenantId = tenant(6);

/// A control plane with a tenant that its group has not been told of.
pub(crate) fn with_a_tenant() -> SystemState {
    let mut state = placed();
    apply(&mut state, create(6, "default", true, None));
    state
}

/// Deletes the tenant, if it exists.
pub(crate) fn delete(state: &mut SystemState) {
    apply(state, SystemCommand::DeleteTenant(DeleteTenant { tenant: TENANT, if_version: None }));
}

#[test]
fn a_tenant_is_created_once_a_key_and_spread_over_groups() {
    let mut state = placed();
    let (outcome, effects) = apply(&mut state, create(6, "default", true, Some((1, 1))));
    match outcome {
        Outcome::TenantSet(TenantWritten { tenant: id, version: 1, record }) => {
            assert_eq!((id, record.created_at), (tenant(6), Timestamp(5)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(effects, [SystemEffect::TenantChanged(tenant(6))]);
    let again = apply(&mut state, create(7, "default", true, Some((1, 1))));
    assert_eq!(
        again.0,
        Outcome::Tenant(TenantKnown { tenant: tenant(6), version: 1, replayed: true })
    );
    let other = apply(&mut state, create(8, "default", true, Some((1, 2))));
    assert_eq!(other.0, Outcome::Refused(Refusal::IdempotencyKeyReused));
    apply(&mut state, create(9, "default", true, None));
    let groups: Vec<GroupId> = state.tenants().map(|(_, entry)| entry.group).collect();
    assert_eq!(groups, [GroupId(1), GroupId(2)]);
}

/// Ids are made by chance. Should one come twice, what it replaces is not counted any more.
#[test]
fn the_tables_count_the_bytes_of_their_rows() {
    let mut state = placed();
    let mut rows = RowBuffer::default();
    let register = |n: u128, address: &str| {
        SystemCommand::RegisterNode(RegisterNode {
            node: node(n),
            address: address.into(),
            region: "r".into(),
            metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            idempotency: None,
        })
    };
    for command in [
        create(6, "default", true, None),
        create(7, "default", true, None),
        create(6, "default", true, None),
        register(100, "a"),
        register(101, "a"),
        register(100, "a longer address"),
        SystemCommand::RemoveNode(RemoveNode { node: node(101) }),
        SystemCommand::DeleteTenant(DeleteTenant { tenant: tenant(7), if_version: None }),
    ] {
        apply(&mut state, command);
        rows.put(state.take_dirty_rows());
        let counted = SystemState::load(&rows).unwrap();
        assert_eq!(state.tenants_bytes, counted.tenants_bytes);
        assert_eq!(state.http_nodes_bytes, counted.http_nodes_bytes);
        let bytes_of = |kind: u8, of_members: usize| {
            let rows = rows.scan(&[kind], &[kind + 1], 100, false).unwrap();
            let bytes: usize = rows.iter().map(|(_, value)| value.len()).sum();
            (bytes - of_members) as u64 + ROW_BYTES * rows.len() as u64
        };
        assert_eq!(state.tenants_bytes, bytes_of(kind::TENANT, 0));
        // The one member's row does not count.
        let of_member = codec::encoded_len(&(node(1), &state.nodes[&node(1)]));
        assert_eq!(state.http_nodes_bytes + ROW_BYTES, bytes_of(kind::NODE, of_member));
    }
}

/// The tables of tenants and of nodes have a bound in bytes, which may be reached and not passed. What
/// an earlier program wrote into the log is applied as it was then.
#[test]
fn the_bytes_of_the_tables_are_bounded() {
    use crate::command::BOUNDS_TABLES_FROM;
    let register = SystemCommand::RegisterNode(RegisterNode {
        node: node(100),
        address: "a".into(),
        region: "r".into(),
        metadata: BTreeMap::new(),
        idempotency: None,
    });
    let grow = SystemCommand::UpdateTenant(UpdateTenant {
        tenant: tenant(6),
        change: TenantChange { name: Some("a longer name".into()), ..TenantChange::default() },
        if_version: None,
    });
    for command in [create(7, "default", true, None), grow, register] {
        let bytes = |state: &SystemState| state.tenants_bytes + state.http_nodes_bytes;
        let mut state = with_a_tenant();
        let before = bytes(&state);
        apply(&mut state, command.clone());
        let more = bytes(&state) - before;
        let is_refused_at = |tenants: u64, nodes: u64, version: u16| {
            let mut state = with_a_tenant();
            (state.tenants_bytes, state.http_nodes_bytes) = (tenants, nodes);
            let envelope = Envelope { version, ..envelope(command.clone()) };
            let outcome = state.apply(Position { term: 1, index: 9 }, &envelope).0;
            matches!(outcome, Outcome::Refused(Refusal::TooMany { .. }))
        };
        let is_node = matches!(command, SystemCommand::RegisterNode(RegisterNode { .. }));
        let is_refused = |room: u64, version| {
            if is_node {
                is_refused_at(0, nodes::HTTP_NODES_BYTES_MAX - room, version)
            } else {
                is_refused_at(tenants::TENANTS_BYTES_MAX - room, 0, version)
            }
        };
        let now = crate::command::COMMAND_VERSION;
        assert!(!is_refused(more, now), "{command:?}");
        assert!(is_refused(more - 1, now), "{command:?}");
        assert!(is_refused(more - 1, BOUNDS_TABLES_FROM), "{command:?}");
        assert!(!is_refused(0, BOUNDS_TABLES_FROM - 1), "{command:?}");
    }
}

#[test]
fn a_region_without_a_node_is_refused_or_replaced() {
    let mut state = placed();
    let refused = apply(&mut state, create(1, "eu", true, None)).0;
    assert_eq!(refused, Outcome::Refused(Refusal::UnknownRegion { region: "eu".into() }));
    apply(&mut state, create(2, "eu", false, None));
    assert_eq!(state.tenant(tenant(2)).unwrap().record.as_ref().unwrap().region, "default".into());
}

#[test]
fn changes_count_versions_and_wait_for_their_confirmation() {
    let mut state = placed();
    apply(&mut state, create(2, "default", true, None));
    let update = |if_version| {
        SystemCommand::UpdateTenant(UpdateTenant {
            tenant: tenant(2),
            change: TenantChange { name: Some("b".into()), ..TenantChange::default() },
            if_version,
        })
    };
    assert!(matches!(
        apply(&mut state, update(Some(1))).0,
        Outcome::TenantSet(TenantWritten { version: 2, .. })
    ));
    assert_eq!(
        apply(&mut state, update(Some(1))).0,
        Outcome::Refused(Refusal::PreconditionFailed { current: 2 })
    );
    // The same again changes nothing, and so makes no version.
    assert!(matches!(
        apply(&mut state, update(None)).0,
        Outcome::TenantSet(TenantWritten { version: 2, .. })
    ));
    let confirm =
        |version| SystemCommand::ConfirmTenant(ConfirmTenant { tenant: tenant(2), version });
    apply(&mut state, confirm(1));
    assert_eq!(state.unconfirmed().count(), 1);
    apply(&mut state, confirm(2));
    assert_eq!(state.unconfirmed().count(), 0);
    let old = SystemCommand::DeleteTenant(DeleteTenant { tenant: tenant(2), if_version: Some(1) });
    assert_eq!(
        apply(&mut state, old).0,
        Outcome::Refused(Refusal::PreconditionFailed { current: 2 })
    );
    assert!(state.tenant(tenant(2)).unwrap().record.is_some());
    let delete =
        SystemCommand::DeleteTenant(DeleteTenant { tenant: tenant(2), if_version: Some(2) });
    assert!(matches!(
        apply(&mut state, delete.clone()).0,
        Outcome::Tenant(TenantKnown { version: 3, .. })
    ));
    assert_eq!(
        apply(&mut state, delete).0,
        Outcome::Refused(Refusal::TenantNotFound),
        "there is none"
    );
    assert_eq!(state.unconfirmed().count(), 1);
    assert!(state.tenant(tenant(2)).unwrap().record.is_none(), "a tombstone stays");
}

#[test]
fn the_leader_has_a_lock_and_members_stay() {
    let mut state = placed();
    let elect = SystemCommand::LeaderElected(LeaderElected { node: node(1) });
    let first = apply(&mut state, elect.clone()).0;
    let second = apply(&mut state, elect.clone()).0;
    match (first, second) {
        (Outcome::Locked(first), Outcome::Locked(second)) => {
            assert!(first.token < second.token);
            assert_eq!(state.locks().get(&second.key), Some(&second));
        }
        other => panic!("{other:?}"),
    }
    let mut late = envelope(elect);
    late.term = Some(9);
    let late = state.apply(Position { term: 10, index: 9 }, &late).0;
    assert_eq!(late, Outcome::Ignored, "born in another term");
    let remove = SystemCommand::RemoveNode(RemoveNode { node: node(1) });
    assert_eq!(
        apply(&mut state, remove).0,
        Outcome::Refused(Refusal::WouldLoseQuorum { groups: 2 })
    );
}

fn admit(n: u64, key: u8, token: Option<u128>) -> SystemCommand {
    let token = token.map(|id| TokenId::from_uuid(Uuid::from_u128(id)));
    SystemCommand::AdmitMember(AdmitMember { member: member(n), public_key: [key; 32], token })
}

fn admitted(raft_id: u64) -> Outcome {
    Outcome::Admitted(MemberAdmitted { raft_id: RaftId(raft_id) })
}

fn make_token(id: u128, uses: u32, expires_at: i64) -> SystemCommand {
    let token = JoinToken {
        secret_hash: SecretHash::new([7; 32]),
        expires_at: Some(Timestamp(expires_at)),
        uses_left: Some(uses),
        created_at: Timestamp(0),
    };
    let id = TokenId::from_uuid(Uuid::from_u128(id));
    SystemCommand::CreateJoinToken(CreateJoinToken { id, token, idempotency: None })
}

fn is_refused(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(Refusal::TokenInvalid { .. }))
}

#[test]
fn a_request_that_is_sent_twice_is_done_once() {
    let mut state = placed();
    let rpc_id = crate::command::RpcId { incarnation: 1, sequence: 1, first_incomplete: 0 };
    let twice = |id| {
        let mut envelope = envelope(create(id, "default", true, None));
        envelope.rpc_id = Some(rpc_id);
        envelope
    };
    let position = Position { term: 1, index: 5 };
    let first = state.apply(position, &twice(2)).0;
    let (second, effects) = state.apply(position, &twice(3));
    assert_eq!((second, effects), (first, Vec::new()));
    assert!(state.tenant(tenant(3)).is_none());
}

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
use crate::domain::secret::SecretHash;
use crate::domain::tenant::{Quotas, Settings, TenantChange, TenantRecord, TenantStatus};
use uuid::Uuid;

mod clock;
mod moves;
mod recovery;
mod whole;

fn envelope(command: SystemCommand) -> Envelope {
    Envelope {
        version: crate::command::COMMAND_VERSION,
        at: Timestamp(5),
        term: None,
        cause: None,
        rpc_id: None,
        command: Command::System(command),
    }
}

fn apply(state: &mut SystemState, command: SystemCommand) -> (Outcome, Vec<SystemEffect>) {
    state.apply(Position { term: 1, index: 1 }, &envelope(command))
}

fn node(n: u128) -> NodeId {
    NodeId::from_uuid(Uuid::from_u128(n))
}

fn tenant(n: u128) -> TenantId {
    TenantId::from_uuid(Uuid::from_u128(n))
}

fn member(n: u64) -> Member {
    Member {
        node: node(n.into()),
        raft_id: RaftId(n),
        api_addr: "a".into(),
        node_addr: "n".into(),
        region: "default".into(),
        labels: BTreeMap::new(),
        version: "0".into(),
    }
}

fn placed() -> SystemState {
    let mut state = SystemState::default();
    let member = member(1);
    let authority = Authority {
        cluster: Uuid::from_u128(9),
        certificate: vec![1],
        key: crate::domain::secret::SecretBytes::new(vec![2]),
    };
    let found =
        SystemCommand::Found(Found { authority, member, public_key: [1; 32], secret_hash: None });
    apply(&mut state, found);
    let place = SystemCommand::PlaceGroups(PlaceGroups {
        region: "default".into(),
        groups: vec![GroupId(1), GroupId(2)],
        members: vec![RaftId(1)],
    });
    assert_eq!(apply(&mut state, place.clone()).0, Outcome::Done);
    assert_eq!(apply(&mut state, place).0, Outcome::Ignored);
    state
}

fn create(id: u128, region: &str, strict: bool, key: Option<(u8, u8)>) -> SystemCommand {
    let record = TenantRecord {
        name: "acme".into(),
        description: String::new(),
        status: TenantStatus::Active,
        quotas: Quotas::default(),
        settings: Settings {
            data_retention_days: 90,
            enable_audit_logging: true,
            metadata: crate::domain::json::Json::null(),
        },
        region: region.into(),
        created_at: Timestamp(0),
        updated_at: Timestamp(0),
    };
    SystemCommand::CreateTenant(CreateTenant {
        tenant: tenant(id),
        record,
        strict_region: strict,
        fallback_region: "default".into(),
        idempotency: key.map(|(key, body)| Idempotency { key: [key; 16], body: [body; 16] }),
    })
}

/// The tenant of [`with_a_tenant`].
pub(crate) const TENANT: TenantId = TenantId::from_uuid(Uuid::from_u128(6));

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
fn a_node_is_let_in_once_and_by_its_key() {
    let mut state = placed();
    assert_eq!(
        apply(&mut state, admit(8, 2, None)).0,
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(2) })
    );
    assert_eq!(
        apply(&mut state, admit(8, 2, None)).0,
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(2) })
    );
    assert!(is_refused(&apply(&mut state, admit(8, 3, None)).0));
    assert_eq!(
        apply(&mut state, admit(9, 3, None)).0,
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(3) })
    );
    // It starts under the id it was given, and under no other.
    let mut stranger = member(8);
    assert_eq!(
        apply(&mut state, SystemCommand::RegisterMember(stranger.clone())).0,
        Outcome::Refused(Refusal::NotAMember)
    );
    stranger.raft_id = RaftId(2);
    let registered = apply(&mut state, SystemCommand::RegisterMember(stranger)).0;
    assert_eq!(registered, Outcome::Node(NodeRegistered { node: node(8), replayed: false }));
}

#[test]
fn a_token_admits_as_many_as_it_says_until_it_ends() {
    let mut state = placed();
    apply(&mut state, make_token(1, 1, 100));
    apply(&mut state, make_token(2, 5, 5));
    assert!(is_refused(&apply(&mut state, admit(8, 2, Some(9))).0), "not known");
    assert!(is_refused(&apply(&mut state, admit(8, 2, Some(2))).0), "ended");
    assert_eq!(
        apply(&mut state, admit(8, 2, Some(1))).0,
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(2) })
    );
    assert!(is_refused(&apply(&mut state, admit(9, 3, Some(1))).0), "used up");
    // Who asks again is not counted again.
    assert_eq!(
        apply(&mut state, admit(8, 2, Some(1))).0,
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(2) })
    );
}

#[test]
fn a_member_leaves_in_order_and_its_id_is_not_given_again() {
    let mut state = placed();
    apply(&mut state, admit(8, 2, None));
    let remove = SystemCommand::RemoveNode(RemoveNode { node: node(8) });
    assert!(matches!(apply(&mut state, remove.clone()).0, Outcome::Refused(_)), "not drained");
    let drain = SystemCommand::DrainMember(DrainMember { node: node(8) });
    assert_eq!(apply(&mut state, drain).1, [SystemEffect::MembersChanged]);
    // It is restarted meanwhile, and still leaves.
    let restarted = Member { raft_id: RaftId(2), ..member(8) };
    assert!(matches!(
        apply(&mut state, SystemCommand::RegisterMember(restarted)).0,
        Outcome::Node(_)
    ));
    let effects = apply(&mut state, remove).1;
    assert!(effects.contains(&SystemEffect::MembersChanged));
    assert_eq!(
        apply(&mut state, admit(8, 2, None)).0,
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(3) })
    );
    // The one with the tenants stays, unless others of its region can have them.
    let drain = SystemCommand::DrainMember(DrainMember { node: node(1) });
    let needed = Outcome::Refused(Refusal::WouldLoseQuorum { groups: 2 });
    let before = Envelope { version: MOVES_REPLICAS_FROM - 1, ..envelope(drain.clone()) };
    assert_eq!(state.apply(Position { term: 3, index: 90 }, &before).0, needed);
    let gone = SystemCommand::DrainMember(DrainMember { node: node(8) });
    apply(&mut state, gone);
    assert_eq!(apply(&mut state, drain.clone()).0, needed, "the other one leaves");
    apply(&mut state, admit(9, 3, None));
    assert_eq!(apply(&mut state, drain).0, Outcome::Done);
    let remove = SystemCommand::RemoveNode(RemoveNode { node: node(1) });
    assert_eq!(apply(&mut state, remove.clone()).0, needed, "they are still there");
    for group in [1, 2] {
        let assign = AssignReplicas { group: GroupId(group), replicas: vec![RaftId(4)] };
        let assigned = apply(&mut state, SystemCommand::AssignReplicas(assign));
        assert_eq!(assigned, (Outcome::Done, vec![SystemEffect::GroupsPlaced]));
    }
    assert_eq!(apply(&mut state, remove).0, Outcome::Done);
}

#[test]
fn replicas_are_assigned_to_members_of_the_region_that_stay() {
    let mut state = placed();
    for n in 2..=5 {
        apply(&mut state, admit(n, 2, None));
    }
    let abroad = Member { region: "eu".into(), raft_id: RaftId(5), ..member(5) };
    apply(&mut state, SystemCommand::RegisterMember(abroad));
    apply(&mut state, SystemCommand::DrainMember(DrainMember { node: node(4) }));
    let mut assign = |group: u32, replicas: &[u64]| {
        let assign = AssignReplicas { group: GroupId(group), replicas: raft_ids(replicas) };
        apply(&mut state, SystemCommand::AssignReplicas(assign)).0
    };
    let refused = Outcome::Refused(Refusal::NotAMember);
    for unfit in [&[][..], &[1, 4], &[1, 5], &[1, 77], &[1, 2, 3, 1, 2, 3]] {
        assert_eq!(assign(1, unfit), refused, "{unfit:?}");
    }
    assert_eq!(assign(1, &[1]), Outcome::Ignored);
    assert_eq!(assign(7, &[1]), Outcome::Ignored, "there is no such group");
    assert_eq!(assign(1, &[1, 2, 3]), Outcome::Done);
    let placement = &state.groups()[&GroupId(1)];
    assert_eq!((&placement.members, &placement.replicas), (&raft_ids(&[1]), &raft_ids(&[1, 2, 3])));
    assert!(placement.is_assigned && !state.groups()[&GroupId(2)].is_assigned);
    assert!(state.has_groups(RaftId(3)) && !state.has_groups(RaftId(5)));
}

#[test]
fn the_first_admin_token_stands_and_shuts_the_door() {
    let mut state = placed();
    let set =
        |byte| SystemCommand::SetAdminToken(SetAdminToken { hash: SecretHash::new([byte; 32]) });
    assert!(state.is_open_to_loopback());
    assert_eq!(apply(&mut state, set(1)), (Outcome::Done, vec![SystemEffect::AdminTokenSet]));
    assert_eq!(apply(&mut state, set(1)), (Outcome::Done, Vec::new()));
    assert_eq!(apply(&mut state, set(2)).0, Outcome::Refused(Refusal::OtherAdminToken));
    assert!(!state.is_open_to_loopback());
    assert!(is_refused(&apply(&mut state, admit(8, 2, None)).0));
    apply(&mut state, make_token(1, 1, 100));
    assert_eq!(
        apply(&mut state, admit(8, 2, Some(1))).0,
        Outcome::Admitted(MemberAdmitted { raft_id: RaftId(2) })
    );
    let mut rows = RowBuffer::default();
    rows.put(state.take_dirty_rows());
    let again = SystemState::load(&rows).unwrap();
    assert_eq!(again.admin_token(), Some(SecretHash::new([1; 32])));
    assert!(!again.is_open_to_loopback());
}

/// A state that is written down and loaded again after each command forgets nothing of the
/// members and tokens: a mark that is missed shows at once.
#[test]
fn members_and_tokens_survive_a_restart_after_any_command() {
    let (mut state, mut rows) = (placed(), RowBuffer::default());
    let mut restart = |state: &mut SystemState| {
        rows.put(state.take_dirty_rows());
        let again = SystemState::load(&rows).unwrap();
        assert_eq!((&state.nodes, &state.tokens), (&again.nodes, &again.tokens));
        assert_eq!((&state.meta, state.admin_token), (&again.meta, again.admin_token));
        assert_eq!((&state.groups, &state.authority), (&again.groups, &again.authority));
        *state = again;
    };
    restart(&mut state);
    let token = |n| TokenId::from_uuid(Uuid::from_u128(n));
    let registered = Member { raft_id: RaftId(2), api_addr: "b".into(), ..member(8) };
    for command in [
        make_token(1, 2, 100),
        make_token(2, 2, 100),
        admit(8, 2, Some(1)),
        SystemCommand::RemoveJoinToken(RemoveJoinToken { id: token(2) }),
        SystemCommand::RegisterMember(registered.clone()),
        SystemCommand::MemberOffline(MemberOffline { node: node(8) }),
        SystemCommand::DrainMember(DrainMember { node: node(8) }),
        SystemCommand::RegisterMember(registered),
        SystemCommand::SetAdminToken(SetAdminToken { hash: SecretHash::new([1; 32]) }),
        SystemCommand::RemoveNode(RemoveNode { node: node(8) }),
    ] {
        let outcome = apply(&mut state, command.clone()).0;
        assert!(!matches!(outcome, Outcome::Refused(_)), "{command:?}: {outcome:?}");
        restart(&mut state);
        match command {
            SystemCommand::AdmitMember(_) => {
                assert_eq!(state.join_token(token(1)).unwrap().uses_left, Some(1));
            }
            SystemCommand::RemoveJoinToken(_) => assert_eq!(state.join_token(token(2)), None),
            SystemCommand::MemberOffline(_) => {
                assert!(state.members().any(|(_, _, member)| member.offline));
            }
            // One that is to leave is to leave after a restart of its own as well.
            SystemCommand::DrainMember(_) | SystemCommand::SetAdminToken(_) => {
                assert!(
                    state
                        .members()
                        .any(|(_, _, member)| member.leaving && member.raft_id == RaftId(2))
                );
            }
            _ => {}
        }
    }
    assert_eq!(state.member(RaftId(2)), None);
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

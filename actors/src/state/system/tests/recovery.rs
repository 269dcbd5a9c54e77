//! Forced recovery, case by case.

use super::*;
use crate::command::Recover;
use crate::domain::ids::Epoch;
use crate::domain::lock::FENCING_STEP;
use crate::domain::lock::LockView;
use crate::domain::membership::SHARED_SECRET;

/// The authority of the cluster that goes on.
fn own_authority() -> Authority {
    authority(10, 7, 8)
}

fn recover(state: &mut SystemState, raft_id: u64, groups: &[u32]) -> (Outcome, Vec<SystemEffect>) {
    let groups = groups.iter().copied().map(GroupId).collect();
    let recover = Recover { authority: own_authority(), raft_id: RaftId(raft_id), groups };
    apply(state, SystemCommand::Recover(recover))
}

/// Three members, two of `default` and one of `eu`, groups 1 and 2 in `default` and 3 in `eu`, and in
/// each group a tenant, which its group was told of.
fn three() -> SystemState {
    let mut state = placed();
    for (n, region) in [(2, "default"), (3, "eu")] {
        let member = Member { region: region.into(), ..member(n) };
        let admit = AdmitMember { member, public_key: [2; 32], token: None };
        apply(&mut state, SystemCommand::AdmitMember(admit));
    }
    let place =
        PlaceGroups { region: "eu".into(), groups: vec![GroupId(3)], members: vec![RaftId(3)] };
    apply(&mut state, SystemCommand::PlaceGroups(place));
    let assign = AssignReplicas { group: GroupId(1), replicas: vec![RaftId(1), RaftId(2)] };
    apply(&mut state, SystemCommand::AssignReplicas(assign));
    for (id, region) in [(6, "default"), (7, "default"), (8, "eu")] {
        apply(&mut state, create(id, region, true, None));
        let confirm = ConfirmTenant { tenant: tenant(id), version: 1 };
        apply(&mut state, SystemCommand::ConfirmTenant(confirm));
    }
    assert_eq!([6, 7, 8].map(|id| state.tenant(tenant(id)).unwrap().group.0), [1, 2, 3]);
    state
}

#[test]
fn one_member_goes_on_alone() {
    let mut state = three();
    let drain = DrainMember { node: node(2) };
    assert_eq!(apply(&mut state, SystemCommand::DrainMember(drain)).0, Outcome::Done);
    let (outcome, effects) = recover(&mut state, 2, &[1]);
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(state.authority(), Some(&own_authority()));
    let members: Vec<_> = state.members().map(|(_, _, it)| (it.raft_id.0, it.leaving)).collect();
    assert_eq!(members, [(2, false)], "and it stays");
    for gone in [1, 3] {
        assert!(effects.contains(&SystemEffect::NodeRemoved(node(gone))));
    }
    for effect in [SystemEffect::MembersChanged, SystemEffect::GroupsPlaced] {
        assert!(effects.contains(&effect), "{effect:?}");
    }
    // Ids in Raft groups are not given again.
    assert_eq!(state.last_raft_id(), RaftId(3));
}

#[test]
fn groups_without_a_replica_begin_anew_where_the_member_is_and_are_gone_elsewhere() {
    let mut state = three();
    recover(&mut state, 2, &[1]);
    let placed: Vec<_> = state.groups().iter().collect();
    let here = |is_assigned| GroupPlacement {
        region: "default".into(),
        members: vec![RaftId(2)],
        replicas: vec![RaftId(2)],
        is_assigned,
    };
    assert_eq!(placed, [(&GroupId(1), &here(true)), (&GroupId(2), &here(false))]);
}

#[test]
fn tenants_without_a_replica_are_deleted_and_the_others_are_in_a_new_epoch() {
    let mut state = three();
    apply(&mut state, create(4, "default", true, None));
    recover(&mut state, 2, &[1]);
    let entry = |id| state.tenant(tenant(id)).unwrap();
    let shown = |id| (entry(id).epoch, entry(id).version, entry(id).record.is_some());
    assert_eq!(shown(6), (Epoch(2), 1, true));
    assert_eq!((shown(7), shown(8)), ((Epoch(2), 2, false), (Epoch(2), 2, false)));
    let listed: Vec<_> = state.tenants_by_creation(None).map(|(id, ..)| id).collect();
    assert_eq!(listed, [tenant(6), tenant(4)]);
    // Their group learns it from its own log, also what it was not told before.
    assert_eq!(state.unconfirmed().count(), 0);
    assert_eq!((entry(4).confirmed, entry(8).confirmed), (1, 2));
}

#[test]
fn locks_stay_held_under_tokens_that_were_never_given() {
    let mut state = three();
    let acquire = |key: &str, holder: &str| {
        SystemCommand::Lock(crate::command::LockCommand::Acquire {
            key: key.into(),
            holder: holder.into(),
            ttl_ms: 1,
            metadata: crate::domain::json::Json::null(),
        })
    };
    apply(&mut state, SystemCommand::LeaderElected(LeaderElected { node: node(1) }));
    let Outcome::Locked(before) = apply(&mut state, acquire("k", "a")).0 else { panic!() };
    let (_, effects) = recover(&mut state, 2, &[1]);
    let held = LockView { token: before.token.raised(FENCING_STEP), ..before };
    let notices: Vec<_> =
        effects.iter().filter(|it| matches!(it, SystemEffect::Lock(_))).cloned().collect();
    assert_eq!(notices, [SystemEffect::Lock(LockNotice::Held(held.clone()))]);
    assert_eq!(apply(&mut state, acquire("k", "b")).0, Outcome::HeldByOther(held.clone()));
    let Outcome::Locked(next) = apply(&mut state, acquire("other", "b")).0 else { panic!() };
    assert!(next.token > held.token);
}

#[test]
fn tokens_of_the_former_authority_are_void() {
    let mut state = three();
    let token = JoinToken {
        secret_hash: SecretHash::new([1; 32]),
        expires_at: None,
        uses_left: None,
        created_at: Timestamp(1),
    };
    for id in [SHARED_SECRET, TokenId::from_uuid(Uuid::from_u128(5))] {
        let create = CreateJoinToken { id, token: token.clone(), idempotency: None };
        apply(&mut state, SystemCommand::CreateJoinToken(create));
    }
    recover(&mut state, 1, &[1, 2]);
    let left: Vec<_> = state.join_tokens().map(|(id, _)| id).collect();
    assert_eq!(left, [SHARED_SECRET], "a secret of one's own names no authority");
}

#[test]
fn a_recovery_is_done_once_and_only_by_a_member() {
    let mut state = three();
    assert_eq!(recover(&mut state, 9, &[1]), (Outcome::Ignored, Vec::new()));
    assert_eq!(recover(&mut state, 2, &[1]).0, Outcome::Done);
    assert_eq!(recover(&mut state, 2, &[1]), (Outcome::Ignored, Vec::new()));
    assert_eq!(state.tenant(tenant(6)).unwrap().epoch, Epoch(2));
}

//! Moves of tenants as group 0 decides about them, case by case.

use super::*;
use crate::command::{MoveStep, Recover, StepMove};
use crate::domain::ids::Epoch;

const T: u128 = 2;

/// Groups 1 and 2 in `default`, 3 and 4 in `eu`, and a tenant in `default` whose group knows it.
fn two_regions() -> SystemState {
    let mut state = placed();
    let member = Member { region: "eu".into(), ..member(2) };
    let admit = AdmitMember { member, public_key: [2; 32], token: None };
    apply(&mut state, SystemCommand::AdmitMember(admit));
    let groups = vec![GroupId(3), GroupId(4)];
    let place = PlaceGroups { region: "eu".into(), groups, members: vec![RaftId(2)] };
    assert_eq!(apply(&mut state, SystemCommand::PlaceGroups(place)).0, Outcome::Done);
    apply(&mut state, create(T, "default", true, None));
    confirm(&mut state, 1);
    state
}

fn confirm(state: &mut SystemState, version: u64) {
    let confirm = ConfirmTenant { tenant: tenant(T), version };
    apply(state, SystemCommand::ConfirmTenant(confirm));
}

fn put(state: &mut SystemState, region: &str) -> Outcome {
    let change = TenantChange { region: Some(region.into()), ..TenantChange::default() };
    let update = UpdateTenant { tenant: tenant(T), change, if_version: None };
    apply(state, SystemCommand::UpdateTenant(update)).0
}

fn step(state: &mut SystemState, epoch: u64, step: MoveStep) -> Outcome {
    let step = StepMove { tenant: tenant(T), epoch: Epoch(epoch), step };
    apply(state, SystemCommand::StepMove(step)).0
}

/// Group, epoch and region of the tenant, with the phase of its move.
fn place(state: &SystemState) -> (u32, u64, String, Option<MovePhase>) {
    let entry = state.tenant(tenant(T)).unwrap();
    let region = entry.record.as_ref().map(|record| record.region.to_string());
    let phase = state.tenant_move(tenant(T)).map(|it| it.phase);
    (entry.group.0, entry.epoch.0, region.unwrap_or_default(), phase)
}

fn at(
    group: u32,
    epoch: u64,
    region: &str,
    phase: Option<MovePhase>,
) -> (u32, u64, String, Option<MovePhase>) {
    (group, epoch, region.to_owned(), phase)
}

#[test]
fn a_move_is_committed_once_by_its_last_attempt() {
    use MovePhase::{Copying, Leaving};
    let mut state = two_regions();
    assert!(matches!(put(&mut state, "eu"), Outcome::TenantSet(_)));
    assert_eq!(place(&state), at(1, 1, "default", Some(Copying)), "it stays until it is there");
    assert!(matches!(put(&mut state, "eu"), Outcome::TenantSet(_)), "asked twice");
    assert_eq!(state.tenant_move(tenant(T)).unwrap().epoch, Epoch(2));
    assert_eq!(step(&mut state, 2, MoveStep::Retry), Outcome::Done);
    for late in [MoveStep::Retry, MoveStep::Commit, MoveStep::Abort, MoveStep::Finish] {
        assert_eq!(step(&mut state, 2, late), Outcome::Ignored, "of an attempt that is over");
    }
    assert_eq!(step(&mut state, 3, MoveStep::Finish), Outcome::Ignored, "too early");
    assert_eq!(step(&mut state, 3, MoveStep::Commit), Outcome::Done);
    assert_eq!(step(&mut state, 3, MoveStep::Commit), Outcome::Done, "the same again");
    assert_eq!(place(&state), at(3, 3, "eu", Some(Leaving)));
    assert_eq!(state.tenant(tenant(T)).unwrap().version, 2);
    assert_eq!(state.unconfirmed().collect::<Vec<_>>(), [tenant(T)], "the target is told");
    for late in [MoveStep::Retry, MoveStep::Abort] {
        assert_eq!(step(&mut state, 3, late), Outcome::Ignored, "decided already");
    }
    let refused = Outcome::Refused(Refusal::Moving { region: "eu".into() });
    assert_eq!(put(&mut state, "default"), refused);
    assert_eq!(step(&mut state, 3, MoveStep::Finish), Outcome::Done);
    assert_eq!(place(&state), at(3, 3, "eu", None));
    put(&mut state, "default");
    assert_eq!(state.tenant_move(tenant(T)).unwrap().epoch, Epoch(4), "back");
}

#[test]
fn a_move_that_is_called_off_cannot_be_committed_and_its_epochs_are_used_up() {
    use MovePhase::{Copying, Over, Undoing};
    let mut state = two_regions();
    put(&mut state, "eu");
    put(&mut state, "default");
    assert_eq!(place(&state), at(1, 1, "default", Some(Undoing)));
    assert_eq!(step(&mut state, 2, MoveStep::Commit), Outcome::Ignored);
    let refused = Outcome::Refused(Refusal::Moving { region: "eu".into() });
    assert_eq!(put(&mut state, "eu"), refused);
    assert_eq!(step(&mut state, 2, MoveStep::Finish), Outcome::Done);
    assert_eq!(place(&state), at(1, 1, "default", Some(Over)));
    assert_eq!(step(&mut state, 2, MoveStep::Commit), Outcome::Ignored);
    put(&mut state, "eu");
    assert_eq!(place(&state), at(1, 1, "default", Some(Copying)));
    assert_eq!(step(&mut state, 2, MoveStep::Commit), Outcome::Ignored);
    assert_eq!(step(&mut state, 3, MoveStep::Commit), Outcome::Done);
}

#[test]
fn a_tenant_that_is_deleted_does_not_move() {
    let mut state = two_regions();
    put(&mut state, "eu");
    let delete = DeleteTenant { tenant: tenant(T), if_version: None };
    apply(&mut state, SystemCommand::DeleteTenant(delete.clone()));
    assert_eq!(place(&state), at(1, 1, "", Some(MovePhase::Undoing)), "its group is told there");
    assert_eq!(step(&mut state, 2, MoveStep::Commit), Outcome::Ignored);
    assert_eq!(step(&mut state, 2, MoveStep::Finish), Outcome::Done);
    assert_eq!(place(&state).3, None);
    // One that has moved is deleted where it is.
    let mut state = two_regions();
    put(&mut state, "eu");
    step(&mut state, 2, MoveStep::Commit);
    apply(&mut state, SystemCommand::DeleteTenant(delete));
    assert_eq!(place(&state), at(3, 2, "", Some(MovePhase::Leaving)));
    assert_eq!(step(&mut state, 2, MoveStep::Finish), Outcome::Done);
}

/// A change that is refused changes nothing, the other fields neither.
#[test]
fn a_region_that_cannot_be_had_refuses_the_whole_change() {
    let mut state = two_regions();
    let change = TenantChange {
        name: Some("other".into()),
        region: Some("us".into()),
        ..TenantChange::default()
    };
    let update = UpdateTenant { tenant: tenant(T), change, if_version: None };
    let (outcome, effects) = apply(&mut state, SystemCommand::UpdateTenant(update));
    assert_eq!(outcome, Outcome::Refused(Refusal::UnknownRegion { region: "us".into() }));
    assert_eq!((effects, state.tenant(tenant(T)).unwrap().version), (Vec::new(), 1));
    // What a version that could not move tenants has written comes to what it came to then.
    let change = TenantChange { region: Some("eu".into()), ..TenantChange::default() };
    let update =
        SystemCommand::UpdateTenant(UpdateTenant { tenant: tenant(T), change, if_version: None });
    let old = Envelope { version: 5, ..envelope(update) };
    let (outcome, _) = state.apply(Position { term: 1, index: 1 }, &old);
    assert_eq!(outcome, Outcome::Refused(Refusal::CannotMove { region: "default".into() }));
    assert_eq!(place(&state).3, None);
}

/// Nobody is left who could carry the move out. A source that stands still is told of a later epoch than that.
#[test]
fn a_forced_recovery_forgets_moves_and_goes_beyond_their_epochs() {
    let mut state = two_regions();
    put(&mut state, "eu");
    step(&mut state, 2, MoveStep::Retry);
    let authority = authority(10, 7, 8);
    let groups = vec![GroupId(1), GroupId(2)];
    let recover = Recover { authority, raft_id: RaftId(1), groups };
    apply(&mut state, SystemCommand::Recover(recover));
    assert_eq!(place(&state), at(1, 4, "default", None));
}

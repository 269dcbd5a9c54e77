//! Members, and the tokens by which they are let in.

use super::*;

#[test]
fn a_node_is_let_in_once_and_by_its_key() {
    let mut state = placed();
    assert_eq!(apply(&mut state, admit(8, 2, None)).0, admitted(2));
    assert_eq!(apply(&mut state, admit(8, 2, None)).0, admitted(2));
    assert!(is_refused(&apply(&mut state, admit(8, 3, None)).0));
    assert_eq!(apply(&mut state, admit(9, 3, None)).0, admitted(3));
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
    assert_eq!(apply(&mut state, admit(8, 2, Some(1))).0, admitted(2));
    assert!(is_refused(&apply(&mut state, admit(9, 3, Some(1))).0), "used up");
    // Who asks again is not counted again.
    assert_eq!(apply(&mut state, admit(8, 2, Some(1))).0, admitted(2));
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
    assert_eq!(apply(&mut state, admit(8, 2, None)).0, admitted(3));
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
    assert_eq!(apply(&mut state, admit(8, 2, Some(1))).0, admitted(2));
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

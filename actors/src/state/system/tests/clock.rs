//! What a wall clock that is wrong for a while does to the control plane: nothing that lasts.

use super::*;
use crate::domain::secret::SecretHash;
use crate::state::AGE_STEP_MS_MAX;

const HOUR: i64 = 3_600_000;
const NOW: i64 = 1_000 * 24 * HOUR;

fn at(state: &mut SystemState, at: i64, command: SystemCommand) -> Outcome {
    let envelope = Envelope { at: Timestamp(at), ..envelope(command) };
    state.apply(Position { term: 1, index: 1 }, &envelope).0
}

fn token_of(created_at: i64, id: u128) -> SystemCommand {
    let token = JoinToken {
        secret_hash: SecretHash::new([7; 32]),
        expires_at: Some(Timestamp(created_at + HOUR)),
        uses_left: None,
        created_at: Timestamp(created_at),
    };
    let id = TokenId::from_uuid(Uuid::from_u128(id));
    SystemCommand::CreateJoinToken(CreateJoinToken { id, token, idempotency: None })
}

#[test]
fn a_fresh_token_admits_though_the_clock_was_ahead() {
    let mut state = placed();
    at(&mut state, NOW, token_of(NOW, 1));
    let ahead = NOW + 48 * HOUR;
    assert!(is_refused(&at(&mut state, ahead, admit(8, 1, Some(1)))), "as long as it is ahead");
    // Nor does making another one throw it away.
    at(&mut state, ahead, token_of(ahead, 2));
    at(&mut state, NOW + 1_000, token_of(NOW + 1_000, 3));
    for (node, token) in [(8, 1), (9, 3)] {
        let admitted = at(&mut state, NOW + 60_000, admit(node, 1, Some(token)));
        assert!(matches!(admitted, Outcome::Admitted(_)), "{admitted:?}");
    }
    assert!(
        is_refused(&at(&mut state, NOW + HOUR + 2_000, admit(10, 1, Some(3)))),
        "its hour is over"
    );
}

#[test]
fn a_token_made_while_the_clock_was_ahead_does_not_live_until_then() {
    let mut state = placed();
    let ahead = NOW + 48 * HOUR;
    at(&mut state, ahead, token_of(ahead, 1));
    assert!(matches!(at(&mut state, NOW, admit(8, 1, Some(1))), Outcome::Admitted(_)));
    for minute in 0..=2 * 60 {
        at(
            &mut state,
            NOW + minute * 60_000,
            SystemCommand::LeaderElected(LeaderElected { node: node(1) }),
        );
    }
    assert_eq!(AGE_STEP_MS_MAX, HOUR.unsigned_abs(), "what it may live longer");
    assert!(is_refused(&at(&mut state, NOW + 121 * 60_000, admit(9, 2, Some(1)))));
}

#[test]
fn a_token_is_kept_though_the_clock_was_ahead_again_and_again() {
    let mut state = placed();
    at(&mut state, NOW, token_of(NOW, 1));
    for times in 1..=3 {
        for when in [NOW + times * 24 * HOUR, NOW + times * 1_000] {
            at(&mut state, when, SystemCommand::LeaderElected(LeaderElected { node: node(1) }));
        }
    }
    at(&mut state, NOW + 30_000, token_of(NOW + 30_000, 2));
    assert_eq!(state.join_tokens().count(), 2);
    let admitted = at(&mut state, NOW + 60_000, admit(8, 1, Some(1)));
    assert!(matches!(admitted, Outcome::Admitted(_)), "{admitted:?}");
}

#[test]
fn a_key_is_not_forgotten_because_the_clock_was_ahead() {
    let mut state = placed();
    at(&mut state, NOW, create(6, "default", true, Some((1, 1))));
    at(&mut state, NOW + 48 * HOUR, create(7, "default", true, Some((2, 1))));
    let again = at(&mut state, NOW + 60_000, create(8, "default", true, Some((1, 1))));
    assert_eq!(
        again,
        Outcome::Tenant(TenantKnown { tenant: tenant(6), version: 1, replayed: true })
    );
    let created = |id| state.tenant(tenant(id)).unwrap().record.as_ref().unwrap().created_at;
    assert_eq!((created(6), created(7)), (Timestamp(NOW), Timestamp(NOW + 48 * HOUR)));
}

#[test]
fn nothing_was_changed_before_it_was_made() {
    let mut state = placed();
    at(&mut state, NOW + 48 * HOUR, create(6, "default", true, None));
    let change = TenantChange { name: Some("b".into()), ..TenantChange::default() };
    let update =
        SystemCommand::UpdateTenant(UpdateTenant { tenant: tenant(6), change, if_version: None });
    at(&mut state, NOW, update);
    let record = state.tenant(tenant(6)).unwrap().record.clone().unwrap();
    assert_eq!(record.updated_at, record.created_at);
    let acquire = |holder: &str| {
        SystemCommand::Lock(crate::command::LockCommand::Acquire {
            key: "k".into(),
            holder: holder.into(),
            ttl_ms: 1_000,
            metadata: crate::domain::json::Json::null(),
        })
    };
    at(&mut state, NOW + 48 * HOUR, acquire("a"));
    match at(&mut state, NOW, acquire("a")) {
        Outcome::Locked(lock) => {
            assert_eq!(
                (lock.acquired_at, lock.expires_at),
                (Timestamp(NOW), Timestamp(NOW + 1_000))
            );
        }
        other => panic!("{other:?}"),
    }
}

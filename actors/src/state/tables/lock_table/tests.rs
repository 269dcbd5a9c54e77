//! What is granted to whom, under which tokens.

use proptest::prelude::*;

use super::*;
use crate::domain::lock::FENCING_STEP;

fn acquire(table: &mut LockTable, key: &str, holder: &str) -> Outcome {
    let command = LockCommand::Acquire {
        key: key.into(),
        holder: holder.into(),
        ttl_ms: 1000,
        metadata: Json::null(),
    };
    table.apply(&command, Timestamp(0)).0
}

fn release(holder: &str, token: Option<FencingToken>) -> LockCommand {
    LockCommand::Release { key: "k".into(), holder: holder.into(), token }
}

fn renew(holder: &str, token: Option<FencingToken>) -> LockCommand {
    LockCommand::Renew { key: "k".into(), holder: holder.into(), token, ttl_ms: None }
}

fn lost() -> Outcome {
    Outcome::Refused(Refusal::LockLost { key: "k".into() })
}

fn token(outcome: &Outcome) -> FencingToken {
    match outcome {
        Outcome::Locked(lock) => lock.token,
        other => panic!("not locked: {other:?}"),
    }
}

#[test]
fn the_same_holder_renews_and_another_waits() {
    let mut table = LockTable::default();
    let first = token(&acquire(&mut table, "k", "a"));
    assert_eq!(token(&acquire(&mut table, "k", "a")), first);
    assert!(
        matches!(acquire(&mut table, "k", "b"), Outcome::HeldByOther(lock) if lock.holder.as_str() == "a")
    );
}

#[test]
fn an_expiry_armed_before_a_renewal_does_nothing() {
    let mut table = LockTable::default();
    let first = token(&acquire(&mut table, "k", "a"));
    acquire(&mut table, "k", "a");
    let expire = |renewal| LockCommand::Expire { key: "k".into(), token: first, renewal };
    assert_eq!(table.apply(&expire(0), Timestamp(0)).0, Outcome::Ignored);
    assert_eq!(table.apply(&expire(1), Timestamp(0)).0, Outcome::Done);
    assert!(token(&acquire(&mut table, "k", "a")) > first);
}

#[test]
fn only_the_holder_gives_back_and_under_the_newest_token_it_was_given() {
    let mut table = LockTable::default();
    let old = token(&acquire(&mut table, "k", "a"));
    let mut apply = |command| table.apply(&command, Timestamp(0)).0;
    assert_eq!(apply(release("b", None)), Outcome::Released(false));
    assert_eq!(apply(release("b", Some(old))), Outcome::Released(false));
    assert_eq!(apply(release("a", Some(old))), Outcome::Released(true));
    let new = token(&acquire(&mut table, "k", "a"));
    assert!(new > old);
    let mut apply = |command| table.apply(&command, Timestamp(0)).0;
    for wrong in [old, new.raised(1)] {
        assert_eq!(apply(release("a", Some(wrong))), Outcome::Released(false), "{wrong:?}");
        assert_eq!(apply(renew("a", Some(wrong))), lost(), "{wrong:?}");
    }
    assert_eq!(apply(renew("b", Some(new))), lost());
    assert!(matches!(apply(renew("a", Some(new))), Outcome::Locked(_)));
    assert!(matches!(apply(renew("a", None)), Outcome::Locked(_)));
    assert_eq!(apply(release("a", None)), Outcome::Released(true));
}

#[test]
fn raised_tokens_are_above_all_earlier_ones_and_locks_stay_held() {
    let mut table = LockTable::default();
    let held = token(&acquire(&mut table, "k", "a"));
    table.take_rows();
    let raised = table.raise_tokens(FENCING_STEP);
    assert_eq!(
        raised.iter().map(|lock| lock.token).collect::<Vec<_>>(),
        [held.raised(FENCING_STEP)]
    );
    assert_eq!(table.take_rows().len(), 1, "it is written down");
    assert_eq!(table.apply(&renew("a", Some(held)), Timestamp(0)).0, lost());
    assert!(matches!(acquire(&mut table, "k", "b"), Outcome::HeldByOther(_)));
    assert_eq!(token(&acquire(&mut table, "k", "a")), held.raised(FENCING_STEP));
    assert_eq!(token(&acquire(&mut table, "free", "b")), held.raised(FENCING_STEP + 1));
}

#[test]
fn pages_go_on_after_their_cursor() {
    let mut table = LockTable::default();
    for key in ["a", "b/1", "b/2", "b/3", "c"] {
        acquire(&mut table, key, "x");
    }
    let keys = |prefix, after| -> Vec<String> {
        table.list(prefix, after).map(|lock| lock.key.to_string()).collect()
    };
    assert_eq!(keys("b/", None), ["b/1", "b/2", "b/3"]);
    assert_eq!(keys("b/", Some("b/1")), ["b/2", "b/3"]);
    assert_eq!(keys("b/", Some("b/3")), [""; 0]);
    // A cursor before the prefix, and one between two keys.
    assert_eq!(keys("b/", Some("a")), ["b/1", "b/2", "b/3"]);
    assert_eq!(keys("", Some("b/20")), ["b/3", "c"]);
}

#[test]
fn metadata_is_counted_while_it_is_held() {
    let half = Json::from_value(&"m".repeat(METADATA_BYTES_MAX / 2 - 2).into());
    let mut table = LockTable::default();
    let mut acquire = |key: &str, metadata: &Json| {
        let command = LockCommand::Acquire {
            key: key.into(),
            holder: "a".into(),
            ttl_ms: 1,
            metadata: metadata.clone(),
        };
        let outcome = table.apply(&command, Timestamp(0)).0;
        let is_locked = matches!(outcome, Outcome::Locked(_));
        let free = LockCommand::Release { key: "a".into(), holder: "a".into(), token: None };
        // The first key is given back again and again: its metadata is not counted any more.
        table.apply(&free, Timestamp(0));
        is_locked
    };
    assert!(acquire("b", &half));
    for _ in 0..3 {
        assert!(acquire("a", &half));
    }
    assert!(acquire("c", &half));
    assert!(!acquire("d", &half), "it would be more than is kept");
    assert!(!acquire("d", &Json::null()), "not even a little more");
    assert!(acquire("c", &Json::null()), "what takes its place counts instead");
    assert!(acquire("d", &Json::null()));
}

fn commands() -> impl Strategy<Value = LockCommand> {
    let key = prop::sample::select(vec!["a", "b"]).prop_map(LockKey::from);
    let holder = prop::sample::select(vec!["x", "y"]).prop_map(Holder::from);
    let token = prop::option::of((0_u64..6).prop_map(FencingToken));
    (0..4, key, holder, token, 0_u64..3).prop_map(
        |(kind, key, holder, token, renewal)| match kind {
            0 => LockCommand::Acquire { key, holder, ttl_ms: 5, metadata: Json::null() },
            1 => LockCommand::Renew { key, holder, token, ttl_ms: None },
            2 => LockCommand::Release { key, holder, token },
            _ => LockCommand::Expire { key, token: token.unwrap_or(FencingToken(1)), renewal },
        },
    )
}

proptest! {
    /// Whatever is asked for: a new hold has a token above all earlier ones, and only a free
    /// key changes hands.
    #[test]
    fn tokens_grow_and_holds_do_not_overlap(script in prop::collection::vec(commands(), 0..60)) {
        let mut table = LockTable::default();
        let mut last = FencingToken::default();
        for command in script {
            let before = table.clone();
            let (outcome, notice) = table.apply(&command, Timestamp(1));
            if let Outcome::Locked(lock) = &outcome {
                match before.get(&lock.key) {
                    Some(held) => prop_assert_eq!((&held.holder, held.token), (&lock.holder, lock.token)),
                    None => {
                        prop_assert!(lock.token > last);
                        last = lock.token;
                    }
                }
            }
            if let LockCommand::Release { key, holder, token } = &command {
                let held = before.get(key).filter(|held| {
                    held.holder == *holder && token.is_none_or(|token| token == held.token)
                });
                prop_assert_eq!(outcome.clone(), Outcome::Released(held.is_some()));
            }
            if matches!(outcome, Outcome::Refused(_) | Outcome::Ignored | Outcome::HeldByOther(_)) {
                prop_assert!(notice.is_none());
                prop_assert_eq!(&before.locks, &table.locks);
            }
        }
    }
}

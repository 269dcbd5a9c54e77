//! Stories of the lock manager's state.

use tokio::sync::oneshot;

use super::state::*;
use super::*;
use crate::domain::lock::FencingToken;
use crate::domain::time::Timestamp;
use crate::ports::error::CallError;

type Answer = oneshot::Receiver<Result<Acquired, CallError>>;

fn request(holder: &str, wait: Option<u64>) -> (AcquireRequest, Answer) {
    let (reply, answer) = oneshot::channel();
    let now = Instant::now();
    let request = AcquireRequest {
        space: Space::CLUSTER,
        key: "k".into(),
        holder: holder.into(),
        ttl_ms: 1000,
        metadata: Json::null(),
        cause: Cause { who: "admin".into(), request_id: String::new() },
        deadline: now + Duration::from_secs(5),
        wait_until: wait.map(|secs| now + Duration::from_secs(secs)),
        since: now,
        reply,
    };
    (request, answer)
}

fn lock(holder: &str, token: u64, renewal: u64) -> LockView {
    LockView {
        key: "k".into(),
        holder: holder.into(),
        token: FencingToken(token),
        renewal,
        ttl_ms: 1000,
        acquired_at: Timestamp(0),
        expires_at: Timestamp(1000),
        metadata: Json::null(),
    }
}

fn held(queues: &mut LockQueues, holder: &str, token: u64, renewal: u64) {
    let notice = LockNotice::Held(lock(holder, token, renewal));
    assert!(queues.notice(Space::CLUSTER, notice, Instant::now()).is_none());
}

fn freed(queues: &mut LockQueues) -> Option<String> {
    let notice = LockNotice::Freed { key: "k".into() };
    queues.notice(Space::CLUSTER, notice, Instant::now()).map(|first| first.holder.to_string())
}

fn led() -> LockQueues {
    let mut queues = LockQueues::default();
    queues.lead(Space::CLUSTER, Vec::new(), Instant::now());
    queues
}

fn admitted(queues: &mut LockQueues, holder: &str, wait: Option<u64>) -> (&'static str, Answer) {
    let (request, answer) = request(holder, wait);
    let word = match queues.admit(request, false) {
        Admission::Attempt(_) => "attempt",
        Admission::Queued => "queued",
        Admission::Held(..) => "held",
        Admission::NotLed(_) => "not led",
        Admission::Full(_) => "full",
    };
    (word, answer)
}

#[tokio::test(start_paused = true)]
async fn waiters_are_served_in_order_and_nobody_barges() {
    let mut queues = led();
    assert_eq!(admitted(&mut queues, "a", None).0, "attempt");
    held(&mut queues, "a", 1, 0);
    let (word, _b) = admitted(&mut queues, "b", Some(10));
    assert_eq!(word, "queued");
    let (word, _c) = admitted(&mut queues, "c", Some(10));
    assert_eq!(word, "queued");
    assert_eq!(queues.waiters(Space::CLUSTER, &"k".into()), 2);
    assert_eq!(admitted(&mut queues, "a", None).0, "attempt", "the holder renews");
    assert_eq!(freed(&mut queues).as_deref(), Some("b"));
    // While b's attempt is under way the key looks free: who does not wait is told it is not.
    let (request, _d) = request("d", None);
    match queues.admit(request, false) {
        Admission::Held(_, holder, _) => assert_eq!(holder.as_str(), "b", "not the one who asks"),
        other => panic!("{other:?}"),
    }
    held(&mut queues, "b", 2, 0);
    assert!(queues.served(Space::CLUSTER, &"k".into(), Instant::now()).is_none());
    assert_eq!(freed(&mut queues).as_deref(), Some("c"));
    held(&mut queues, "c", 3, 0);
    assert!(queues.served(Space::CLUSTER, &"k".into(), Instant::now()).is_none());
    assert_eq!(freed(&mut queues), None);
    assert_eq!(admitted(&mut queues, "d", None).0, "attempt");
}

#[tokio::test(start_paused = true)]
async fn who_has_gone_or_waited_long_enough_is_not_served() {
    let mut queues = led();
    held(&mut queues, "a", 1, 0);
    drop(admitted(&mut queues, "gone", Some(10)).1);
    let (_, _short) = admitted(&mut queues, "short", Some(1));
    let (_, _long) = admitted(&mut queues, "long", Some(100));
    tokio::time::advance(Duration::from_secs(2)).await;
    let given_up = queues.expire_waits(Instant::now());
    let holders: Vec<_> = given_up
        .iter()
        .map(|(waiter, holder, _)| (waiter.holder.as_str(), holder.as_str()))
        .collect();
    assert_eq!(holders, [("gone", "a"), ("short", "a")]);
    assert_eq!(freed(&mut queues).as_deref(), Some("long"));
}

#[tokio::test(start_paused = true)]
async fn a_term_is_over_once_and_a_renewal_begins_it_again() {
    let mut queues = led();
    held(&mut queues, "a", 1, 0);
    tokio::time::advance(Duration::from_millis(900)).await;
    held(&mut queues, "a", 1, 1);
    tokio::time::advance(Duration::from_millis(900)).await;
    assert_eq!(queues.expired(Instant::now()), []);
    tokio::time::advance(Duration::from_millis(100)).await;
    let over =
        ExpiredLease { space: Space::CLUSTER, key: "k".into(), token: FencingToken(1), renewal: 1 };
    assert_eq!(queues.expired(Instant::now()), [over]);
    assert_eq!(queues.expired(Instant::now()), []);
    // Its holder asks again before the table knows: it waits for a new lease.
    let (word, _a) = admitted(&mut queues, "a", None);
    assert_eq!(word, "queued");
    assert_eq!(freed(&mut queues).as_deref(), Some("a"));
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_grants_full_terms() {
    let mut queues = LockQueues::default();
    // Granted long ago, by whatever clock: the whole lease begins here.
    tokio::time::advance(Duration::from_secs(50)).await;
    queues.lead(Space::CLUSTER, vec![lock("a", 7, 3)], Instant::now());
    tokio::time::advance(Duration::from_millis(999)).await;
    assert_eq!(queues.expired(Instant::now()), []);
    tokio::time::advance(Duration::from_millis(1)).await;
    let over =
        ExpiredLease { space: Space::CLUSTER, key: "k".into(), token: FencingToken(7), renewal: 3 };
    assert_eq!(queues.expired(Instant::now()), [over]);
    // Without the lead there is nothing to wake for.
    queues.lead(Space::CLUSTER, vec![lock("a", 7, 4)], Instant::now());
    queues.unlead(Space::CLUSTER);
    assert_eq!(queues.next_moment(), None);
}

#[tokio::test(start_paused = true)]
async fn who_loses_the_lead_forgets_terms_and_sends_waiters_away() {
    let mut queues = LockQueues::default();
    queues.lead(Space::CLUSTER, vec![lock("a", 7, 3)], Instant::now());
    let (_, _b) = admitted(&mut queues, "b", Some(10));
    let (_, _c) = admitted(&mut queues, "c", Some(10));
    let sent_away = queues.unlead(Space::CLUSTER);
    assert_eq!(sent_away.iter().map(|it| it.holder.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(queues.expired(Instant::now()), [], "the next leader's timers count");
    assert_eq!(freed(&mut queues), None);
    let (found_held, _d) = request("d", Some(10));
    assert!(matches!(queues.admit(found_held, true), Admission::NotLed(_)), "only a leader queues");
    // Whoever has no lead knows of no lease: it asks the table.
    assert_eq!(admitted(&mut queues, "e", Some(10)).0, "attempt");
    // And those that were sent away take nobody's place, when it leads again.
    queues.lead(Space::CLUSTER, vec![lock("a", 7, 4)], Instant::now());
    let mut waiting = Vec::new();
    for n in 0..WAITERS_MAX {
        let (word, answer) = admitted(&mut queues, &format!("w{n}"), Some(10));
        assert_eq!(word, "queued");
        waiting.push(answer);
    }
    assert_eq!(admitted(&mut queues, "one more", Some(10)).0, "full");
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_time_is_up_is_not_served_though_nobody_has_told_it_yet() {
    let mut queues = led();
    held(&mut queues, "a", 1, 0);
    let (_, _late) = admitted(&mut queues, "late", Some(1));
    let (_, _next) = admitted(&mut queues, "next", Some(100));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(freed(&mut queues).as_deref(), Some("next"));
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_lost_its_turn_keeps_its_place() {
    let mut queues = led();
    held(&mut queues, "a", 1, 0);
    let (_, _b) = admitted(&mut queues, "b", Some(10));
    let notice = LockNotice::Freed { key: "k".into() };
    let first = queues.notice(Space::CLUSTER, notice, Instant::now()).unwrap();
    held(&mut queues, "barger", 2, 0);
    let (_, _c) = admitted(&mut queues, "c", Some(10));
    assert!(queues.put_back(first, Instant::now()).is_none());
    let notice = LockNotice::Freed { key: "k".into() };
    let first = queues.notice(Space::CLUSTER, notice, Instant::now()).unwrap();
    assert_eq!(first.holder.as_str(), "b");
    // Taken and freed again while b was asking: it is attempted at once.
    assert_eq!(queues.put_back(first, Instant::now()).unwrap().holder.as_str(), "b");
}

#[tokio::test(start_paused = true)]
async fn who_asks_twice_gets_the_term_that_its_first_question_got() {
    let mut queues = led();
    held(&mut queues, "a", 1, 0);
    let (_, _lost) = admitted(&mut queues, "b", Some(10));
    let (_, _c) = admitted(&mut queues, "c", Some(10));
    let (_, _again) = admitted(&mut queues, "b", Some(10));
    let notice = LockNotice::Freed { key: "k".into() };
    let first = queues.notice(Space::CLUSTER, notice, Instant::now()).unwrap();
    assert_eq!(first.holder.as_str(), "b");
    held(&mut queues, "b", 2, 0);
    let own = queues.take_own(Space::CLUSTER, &"k".into());
    assert_eq!(own.iter().map(|own| own.holder.as_str()).collect::<Vec<_>>(), ["b"]);
    assert!(matches!(queues.admit(own.into_iter().next().unwrap(), false), Admission::Attempt(_)));
    assert_eq!(queues.waiters(Space::CLUSTER, &"k".into()), 1, "c waits on");
}

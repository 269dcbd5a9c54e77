//! Requests that wait: long polls.

use axum::extract::Request;

use super::*;
use crate::output::reply::Started;
use crate::request::attempt::Attempt;

#[tokio::test(start_paused = true)]
async fn a_long_poll_has_its_own_time_and_what_was_waited_counts() {
    for lead in [Lead::Here, Lead::There(RaftId(2))] {
        let owner = owner(LONG_POLL, post(echo));
        let routes = FakeRoutes::with(Lead::Unknown, peers([(2, owner)]));
        routes.move_lead(Duration::from_secs(8), lead);
        let router = asking(&routes, LONG_POLL, post(echo));
        let sent = request("POST", LONG_POLL, r#"{"holder":"h","wait_secs":10}"#);
        let (status, _, seen) = send(&router, sent).await;
        assert_eq!(status, 201);
        let times = ["waited_secs", "left_secs", "deadline_secs"].map(|name| seen[name].clone());
        assert_eq!(times, [json!(8.0), json!(2.0), json!(5.0)], "{lead:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_broke_off_goes_on_elsewhere_and_what_was_done_stands() {
    let started = || Started {
        run: "550e8400-e29b-41d4-a716-446655440000".parse().expect("a run's id"),
        replayed: true,
    };
    let broke_off = async move || {
        let mut answer = (StatusCode::CREATED, r#""begun""#).into_response();
        answer.extensions_mut().insert(Retry::Unknown);
        answer.extensions_mut().insert(started());
        answer
    };
    let ended = async move |request: Request| {
        let attempt = request.extensions().get::<Attempt>().expect("one of several");
        assert_eq!(attempt.started, Some(started()), "it must not be started again");
        (StatusCode::CREATED, r#""ended""#)
    };
    let refused = async || (StatusCode::NOT_FOUND, r#""refused""#);
    let nexts = [
        (owner(LONG_POLL, post(ended)), "ended"),
        (owner(LONG_POLL, post(refused)), "begun"),
        (lost(), "begun"),
    ];
    for (next, expected) in nexts {
        let first = owner(LONG_POLL, post(broke_off));
        let routes = FakeRoutes::with(Lead::There(RaftId(2)), peers([(2, first), (3, next)]));
        routes.move_lead(Duration::from_secs(1), Lead::There(RaftId(3)));
        let router = asking(&routes, LONG_POLL, post(never));
        let sent = request("POST", LONG_POLL, r#"{"holder":"h","wait_secs":10}"#);
        let (status, _, body) = send(&router, sent).await;
        assert_eq!(status, 201);
        assert_eq!(body, expected);
        if expected == "ended" {
            let last = routes.attempts().pop();
            assert_eq!(last, Some((3, Some(0), true)), "it is one request");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_that_wait_leave_room_for_the_others() {
    let routes = led_by(silent());
    let router = asking(&routes, LONG_POLL, post(never));
    let waiting = || request("POST", LONG_POLL, r#"{"holder":"h","wait_secs":300}"#);
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..LONG_POLLS {
        let (router, sent) = (router.clone(), waiting());
        waiters.spawn(async move { send(&router, sent).await });
    }
    sleep(Duration::from_secs(1)).await;
    let (status, headers, body) = send(&router, waiting()).await;
    assert_eq!((status.as_u16(), &body["code"]), (503, &json!("busy")));
    assert_eq!((&body["applied"], &headers["retry-after"]), (&json!(false), &"1".parse().unwrap()));
    assert_eq!(routes.sent().len(), LONG_POLLS, "it was not handed over");
    let short = send(&router, request("POST", LONG_POLL, r#"{"holder":"h"}"#));
    assert!(tokio::time::timeout(Duration::from_secs(1), short).await.is_err());
    assert_eq!(routes.sent().len(), LONG_POLLS + 1, "one that does not wait is handed over");
    waiters.shutdown().await;
    routes.lead_at(Lead::Unknown);
    let (_, _, body) = send(&router, waiting()).await;
    assert_eq!(body["code"], "no_leader", "places come back: {body}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_is_sent_away_when_the_node_stops() {
    let routes = led_by(silent());
    let (router, app) = asking_app(&routes, LONG_POLL, post(never));
    let waiter = request("POST", LONG_POLL, r#"{"holder":"h","wait_secs":300}"#);
    let waiter = tokio::spawn(async move { send(&router, waiter).await });
    sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    app.stopping.send_replace(true);
    let (status, headers, body) = waiter.await.unwrap();
    assert_eq!((status.as_u16(), &headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(body.get("applied"), None, "what it did before it waited may stand: {body}");
    assert_eq!(began.elapsed(), Duration::ZERO);
}

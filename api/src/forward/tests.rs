//! Stories of requests between nodes.

mod waits;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use shiioo_actors::cluster::routing::Lead;
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::error::CallError;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Duration, Instant, sleep};
use tower::ServiceExt;

use super::fakes::{
    FakeRoutes, HANDED_OVER, LONG_POLL, LONG_POLLS, ONCE, PATH, Peer, TIMEOUT, asking, asking_app,
    full_owner, led_by, lost, node, owner, peers, request, send, silent, with_token,
};
use crate::forward::outbound::ANSWER_GRACE;
use crate::forward::retry::RETRY_MIN;
use crate::forward::transport::ANSWER_PAUSE_MAX;
use crate::input::payload::Payload;
use crate::output::problem::{Code, Problem, Retry};
use crate::request::ctx::Ctx;

/// Tells what a handler sees.
async fn echo(ctx: Ctx, headers: HeaderMap, body: Payload<Value>) -> (StatusCode, String) {
    let call = ctx.call();
    let seen = json!({
        "who": call.cause.who,
        "request_id": call.cause.request_id,
        "sequence": call.rpc_id.map(|rpc_id| rpc_id.sequence),
        "waited_secs": call.elapsed_upstream.as_secs_f64().round(),
        "left_secs": ctx.left_of(Duration::from_secs(10)).as_secs_f64().round(),
        "deadline_secs": (call.deadline - Instant::now()).as_secs_f64().round(),
        "authorization": headers.contains_key("authorization"),
        "if_match": headers.get("if-match").and_then(|value| value.to_str().ok()),
        "body": body.value,
    });
    (StatusCode::CREATED, seen.to_string())
}

/// Not to be reached.
async fn never() -> StatusCode {
    panic!("a request was answered by a node that does not own what it is about")
}

fn no_leader() -> Problem {
    CallError::NoLeader.into()
}

#[tokio::test(start_paused = true)]
async fn a_write_has_an_origin_and_a_read_has_none() {
    let routes = FakeRoutes::new(Lead::Here);
    let router = asking(&routes, PATH, post(echo).get(echo));
    let (status, _, seen) = send(&router, request("POST", PATH, r#"{"a":1}"#)).await;
    assert_eq!(status, 201);
    assert_eq!((&seen["sequence"], &seen["body"]), (&json!(0), &json!({"a": 1})));
    let (_, _, seen) = send(&router, request("GET", PATH, "")).await;
    assert_eq!(seen["sequence"], Value::Null);
    assert_eq!(routes.first_incomplete(), 1, "the write has been answered");
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_whole_to_its_owner() {
    let routes = led_by(owner(PATH, post(echo)));
    let router = with_token(&routes, PATH, post(never), Some("s3cret"));
    let mut sent = request("POST", PATH, r#"{"a":[1]}"#);
    let headers = sent.headers_mut();
    headers.insert("authorization", "Bearer s3cret".parse().unwrap());
    headers.insert("if-match", "\"7\"".parse().unwrap());
    let (status, headers, seen) = send(&router, sent).await;
    assert_eq!(status, 201);
    assert_eq!(headers["x-request-id"], "r-1");
    assert!(headers.contains_key("date"));
    assert_eq!(
        seen,
        json!({
            "who": "admin", "request_id": "r-1", "sequence": 0, "waited_secs": 0.0,
            "left_secs": 10.0, "deadline_secs": 5.0, "authorization": false,
            "if_match": "\"7\"", "body": {"a": [1]},
        })
    );
    // Without the credential nothing leaves the node.
    assert_eq!(send(&router, request("POST", PATH, "")).await.0, 401);
    assert_eq!(routes.sent().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn refusals_and_panics_of_the_owner_come_back_under_the_same_request_id() {
    let refuse =
        async || Problem::new(Code::Conflict, "taken").facts(|facts| facts.limit = Some(3));
    let panics = async || -> StatusCode { panic!("the secret is 42") };
    for (handler, status, code) in
        [(post(refuse), 409, "conflict"), (post(panics), 500, "internal")]
    {
        let routes = led_by(owner(PATH, handler));
        let (answered, headers, body) =
            send(&asking(&routes, PATH, post(never)), request("POST", PATH, "")).await;
        assert_eq!(answered, status);
        assert_eq!(headers["content-type"], "application/problem+json");
        assert_eq!((&body["code"], &body["request_id"]), (&json!(code), &json!("r-1")));
        assert_eq!(routes.sent().len(), 1, "an answer is an answer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_request_keeps_the_length_of_what_it_does_not_get() {
    let length = async |lead| {
        let text = || get(async || "twelve bytes");
        let owner = owner(PATH, text());
        let routes = FakeRoutes::with(lead, peers([(2, owner)]));
        let (status, headers, _) =
            send(&asking(&routes, PATH, text()), request("HEAD", PATH, "")).await;
        assert_eq!(status, 200);
        headers["content-length"].to_str().unwrap().to_owned()
    };
    assert_eq!(length(Lead::Here).await, "12");
    assert_eq!(length(Lead::There(RaftId(2))).await, "12");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_handed_over_twice() {
    // Each believes that the other leads.
    let theirs = FakeRoutes::new(Lead::There(RaftId(1)));
    let owner = node(&theirs, PATH, post(never));
    let routes = led_by(owner);
    let router = asking(&routes, PATH, post(echo));
    routes.move_lead(Duration::from_secs(2), Lead::Here);
    let began = Instant::now();
    let (status, _, seen) = send(&router, request("POST", PATH, "")).await;
    assert_eq!((status, &seen["waited_secs"]), (StatusCode::CREATED, &json!(2.0)));
    assert!(began.elapsed() < Duration::from_millis(2050), "{:?}", began.elapsed());
    assert!(theirs.sent().is_empty(), "the other node must not hand it on");
    // It looked again, but not without rest; and it was certain that nothing had been done.
    let attempts = routes.attempts();
    assert!((10..20).contains(&attempts.len()), "{attempts:?}");
    assert!(attempts.iter().all(|attempt| *attempt == (2, Some(0), false)), "{attempts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_follows_the_lead() {
    let owner = owner(PATH, post(echo));
    let routes = FakeRoutes::with(Lead::There(RaftId(2)), peers([(2, silent()), (3, owner)]));
    routes.move_lead(Duration::from_secs(1), Lead::Unknown);
    routes.move_lead(Duration::from_secs(2), Lead::There(RaftId(3)));
    let router = asking(&routes, PATH, post(never));
    let (status, _, seen) = send(&router, request("POST", PATH, "")).await;
    assert_eq!((status, &seen["waited_secs"]), (StatusCode::CREATED, &json!(2.0)));
    assert_eq!(seen["deadline_secs"], 3.0, "no attempt moves the deadline");
    assert_eq!(routes.attempts(), [(2, Some(0), false), (3, Some(0), true)]);
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_itself_is_tried_again_here() {
    for first in [
        CallError::Starting { what: "the tenant" },
        CallError::Stopping,
        CallError::Unknown { why: "the lead was lost".into() },
    ] {
        let tried = Arc::new(AtomicUsize::new(0));
        let handler = async move || match tried.fetch_add(1, Ordering::Relaxed) {
            0 => Problem::from(first).into_response(),
            _ => StatusCode::OK.into_response(),
        };
        let router = asking(&FakeRoutes::new(Lead::Here), PATH, post(handler));
        assert_eq!(send(&router, request("POST", PATH, "")).await.0, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn at_the_deadline_it_is_said_whether_anything_was_done() {
    let answers = async |lead, there: Option<Peer>, method| {
        let routes =
            FakeRoutes::with(lead, there.into_iter().map(|peer| (RaftId(2), peer)).collect());
        let handler = async || no_leader();
        let router = asking(&routes, PATH, post(handler).get(handler));
        let began = Instant::now();
        let (status, headers, body) = send(&router, request(method, PATH, "")).await;
        let took = began.elapsed();
        assert!(TIMEOUT - RETRY_MIN <= took && took <= TIMEOUT + ANSWER_GRACE, "{took:?}");
        assert_eq!(
            (status, &headers["retry-after"]),
            (503.try_into().unwrap(), &"1".parse().unwrap())
        );
        (body["code"].as_str().unwrap().to_owned(), body.get("applied").cloned())
    };
    let no = || Some(json!(false));
    for method in ["POST", "GET"] {
        assert_eq!(answers(Lead::Unknown, None, method).await, ("no_leader".into(), no()));
        assert_eq!(answers(Lead::Here, None, method).await, ("no_leader".into(), no()));
        assert_eq!(answers(Lead::There(RaftId(2)), None, method).await, ("no_leader".into(), no()));
        let lost = answers(Lead::There(RaftId(2)), Some(lost()), method).await;
        assert_eq!(lost, ("no_quorum".into(), None));
    }
    let theirs = owner(PATH, post(async || no_leader()));
    assert_eq!(
        answers(Lead::There(RaftId(2)), Some(theirs), "POST").await,
        ("no_leader".into(), no())
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_perhaps_done_once_is_never_said_to_be_undone() {
    for lead in [Lead::Unknown, Lead::Here, Lead::There(RaftId(3))] {
        let full = || post(async || Problem::from(CallError::DiskFull));
        let owner = owner(PATH, full());
        let routes = FakeRoutes::with(Lead::There(RaftId(2)), peers([(2, silent()), (3, owner)]));
        routes.move_lead(Duration::from_secs(1), lead);
        let (status, _, body) =
            send(&asking(&routes, PATH, full()), request("POST", PATH, "")).await;
        assert!(status.is_server_error());
        assert!(body.get("applied").is_none(), "{lead:?}: {body}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_hands_the_lead_over_is_not_asked_twice() {
    // The lead moves while it is answered: that is the answer.
    let slow = async || {
        sleep(Duration::from_secs(1)).await;
        "done"
    };
    let routes = FakeRoutes::with(
        Lead::There(RaftId(2)),
        peers([(2, owner(ONCE, post(slow))), (3, lost())]),
    );
    routes.move_lead(Duration::from_millis(500), Lead::There(RaftId(3)));
    let router = asking(&routes, ONCE, post(never));
    assert_eq!(send(&router, request("POST", ONCE, "")).await.0, 200);
    assert_eq!(send(&router, request("POST", ONCE, "")).await.2["code"], "no_quorum");
    assert_eq!(routes.sent().iter().map(|(to, _)| *to).collect::<Vec<_>>(), [2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_away_cancels_everything() {
    let routes = led_by(silent());
    let router = asking(&routes, PATH, post(never));
    let gone = send(&router, request("POST", PATH, ""));
    assert!(tokio::time::timeout(Duration::from_secs(1), gone).await.is_err());
    routes.all_closed().await;
    assert_eq!((routes.sent().len(), routes.first_incomplete()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_have_any_length() {
    for bytes in [0, 1, 1 << 20, (1 << 20) + 1, 70 << 20] {
        let large = || get(async move || "x".repeat(bytes));
        let routes = led_by(owner(PATH, large()));
        let router = asking(&routes, PATH, get(never));
        let answer = router.oneshot(request("GET", PATH, "")).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("connection"));
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body.len(), bytes);
        routes.all_closed().await;
    }
}

/// Its status is with the client already: only its end can say that it is not whole.
#[tokio::test(start_paused = true)]
async fn a_long_answer_that_breaks_off_or_stands_still_does_not_look_whole() {
    for breaks_off in [true, false] {
        let partial: Peer = Box::new(move |mut stream| {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\nthis far";
            tokio::spawn(async move {
                stream.write_all(head).await.unwrap();
                if !breaks_off {
                    std::future::pending::<()>().await;
                }
            });
        });
        let routes = led_by(partial);
        let router = asking(&routes, PATH, get(never));
        let answer = router.oneshot(request("GET", PATH, "")).await.unwrap();
        assert_eq!(answer.status(), 200);
        let began = Instant::now();
        assert!(axum::body::to_bytes(answer.into_body(), usize::MAX).await.is_err());
        let paused = if breaks_off { Duration::ZERO } else { ANSWER_PAUSE_MAX };
        assert_eq!(began.elapsed().as_secs(), paused.as_secs());
        routes.all_closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_busy_with_a_tenant_reads_what_is_sent_to_it() {
    let busy = async || std::future::pending::<StatusCode>().await;
    let routes = led_by(owner(PATH, post(busy)));
    let router = asking(&routes, PATH, post(never));
    let mut large = request("POST", PATH, "");
    // More than the stream holds.
    *large.body_mut() = Body::from(vec![b' '; 900_000]);
    let sent = tokio::spawn(async move { send(&router, large).await });
    sleep(Duration::from_secs(1)).await;
    assert!(routes.sent()[0].1.len() > 900_000);
    sent.abort();
}

#[tokio::test(start_paused = true)]
async fn an_owner_without_room_for_a_body_has_done_nothing() {
    let owner = full_owner(PATH, post(never));
    let routes = led_by(owner);
    let router = asking(&routes, PATH, post(never));
    let (status, _, body) = send(&router, request("POST", PATH, "{}")).await;
    let said = (status.as_u16(), &body["code"], &body["applied"]);
    assert_eq!(said, (503, &json!("busy"), &json!(false)));
    assert!(routes.attempts().len() > 1, "there may be room a little later");
}

#[tokio::test(start_paused = true)]
async fn tenants_that_do_not_exist_leave_places_to_the_others() {
    let routes = led_by(silent());
    let router = asking(&routes, PATH, post(never));
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..HANDED_OVER {
        let router = router.clone();
        waiting.spawn(async move { send(&router, request("POST", PATH, "")).await });
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(routes.sent().len(), HANDED_OVER / 2);
    let mut answers = Vec::new();
    while let Some(answer) = waiting.join_next().await {
        let (_, _, body) = answer.unwrap();
        answers.push((body["code"].to_string(), body.get("applied").cloned()));
    }
    let busy = answers.iter().filter(|said| **said == ("\"busy\"".into(), Some(json!(false))));
    assert_eq!(busy.count(), HANDED_OVER / 2, "{answers:?}");
}

#[tokio::test(start_paused = true)]
async fn no_client_says_what_only_nodes_say() {
    for lead in [Lead::Here, Lead::There(RaftId(2))] {
        let seen = async |ctx: Ctx, headers: HeaderMap| {
            let internal = headers.keys().filter(|name| name.as_str().starts_with("x-shiioo-"));
            let call = ctx.call();
            json!([internal.count(), call.cause.who, call.rpc_id.map(|id| id.sequence)]).to_string()
        };
        let owner = owner(PATH, post(seen));
        let routes = FakeRoutes::with(lead, peers([(2, owner)]));
        let mut sent = request("POST", PATH, "");
        for (name, value) in [
            ("x-shiioo-who", "admin"),
            ("x-shiioo-who", "admin"),
            ("x-shiioo-attempt", "1 0 9000000 0 7 7 7"),
            ("X-Shiioo-Other", "1"),
        ] {
            let name: http::HeaderName = name.parse().unwrap();
            sent.headers_mut().append(name, value.parse().unwrap());
        }
        let (status, _, seen) = send(&asking(&routes, PATH, post(seen)), sent).await;
        assert_eq!((status.as_u16(), seen), (200, json!([0, "anonymous", 0])), "{lead:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn stale_reads_of_the_cluster_are_answered_by_whoever_is_asked() {
    const LIST: &str = "/api/things";
    let routes = FakeRoutes::new(Lead::There(RaftId(2)));
    let local = asking(&routes, LIST, get(async || "mine").post(async || "mine"));
    let status = async |method: &str, query: &str| {
        send(&local, request(method, &format!("{LIST}{query}"), "")).await.0.as_u16()
    };
    assert_eq!(status("GET", "?consistency=stale&limit=1").await, 200);
    assert!(routes.sent().is_empty());
    for other in ["strong", "", "Stale"] {
        assert_eq!(status("GET", &format!("?consistency={other}")).await, 400, "{other}");
    }
    assert_eq!(status("GET", "").await, 503);
    assert_eq!(status("POST", "?consistency=stale").await, 503);
    // What a tenant owns is not on every node.
    let tenants = asking(&routes, PATH, get(never));
    let stale = request("GET", &format!("{PATH}?consistency=stale"), "");
    assert_eq!(send(&tenants, stale).await.0, 503);
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_before_they_are_handed_over() {
    let routes = FakeRoutes::new(Lead::There(RaftId(2)));
    let router = asking(&routes, PATH, post(never));
    let mut large = request("POST", PATH, "");
    *large.body_mut() = Body::from(vec![b' '; 1024 * 1024 + 1]);
    let (status, _, body) = send(&router, large).await;
    assert_eq!((status.as_u16(), &body["code"]), (413, &json!("too_large")));
    let broken = request("POST", "/api/tenants/x/things", "");
    assert_eq!(send(&router, broken).await.0, 404);
    assert!(routes.sent().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_leaves_it_open_what_was_done() {
    for answer in [
        &b"\x09\x09"[..],
        b"HTTP/1.1 200 OK\r\nx-shiioo-answer: strange\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbroken",
    ] {
        let strange: Peer = Box::new(move |mut stream| {
            tokio::spawn(async move { stream.write_all(answer).await });
        });
        let routes = led_by(strange);
        let router = asking(&routes, PATH, post(never));
        let (_, _, body) = send(&router, request("POST", PATH, "")).await;
        assert_eq!((&body["code"], body.get("applied")), (&json!("no_quorum"), None));
    }
}

/// A request that no node has written, or one of another version, is not done.
#[tokio::test(start_paused = true)]
async fn what_says_nothing_of_its_attempt_is_not_done() {
    let owner = owner(PATH, post(never));
    for headers in ["", "x-shiioo-who: admin\r\nx-request-id: r\r\nx-shiioo-attempt: 2 0 0 0\r\n"] {
        let (mut stream, theirs) = tokio::io::duplex(1 << 16);
        owner(theirs);
        let path = PATH.replace("{tenant_id}", "550e8400-e29b-41d4-a716-446655440000");
        let request = format!("POST {path} HTTP/1.1\r\n{headers}content-length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("x-shiioo-answer: not-done"), "{answer}");
    }
}

//! The headers of HTTP that is handed over: what does not travel, and what nodes tell each other.
//!
//! | header | in | layout |
//! |---|---|---|
//! | `x-shiioo-who` | request | `admin` or `anonymous`: the caller that the ingress node has let in |
//! | `x-shiioo-attempt` | request | see [`Attempt`]: numbers with a space between them |
//! | `x-shiioo-answer` | answer | [`Said`]: absent on an answer that is final |
//! | `x-shiioo-started` | both | [`Started`]: the run's id, and 1 if the idempotency key was known |
//!
//! The numbers of an attempt are the version of the layout, how long the client has waited (us), the
//! time for the work (us), 1 if an earlier attempt may have been applied, and, of a write,
//! incarnation, sequence and first incomplete of its RPC id. The request id is in `x-request-id`.
//!
//! Invariants: credentials do not travel, nor do headers that belong to one connection (RFC 9110,
//! 7.6.1). No client can set a header of nodes: `server/middleware` removes them from every request of
//! a client before anything else looks.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use shiioo_actors::command::RpcId;
use shiioo_actors::domain::ids::RaftId;
use tokio::time::{Duration, Instant};

use crate::output::problem::Retry;
use crate::output::reply::Started;
use crate::request::attempt::Attempt;
use crate::server::app::Caller;
use crate::server::auth::Who;

/// Version of the layout of `x-shiioo-attempt`.
const VERSION: u64 = 1;
const WHO: HeaderName = HeaderName::from_static("x-shiioo-who");
const ATTEMPT: HeaderName = HeaderName::from_static("x-shiioo-attempt");
const STARTED: HeaderName = HeaderName::from_static("x-shiioo-started");
const ANSWER: HeaderName = HeaderName::from_static("x-shiioo-answer");
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Headers that do not travel: those of one connection, and credentials.
const STAY_HERE: [HeaderName; 12] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::AUTHORIZATION,
    header::COOKIE,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// What a node says of its answer beside the answer itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It has done nothing: it does not lead the group, or cannot read the request.
    NotDone,
    /// Another attempt may end better.
    Retry(Retry),
}

impl Said {
    const ALL: [(Self, &'static str); 3] = [
        (Self::NotDone, "not-done"),
        (Self::Retry(Retry::Safe), "retry-safe"),
        (Self::Retry(Retry::Unknown), "retry-unknown"),
    ];

    /// Puts it among the headers of an answer.
    pub(super) fn write(self, headers: &mut HeaderMap) {
        let text = Self::ALL.into_iter().find(|(said, _)| *said == self).map_or("", |said| said.1);
        headers.insert(ANSWER, HeaderValue::from_static(text));
    }

    /// Takes it from the headers of an answer: `Err` when it cannot be read.
    pub(super) fn take(headers: &mut HeaderMap) -> Result<Option<Self>, ()> {
        let Some(value) = headers.remove(ANSWER) else { return Ok(None) };
        let mut all = Self::ALL.into_iter();
        all.find(|(_, text)| value == *text).map(|(said, _)| Some(said)).ok_or(())
    }
}

/// Writes who asks, and which attempt it is, over whatever is there.
pub(super) fn write_request(headers: &mut HeaderMap, caller: Option<&Caller>, attempt: &Attempt) {
    let who = caller.map_or(Who::Anonymous, |caller| caller.who);
    headers.insert(WHO, HeaderValue::from_static(who.name()));
    if let Some(caller) = caller {
        headers.insert(X_REQUEST_ID, caller.request_id.clone());
    }
    let elapsed = micros(attempt.elapsed());
    let left = micros(attempt.deadline.saturating_duration_since(Instant::now()));
    let maybe = u8::from(attempt.maybe_applied);
    let mut text = format!("{VERSION} {elapsed} {left} {maybe}");
    if let Some(RpcId { incarnation, sequence, first_incomplete }) = attempt.rpc_id {
        text += &format!(" {incarnation} {sequence} {first_incomplete}");
    }
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(ATTEMPT, value);
    }
    if let Some(started) = attempt.started {
        write_started(headers, started);
    }
}

/// Writes what a request has started.
pub(super) fn write_started(headers: &mut HeaderMap, started: Started) {
    let Started { run, replayed } = started;
    if let Ok(value) = HeaderValue::try_from(format!("{run} {}", u8::from(replayed))) {
        headers.insert(STARTED, value);
    }
}

/// Takes what a request has started. A program of an earlier version says nothing of it.
pub(super) fn take_started(headers: &mut HeaderMap) -> Option<Started> {
    let text = headers.remove(STARTED)?;
    let (run, replayed) = text.to_str().ok()?.split_once(' ')?;
    Some(Started { run: run.parse().ok()?, replayed: replayed == "1" })
}

/// Takes who asks, and which attempt it is. `None` when another version has written it, or nobody.
pub(super) fn take_request(
    headers: &mut HeaderMap,
    ingress_node: RaftId,
    deadline: Instant,
) -> Option<(Caller, Attempt)> {
    let who = headers.remove(WHO)?;
    let mut known = [Who::Anonymous, Who::Admin].into_iter();
    let who = known.find(|known| who == known.name())?;
    let request_id = headers.get(X_REQUEST_ID)?.clone();
    let text = headers.remove(ATTEMPT)?;
    let numbers: Result<Vec<u64>, _> = text.to_str().ok()?.split(' ').map(str::parse).collect();
    let numbers = numbers.ok()?;
    let (&[VERSION, elapsed_us, left_us, maybe], rest) = numbers.split_first_chunk()? else {
        return None;
    };
    let rpc_id = match *rest {
        [] => None,
        [incarnation, sequence, first_incomplete] => {
            Some(RpcId { incarnation, sequence, first_incomplete })
        }
        _ => return None,
    };
    let began = Instant::now();
    let left = began.checked_add(Duration::from_micros(left_us)).unwrap_or(deadline);
    let attempt = Attempt {
        began,
        elapsed_upstream: Duration::from_micros(elapsed_us),
        deadline: left.min(deadline),
        rpc_id,
        maybe_applied: maybe != 0,
        ingress_node: Some(ingress_node),
        stale: false,
        started: take_started(headers),
    };
    Some((Caller { who, request_id }, attempt))
}

/// Copies the headers that travel: none of the connection, none that `Connection` names, and not
/// the length, which HTTP writes anew.
pub(super) fn travelling(all: &HeaderMap) -> HeaderMap {
    let named = all.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<&str> = named.flat_map(|names| names.split(',')).map(str::trim).collect();
    let mut travelling = HeaderMap::with_capacity(all.len() + 3);
    for (name, value) in all {
        let stays = STAY_HERE.contains(name) || *name == header::CONTENT_LENGTH;
        if !stays && !named.iter().any(|named| named.eq_ignore_ascii_case(name.as_str())) {
            travelling.append(name.clone(), value.clone());
        }
    }
    travelling
}

/// Removes from an answer what belongs to the connection between the nodes.
pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in &STAY_HERE {
        headers.remove(name);
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;
    use tokio::time::advance;

    use super::*;

    fn caller() -> Caller {
        Caller { who: Who::Admin, request_id: HeaderValue::from_static("r-1") }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_survives_the_way() {
        let rpc_id = RpcId { incarnation: 7, sequence: 3, first_incomplete: u64::MAX };
        for (rpc_id, maybe_applied) in [(None, false), (Some(rpc_id), true)] {
            let mut attempt = Attempt::only(Duration::from_secs(5));
            (attempt.rpc_id, attempt.maybe_applied) = (rpc_id, maybe_applied);
            let run = "550e8400-e29b-41d4-a716-446655440000".parse().unwrap();
            attempt.started = rpc_id.map(|_| Started { run, replayed: maybe_applied });
            advance(Duration::from_secs(2)).await;
            let mut headers = HeaderMap::new();
            // What somebody else has written there does not count.
            headers.append(WHO, HeaderValue::from_static("anonymous"));
            headers.append(ATTEMPT, HeaderValue::from_static("1 2 3 4"));
            write_request(&mut headers, Some(&caller()), &attempt);
            let deadline = Instant::now() + Duration::from_secs(60);
            let (from, arrived) = take_request(&mut headers, RaftId(9), deadline).unwrap();
            assert_eq!((from.who, from.request_id), (Who::Admin, caller().request_id));
            assert_eq!(arrived.elapsed(), Duration::from_secs(2));
            assert_eq!(
                (arrived.deadline, arrived.ingress_node),
                (attempt.deadline, Some(RaftId(9)))
            );
            assert_eq!((arrived.rpc_id, arrived.maybe_applied), (rpc_id, maybe_applied));
            assert_eq!(arrived.started, attempt.started);
            assert_eq!(headers.keys().collect::<Vec<_>>(), [&X_REQUEST_ID]);
        }
    }

    #[test]
    fn what_is_of_a_connection_stays_here_and_so_do_credentials() {
        let request = Request::get("/")
            .header("If-Match", "\"7\"")
            .header("X-Bytes", HeaderValue::from_bytes(b"\xfc").unwrap())
            .header("Authorization", "Bearer s3cret")
            .header("Connection", "keep-alive, X-Mine")
            .header("X-Mine", "1")
            .header("Transfer-Encoding", "chunked")
            .header("Content-Length", "3");
        let travelling = travelling(request.headers_ref().unwrap());
        let names: Vec<&str> = travelling.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["if-match", "x-bytes"]);
        assert_eq!(travelling["x-bytes"].as_bytes(), b"\xfc");
    }

    #[test]
    fn an_answer_says_one_of_few_things() {
        let mut headers = HeaderMap::new();
        assert_eq!(Said::take(&mut headers), Ok(None));
        for (said, _) in Said::ALL {
            said.write(&mut headers);
            assert_eq!(Said::take(&mut headers), Ok(Some(said)));
            assert!(headers.is_empty());
        }
        headers.insert(ANSWER, HeaderValue::from_static("final"));
        assert_eq!(Said::take(&mut headers), Err(()));
    }

    proptest! {
        #[test]
        fn any_text_is_an_attempt_or_refused(text in "\\PC*|1( [0-9]{1,20}){3,7}") {
            let mut headers = HeaderMap::new();
            headers.insert(WHO, HeaderValue::from_static("admin"));
            headers.insert(X_REQUEST_ID, HeaderValue::from_static("r"));
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(ATTEMPT, value);
            }
            let deadline = Instant::now();
            if let Some((_, attempt)) = take_request(&mut headers, RaftId(1), deadline) {
                prop_assert!(attempt.deadline <= deadline);
                prop_assert!(attempt.elapsed() >= attempt.elapsed_upstream);
            }
        }
    }
}

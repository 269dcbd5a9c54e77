//! Requests and answers of the API as they travel between nodes.
//!
//! | what | layout |
//! |---|---|
//! | request | version `u16`, then [`WireRequest`] |
//! | answer | version `u16`, then [`WireAnswer`] |
//!
//! Both are in the encoding of `shiioo_actors::domain::codec`. A node that gets another version than its
//! own declines the request, and has done nothing.
//!
//! Invariants: credentials do not travel, the caller's name does; headers that belong to one
//! connection (RFC 9110, 7.6.1) do not travel either.

use std::fmt;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use shiioo_actors::command::RpcId;
use shiioo_actors::domain::codec;
use tokio::time::{Duration, Instant};

use crate::output::problem::Retry;
use crate::request::attempt::Attempt;
use crate::server::app::Caller;
use crate::server::auth::Who;

/// Version of the layout of requests and answers.
const VERSION: u16 = 1;
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

/// Bytes that are encoded as one run, not as a list of numbers.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Octets(Bytes);

impl fmt::Debug for Octets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Octets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Octets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;

        impl<'de> Visitor<'de> for Read {
            type Value = Octets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Octets, E> {
                Ok(Octets(Bytes::copy_from_slice(bytes)))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Octets, E> {
                Ok(Octets(bytes.into()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Octets, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(Octets(bytes.into()))
            }
        }

        deserializer.deserialize_byte_buf(Read)
    }
}

type Headers = Vec<(String, Octets)>;

/// A request for the node that owns what it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WireRequest {
    method: String,
    /// Path and query.
    target: String,
    headers: Headers,
    body: Octets,
    /// The caller that the ingress node has let in.
    who: Who,
    request_id: Octets,
    rpc_id: Option<RpcId>,
    /// How long the client has waited already, at the ingress node.
    elapsed_us: u64,
    /// The time for calls that wait for nothing but the work itself. Long polls are bounded by the
    /// deadline of the call between the nodes.
    left_us: u64,
    /// Whether an earlier attempt at this write may have been applied.
    maybe_applied: bool,
}

/// What a node says to a request that it was handed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum WireAnswer {
    /// The node has done nothing: it does not lead the group that owns the request.
    NotHere,
    /// The request was answered.
    Answered(WireResponse),
}

/// An answer of the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct WireResponse {
    status: u16,
    headers: Headers,
    body: Octets,
    /// Whether another attempt may end better.
    pub(crate) retry: Option<Retry>,
}

impl WireRequest {
    /// Makes the message for one attempt at a request.
    pub(crate) fn new(parts: &Parts, body: &Bytes, attempt: &Attempt) -> Self {
        let caller = parts.extensions.get::<Caller>();
        let request_id = caller.map(|caller| Bytes::copy_from_slice(caller.request_id.as_bytes()));
        let left = attempt.deadline.saturating_duration_since(Instant::now());
        Self {
            method: parts.method.as_str().to_owned(),
            target: parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned(),
            // The body is whole by now: the message says its length.
            headers: travelling(&parts.headers, &[header::CONTENT_LENGTH]),
            body: Octets(body.clone()),
            who: caller.map_or(Who::Anonymous, |caller| caller.who),
            request_id: Octets(request_id.unwrap_or_default()),
            rpc_id: attempt.rpc_id,
            elapsed_us: micros(attempt.elapsed()),
            left_us: micros(left),
            maybe_applied: attempt.maybe_applied,
        }
    }

    /// Encodes the message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(&(VERSION, self))
    }

    /// Decodes bytes of another node.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }

    /// Makes the request for a router: answered by `deadline` at the latest.
    pub(crate) fn into_request(self, deadline: Instant) -> Result<Request, String> {
        let mut request = Request::new(Body::from(self.body.0));
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).map_err(text)?;
        *request.uri_mut() = Uri::try_from(self.target).map_err(text)?;
        *request.headers_mut() = headers(self.headers)?;
        let request_id = HeaderValue::from_maybe_shared(self.request_id.0).map_err(text)?;
        let began = Instant::now();
        let left = began.checked_add(Duration::from_micros(self.left_us)).unwrap_or(deadline);
        let extensions = request.extensions_mut();
        extensions.insert(Caller { who: self.who, request_id });
        extensions.insert(Attempt {
            began,
            elapsed_upstream: Duration::from_micros(self.elapsed_us),
            deadline: left.min(deadline),
            rpc_id: self.rpc_id,
            maybe_applied: self.maybe_applied,
            ingress_node: None,
            stale: false,
        });
        Ok(request)
    }
}

impl WireAnswer {
    /// Encodes the message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        codec::encode(&(VERSION, self))
    }

    /// Decodes bytes of another node.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes)
    }
}

impl WireResponse {
    /// Makes the message for an answer whose body has been read.
    pub(crate) fn new(method: &Method, answer: http::response::Parts, body: Bytes) -> Self {
        // An answer to HEAD says the length of a body that is not there; any other says its own.
        let length = [header::CONTENT_LENGTH];
        let dropped = if method == Method::HEAD { &[][..] } else { &length[..] };
        Self {
            status: answer.status.as_u16(),
            headers: travelling(&answer.headers, dropped),
            body: Octets(body),
            retry: answer.extensions.get::<Retry>().copied(),
        }
    }

    /// Makes the response for the client.
    pub(crate) fn into_response(self) -> Result<Response, String> {
        let mut response = Response::new(Body::from(self.body.0));
        *response.status_mut() = StatusCode::from_u16(self.status).map_err(text)?;
        *response.headers_mut() = headers(self.headers)?;
        if let Some(retry) = self.retry {
            response.extensions_mut().insert(retry);
        }
        Ok(response)
    }
}

/// Selects the headers that travel: none of the connection, none that `Connection` names, and none
/// of `dropped`.
fn travelling(all: &HeaderMap, dropped: &[HeaderName]) -> Headers {
    let named = all.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<&str> = named.flat_map(|names| names.split(',')).map(str::trim).collect();
    all.iter()
        .filter(|(name, _)| !STAY_HERE.contains(name) && !dropped.contains(name))
        .filter(|(name, _)| !named.iter().any(|named| named.eq_ignore_ascii_case(name.as_str())))
        .map(|(name, value)| {
            let value = Bytes::copy_from_slice(value.as_bytes());
            (name.as_str().to_owned(), Octets(value))
        })
        .collect()
}

fn headers(given: Headers) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name = HeaderName::try_from(name).map_err(text)?;
        let value = HeaderValue::from_maybe_shared(value.0).map_err(text)?;
        headers.try_append(name, value).map_err(text)?;
    }
    Ok(headers)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    // The version is looked at first: what follows it may have another shape.
    let version: u16 = codec::decode(bytes.get(..1).unwrap_or_default()).map_err(text)?;
    if version != VERSION {
        return Err(format!("version {version} of API requests is not spoken here"));
    }
    codec::decode::<(u16, T)>(bytes).map(|(_, decoded)| decoded).map_err(text)
}

fn text(error: impl fmt::Display) -> String {
    error.to_string()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> Request {
        Request::post("/api/tenants/x/runs?wait_secs=3&x=%2F")
            .header("If-Match", "\"7\"")
            .header("X-Bytes", HeaderValue::from_bytes(b"\xfc").unwrap())
            .header("Authorization", "Bearer s3cret")
            .header("Connection", "keep-alive, X-Mine")
            .header("X-Mine", "1")
            .header("Content-Length", "3")
            .extension(Caller { who: Who::Admin, request_id: HeaderValue::from_static("r-1") })
            .body(Body::empty())
            .unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_survives_the_way_without_what_is_of_its_connection() {
        let mut attempt = Attempt::only(Duration::from_secs(5));
        attempt.rpc_id = Some(RpcId { incarnation: 7, sequence: 3, first_incomplete: 2 });
        attempt.maybe_applied = true;
        tokio::time::advance(Duration::from_secs(2)).await;
        let body = Bytes::from_static(b"{} ");
        let sent = WireRequest::new(&request().into_parts().0, &body, &attempt);
        assert!(!sent.encode().windows(6).any(|bytes| bytes == b"s3cret"));
        let again = WireRequest::decode(&sent.encode()).unwrap();
        assert_eq!(again, sent);

        let deadline = Instant::now() + Duration::from_secs(60);
        let (parts, body) = again.into_request(deadline).unwrap().into_parts();
        assert_eq!(parts.method, Method::POST);
        assert_eq!(parts.uri, "/api/tenants/x/runs?wait_secs=3&x=%2F");
        let names: Vec<&str> = parts.headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["if-match", "x-bytes"]);
        assert_eq!(parts.headers["x-bytes"].as_bytes(), b"\xfc");
        let caller = parts.extensions.get::<Caller>().unwrap();
        assert_eq!((caller.who, caller.request_id.as_bytes()), (Who::Admin, &b"r-1"[..]));
        let arrived = Attempt::of(&parts).unwrap();
        assert_eq!(arrived.elapsed(), Duration::from_secs(2));
        assert_eq!(arrived.deadline, attempt.deadline);
        assert_eq!((arrived.rpc_id, arrived.maybe_applied), (attempt.rpc_id, true));
        assert_eq!(axum::body::to_bytes(body, 9).await.unwrap(), "{} ");
    }

    #[tokio::test]
    async fn an_answer_survives_the_way() {
        let answer = || {
            let answer = http::Response::builder().status(507);
            let answer = answer.header("ETag", "\"3\"").header("Content-Length", "2");
            answer.header("Connection", "close").extension(Retry::Safe).body(()).unwrap()
        };
        for (method, kept) in [(Method::GET, false), (Method::HEAD, true)] {
            let body = Bytes::from_static(b"ab");
            let response = WireResponse::new(&method, answer().into_parts().0, body);
            let bytes = WireAnswer::Answered(response).encode();
            let Ok(WireAnswer::Answered(response)) = WireAnswer::decode(&bytes) else {
                panic!("{bytes:?}")
            };
            let response = response.into_response().unwrap();
            assert_eq!(response.status(), 507);
            assert_eq!(response.headers()["etag"], "\"3\"");
            assert_eq!(response.headers().contains_key("content-length"), kept);
            assert!(!response.headers().contains_key("connection"));
            assert_eq!(response.extensions().get::<Retry>(), Some(&Retry::Safe));
            assert_eq!(axum::body::to_bytes(response.into_body(), 9).await.unwrap(), "ab");
        }
        assert_eq!(WireAnswer::decode(&WireAnswer::NotHere.encode()), Ok(WireAnswer::NotHere));
    }

    #[test]
    fn another_version_is_declined_whatever_follows() {
        for bytes in [&[][..], &[2], &[2, 1, 2, 3], &[0], &[255; 9]] {
            assert!(
                WireRequest::decode(bytes).is_err() && WireAnswer::decode(bytes).is_err(),
                "{bytes:?}"
            );
        }
        let refused = WireRequest::decode(&[2, 0]).unwrap_err();
        assert!(refused.contains("version 2"), "{refused}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_refused(mut bytes: Vec<u8>) {
            bytes.insert(0, 1);
            let deadline = Instant::now();
            if let Ok(sent) = WireRequest::decode(&bytes) {
                prop_assert_eq!(WireRequest::decode(&sent.encode()), Ok(sent.clone()));
                let _ = sent.into_request(deadline);
            }
            if let Ok(WireAnswer::Answered(response)) = WireAnswer::decode(&bytes) {
                let _ = response.into_response();
            }
        }

        /// Any values in the right shape: none makes a request that panics.
        #[test]
        fn any_values_are_a_request_or_refused(
            (method, target, name, value) in any::<(String, String, String, Vec<u8>)>(),
            (request_id, body) in any::<(Vec<u8>, Vec<u8>)>(),
            (elapsed_us, left_us, status) in any::<(u64, u64, u16)>(),
        ) {
            let headers = vec![(name, Octets(value.into()))];
            let sent = WireRequest {
                method,
                target,
                headers: headers.clone(),
                body: Octets(body.into()),
                who: Who::Admin,
                request_id: Octets(request_id.into()),
                rpc_id: None,
                elapsed_us,
                left_us,
                maybe_applied: false,
            };
            let again = WireRequest::decode(&sent.encode());
            prop_assert_eq!(&again, &Ok(sent.clone()));
            if let Ok(request) = sent.into_request(Instant::now()) {
                let (parts, _) = request.into_parts();
                prop_assert!(Attempt::of(&parts).is_some_and(|at| at.deadline <= Instant::now()));
            }
            let body = Octets(Bytes::new());
            let _ = WireResponse { status, headers, body, retry: None }.into_response();
        }
    }
}

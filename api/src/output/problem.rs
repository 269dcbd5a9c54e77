//! Errors as clients see them: `application/problem+json` (RFC 9457).
//!
//! Invariant: every answer with a status of 400 or more that this crate makes is a [`Problem`].
//! A problem is made without the request id; `server/middleware` writes it out with the id as the
//! answer leaves.

use std::borrow::Cow;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kind of a problem, for programs. The words are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    MalformedJson,
    InvalidParameter,
    Unauthorized,
    TenantSuspended,
    TenantDisabled,
    TenantRequired,
    NotFound,
    MethodNotAllowed,
    RequestTimeout,
    Conflict,
    LockLost,
    WouldLoseQuorum,
    NoOtherCandidate,
    PreconditionFailed,
    Forbidden,
    TooLarge,
    UnsupportedMediaType,
    InvalidField,
    InvalidWorkflow,
    NotAllowedHere,
    IdempotencyKeyReused,
    QuotaExceeded,
    TooManyKeys,
    MemoryLimit,
    Busy,
    NoQuorum,
    NoLeader,
    Starting,
    DiskFull,
    Reserved,
    Internal,
}

impl Code {
    /// Gives the status, the word and the title. The title never changes with the occasion.
    const fn row(self) -> (StatusCode, &'static str, &'static str) {
        use StatusCode as S;
        match self {
            Self::MalformedJson => (S::BAD_REQUEST, "malformed_json", "Not JSON"),
            Self::InvalidParameter => (S::BAD_REQUEST, "invalid_parameter", "Invalid parameter"),
            Self::Unauthorized => (S::UNAUTHORIZED, "unauthorized", "Credential required"),
            Self::TenantSuspended => (S::FORBIDDEN, "tenant_suspended", "Tenant suspended"),
            Self::TenantDisabled => (S::FORBIDDEN, "tenant_disabled", "Tenant disabled"),
            Self::TenantRequired => (S::BAD_REQUEST, "tenant_required", "Tenant required"),
            Self::NotFound => (S::NOT_FOUND, "not_found", "Not found"),
            Self::MethodNotAllowed => {
                (S::METHOD_NOT_ALLOWED, "method_not_allowed", "Method not allowed")
            }
            Self::RequestTimeout => (S::REQUEST_TIMEOUT, "request_timeout", "Request too slow"),
            Self::Conflict => (S::CONFLICT, "conflict", "Conflict"),
            Self::LockLost => (S::CONFLICT, "lock_lost", "Lock lost"),
            Self::WouldLoseQuorum => (S::CONFLICT, "would_lose_quorum", "Would lose quorum"),
            Self::NoOtherCandidate => (S::CONFLICT, "no_other_candidate", "No other candidate"),
            Self::PreconditionFailed => {
                (S::PRECONDITION_FAILED, "precondition_failed", "Precondition failed")
            }
            Self::Forbidden => (S::FORBIDDEN, "forbidden", "Forbidden"),
            Self::TooLarge => (S::PAYLOAD_TOO_LARGE, "too_large", "Too large"),
            Self::UnsupportedMediaType => {
                (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Unsupported media type")
            }
            Self::InvalidField => (S::UNPROCESSABLE_ENTITY, "invalid_field", "Invalid field"),
            Self::InvalidWorkflow => {
                (S::UNPROCESSABLE_ENTITY, "invalid_workflow", "Invalid workflow")
            }
            Self::NotAllowedHere => {
                (S::UNPROCESSABLE_ENTITY, "not_allowed_here", "Not allowed here")
            }
            Self::IdempotencyKeyReused => {
                (S::UNPROCESSABLE_ENTITY, "idempotency_key_reused", "Idempotency key reused")
            }
            Self::QuotaExceeded => (S::TOO_MANY_REQUESTS, "quota_exceeded", "Quota exceeded"),
            Self::TooManyKeys => (S::TOO_MANY_REQUESTS, "too_many_keys", "Too many keys"),
            Self::MemoryLimit => (S::TOO_MANY_REQUESTS, "memory_limit", "Memory limit"),
            Self::Busy => (S::SERVICE_UNAVAILABLE, "busy", "Busy"),
            Self::NoQuorum => (S::SERVICE_UNAVAILABLE, "no_quorum", "No quorum"),
            Self::NoLeader => (S::SERVICE_UNAVAILABLE, "no_leader", "No leader"),
            Self::Starting => (S::SERVICE_UNAVAILABLE, "starting", "Starting"),
            Self::DiskFull => (S::INSUFFICIENT_STORAGE, "disk_full", "Disk full"),
            Self::Reserved => (S::FORBIDDEN, "reserved", "Reserved"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
        }
    }
}

/// The facts a client needs to act, beside the text. Each is there only where it applies.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub(crate) struct Facts {
    /// `false`: the write certainly changed nothing. A 5xx without it means: unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) applied: Option<bool>,
    /// Which field or parameter is wrong, as a path into the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) field: Option<String>,
    /// Which step of the workflow is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) step: Option<String>,
    /// Which quota is used up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quota: Option<&'static str>,
    /// The limit that was met.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<u64>,
    /// What is used of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) used: Option<u64>,
    /// The present version of the resource.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<u64>,
    /// How many groups would lose their quorum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) groups: Option<u64>,
    /// How the run ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_status: Option<&'static str>,
    /// Why the node is not ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) reasons: Vec<String>,
}

/// The reason why another attempt at the same request, perhaps on another node, may end better. An
/// extension of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Retry {
    /// This attempt certainly changed nothing.
    Safe,
    /// The effect of this attempt is unknown: only a request that has an origin is tried again.
    Unknown,
}

/// An error answer. Boxed, because it stands in the `Err` of every handler.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Box<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    code: Code,
    status: StatusCode,
    detail: Cow<'static, str>,
    retryable: bool,
    retry_after_secs: Option<u64>,
    retry: Option<Retry>,
    /// Whether the connection ends with this answer. The rest of the request is not read then.
    close: bool,
    facts: Facts,
}

/// How every error answers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody<'a> {
    /// `/problems/<code>`.
    #[serde(rename = "type")]
    kind: String,
    /// What kind of problem it is, for people.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What was wrong, where, and what would be right.
    detail: &'a str,
    /// What kind of problem it is, for programs. Stable.
    code: &'static str,
    /// The same text as `detail`.
    error: &'a str,
    /// The id of this request, as in the node's log.
    request_id: &'a str,
    /// Whether the same request may succeed later.
    retryable: bool,
    #[serde(flatten)]
    facts: &'a Facts,
}

impl Problem {
    /// Makes a problem with the status that its code implies.
    pub(crate) fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            code,
            status: code.row().0,
            detail: detail.into(),
            retryable: false,
            retry_after_secs: None,
            retry: None,
            close: false,
            facts: Facts::default(),
        }))
    }

    /// Makes a 400 for a query parameter or header.
    pub(crate) fn parameter(name: &str, detail: impl std::fmt::Display) -> Self {
        Self::new(Code::InvalidParameter, format!("{name}: {detail}")).field(name)
    }

    /// Makes a 422 for a field of the body or a name in the path.
    pub(crate) fn invalid_field(field: &str, detail: impl std::fmt::Display) -> Self {
        Self::new(Code::InvalidField, format!("{field}: {detail}")).field(field)
    }

    /// Makes a 404.
    pub(crate) fn not_found(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NotFound, detail)
    }

    /// Makes a 500 without any detail: the node's log has it under the request id.
    pub(crate) fn internal() -> Self {
        Self::new(Code::Internal, "the node failed to answer this request; its log says why")
    }

    /// Sets another status than the code's usual one.
    pub(crate) fn status(mut self, status: StatusCode) -> Self {
        self.0.status = status;
        self
    }

    /// Says that the same request may succeed later.
    pub(crate) fn retryable(mut self) -> Self {
        self.0.retryable = true;
        self
    }

    /// Says that the same request may succeed after this many seconds.
    pub(crate) fn retry_after(mut self, secs: u64) -> Self {
        self.0.retry_after_secs = Some(secs);
        self.retryable()
    }

    /// Lets a node try again before the client gets an answer.
    pub(crate) fn retry(mut self, retry: Retry) -> Self {
        self.0.retry = Some(retry);
        self
    }

    /// Tells why another attempt may end better, if it may.
    pub(crate) const fn retries(&self) -> Option<Retry> {
        self.0.retry
    }

    /// Says that this attempt certainly changed nothing.
    pub(crate) fn not_applied(mut self) -> Self {
        self.0.facts.applied = Some(false);
        self
    }

    /// Takes back `applied: false`: an earlier attempt may have changed something. A full disk then
    /// becomes 'unknown', because a refusal would be a promise about that attempt as well.
    pub(crate) fn perhaps_applied(&mut self) {
        self.0.facts.applied = None;
        if self.0.code == Code::DiskFull {
            let text =
                format!("the outcome is unknown: its answer was lost, and now {}", self.0.detail);
            let retry_after = self.0.retry_after_secs;
            *self = Self::new(Code::NoQuorum, text).retry(Retry::Unknown).retryable();
            self.0.retry_after_secs = retry_after;
        }
    }

    /// Closes the connection after this answer.
    pub(crate) fn closing(mut self) -> Self {
        self.0.close = true;
        self
    }

    /// Names the field or parameter at fault.
    pub(crate) fn field(mut self, field: &str) -> Self {
        self.0.facts.field = Some(field.to_owned());
        self
    }

    /// Adds facts.
    pub(crate) fn facts(mut self, add: impl FnOnce(&mut Facts)) -> Self {
        add(&mut self.0.facts);
        self
    }

    /// Tells whether the node is only busy.
    pub(crate) fn is_busy(&self) -> bool {
        self.0.code == Code::Busy
    }

    /// Writes the answer out.
    pub(crate) fn render(&self, request_id: &str) -> Response {
        let inner = &*self.0;
        let (_, code, title) = inner.code.row();
        let body = ProblemBody {
            kind: format!("/problems/{code}"),
            title,
            status: inner.status.as_u16(),
            detail: &inner.detail,
            code,
            error: &inner.detail,
            request_id,
            retryable: inner.retryable,
            facts: &inner.facts,
        };
        let mut response = Response::new(Body::from(serde_json::to_vec(&body).unwrap_or_default()));
        *response.status_mut() = inner.status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            const { HeaderValue::from_static("application/problem+json") },
        );
        if let Some(secs) = inner.retry_after_secs {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if inner.close {
            headers.insert(header::CONNECTION, const { HeaderValue::from_static("close") });
        }
        if inner.code == Code::Unauthorized {
            headers.insert(
                header::WWW_AUTHENTICATE,
                const { HeaderValue::from_static("Bearer realm=\"shiioo\"") },
            );
        }
        response
    }
}

impl IntoResponse for Problem {
    /// Makes an empty answer that carries the problem to the middleware, which knows the request id.
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.0.status;
        if let Some(retry) = self.0.retry {
            response.extensions_mut().insert(retry);
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The JSON of a problem, for the tests of this crate.
    fn shown(problem: &Problem) -> serde_json::Value {
        let body = problem.render("r-1").into_body();
        let bytes = futures_executor(body);
        serde_json::from_slice(&bytes).unwrap()
    }

    fn futures_executor(body: Body) -> bytes::Bytes {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
            .block_on(axum::body::to_bytes(body, usize::MAX))
            .unwrap()
    }

    #[test]
    fn a_problem_has_the_shape_of_the_contract() {
        let problem = Problem::invalid_field("quota.max_routines", "must not be negative");
        assert_eq!(
            shown(&problem),
            serde_json::json!({
                "type": "/problems/invalid_field",
                "title": "Invalid field",
                "status": 422,
                "detail": "quota.max_routines: must not be negative",
                "code": "invalid_field",
                "error": "quota.max_routines: must not be negative",
                "request_id": "r-1",
                "retryable": false,
                "field": "quota.max_routines",
            })
        );
    }

    #[test]
    fn retry_after_and_close_become_headers() {
        let problem = Problem::new(Code::Busy, "x").retry_after(7).closing().not_applied();
        let response = problem.render("r");
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "7");
        assert_eq!(response.headers()["connection"], "close");
        assert_eq!(shown(&problem)["applied"], false);
        assert_eq!(shown(&problem)["retryable"], true);
    }
}

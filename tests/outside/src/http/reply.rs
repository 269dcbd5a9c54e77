//! A whole answer, and what a test demands of it.

use bytes::Bytes;
use http::header::HeaderMap;
use serde_json::Value;

/// Of a body so much is shown.
const SHOWN_CHARS: usize = 2000;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The request line it answers, for messages.
    pub asked: String,
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Reply {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body as JSON; panics where it is none.
    #[track_caller]
    pub fn json(&self) -> Value {
        match serde_json::from_slice(&self.body) {
            Ok(value) => value,
            Err(error) => panic!("{self}: not JSON: {error}"),
        }
    }

    /// The body as JSON of an answer that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self}");
        self.json()
    }

    /// The problem document of a refusal that must have this status and code.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> Value {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self}");
        assert_eq!(problem["code"], code, "{self}");
        assert_eq!(problem["status"], status, "{self}");
        assert_eq!(problem["type"], format!("/problems/{code}"), "{self}");
        assert_eq!(problem["error"], problem["detail"], "{self}");
        let said = problem["detail"].as_str().unwrap_or_default();
        assert!(!said.is_empty(), "a refusal says what was wrong: {self}");
        assert!(problem["title"].is_string(), "{self}");
        assert!(problem["request_id"].is_string(), "{self}");
        assert!(problem["retryable"].is_boolean(), "{self}");
        problem
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        let body: String = body.chars().take(SHOWN_CHARS).collect();
        write!(f, "{} -> {} {body}", self.asked, self.status)
    }
}

//! Credentials.
//!
//! With an admin token every path needs it but the few that are open: liveness, readiness, and
//! the start page. A tested secret is never compared byte by byte: both sides are hashed first,
//! so that the time of the comparison says nothing about the token.

use std::fmt;

use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::problem::{Code, Problem};

/// Paths that need no credential.
pub(crate) const OPEN_PATHS: [&str; 3] = ["/", "/healthz", "/readyz"];

/// Who asks, as the audit log calls them. Nodes tell each other: new ones go to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Who {
    /// Nobody in particular.
    Anonymous,
    /// Whoever knows the admin token.
    Admin,
}

impl Who {
    /// The name in `Cause::who`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Admin => "admin",
        }
    }
}

/// Decides who may come in.
#[derive(Clone)]
pub(crate) struct Guard {
    /// SHA-256 of the admin token; `None` lets everybody in.
    admin: Option<[u8; 32]>,
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").field("admin", &self.admin.is_some()).finish()
    }
}

impl Guard {
    /// A guard for this admin token, if there is one.
    pub(crate) fn new(admin_token: Option<&str>) -> Self {
        Self { admin: admin_token.map(|token| Sha256::digest(token).into()) }
    }

    /// Whether it asks for a credential.
    pub(crate) const fn is_locked(&self) -> bool {
        self.admin.is_some()
    }

    /// Lets a request in, or refuses it with 401.
    pub(crate) fn admit(&self, path: &str, headers: &HeaderMap) -> Result<Who, Problem> {
        let Some(expected) = &self.admin else { return Ok(Who::Anonymous) };
        match bearer(headers) {
            Some(token) if same(&Sha256::digest(token).into(), expected) => Ok(Who::Admin),
            _ if OPEN_PATHS.contains(&path) => Ok(Who::Anonymous),
            Some(_) => Err(Problem::new(Code::Unauthorized, "the bearer token is not valid here")),
            None => Err(Problem::new(
                Code::Unauthorized,
                "this node needs a credential: send 'Authorization: Bearer <token>'",
            )),
        }
    }
}

/// The token of `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// Compares two hashes in a time that does not depend on where they differ.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter().zip(b).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    #[test]
    fn only_the_token_opens_the_api() {
        let guard = Guard::new(Some("s3cret"));
        assert_eq!(guard.admit("/api/tenants", &with("Bearer s3cret")).unwrap(), Who::Admin);
        assert_eq!(guard.admit("/api/tenants", &with("bearer s3cret")).unwrap(), Who::Admin);
        for bad in ["Bearer s3cre", "Bearer s3cret2", "Bearer ", "Basic s3cret", "s3cret"] {
            assert!(guard.admit("/api/tenants", &with(bad)).is_err(), "{bad}");
        }
        assert!(guard.admit("/metrics", &HeaderMap::new()).is_err());
        assert!(guard.admit("/nowhere", &HeaderMap::new()).is_err());
        assert_eq!(guard.admit("/healthz", &HeaderMap::new()).unwrap(), Who::Anonymous);
        assert!(!format!("{guard:?}").contains("s3cret"));
    }

    #[test]
    fn without_a_token_everybody_is_anonymous() {
        let guard = Guard::new(None);
        assert_eq!(guard.admit("/metrics", &with("Bearer x")).unwrap(), Who::Anonymous);
    }
}

//! Decides whether a request's credential suffices for its route. Which one a route needs is in its
//! declaration; while the cluster has no token, `same_origin` checks whose page asks.
//!
//! With an admin token every route needs it but those that declare [`Credential::Open`]. The token
//! belongs to the cluster: every node asks for it, however it was started. A secret is never
//! compared byte by byte: both sides are hashed first, and the hashes are compared in a time that
//! says nothing about where they differ.

use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use shiioo_actors::domain::secret::SecretHash;
use tokio::sync::watch;

use crate::output::problem::{Code, Problem};
use crate::server::declaration::Credential;

/// The caller of a request, as the audit log names it. Nodes tell each other: a new variant goes
/// to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Who {
    /// A caller without a credential.
    Anonymous,
    /// A caller with the admin token.
    Admin,
}

impl Who {
    /// Names the caller for `Cause::who`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Admin => "admin",
        }
    }
}

/// Checks the credentials of requests.
#[derive(Clone)]
pub(crate) struct Guard {
    /// Hash of the admin token; `None`: no credential is asked for.
    admin: watch::Receiver<Option<SecretHash>>,
}

impl Guard {
    /// Makes a guard for the admin token with this hash, while the cluster has one.
    pub(crate) const fn new(admin: watch::Receiver<Option<SecretHash>>) -> Self {
        Self { admin }
    }

    /// Tells whether requests need a credential at all.
    pub(crate) fn is_locked(&self) -> bool {
        self.admin.borrow().is_some()
    }

    /// Lets a request in, or refuses it with 401. There are no credentials of tenants yet: what a
    /// tenant's would reach needs the admin token.
    pub(crate) fn admit(&self, needed: Credential, headers: &HeaderMap) -> Result<Who, Problem> {
        let Some(expected) = *self.admin.borrow() else { return Ok(Who::Anonymous) };
        match bearer(headers) {
            Some(token) if SecretHash::of_admin_token(token) == expected => Ok(Who::Admin),
            _ if needed == Credential::Open => Ok(Who::Anonymous),
            Some(_) => Err(Problem::new(Code::Unauthorized, "the bearer token is not valid here")),
            None => Err(Problem::new(
                Code::Unauthorized,
                "this node needs a credential: send 'Authorization: Bearer <token>'",
            )),
        }
    }
}

/// Reads the token of `Authorization: Bearer <token>`.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    fn guard(token: Option<&str>) -> (watch::Sender<Option<SecretHash>>, Guard) {
        let hash = token.map(|token| SecretHash::of_admin_token(token.as_bytes()));
        let (set, admin) = watch::channel(hash);
        (set, Guard::new(admin))
    }

    #[test]
    fn only_the_token_opens_the_api() {
        let (_set, guard) = guard(Some("s3cret"));
        for needed in [Credential::Tenant, Credential::Admin] {
            assert_eq!(guard.admit(needed, &with("Bearer s3cret")).unwrap(), Who::Admin);
            assert_eq!(guard.admit(needed, &with("bearer s3cret")).unwrap(), Who::Admin);
            for bad in ["Bearer s3cre", "Bearer s3cret2", "Bearer ", "Basic s3cret", "s3cret"] {
                assert!(guard.admit(needed, &with(bad)).is_err(), "{bad}");
            }
            assert!(guard.admit(needed, &HeaderMap::new()).is_err());
        }
        let open = Credential::Open;
        assert_eq!(guard.admit(open, &HeaderMap::new()).unwrap(), Who::Anonymous);
        assert_eq!(guard.admit(open, &with("Bearer s3cret")).unwrap(), Who::Admin);
    }

    #[test]
    fn without_a_token_everybody_is_anonymous() {
        let (set, guard) = guard(None);
        assert_eq!(guard.admit(Credential::Admin, &with("Bearer x")).unwrap(), Who::Anonymous);
        // As soon as the cluster has one, it is asked for.
        set.send_replace(Some(SecretHash::of_admin_token(b"y")));
        assert!(guard.admit(Credential::Admin, &with("Bearer x")).is_err());
        assert_eq!(guard.admit(Credential::Admin, &with("Bearer y")).unwrap(), Who::Admin);
    }
}

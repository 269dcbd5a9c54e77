//! One request, as its handler sees it.

use std::time::Duration;

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use shiioo_actors::command::{Cause, Idempotency};
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::handles::{Call, Handles};
use shiioo_actors::ports::error::CallError;
use tokio::time::timeout_at;

use crate::output::problem::Problem;
use crate::output::reply::Started;
use crate::request::attempt::Attempt;
use crate::request::tenant::Tenant;
use crate::server::app::{App, Caller};
use crate::server::auth::Who;

/// Names a creating call, so that it can be sent again.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key, characters.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// One request, as handlers see it.
pub(crate) struct Ctx {
    app: App,
    cause: Cause,
    attempt: Attempt,
    /// The tenant that admitted the request.
    tenant: Option<TenantId>,
    /// The operation in the scope of an idempotency key.
    resource: &'static str,
    idempotency_key: Option<HeaderValue>,
}

impl FromRequestParts<App> for Ctx {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        Ok(Self::new(parts, app))
    }
}

impl Ctx {
    pub(crate) fn new(parts: &Parts, app: &App) -> Self {
        let caller = parts.extensions.get::<Caller>();
        let who = caller.map_or(Who::Anonymous, |caller| caller.who).name();
        let request_id = caller.and_then(|caller| caller.request_id.to_str().ok());
        let declared = app.routes.matched(&parts.extensions, &parts.method);
        Self {
            app: app.clone(),
            cause: Cause {
                who: who.to_owned(),
                request_id: request_id.unwrap_or_default().to_owned(),
            },
            attempt: Attempt::of(parts).unwrap_or_else(|| Attempt::only(app.request_timeout)),
            tenant: parts.extensions.get::<Tenant>().map(|tenant| tenant.id),
            resource: declared.map_or("", |declared| declared.resource),
            idempotency_key: parts.headers.get(IDEMPOTENCY_KEY).cloned(),
        }
    }

    /// Gives the handles of the node.
    pub(crate) fn handles(&self) -> Result<&Handles, CallError> {
        self.app.node()
    }

    /// Gives the interval at which nodes registered over HTTP should send a heartbeat.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.app.heartbeat_interval
    }

    /// Makes a call with the usual deadline.
    pub(crate) fn call(&self) -> Call {
        self.waiting_call(Duration::ZERO)
    }

    /// Makes a call that may take `wait` longer than usual.
    pub(crate) fn waiting_call(&self, wait: Duration) -> Call {
        Call {
            cause: self.cause.clone(),
            deadline: self.attempt.deadline + wait,
            idempotency: None,
            rpc_id: self.attempt.rpc_id,
            maybe_applied: self.attempt.maybe_applied,
            elapsed_upstream: self.attempt.elapsed(),
            ingress_node: self.attempt.ingress_node,
            stale: self.attempt.stale,
        }
    }

    /// Computes what is left of a long poll of `wait`. Time at the ingress node counts.
    pub(crate) fn left_of(&self, wait: Duration) -> Duration {
        self.attempt.left_of(wait)
    }

    /// Gives what an earlier attempt at this request has started.
    pub(crate) const fn started(&self) -> Option<Started> {
        self.attempt.started
    }

    /// Tells whether an earlier attempt at this write may have been applied.
    pub(crate) const fn is_maybe_applied(&self) -> bool {
        self.attempt.maybe_applied
    }

    /// Makes a call that creates something, under its idempotency key if the client sent one.
    pub(crate) fn creating_call(&self, body: &[u8]) -> Result<Call, Problem> {
        let Some(key) = &self.idempotency_key else { return Ok(self.call()) };
        let key = key.as_bytes();
        let visible = key.iter().all(u8::is_ascii_graphic);
        if !visible || !(1..=IDEMPOTENCY_KEY_CHARS_MAX).contains(&key.len()) {
            return Err(Problem::parameter(
                "Idempotency-Key",
                format_args!("must be 1 to {IDEMPOTENCY_KEY_CHARS_MAX} visible ASCII characters"),
            ));
        }
        let idempotency = Idempotency {
            key: idempotency_key(self.tenant, self.resource, key),
            body: first_half(&Sha256::digest(body)),
        };
        Ok(Call { idempotency: Some(idempotency), ..self.call() })
    }

    /// Waits for the node's own view until the deadline of the request.
    pub(crate) async fn in_time<T>(&self, view: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.attempt.deadline, view).await.ok()
    }
}

/// Hashes a key together with its scope: the tenant or the cluster, and the operation. The hash is
/// stored with the effect, so it must not change. Every creating call is a POST.
fn idempotency_key(tenant: Option<TenantId>, resource: &str, key: &[u8]) -> [u8; 16] {
    let scope = tenant.map_or_else(|| "cluster".to_owned(), |tenant| tenant.to_string());
    let mut hash = Sha256::new();
    for part in [scope.as_bytes(), b"POST", resource.as_bytes()] {
        hash.update(part);
        hash.update([0]);
    }
    hash.update(key);
    first_half(&hash.finalize())
}

fn first_half(hash: &[u8]) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_belongs_to_its_tenant_and_operation() {
        let tenants: Vec<TenantId> =
            ["550e8400-e29b-41d4-a716-446655440000", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"]
                .iter()
                .map(|id| id.parse().unwrap())
                .collect();
        let first = idempotency_key(Some(tenants[0]), "/runs", b"k");
        // Nodes of other versions look a key up by the same hash.
        let golden = Sha256::digest(b"550e8400-e29b-41d4-a716-446655440000\0POST\0/runs\0k");
        assert_eq!(first, first_half(&golden));
        for other in [
            idempotency_key(Some(tenants[1]), "/runs", b"k"),
            idempotency_key(Some(tenants[0]), "/jobs", b"k"),
            idempotency_key(Some(tenants[0]), "/runs", b"l"),
            idempotency_key(None, "/runs", b"k"),
        ] {
            assert_ne!(first, other);
        }
    }
}

//! What the handlers share: the handles, the seams, and what stands behind one request.

use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue};
use sha2::{Digest, Sha256};
use shiioo_actors::command::{Cause, Idempotency};
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::handles::{Call, Handles};
use shiioo_actors::ports::error::CallError;
use shiioo_actors::ports::seams::Seams;
use tokio::sync::watch;
use tokio::time::timeout_at;

use crate::attempt::Attempt;
use crate::auth::{Guard, Who};
use crate::metrics::Metrics;
use crate::pool::{Pool, Share, Whose};
use crate::problem::Problem;
use crate::same_origin::OwnNames;
use crate::tenant_scope::Tenant;

/// Settles what became of a creating call.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Longest idempotency key, characters.
const IDEMPOTENCY_KEY_CHARS_MAX: usize = 255;

/// Shared by all requests; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct App(Arc<Shared>);

/// What [`App`] points to.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The node, once its actors run.
    pub(crate) handles: OnceLock<Handles>,
    pub(crate) seams: Seams,
    pub(crate) version: &'static str,
    pub(crate) request_timeout: Duration,
    /// How often nodes registered over HTTP should send a heartbeat.
    pub(crate) heartbeat_interval: Duration,
    pub(crate) guard: Guard,
    /// What requests may call this node, where it asks for no credential.
    pub(crate) own_names: OwnNames,
    /// The bodies under way.
    pub(crate) bodies: Pool,
    pub(crate) metrics: Metrics,
    /// Places of requests that wait on purpose.
    pub(crate) long_polls: Pool,
    /// Whether the server stops: then who waits on purpose is sent away.
    pub(crate) stopping: watch::Sender<bool>,
    /// The OpenAPI document, once it was asked for.
    pub(crate) openapi: OnceLock<Bytes>,
}

impl App {
    pub(crate) fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }

    /// The handles of the node; until its actors run, the refusal that says so.
    pub(crate) fn node(&self) -> Result<&Handles, CallError> {
        self.handles.get().ok_or(CallError::Starting { what: "the node" })
    }

    /// A place for a request that waits on purpose. Fewer than there are connections, so that
    /// short requests find room however many wait; and no tenant has them all.
    pub(crate) fn long_poll(&self, whose: Whose) -> Result<Share, CallError> {
        let mut place = self.long_polls.share(whose);
        if place.take(1) { Ok(place) } else { Err(CallError::NodeBusy) }
    }

    /// Waits until the server stops.
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as this.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }
}

impl Deref for App {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Who asks, under which id: `edge` puts it into every request it lets in.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) who: Who,
    pub(crate) request_id: HeaderValue,
}

/// One request, as handlers see it.
#[derive(Debug)]
pub(crate) struct Ctx {
    app: App,
    cause: Cause,
    attempt: Attempt,
    tenant: Option<TenantId>,
    route: Option<MatchedPath>,
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
        Self {
            app: app.clone(),
            cause: Cause {
                who: who.to_owned(),
                request_id: request_id.unwrap_or_default().to_owned(),
            },
            attempt: Attempt::of(parts).unwrap_or_else(|| Attempt::only(app.request_timeout)),
            tenant: parts.extensions.get::<Tenant>().map(|tenant| tenant.id),
            route: parts.extensions.get::<MatchedPath>().cloned(),
            idempotency_key: parts.headers.get(IDEMPOTENCY_KEY).cloned(),
        }
    }

    /// The handles of the node.
    pub(crate) fn handles(&self) -> Result<&Handles, CallError> {
        self.app.node()
    }

    /// How often nodes registered over HTTP should send a heartbeat.
    pub(crate) fn heartbeat_interval(&self) -> Duration {
        self.app.heartbeat_interval
    }

    /// A call with the usual deadline.
    pub(crate) fn call(&self) -> Call {
        self.waiting_call(Duration::ZERO)
    }

    /// A call that may take `wait` longer than usual.
    pub(crate) fn waiting_call(&self, wait: Duration) -> Call {
        Call {
            cause: self.cause.clone(),
            deadline: self.attempt.deadline + wait,
            idempotency: None,
            rpc_id: self.attempt.origin,
            elapsed_upstream: self.attempt.waited(),
            ingress_node: self.attempt.asked,
            stale: self.attempt.stale,
        }
    }

    /// What is left of a long poll of `wait`: the client may have waited elsewhere before.
    pub(crate) fn left_of(&self, wait: Duration) -> Duration {
        self.attempt.left_of(wait)
    }

    /// Whether an earlier attempt at this write may have been applied.
    pub(crate) const fn is_again(&self) -> bool {
        self.attempt.again
    }

    /// A call that creates something, under its idempotency key if the client sent one.
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
        let route = self.route.as_ref().map_or("", MatchedPath::as_str);
        let idempotency = Idempotency {
            key: idempotency_key(self.tenant, route, key),
            body: first_half(&Sha256::digest(body)),
        };
        Ok(Call { idempotency: Some(idempotency), ..self.call() })
    }

    /// Waits for the node's own view no longer than for any other answer.
    pub(crate) async fn in_time<T>(&self, view: impl Future<Output = T>) -> Option<T> {
        timeout_at(self.attempt.deadline, view).await.ok()
    }
}

/// The scope of a key: whose it is, and which operation. A tenant's resource is the same at its
/// long and at its short path, and so is the key. Every creating call is a POST.
fn idempotency_key(tenant: Option<TenantId>, route: &str, key: &[u8]) -> [u8; 16] {
    let resource = match tenant {
        Some(_) => route
            .strip_prefix("/api/tenants/{tenant_id}")
            .or_else(|| route.strip_prefix("/api"))
            .unwrap_or(route),
        None => route,
    };
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
        let runs = "/api/tenants/{tenant_id}/runs";
        let long = idempotency_key(Some(tenants[0]), runs, b"k");
        assert_eq!(long, idempotency_key(Some(tenants[0]), "/api/runs", b"k"));
        for other in [
            idempotency_key(Some(tenants[1]), runs, b"k"),
            idempotency_key(Some(tenants[0]), "/api/jobs", b"k"),
            idempotency_key(Some(tenants[0]), runs, b"l"),
            idempotency_key(None, runs, b"k"),
        ] {
            assert_ne!(long, other);
        }
    }
}

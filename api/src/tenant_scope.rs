//! Requests on a tenant's own resources.
//!
//! The tenant is named by the path or, at short paths, by `X-Tenant-Id`. Its owner lets the
//! request in, counting it against the per-minute quota, before anything else is looked at;
//! every answer after that, refusals included, carries the state of that quota.

use std::sync::Arc;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use shiioo_actors::command::Refusal;
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::domain::views::RateLimit;
use shiioo_actors::handles::{LockSpace, TenantHandle};
use shiioo_actors::ports::error::CallError;

use crate::app::{App, Ctx};
use crate::extract::path_param;
use crate::problem::{Code, Problem};

/// Names the tenant at short paths.
pub(crate) const X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");
/// What the templates of long paths begin with.
const LONG_PREFIX: &str = "/api/tenants/{tenant_id}/";

const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// The tenant that a request was let in to.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) handle: Arc<TenantHandle>,
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // `admit` put it there: routes without it have no handler that asks for a tenant.
        parts.extensions.get::<Self>().cloned().ok_or_else(Problem::internal)
    }
}

/// The key space of a lock: the tenant's where there is one, else the cluster's.
#[derive(Debug)]
pub(crate) struct Space(Option<Tenant>);

impl Space {
    /// Whose it is, in a word.
    pub(crate) fn name(&self) -> String {
        self.0.as_ref().map_or_else(|| "cluster".to_owned(), |tenant| tenant.id.to_string())
    }

    /// As the handle wants it.
    pub(crate) fn as_space(&self) -> LockSpace<'_> {
        match &self.0 {
            Some(tenant) => LockSpace::Tenant(&tenant.handle),
            None => LockSpace::Cluster,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Space {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self(parts.extensions.get::<Tenant>().cloned()))
    }
}

/// Middleware around every tenant-scoped route.
pub(crate) async fn admit(State(app): State<App>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let id = match named_tenant(&parts) {
        Ok(id) => id,
        Err(problem) => return problem.into_response(),
    };
    let handles = match app.node() {
        Ok(handles) => handles,
        Err(starting) => return Problem::from(starting).into_response(),
    };
    let ctx = Ctx::new(&parts, &app);
    let call = ctx.call();
    let (mut response, rate) = match handles.tenants.admit(&call, id).await {
        Ok(admitted) => {
            let tenant = Tenant { id, handle: Arc::new(admitted.tenant) };
            parts.extensions.insert(tenant);
            (next.run(Request::from_parts(parts, body)).await, admitted.rate)
        }
        Err(refused) => {
            let error = if ctx.is_again() { of_a_repeat(refused.error) } else { refused.error };
            (Problem::from(error).into_response(), refused.rate)
        }
    };
    if let Some(rate) = rate {
        add_headers(response.headers_mut(), rate);
    }
    response
}

/// A repeat that is over the rate, or of which the tenant has been deleted meanwhile, may have been let
/// in, and done, before: it is not refused.
fn of_a_repeat(error: CallError) -> CallError {
    match error {
        CallError::Refused(Refusal::QuotaExceeded { .. } | Refusal::TenantNotFound) => {
            CallError::Unknown { why: format!("its answer was lost, and now: {error}") }
        }
        error => error,
    }
}

/// The tenant that a request on its resources is about.
pub(crate) fn named_tenant(parts: &Parts) -> Result<TenantId, Problem> {
    let template = parts.extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
    if template.starts_with(LONG_PREFIX) {
        return path_param(parts);
    }
    let header = parts.headers.get(X_TENANT_ID).ok_or_else(|| {
        Problem::new(
            Code::TenantRequired,
            "this path needs a tenant: send X-Tenant-Id: <tenant id>, or use /api/tenants/<tenant id>/...",
        )
        .field("X-Tenant-Id")
    })?;
    header
        .to_str()
        .ok()
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| Problem::not_found("X-Tenant-Id: no tenant has this id"))
}

fn add_headers(headers: &mut HeaderMap, rate: RateLimit) {
    headers.insert(RATELIMIT_LIMIT, HeaderValue::from(rate.limit));
    headers.insert(RATELIMIT_REMAINING, HeaderValue::from(rate.remaining));
    headers.insert(RATELIMIT_RESET, HeaderValue::from(rate.reset_secs));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_is_not_refused_for_its_rate() {
        use shiioo_actors::domain::tenant::Quota;
        let over = Refusal::QuotaExceeded {
            quota: Quota::ApiRequestsPerMinute,
            limit: 1,
            used: 1,
            retry_after_secs: Some(9),
        };
        assert!(matches!(of_a_repeat(over.into()), CallError::Unknown { .. }));
        let gone = of_a_repeat(Refusal::TenantNotFound.into());
        assert!(matches!(gone, CallError::Unknown { .. }));
    }

    #[test]
    fn the_state_of_the_quota_is_in_three_headers() {
        let mut headers = HeaderMap::new();
        add_headers(&mut headers, RateLimit { limit: 1000, remaining: 998, reset_secs: 17 });
        assert_eq!(headers["RateLimit-Limit"], "1000");
        assert_eq!(headers["RateLimit-Remaining"], "998");
        assert_eq!(headers["RateLimit-Reset"], "17");
    }
}

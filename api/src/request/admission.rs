//! Admits requests on a tenant's own resources, on the node that leads the tenant's group.
//!
//! The tenant counts the request against its per-minute quota before anything else is looked at.
//! Every answer after that, refusals included, carries the state of that quota.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue};
use shiioo_actors::command::Refusal;
use shiioo_actors::domain::views::RateLimit;
use shiioo_actors::ports::error::CallError;

use crate::input::payload::LongRead;
use crate::output::problem::Problem;
use crate::request::ctx::Ctx;
use crate::request::tenant::Tenant;
use crate::server::app::RouteLayer;

const RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RATELIMIT_RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Has the tenant admit a request: the middleware around every metered route.
pub(crate) async fn admit(
    State(RouteLayer { app, declared }): State<RouteLayer>,
    request: Request,
    next: Next,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let id = match declared.tenant_of(&parts) {
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
            let handle = Arc::new(admitted.tenant);
            let long_read = LongRead { tenant: Arc::clone(&handle), deadline: call.deadline };
            parts.extensions.insert(long_read);
            parts.extensions.insert(Tenant { id, handle });
            (next.run(Request::from_parts(parts, body)).await, admitted.rate)
        }
        Err(refused) => {
            let error =
                if ctx.is_maybe_applied() { of_a_repeat(refused.error) } else { refused.error };
            (Problem::from(error).into_response(), refused.rate)
        }
    };
    if let Some(rate) = rate {
        add_headers(response.headers_mut(), rate);
    }
    response
}

/// Turns a refusal of a repeated write into 'unknown', where the first attempt may have been
/// admitted and applied: over the rate by now, or the tenant deleted meanwhile.
fn of_a_repeat(error: CallError) -> CallError {
    match error {
        CallError::Refused(Refusal::QuotaExceeded { .. } | Refusal::TenantNotFound) => {
            CallError::Unknown { why: format!("its answer was lost, and now: {error}") }
        }
        error => error,
    }
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

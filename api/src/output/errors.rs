//! Turns errors of the handles into errors of the API, in one place.
//!
//! Invariants: both matches name every variant, so that a new one does not compile until someone
//! has decided what clients see. `applied: false` is said exactly where nothing can have changed;
//! without it a 5xx on a write means *unknown*. An error that another attempt may mend carries a
//! [`Retry`].

use http::StatusCode;
use shiioo_actors::command::Refusal;
use shiioo_actors::domain::tenant::Quota;
use shiioo_actors::domain::workflow::spec::InvalidWorkflow;
use shiioo_actors::ports::StoreError;
use shiioo_actors::ports::error::CallError;

use crate::output::problem::{Code, Problem, Retry};

/// Seconds after which a request that met a passing trouble (no leader, a full mailbox) is worth
/// repeating.
const RETRY_SOON_SECS: u64 = 1;
/// Seconds after which a request that met a full disk or a quarantine is worth repeating.
const RETRY_LATER_SECS: u64 = 10;

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        match error {
            CallError::Refused(refusal) => refusal.into(),
            CallError::Busy | CallError::NodeBusy => {
                Self::new(Code::Busy, text).retry_after(RETRY_SOON_SECS).not_applied()
            }
            CallError::Starting { .. } => Self::new(Code::Starting, text)
                .retry_after(RETRY_SOON_SECS)
                .not_applied()
                .retry(Retry::Safe),
            CallError::NoLeader | CallError::Stopping => Self::new(Code::NoLeader, text)
                .retry_after(RETRY_SOON_SECS)
                .not_applied()
                .retry(Retry::Safe),
            CallError::DiskFull => {
                Self::new(Code::DiskFull, text).retry_after(RETRY_LATER_SECS).not_applied()
            }
            CallError::Quarantined { .. } => Self::new(Code::Internal, text)
                .status(StatusCode::SERVICE_UNAVAILABLE)
                .retry_after(RETRY_LATER_SECS)
                .not_applied(),
            // No retry on the client's behalf: a quarantine lasts.
            CallError::DecidedButQuarantined { .. } => Self::new(Code::Internal, text)
                .status(StatusCode::SERVICE_UNAVAILABLE)
                .retry_after(RETRY_LATER_SECS),
            CallError::Unknown { .. } | CallError::DeadlineExceeded => {
                Self::new(Code::NoQuorum, text).retry_after(RETRY_SOON_SECS).retry(Retry::Unknown)
            }
            CallError::Store(StoreError::Full) => {
                Self::new(Code::DiskFull, text).retry_after(RETRY_LATER_SECS)
            }
            CallError::Store(error) if error.is_passing() => {
                Self::new(Code::Busy, CallError::NodeBusy.to_string()).retry_after(RETRY_SOON_SECS)
            }
            // The text names files of the server, so it goes to the log only.
            CallError::Store(error) => {
                tracing::error!(error = %text, "a tenant's files cannot be read");
                match error.lasting() {
                    // The tenant goes out of service: this is what the next requests are told.
                    Some(reason) => CallError::Quarantined { reason }.into(),
                    None => Self::internal(),
                }
            }
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::TenantNotFound
            | Refusal::RunNotFound
            | Refusal::JobNotFound
            | Refusal::WorkflowNotFound { .. }
            | Refusal::NodeNotFound
            | Refusal::TokenNotFound
            | Refusal::LockNotFound { .. } => Self::not_found(text),
            Refusal::UnknownWorkflow { .. } => {
                Self::new(Code::InvalidField, text).field("workflow_name")
            }
            Refusal::UnknownRegion { .. } | Refusal::CannotMove { .. } => {
                Self::new(Code::InvalidField, text).field("region")
            }
            Refusal::Moving { .. } => {
                Self::new(Code::Conflict, text).field("region").not_applied().retryable()
            }
            Refusal::TenantSuspended => Self::new(Code::TenantSuspended, text),
            Refusal::TenantDisabled => Self::new(Code::TenantDisabled, text),
            Refusal::StaleEpoch => Self::new(Code::NoLeader, text)
                .retry_after(RETRY_SOON_SECS)
                .not_applied()
                .retry(Retry::Safe),
            Refusal::QuotaExceeded { quota, limit, used, retry_after_secs } => {
                quota_exceeded(text, quota, limit, used, retry_after_secs)
            }
            Refusal::IdempotencyKeyReused => {
                Self::new(Code::IdempotencyKeyReused, text).field("Idempotency-Key")
            }
            Refusal::TooManyKeys { limit } => {
                Self::new(Code::TooManyKeys, text).facts(|facts| facts.limit = Some(limit))
            }
            Refusal::MemoryLimit { limit, used } => {
                Self::new(Code::MemoryLimit, text).not_applied().retryable().facts(|facts| {
                    facts.limit = Some(limit);
                    facts.used = Some(used);
                })
            }
            Refusal::PreconditionFailed { current } => Self::new(Code::PreconditionFailed, text)
                .facts(|facts| facts.current = Some(current)),
            Refusal::RunEnded { status } => Self::new(Code::Conflict, text)
                .facts(|facts| facts.run_status = Some(status.name())),
            Refusal::LockLost { .. } => Self::new(Code::LockLost, text),
            Refusal::ReservedKey => Self::new(Code::Reserved, text),
            Refusal::TokenInvalid { .. } => Self::new(Code::Forbidden, text),
            Refusal::NodeIsMember | Refusal::NotAMember | Refusal::OtherAdminToken => {
                Self::new(Code::Conflict, text)
            }
            Refusal::WouldLoseQuorum { groups } => {
                Self::new(Code::WouldLoseQuorum, text).facts(|facts| facts.groups = Some(groups))
            }
            Refusal::NoOtherCandidate => Self::new(Code::NoOtherCandidate, text),
            Refusal::TooMany { limit, .. } => {
                Self::new(Code::Conflict, text).facts(|facts| facts.limit = Some(limit))
            }
        }
    }
}

/// Answers 507 for bytes and 429 for the rest. Waiting helps against all but bytes and routines.
fn quota_exceeded(
    text: String,
    quota: Quota,
    limit: u64,
    used: u64,
    retry_after_secs: Option<u64>,
) -> Problem {
    let problem = Problem::new(Code::QuotaExceeded, text).not_applied().facts(|facts| {
        facts.quota = Some(quota.name());
        facts.limit = Some(limit);
        facts.used = Some(used);
    });
    let problem = match quota {
        Quota::StorageBytes => problem.status(StatusCode::INSUFFICIENT_STORAGE),
        Quota::Routines => problem,
        Quota::ConcurrentWorkflows | Quota::WorkflowsPerDay | Quota::ApiRequestsPerMinute => {
            problem.retryable()
        }
    };
    match retry_after_secs {
        Some(secs) => problem.retry_after(secs),
        None => problem,
    }
}

impl From<InvalidWorkflow> for Problem {
    fn from(invalid: InvalidWorkflow) -> Self {
        let code =
            if invalid.not_allowed_here { Code::NotAllowedHere } else { Code::InvalidWorkflow };
        Self::new(code, invalid.message).facts(|facts| facts.step = invalid.step)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn shown(problem: Problem) -> (http::HeaderMap, serde_json::Value) {
        let (parts, body) = problem.render("r").into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.headers, serde_json::from_slice(&bytes).unwrap())
    }

    #[tokio::test]
    async fn what_certainly_changed_nothing_says_so() {
        for error in [
            CallError::Busy,
            CallError::NodeBusy,
            CallError::Starting { what: "the tenant" },
            CallError::NoLeader,
            CallError::Stopping,
            CallError::DiskFull,
            CallError::Quarantined { reason: "it failed".into() },
            Refusal::StaleEpoch.into(),
        ] {
            let (headers, body) = shown(error.clone().into()).await;
            assert_eq!(body["applied"], false, "{error}");
            assert_eq!(body["retryable"], true, "{error}");
            assert!(headers.contains_key("retry-after"), "{error}");
            assert!(body["status"].as_u64().unwrap() >= 500, "{error}");
        }
        let (_, body) = shown(CallError::Unknown { why: "timeout".into() }.into()).await;
        assert_eq!(body["status"], 503);
        assert!(body.get("applied").is_none());
        let (_, body) = shown(CallError::DeadlineExceeded.into()).await;
        assert!(body.get("applied").is_none());
    }

    #[tokio::test]
    async fn a_lack_of_descriptors_passes_and_names_no_file() {
        let source = Arc::new(std::io::Error::from_raw_os_error(24));
        let error = StoreError::Io { what: "open tenants/x/index.redb".into(), source };
        let (headers, body) = shown(CallError::Store(error).into()).await;
        assert_eq!((&body["code"], &body["status"]), (&"busy".into(), &503.into()));
        assert!(headers.contains_key("retry-after") && body.get("applied").is_none());
        assert!(!body.to_string().contains("redb"), "{body}");
    }

    /// Files that found no room say nothing of what was written before they were asked.
    #[tokio::test]
    async fn files_without_room_do_not_say_that_nothing_changed() {
        let (headers, body) = shown(CallError::Store(StoreError::Full).into()).await;
        assert_eq!((&body["status"], &body["code"]), (&507.into(), &"disk_full".into()));
        assert_eq!(body["retryable"], true);
        assert!(body.get("applied").is_none());
        assert!(headers.contains_key("retry-after"));
    }

    #[test]
    fn what_passes_by_itself_is_tried_again() {
        use axum::response::IntoResponse;
        let retry = |error: CallError| {
            let response = Problem::from(error).into_response();
            response.extensions().get::<Retry>().copied()
        };
        for safe in [
            CallError::Starting { what: "the tenant" },
            CallError::NoLeader,
            CallError::Stopping,
            Refusal::StaleEpoch.into(),
        ] {
            assert_eq!(retry(safe.clone()), Some(Retry::Safe), "{safe}");
        }
        for unknown in [CallError::Unknown { why: "x".into() }, CallError::DeadlineExceeded] {
            assert_eq!(retry(unknown.clone()), Some(Retry::Unknown), "{unknown}");
        }
        for last in [CallError::Busy, CallError::DiskFull, Refusal::TenantNotFound.into()] {
            assert_eq!(retry(last.clone()), None, "{last}");
        }
    }

    /// The first attempt was accepted and its answer lost: that the disk is full now is no refusal.
    #[tokio::test]
    async fn what_an_earlier_attempt_may_have_done_is_unknown_on_a_full_disk() {
        let mut problem = Problem::from(CallError::DiskFull);
        problem.perhaps_applied();
        let (headers, body) = shown(problem).await;
        assert_eq!((&body["status"], &body["code"]), (&503.into(), &"no_quorum".into()));
        assert!(body.get("applied").is_none(), "{body}");
        assert_eq!(body["retryable"], true);
        assert_eq!(headers["retry-after"], "10");
    }

    #[tokio::test]
    async fn nothing_is_refused_after_it_was_accepted() {
        for error in [
            CallError::DiskFull,
            CallError::NoLeader,
            Refusal::TenantNotFound.into(),
            CallError::Quarantined { reason: "it failed".into() },
            CallError::Unknown { why: "x".into() },
            CallError::DeadlineExceeded,
        ] {
            let (_, body) = shown(error.clone().after_write().into()).await;
            assert_eq!(body["status"], 503, "{error}");
            assert!(body.get("applied").is_none(), "{error}");
        }
    }

    #[tokio::test]
    async fn refusals_have_their_statuses() {
        for (refusal, status, code) in [
            (Refusal::TokenNotFound, 404, "not_found"),
            (Refusal::TokenInvalid { why: "it has expired".into() }, 403, "forbidden"),
            (Refusal::NotAMember, 409, "conflict"),
            (Refusal::OtherAdminToken, 409, "conflict"),
            (Refusal::MemoryLimit { limit: 1, used: 1 }, 429, "memory_limit"),
        ] {
            let (_, body) = shown(refusal.into()).await;
            assert_eq!((&body["status"], &body["code"]), (&status.into(), &code.into()));
        }
    }

    #[tokio::test]
    async fn quotas_answer_507_for_bytes_and_429_for_the_rest() {
        for quota in Quota::ALL {
            let refusal =
                Refusal::QuotaExceeded { quota, limit: 3, used: 4, retry_after_secs: Some(9) };
            let (headers, body) = shown(refusal.into()).await;
            let status = if quota == Quota::StorageBytes { 507 } else { 429 };
            assert_eq!(body["status"], status);
            assert_eq!(body["code"], "quota_exceeded");
            assert_eq!(body["quota"], quota.name());
            assert_eq!((&body["limit"], &body["used"]), (&3.into(), &4.into()));
            assert_eq!(headers["retry-after"], "9");
        }
    }

    #[tokio::test]
    async fn no_path_of_the_server_leaves_the_node() {
        let error = CallError::Store(StoreError::Io {
            what: "open /var/lib/shiioo/tenants/x/index.redb".into(),
            source: Arc::new(std::io::Error::other("disk")),
        });
        let (_, body) = shown(error.into()).await;
        assert_eq!(body["status"], 500);
        assert!(!body.to_string().contains("/var"), "{body}");
    }

    #[tokio::test]
    async fn an_invalid_workflow_names_its_step() {
        let invalid = InvalidWorkflow {
            step: Some("b".into()),
            message: "a cycle".into(),
            not_allowed_here: false,
        };
        let (_, body) = shown(invalid.into()).await;
        assert_eq!((&body["code"], &body["step"]), (&"invalid_workflow".into(), &"b".into()));
        assert_eq!(body["status"], 422);
    }
}

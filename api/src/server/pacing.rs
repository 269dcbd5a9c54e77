//! Paces tenants whose requests are refused again and again.
//!
//! # Problem
//!
//! A refusal costs the node nearly as much as what it refuses: a body of a megabyte is read, handed over
//! to another node and parsed before a quota says no, and a client that does not heed the refusal sends
//! the next one at once. Quotas bound what a tenant gets, and not what it costs to say no.
//!
//! # Rule
//!
//! Each refusal puts its tenant into debt, as much time as the refusal is worth: [`REFUSAL_DEBT`], and
//! more for a long body. Time pays it back. While a tenant's debt on this node is above [`DEBT_FREE`],
//! its requests wait before their bodies are read, and after [`WAIT_MAX`] they are told that the node is
//! busy. Those that wait go on one after another, as far apart as their refusals would be worth: if all
//! went on when the debt is paid, thirty long bodies would be read at once, and everybody would wait for
//! them. So a tenant gets some hundred refusals a second from a node, or some megabytes of them, and its
//! requests that would be accepted wait behind those that it wastes.
//!
//! # Invariants
//!
//! - A tenant that is not refused much never waits, whatever others do.
//! - Whoever looks after the cluster never waits.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use tokio::time::{Duration, Instant};

use crate::server::pool::Whose;

/// The debt for a refusal.
const REFUSAL_DEBT: Duration = Duration::from_millis(5);
/// The debt for each KiB of the body that was refused, microseconds.
const KIB_DEBT_US: u64 = 200;
/// Most KiB of a body that are counted: no more is read, whatever length a request announces.
const KIB_MAX: u64 = 1024;
/// A debt that keeps nobody waiting.
const DEBT_FREE: Duration = Duration::from_secs(1);
/// The largest debt: a tenant that begins to behave is served as usual after this time.
const DEBT_MAX: Duration = Duration::from_secs(3);
/// Longest wait of a request for its tenant's debt.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// The debts of tenants.
#[derive(Debug, Default)]
pub(crate) struct Pacing {
    debtors: Mutex<HashMap<Whose, Debtor>>,
}

#[derive(Debug, Clone, Copy)]
struct Debtor {
    /// When the debt will be paid back.
    paid_at: Instant,
    /// When another request that waits may go on.
    next_turn: Instant,
}

/// What a request does before its body is read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// It goes on after this time, which may be zero.
    Wait(Duration),
    /// It is refused after this time.
    Refuse(Duration),
}

impl Pacing {
    /// Tells how long a request with a body of so many bytes waits for its tenant's debt.
    pub(crate) fn pace(&self, whose: Whose, body_bytes: u64) -> Pace {
        let now = Instant::now();
        let mut debtors = self.debtors();
        let Some(debtor) = debtors.get_mut(&whose) else { return Pace::Wait(Duration::ZERO) };
        let above = debtor.paid_at.saturating_duration_since(now).saturating_sub(DEBT_FREE);
        // Also when the debt is paid: nobody goes before those that wait already.
        let wait = above.max(debtor.next_turn.saturating_duration_since(now));
        if wait.is_zero() {
            return Pace::Wait(Duration::ZERO);
        }
        if wait > WAIT_MAX {
            return Pace::Refuse(WAIT_MAX);
        }
        debtor.next_turn = now + wait + worth(body_bytes);
        Pace::Wait(wait)
    }

    /// Notes the answer to a request whose body has, or would have had, so many bytes.
    pub(crate) fn answered(&self, whose: Whose, status: StatusCode, body_bytes: u64) {
        if whose == Whose::Cluster || !is_refusal(status) {
            return;
        }
        let now = Instant::now();
        let mut debtors = self.debtors();
        if !debtors.contains_key(&whose) {
            // Bounded by the tenants that were refused within the last seconds.
            debtors.retain(|_, debtor| debtor.paid_at > now);
        }
        let debtor = debtors.entry(whose).or_insert(Debtor { paid_at: now, next_turn: now });
        debtor.paid_at = (debtor.paid_at.max(now) + worth(body_bytes)).min(now + DEBT_MAX);
    }

    fn debtors(&self) -> MutexGuard<'_, HashMap<Whose, Debtor>> {
        self.debtors.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The debt for the refusal of a body of so many bytes.
fn worth(body_bytes: u64) -> Duration {
    REFUSAL_DEBT + Duration::from_micros(KIB_DEBT_US * (body_bytes / 1024).min(KIB_MAX))
}

/// Tells whether a request was for nothing: it is wrong, or a quota left no room for it. A conflict is the
/// ordinary answer of locks and preconditions, and a node without a leader is no fault of its clients.
fn is_refusal(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 408 | 413 | 415 | 422 | 429 | 507)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const TENANT: Whose = Whose::Unknown;
    const REFUSED: StatusCode = StatusCode::TOO_MANY_REQUESTS;

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_again_and_again_waits_and_then_hears_no() {
        let pacing = Pacing::default();
        let mut refused = 0;
        while pacing.pace(TENANT, 0) == Pace::Wait(Duration::ZERO) {
            pacing.answered(TENANT, REFUSED, 0);
            refused += 1;
        }
        assert_eq!(refused, 201);
        // The loop has asked once; the next ones wait behind that one, each for those before it.
        assert_eq!(pacing.pace(TENANT, 50 << 10), Pace::Wait(REFUSAL_DEBT * 2));
        assert_eq!(pacing.pace(TENANT, 0), Pace::Wait(REFUSAL_DEBT * 5));
        for _ in 0..3 {
            pacing.answered(TENANT, REFUSED, u64::MAX);
        }
        assert_eq!(pacing.pace(TENANT, 0), Pace::Refuse(WAIT_MAX));
        for _ in 0..100 {
            pacing.answered(TENANT, REFUSED, u64::MAX);
        }
        advance(DEBT_MAX - DEBT_FREE).await;
        assert_eq!(pacing.pace(TENANT, 0), Pace::Wait(Duration::ZERO), "time pays it back");
    }

    #[tokio::test(start_paused = true)]
    async fn others_and_those_who_are_served_never_wait() {
        let pacing = Pacing::default();
        let other = Whose::Tenant("550e8400-e29b-41d4-a716-446655440000".parse().unwrap());
        for _ in 0..1_000 {
            pacing.answered(TENANT, REFUSED, 1 << 20);
            pacing.answered(Whose::Cluster, REFUSED, 1 << 20);
            pacing.answered(other, StatusCode::CREATED, 1 << 20);
            pacing.answered(other, StatusCode::CONFLICT, 0);
        }
        for free in [other, Whose::Cluster] {
            assert_eq!(pacing.pace(free, 0), Pace::Wait(Duration::ZERO));
        }
        advance(DEBT_MAX).await;
        pacing.answered(other, REFUSED, 0);
        assert_eq!(pacing.debtors().len(), 1, "what is paid back is forgotten");
    }
}

//! One attempt at a request: what handlers have to know of the attempts before it.
//!
//! A request may be tried several times, on several nodes, before its client hears of it (see
//! `forward`). What the client waited already counts: deadlines and long polls end when they
//! would have ended at the first attempt.

use http::request::Parts;
use shiioo_actors::command::RpcId;
use tokio::time::{Duration, Instant};

/// What every request carries from the layer that tries it to its handler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Attempt {
    /// When this node got the request.
    pub(crate) began: Instant,
    /// How long the client had waited by then, at the node it asked.
    pub(crate) waited_before: Duration,
    /// When calls are answered that wait for nothing but the work itself.
    pub(crate) deadline: Instant,
    /// Names the request in every attempt, on writes.
    pub(crate) origin: Option<RpcId>,
    /// Whether an earlier attempt at this write may have been applied.
    pub(crate) again: bool,
    /// Raft id of the node that was asked, when it is not this one.
    pub(crate) asked: Option<u64>,
    /// Whether this node's own view will do.
    pub(crate) stale: bool,
}

impl Attempt {
    /// The only attempt at what this node answers by itself.
    pub(crate) fn only(request_timeout: Duration) -> Self {
        let began = Instant::now();
        Self {
            began,
            waited_before: Duration::ZERO,
            deadline: began + request_timeout,
            origin: None,
            again: false,
            asked: None,
            stale: false,
        }
    }

    /// The attempt that a request belongs to, if it is one of several.
    pub(crate) fn of(parts: &Parts) -> Option<Self> {
        parts.extensions.get::<Self>().copied()
    }

    /// How long the client has waited by now.
    pub(crate) fn waited(&self) -> Duration {
        self.waited_before + self.began.elapsed()
    }

    /// What is left of a long poll of `wait`.
    pub(crate) fn left_of(&self, wait: Duration) -> Duration {
        wait.saturating_sub(self.waited())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_waited_elsewhere_counts() {
        let mut attempt = Attempt::only(Duration::from_secs(5));
        attempt.waited_before = Duration::from_secs(3);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(attempt.waited(), Duration::from_secs(5));
        assert_eq!(attempt.left_of(Duration::from_secs(30)), Duration::from_secs(25));
        assert_eq!(attempt.left_of(Duration::from_secs(4)), Duration::ZERO);
    }
}

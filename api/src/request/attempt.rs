//! One attempt at a request: the facts about earlier attempts that its handler needs.
//!
//! A request may be tried several times, on several nodes, before its client gets an answer (see
//! `forward`). The time that the client has waited already counts: deadlines and long polls end
//! when they would have ended at the first attempt.

use http::request::Parts;
use shiioo_actors::command::RpcId;
use shiioo_actors::domain::ids::RaftId;
use tokio::time::{Duration, Instant};

use crate::output::reply::Started;

/// The attempt that a request belongs to. The layer that makes the attempt puts it into the
/// request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Attempt {
    /// When the request came to this node.
    pub(crate) began: Instant,
    /// How long the client had waited by then, at the ingress node.
    pub(crate) elapsed_upstream: Duration,
    /// When calls end that wait for nothing but the work itself.
    pub(crate) deadline: Instant,
    /// Names the request in every attempt, on writes.
    pub(crate) rpc_id: Option<RpcId>,
    /// Whether an earlier attempt at this write may have been applied.
    pub(crate) maybe_applied: bool,
    /// Raft id of the node that the client asked, when it is not this one.
    pub(crate) ingress_node: Option<RaftId>,
    /// Whether a read may see this node's own view, however old.
    pub(crate) stale: bool,
    /// What an earlier attempt has started: this one only waits for it.
    pub(crate) started: Option<Started>,
}

impl Attempt {
    /// Makes the only attempt at a request that this node answers by itself.
    pub(crate) fn only(request_timeout: Duration) -> Self {
        let began = Instant::now();
        Self {
            began,
            elapsed_upstream: Duration::ZERO,
            deadline: began + request_timeout,
            rpc_id: None,
            maybe_applied: false,
            ingress_node: None,
            stale: false,
            started: None,
        }
    }

    /// Finds the attempt that a request belongs to, if it is one of several.
    pub(crate) fn of(parts: &Parts) -> Option<Self> {
        parts.extensions.get::<Self>().copied()
    }

    /// Computes how long the client has waited by now, on all nodes.
    pub(crate) fn elapsed(&self) -> Duration {
        self.elapsed_upstream + self.began.elapsed()
    }

    /// Computes what is left of a long poll of `wait`.
    pub(crate) fn left_of(&self, wait: Duration) -> Duration {
        wait.saturating_sub(self.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_at_the_ingress_node_counts() {
        let mut attempt = Attempt::only(Duration::from_secs(5));
        attempt.elapsed_upstream = Duration::from_secs(3);
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(attempt.elapsed(), Duration::from_secs(5));
        assert_eq!(attempt.left_of(Duration::from_secs(30)), Duration::from_secs(25));
        assert_eq!(attempt.left_of(Duration::from_secs(4)), Duration::ZERO);
    }
}

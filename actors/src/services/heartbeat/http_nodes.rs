//! Who was heard of when. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ids::NodeId;
use crate::domain::time::Timestamp;

/// What has been heard of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// When, by the wall clock; `None` when it has not been heard of since this node began to
    /// listen.
    pub at: Option<Timestamp>,
    /// Whether it has been silent for too long.
    pub is_silent: bool,
}

#[derive(Debug, Clone, Copy)]
struct Last {
    since: Instant,
    at: Option<Timestamp>,
}

/// The monitor's state.
#[derive(Debug)]
pub(super) struct HttpNodeLiveness {
    silent_after: Duration,
    last: BTreeMap<NodeId, Last>,
}

impl HttpNodeLiveness {
    pub(super) const fn new(silent_after: Duration) -> Self {
        Self { silent_after, last: BTreeMap::new() }
    }

    pub(super) fn beat(&mut self, node: NodeId, now: Instant, at: Timestamp) {
        self.last.insert(node, Last { since: now, at: Some(at) });
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        self.last.remove(&node);
    }

    /// What has been heard of `nodes`. One that is asked for the first time has its full time
    /// before it.
    pub(super) fn heard(&mut self, nodes: Vec<NodeId>, now: Instant) -> BTreeMap<NodeId, Heard> {
        let silent_after = self.silent_after;
        let look = |node: NodeId| {
            let last = self.last.entry(node).or_insert(Last { since: now, at: None });
            let is_silent = now.duration_since(last.since) > silent_after;
            (node, Heard { at: last.at, is_silent })
        };
        nodes.into_iter().map(look).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_begins_with_the_last_sign_of_life() {
        let node = NodeId::from_uuid(uuid::Uuid::from_u128(1));
        let mut http_nodes = HttpNodeLiveness::new(Duration::from_secs(30));
        let start = Instant::now();
        let silent = |http_nodes: &mut HttpNodeLiveness, secs| {
            http_nodes.heard(vec![node], start + Duration::from_secs(secs))[&node].is_silent
        };
        assert!(!silent(&mut http_nodes, 0));
        assert!(!silent(&mut http_nodes, 30));
        assert!(silent(&mut http_nodes, 31));
        http_nodes.beat(node, start + Duration::from_secs(40), Timestamp(7));
        assert!(!silent(&mut http_nodes, 70));
        assert!(silent(&mut http_nodes, 71));
    }
}

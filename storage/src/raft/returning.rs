//! Replicas that let go of their log and came back.
//!
//! The problem: a replica that was removed gives up its log and its files, and may be added again later,
//! under the same raft id. The group still relies on what the replica acknowledged and how it voted. A
//! replica that founded its group meets another danger: the first entries that it is sent say that it is
//! the only voter, so that openraft would elect it at once, and it would overwrite what others have
//! committed since.
//!
//! So the log keeps the vote, and the position at which the replica's log ended (`left`). Until the log
//! reaches that position again the replica is *returning*. Once it has reached it, it is like any other
//! replica whose log ends there.
//!
//! Invariants, while a replica is returning:
//! - it does not campaign, neither when nobody leads nor when it is told to take the lead;
//! - it votes for nobody whose log ends before the position where its own ended;
//! - it founds nothing.
//!
//! Not done: while a replica is returning, the entries that it once acknowledged are on one node fewer. That is
//! safe because it lost them only after the others had committed a membership without it, which comes after
//! all of those entries.

use std::sync::atomic::Ordering;

use shiioo_actors::domain::ids::{GroupId, Position};

use super::group::Group;
use crate::log::Log;

/// Tells whether a replica is returning: its log does not reach yet to where it ended before.
pub(super) fn is_returning(log: &Log, group: GroupId) -> bool {
    log.left(group) > log.last(group)
}

impl Group {
    /// Lets the replica campaign once its log reaches to where it ended before. To be called when entries
    /// or a snapshot have come.
    pub(super) fn allow_election_if_caught_up(&self) {
        if self.waits_to_return.load(Ordering::Relaxed)
            && !is_returning(self.network().log(), self.id())
        {
            self.raft().runtime_config().elect(true);
            self.waits_to_return.store(false, Ordering::Relaxed);
        }
    }

    /// Tells whether this replica has to refuse a candidate whose log ends at `candidate`. openraft
    /// compares the candidate with the log as it is now.
    pub(super) fn had_more_than(&self, candidate: Option<Position>) -> bool {
        let log = self.network().log();
        is_returning(log, self.id()) && log.left(self.id()) > candidate
    }

    /// Tells whether this replica is returning.
    pub(super) fn is_returning(&self) -> bool {
        is_returning(self.network().log(), self.id())
    }
}

//! How far a group has come on this node: what is delivered, what of it is durable in files.
//!
//! Wraps the pure [`DurabilityTracker`] in a lock, tells the log of each new low-water mark, and
//! tells when a snapshot is due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use shiioo_actors::domain::ids::{GroupId, Position, StateMachineId};
use tokio::sync::{Notify, watch};

use super::durability::DurabilityTracker;
use crate::log::Log;
use crate::log::record::{LowWaterMark, Members};

/// Entries by which the low-water mark rises before a snapshot lets the log be cut.
const SNAPSHOT_ENTRIES: u64 = 16_384;

/// The progress of one group.
#[derive(Debug)]
pub(crate) struct GroupProgress {
    group: GroupId,
    log: Arc<Log>,
    tracker: Mutex<DurabilityTracker>,
    /// Whether this node has left the group: no mark is told any more. Changed with the tracker locked.
    is_left: AtomicBool,
    /// Index of the low-water mark when a snapshot was last due.
    snapshot_at: AtomicU64,
    snapshot_due: Notify,
    /// Index below which everything has been delivered.
    next: watch::Sender<u64>,
}

impl GroupProgress {
    pub fn new(group: GroupId, log: Arc<Log>) -> Self {
        let mark = log.state(group).low_water_mark;
        let next = mark.as_ref().map_or(0, |mark| mark.position.index.saturating_add(1));
        Self {
            next: watch::Sender::new(next),
            group,
            log,
            snapshot_at: AtomicU64::new(mark.as_ref().map_or(0, |mark| mark.position.index)),
            tracker: Mutex::new(DurabilityTracker::restore(mark)),
            is_left: AtomicBool::new(false),
            snapshot_due: Notify::new(),
        }
    }

    /// Notes that the files of a state machine are durable up to a position.
    pub fn durable(&self, part: StateMachineId, upto: Position) {
        let mut tracker = self.tracker.lock();
        let raised = tracker.durable(part, upto);
        self.remember(raised);
    }

    /// Notes that this node leaves the group: a mark that is told from now on would stand in the log
    /// behind the record that gives the entries up.
    pub fn leave(&self) {
        let _tracker = self.tracker.lock();
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Counts the bytes of the log that are kept on account of one state machine alone.
    pub fn kept_for(&self, part: StateMachineId) -> u64 {
        // The tracker is not locked while the log counts, which takes a look at each entry.
        let Some(held) = self.tracker.lock().held_by(part) else { return 0 };
        self.log.bytes_between(self.group, held.start, held.end)
    }

    /// Lists the state machines that are to make durable now what fills the log: on a small disk all that
    /// have something. On a large one there is time until each does so by itself.
    pub fn to_write_soon(&self) -> Vec<StateMachineId> {
        if self.log.is_on_small_disk() { self.tracker.lock().dirty() } else { Vec::new() }
    }

    /// Tells whether a newer snapshot than the one up to `upto` would let an old segment of the log be removed.
    pub fn would_free_segment(&self, upto: Option<u64>) -> bool {
        let Some(mark) = self.low_water_mark().map(|mark| mark.position.index) else {
            return false;
        };
        upto.is_none_or(|upto| upto < mark) && self.log.keeps_old_segment(self.group, mark)
    }

    /// Gives the last entry delivered.
    pub fn delivered(&self) -> Option<Position> {
        self.tracker.lock().delivered()
    }

    /// Waits until everything up to an index has been delivered.
    pub async fn delivered_at_least(&self, index: u64) {
        // The sender is here: waiting cannot fail.
        let _ = self.next.subscribe().wait_for(|next| *next > index).await;
    }

    /// Lets readers that wait for a position go on. A position that is lower than the last changes
    /// nothing: a snapshot may have come in between.
    pub fn publish_delivered(&self, position: Position) {
        self.next.send_if_modified(|next| {
            let is_more = *next <= position.index;
            *next = (*next).max(position.index.saturating_add(1));
            is_more
        });
    }

    /// Takes note of an installed snapshot, whose contents are durable.
    pub fn install(&self, upto: Position, members: Option<(Position, Members)>) {
        {
            let mut tracker = self.tracker.lock();
            let raised = tracker.install(upto, members);
            if raised.is_some() {
                self.snapshot_at.fetch_max(upto.index, Ordering::Relaxed);
            }
            self.remember(raised);
        }
        self.publish_delivered(upto);
    }

    /// Waits until the low-water mark has risen so far that a snapshot should be made.
    pub async fn snapshot_due(&self) {
        self.snapshot_due.notified().await;
    }

    /// Notes an entry that is about to be delivered: to which state machine, if any, and the
    /// members of the group from here on, where it says so.
    pub fn delivering(
        &self,
        position: Position,
        part: Option<StateMachineId>,
        members: Option<Members>,
    ) {
        let mut tracker = self.tracker.lock();
        if let Some(members) = members {
            tracker.add_membership(position, members);
        }
        let raised = tracker.deliver(position, part);
        self.remember(raised);
    }

    /// Gives the log a mark that was raised. Called with the tracker locked, so that a lower mark
    /// never overwrites a higher one there.
    fn remember(&self, raised: Option<LowWaterMark>) {
        let Some(mark) = raised.filter(|_| !self.is_left.load(Ordering::Relaxed)) else { return };
        let index = mark.position.index;
        self.log.set_low_water_mark(self.group, mark);
        let risen = index.saturating_sub(self.snapshot_at.load(Ordering::Relaxed));
        // A segment is begun long before what fills it is durable in files: the snapshot of that moment cuts
        // little, and on a small disk the next segment may never come to be.
        if risen >= SNAPSHOT_ENTRIES || self.log.keeps_old_segment(self.group, index) {
            self.snapshot_at.store(index, Ordering::Relaxed);
            self.snapshot_due.notify_one();
        }
    }

    /// Gives the low-water mark as it is known here, in the log or not yet.
    pub fn low_water_mark(&self) -> Option<LowWaterMark> {
        self.tracker.lock().low_water_mark()
    }
}

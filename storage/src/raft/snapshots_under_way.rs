//! To whom a group's leader sends snapshots: how far each replica has come, when one without room is tried again, and
//! whether the log is kept for them.
//!
//! A replica that is dead is offered a snapshot again and again, each time anew, and must not keep the log for that. So
//! an offer that is not answered counts for [`UNANSWERED_MAX`], from the first one on that was not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::CopyProgress;
use tokio::time::Instant;

/// Longest time for which a snapshot counts as under way to a replica that has not answered.
const UNANSWERED_MAX: Duration = Duration::from_secs(10);

/// Wait before a replica without room is offered a snapshot again, at first.
const ROOM_WAIT_MIN: Duration = Duration::from_millis(500);

/// Wait before a replica without room is offered a snapshot again, at most.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);

/// The snapshots that are being sent.
#[derive(Debug, Clone, Default)]
pub(super) struct SnapshotsUnderWay(Arc<Mutex<Replicas>>);

#[derive(Debug, Default)]
struct Replicas {
    sent_to: BTreeMap<RaftId, SnapshotTo>,
    /// Who has not answered the leader of a term, and when that leader made its first offer. Stays from one try to the
    /// next.
    unanswered: BTreeMap<RaftId, (u64, Instant)>,
    /// Who has no room for what it is to be sent, and how long the next try waits.
    without_room: BTreeMap<RaftId, Duration>,
    /// How much replicas have of the last snapshot that was sent to each.
    sent_so_far: BTreeMap<RaftId, CopyProgress>,
}

/// A snapshot that is being sent to a replica.
#[derive(Debug)]
struct SnapshotTo {
    first_offered: Instant,
    /// Whether the replica has answered.
    answers: bool,
}

/// Says that a snapshot is being sent to a replica, until it is dropped.
pub(super) struct SendingTo(SnapshotsUnderWay, RaftId);

impl Drop for SendingTo {
    fn drop(&mut self) {
        self.0.0.lock().sent_to.remove(&self.1);
    }
}

impl SnapshotsUnderWay {
    /// Notes that the leader of a term sends a replica a snapshot.
    pub fn begin(&self, raft_id: RaftId, term: u64) -> SendingTo {
        let mut replicas = self.0.lock();
        let now = Instant::now();
        let (of, first) = replicas.unanswered.entry(raft_id).or_insert((term, now));
        // What it answered in the terms between, to another leader maybe, is not known here.
        if *of != term {
            (*of, *first) = (term, now);
        }
        let first_offered = *first;
        replicas.sent_to.insert(raft_id, SnapshotTo { first_offered, answers: false });
        SendingTo(self.clone(), raft_id)
    }

    /// Whether a snapshot is being sent to a replica.
    pub fn is_sent_to(&self, raft_id: RaftId) -> bool {
        self.0.lock().sent_to.contains_key(&raft_id)
    }

    /// Notes that a replica has answered. Its next snapshot has its full time again.
    pub fn answered(&self, raft_id: RaftId) {
        let mut replicas = self.0.lock();
        replicas.unanswered.remove(&raft_id);
        if let Some(sent) = replicas.sent_to.get_mut(&raft_id) {
            sent.answers = true;
        }
    }

    /// Notes how much a replica has of the snapshot that is being sent to it.
    pub fn copied(&self, raft_id: RaftId, progress: CopyProgress) {
        self.0.lock().sent_so_far.insert(raft_id, progress);
    }

    /// Notes that a replica has acknowledged so many bytes more of a state machine.
    pub fn copied_further(&self, raft_id: RaftId, bytes: u64) {
        let mut replicas = self.0.lock();
        let progress = replicas.sent_so_far.entry(raft_id).or_default();
        progress.bytes = progress.bytes.saturating_add(bytes);
    }

    /// Tells how much replicas have of the snapshots that were sent to them.
    pub fn sent_so_far(&self) -> BTreeMap<RaftId, CopyProgress> {
        self.0.lock().sent_so_far.clone()
    }

    /// Notes whether a replica has room for what it is sent. Gives the wait before the next try, where it has none.
    pub fn note_room_of(&self, raft_id: RaftId, has_room: bool) -> Duration {
        let waits = &mut self.0.lock().without_room;
        if has_room {
            waits.remove(&raft_id);
            return Duration::ZERO;
        }
        let longer = |last: &Duration| (*last * 2).min(ROOM_WAIT_MAX);
        let wait = waits.get(&raft_id).map_or(ROOM_WAIT_MIN, longer);
        waits.insert(raft_id, wait);
        wait
    }

    /// Forgets a replica that was removed.
    pub fn forget(&self, raft_id: RaftId) {
        let mut replicas = self.0.lock();
        replicas.unanswered.remove(&raft_id);
        replicas.without_room.remove(&raft_id);
        replicas.sent_so_far.remove(&raft_id);
    }

    /// Whether a snapshot is on its way to a replica that answers, or that may still answer: what is sent then goes at
    /// least as far as the log does now.
    pub fn is_any(&self) -> bool {
        let is_live =
            |sent: &SnapshotTo| sent.answers || sent.first_offered.elapsed() < UNANSWERED_MAX;
        self.0.lock().sent_to.values().any(is_live)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TO: RaftId = RaftId(2);

    async fn tried(snapshots: &SnapshotsUnderWay, term: u64, secs: u64) -> (bool, bool) {
        let _sending = snapshots.begin(TO, term);
        assert!(snapshots.is_sent_to(TO));
        let before = snapshots.is_any();
        tokio::time::sleep(Duration::from_secs(secs)).await;
        (before, snapshots.is_any())
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_keeps_the_log_for_a_while_however_often_it_is_tried() {
        let snapshots = SnapshotsUnderWay::default();
        assert_eq!(tried(&snapshots, 1, 9).await, (true, true));
        assert!(!snapshots.is_any() && !snapshots.is_sent_to(TO), "nothing is sent");
        assert_eq!(tried(&snapshots, 1, 2).await, (true, false));
        assert_eq!(tried(&snapshots, 1, 1).await, (false, false), "from the first offer on");
        assert_eq!(tried(&snapshots, 2, 9).await, (true, true), "another term begins anew");
        assert_eq!(tried(&snapshots, 2, 1).await, (true, false));
        snapshots.forget(TO);
        assert_eq!(tried(&snapshots, 2, 1).await, (true, true), "and so does who comes back");
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_keeps_the_log_for_as_long_as_it_is_sent_something() {
        let snapshots = SnapshotsUnderWay::default();
        let sending = snapshots.begin(TO, 1);
        tokio::time::sleep(UNANSWERED_MAX).await;
        assert!(!snapshots.is_any());
        snapshots.answered(TO);
        assert!(snapshots.is_any());
        tokio::time::sleep(UNANSWERED_MAX).await;
        assert!(snapshots.is_any());
        drop(sending);
        assert!(!snapshots.is_any());
        assert_eq!(tried(&snapshots, 1, 9).await, (true, true), "it has answered since");
    }
}

//! Whether a learner gets on, on the leader of its group. Pure.
//!
//! A learner that gets on is waited for, however long its copy takes. One that does not, because its disk is too
//! small for what it is to hold or its link lets heartbeats through and little else, would be waited for for ever.
//! After a while it loses its replica, where another member could have one, and is not given one again for
//! longer. Who has the replica instead is decided where the system group is led
//! ([`untaken`](super::untaken)).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ids::RaftId;
use crate::ports::{CopyProgress, ReplicaStatus};

/// A learner that got nothing for so long has stalled: some times what a piece of a copy takes on a slow link,
/// and longer than a node takes to start again.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(120);

/// A member that has stalled is given no replica of the group again for so long, while another could have it.
pub(super) const GIVEN_UP_FOR: Duration = Duration::from_secs(600);

/// How far a learner has come.
#[derive(Debug, Clone, Copy)]
struct Reached {
    /// Up to where it has the log.
    applied: u64,
    /// How much of a copy it has.
    copied: CopyProgress,
    /// Since when that has been all.
    since: Instant,
}

/// The learners of a group, and those that were given up.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    reached: BTreeMap<RaftId, Reached>,
    given_up: BTreeMap<RaftId, Instant>,
}

impl Stalls {
    /// Looks at the replicas. `has_room` tells whose disk has some: who has none may have all there is at the
    /// moment, and can take nothing more.
    pub(super) fn look(
        &mut self,
        replicas: &[ReplicaStatus],
        copies: &BTreeMap<RaftId, CopyProgress>,
        has_room: impl Fn(RaftId) -> bool,
        now: Instant,
    ) {
        let is_learner = |id: &RaftId| replicas.iter().any(|it| it.raft_id == *id && !it.voter);
        self.reached.retain(|id, _| is_learner(id));
        self.given_up.retain(|_, since| now.duration_since(*since) < GIVEN_UP_FOR);
        for learner in replicas.iter().filter(|replica| !replica.voter) {
            let ReplicaStatus { raft_id, applied, lag, .. } = *learner;
            let copied = copies.get(&raft_id).copied().unwrap_or_default();
            let first = Reached { applied, copied, since: now };
            let reached = self.reached.entry(raft_id).or_insert(first);
            // Against the farthest it ever came: a copy that begins again and breaks off at the same place
            // each time gets nowhere.
            let gets_on = applied > reached.applied || copied > reached.copied;
            let lacks_nothing = lag == 0 && applied > 0 && has_room(raft_id);
            if gets_on || lacks_nothing {
                reached.since = now;
            }
            reached.applied = reached.applied.max(applied);
            reached.copied = reached.copied.max(copied);
        }
    }

    /// Lists the learners that have stalled.
    pub(super) fn stalled(&self, now: Instant) -> impl Iterator<Item = RaftId> {
        let has_stalled =
            move |reached: &Reached| now.duration_since(reached.since) >= STALLED_AFTER;
        self.reached.iter().filter(move |(_, reached)| has_stalled(reached)).map(|(id, _)| *id)
    }

    /// Notes that a learner is about to lose its replica.
    pub(super) fn give_up(&mut self, raft_id: RaftId, now: Instant) {
        self.given_up.insert(raft_id, now);
    }

    /// Tells whether a member was given up a while ago.
    pub(super) fn is_given_up(&self, raft_id: RaftId) -> bool {
        self.given_up.contains_key(&raft_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEARNER: RaftId = RaftId(2);

    /// What is seen of the learner: at which second, the log that it has, what it lacks, and its copy.
    type Look = (u64, u64, u64, (u64, u64));

    fn has_stalled(looks: &[Look], has_room: bool) -> bool {
        let (mut stalls, start) = (Stalls::default(), Instant::now());
        let mut now = start;
        for (at, applied, lag, (state_machines, bytes)) in looks {
            now = start + Duration::from_secs(*at);
            let replicas = [
                ReplicaStatus { raft_id: RaftId(1), voter: true, applied: 9, lag: 0 },
                ReplicaStatus { raft_id: LEARNER, voter: false, applied: *applied, lag: *lag },
            ];
            let copied = CopyProgress { state_machines: *state_machines, bytes: *bytes };
            stalls.look(&replicas, &BTreeMap::from([(LEARNER, copied)]), |_| has_room, now);
        }
        stalls.stalled(now).any(|id| id == LEARNER)
    }

    #[tokio::test]
    async fn a_learner_has_stalled_that_got_nothing_for_two_minutes() {
        let none = (0, 0);
        let table: &[(&str, &[Look], bool)] = &[
            ("nothing at all", &[(0, 0, 9, none), (120, 0, 9, none)], true),
            ("not for long enough", &[(0, 0, 9, none), (119, 0, 9, none)], false),
            ("the log", &[(0, 1, 9, none), (60, 2, 8, none), (179, 2, 8, none)], false),
            (
                "the log, and then nothing",
                &[(0, 1, 9, none), (60, 2, 8, none), (180, 2, 8, none)],
                true,
            ),
            (
                "bytes of a copy",
                &[(0, 0, 9, (0, 5)), (100, 0, 9, (0, 6)), (200, 0, 9, (0, 7))],
                false,
            ),
            (
                "one whole of it",
                &[(0, 0, 9, (0, 5)), (100, 0, 9, (1, 0)), (200, 0, 9, (1, 1))],
                false,
            ),
            (
                "the same of it again and again",
                &[(0, 0, 9, (3, 7)), (50, 0, 9, (0, 1)), (100, 0, 9, (3, 7)), (120, 0, 9, (2, 9))],
                true,
            ),
            ("it lacks nothing", &[(0, 9, 0, none), (120, 9, 0, none)], false),
        ];
        for (what, looks, expected) in table {
            assert_eq!(has_stalled(looks, true), *expected, "{what}");
        }
        let idle: &[Look] = &[(0, 9, 0, none), (120, 9, 0, none)];
        assert!(has_stalled(idle, false), "it has no room for what comes next");
    }

    #[tokio::test]
    async fn who_was_given_up_is_tried_again_later() {
        let (mut stalls, now) = (Stalls::default(), Instant::now());
        stalls.give_up(LEARNER, now);
        assert!(stalls.is_given_up(LEARNER) && !stalls.is_given_up(RaftId(3)));
        stalls.look(&[], &BTreeMap::new(), |_| true, now + GIVEN_UP_FOR - Duration::from_secs(1));
        assert!(stalls.is_given_up(LEARNER));
        stalls.look(&[], &BTreeMap::new(), |_| true, now + GIVEN_UP_FOR);
        assert!(!stalls.is_given_up(LEARNER));
    }
}

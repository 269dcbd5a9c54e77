//! Whether a learner gets on, on the leader of its group. Pure.
//!
//! A learner that has ever got something is waited for, however long the rest takes: how far a copy has come says
//! little, for another one begins from nothing when the log was cut, a link broke or the lead moved. One that
//! gets nothing at all, because its link lets heartbeats through and little else, or that lacks room for what it
//! is to hold, would be waited for for ever. After a while it loses its replica, where another member could have
//! one, and is not given one again for longer. Who has the replica instead is decided where the system group is
//! led ([`untaken`](super::untaken)).

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ids::RaftId;
use crate::ports::{CopyProgress, ReplicaStatus};
use crate::services::heartbeat::MemberHealth;

/// A learner that is heard and got nothing, or lacked room, for so long has stalled: some times what a piece of a
/// copy takes on a slow link, and longer than a node takes to start again.
pub(super) const STALLED_AFTER: Duration = Duration::from_secs(120);

/// A member that has stalled is given no replica of the group again for so long, while another could have it.
pub(super) const GIVEN_UP_FOR: Duration = Duration::from_secs(600);

/// What is known of a learner since this node leads.
#[derive(Debug, Clone, Copy)]
struct Learner {
    /// Whether it has ever got something.
    has_begun: bool,
    /// When it was last well, or not heard.
    since: Instant,
}

/// The learners of a group, and those that were given up.
#[derive(Debug, Default)]
pub(super) struct Stalls {
    learners: BTreeMap<RaftId, Learner>,
    given_up: BTreeMap<RaftId, Instant>,
}

impl Stalls {
    /// Looks at the replicas. A learner is well when it has begun and has room for what comes next.
    pub(super) fn look(
        &mut self,
        replicas: &[ReplicaStatus],
        copies: &BTreeMap<RaftId, CopyProgress>,
        health: &BTreeMap<RaftId, MemberHealth>,
        now: Instant,
    ) {
        let is_learner = |id: &RaftId| replicas.iter().any(|it| it.raft_id == *id && !it.voter);
        self.learners.retain(|id, _| is_learner(id));
        self.given_up.retain(|_, since| now.duration_since(*since) < GIVEN_UP_FOR);
        for ReplicaStatus { raft_id, applied, .. } in replicas.iter().filter(|it| !it.voter) {
            let first = Learner { has_begun: false, since: now };
            let learner = self.learners.entry(*raft_id).or_insert(first);
            let had_begun = learner.has_begun;
            let has_copied = copies.get(raft_id).is_some_and(|it| *it != CopyProgress::default());
            learner.has_begun |= *applied > 0 || has_copied;
            let health = health.get(raft_id).filter(|health| health.is_heard);
            let lacks_room =
                health.is_some_and(|health| !health.has_room || health.lacks_room_for_copy);
            let is_well = learner.has_begun && !lacks_room;
            // The time without anything does not count as time without room.
            let begins = learner.has_begun && !had_begun;
            if is_well || begins || health.is_none() {
                learner.since = now;
            }
        }
    }

    /// Lists the learners that have stalled.
    pub(super) fn stalled(&self, now: Instant) -> impl Iterator<Item = RaftId> {
        let has_stalled =
            move |learner: &Learner| now.duration_since(learner.since) >= STALLED_AFTER;
        self.learners.iter().filter(move |(_, learner)| has_stalled(learner)).map(|(id, _)| *id)
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
    use super::super::samples;
    use super::*;

    const LEARNER: RaftId = RaftId(2);

    /// What is seen of the learner: at which second, the log that it has, its copy, and how it is.
    type Look = (u64, u64, (u64, u64), MemberHealth);

    fn well() -> MemberHealth {
        samples::health(0)
    }

    fn full() -> MemberHealth {
        MemberHealth { lacks_room_for_copy: true, ..well() }
    }

    fn silent() -> MemberHealth {
        samples::health(1)
    }

    fn has_stalled(looks: &[Look]) -> bool {
        let (mut stalls, start) = (Stalls::default(), Instant::now());
        let mut now = start;
        for (at, applied, (state_machines, bytes), health) in looks {
            now = start + Duration::from_secs(*at);
            let replicas = [
                ReplicaStatus { raft_id: RaftId(1), voter: true, applied: 9, lag: 0 },
                ReplicaStatus { raft_id: LEARNER, voter: false, applied: *applied, lag: 9 },
            ];
            let copied = CopyProgress { state_machines: *state_machines, bytes: *bytes };
            let health = BTreeMap::from([(LEARNER, health.clone())]);
            stalls.look(&replicas, &BTreeMap::from([(LEARNER, copied)]), &health, now);
        }
        stalls.stalled(now).any(|id| id == LEARNER)
    }

    #[tokio::test]
    async fn a_learner_has_stalled_that_gets_nothing_at_all_or_lacks_room_for_two_minutes() {
        let none = (0, 0);
        let table: &[(&str, &[Look], bool)] = &[
            ("nothing at all", &[(0, 0, none, well()), (120, 0, none, well())], true),
            ("not for long enough", &[(0, 0, none, well()), (119, 0, none, well())], false),
            (
                "silent meanwhile",
                &[(0, 0, none, well()), (60, 0, none, silent()), (179, 0, none, well())],
                false,
            ),
            ("the log, and then nothing", &[(0, 1, none, well()), (500, 1, none, well())], false),
            (
                "bytes of a copy, and of the next one less",
                &[(0, 0, (3, 7), well()), (60, 0, (0, 1), well()), (500, 0, none, well())],
                false,
            ),
            ("one whole of it", &[(0, 0, (1, 0), well()), (500, 0, none, well())], false),
            ("no room, with all there is", &[(0, 9, none, full()), (120, 9, none, full())], true),
            (
                "room meanwhile",
                &[(0, 9, none, full()), (60, 9, none, well()), (179, 9, none, full())],
                false,
            ),
            (
                "nothing at first, then no room",
                &[(0, 0, none, full()), (60, 1, none, full()), (179, 1, none, full())],
                false,
            ),
        ];
        for (what, looks, expected) in table {
            assert_eq!(has_stalled(looks), *expected, "{what}");
        }
    }

    #[tokio::test]
    async fn who_was_given_up_is_tried_again_later() {
        let (mut stalls, now) = (Stalls::default(), Instant::now());
        stalls.give_up(LEARNER, now);
        assert!(stalls.is_given_up(LEARNER) && !stalls.is_given_up(RaftId(3)));
        stalls.look(
            &[],
            &BTreeMap::new(),
            &BTreeMap::new(),
            now + GIVEN_UP_FOR - Duration::from_secs(1),
        );
        assert!(stalls.is_given_up(LEARNER));
        stalls.look(&[], &BTreeMap::new(), &BTreeMap::new(), now + GIVEN_UP_FOR);
        assert!(!stalls.is_given_up(LEARNER));
    }
}

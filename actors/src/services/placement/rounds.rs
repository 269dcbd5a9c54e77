//! Whether a learner has caught up: by rounds, after D. Ongaro, *Consensus: Bridging Theory and
//! Practice*, 4.2.1. Pure.
//!
//! A round sends a learner everything that the leader's log holds at its beginning. What came in
//! meanwhile is the next round. A learner whose last round took less than an election timeout holds up
//! its group for no longer than an election would. A count of entries says nothing like it: a thousand
//! of them are a moment or an hour, by what is in them and by the link.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::ids::RaftId;
use crate::ports::ReplicaStatus;

/// The round of one learner.
#[derive(Debug, Clone, Copy)]
struct Round {
    began: Instant,
    /// It is over when the learner holds the log up to here.
    upto: u64,
    /// How long the one before took.
    took: Option<Duration>,
}

/// The rounds of all learners of a group.
#[derive(Debug, Default)]
pub(super) struct Rounds(BTreeMap<RaftId, Round>);

impl Rounds {
    /// Looks at the replicas: rounds begin and end at looks, so that none seems shorter than it was.
    pub(super) fn look(&mut self, replicas: &[ReplicaStatus], now: Instant) {
        let is_learner = |id: &RaftId| replicas.iter().any(|it| it.raft_id == *id && !it.voter);
        self.0.retain(|id, _| is_learner(id));
        for learner in replicas.iter().filter(|replica| !replica.voter) {
            let upto = learner.applied.saturating_add(learner.lag);
            let round = self.0.entry(learner.raft_id);
            let round = round.or_insert(Round { began: now, upto, took: None });
            // The rounds of a learner that has matched nothing, or that came back with less than it
            // had, say nothing.
            if learner.applied == 0 {
                *round = Round { began: now, upto, took: None };
            } else if learner.applied >= round.upto && round.began < now {
                let took = now.duration_since(round.began);
                *round = Round { began: now, upto, took: Some(took) };
            }
        }
    }

    /// Whether the last round of a learner took less than `within`, and the one under way has not
    /// taken longer already.
    pub(super) fn has_caught_up(&self, raft_id: RaftId, within: Duration, now: Instant) -> bool {
        self.0.get(&raft_id).is_some_and(|round| {
            round.took.is_some_and(|took| took < within) && now.duration_since(round.began) < within
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_millis(500);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn learner(applied: u64, last: u64) -> [ReplicaStatus; 2] {
        [
            ReplicaStatus { raft_id: RaftId(1), voter: true, applied: last, lag: 0 },
            ReplicaStatus { raft_id: RaftId(2), voter: false, applied, lag: last - applied },
        ]
    }

    /// When a learner counts as caught up, by what is seen of it: at which millisecond, up to where it
    /// has matched, and the leader's last index.
    #[tokio::test(start_paused = true)]
    async fn a_learner_has_caught_up_after_a_short_round() {
        type Story = (&'static str, &'static [(u64, u64, u64)], &'static [bool]);
        let stories: &[Story] = &[
            ("nothing to send", &[(0, 9, 9), (250, 9, 9)], &[false, true]),
            ("nothing matched", &[(0, 0, 7), (250, 0, 7), (500, 0, 7)], &[false, false, false]),
            (
                "near in entries, far in bytes",
                &[(0, 7, 128), (250, 7, 128), (500, 40, 128), (750, 90, 128), (1000, 128, 128)],
                &[false, false, false, false, false],
            ),
            (
                "a long round and then a short one",
                &[(0, 7, 128), (2000, 128, 140), (2250, 140, 141), (2500, 141, 141)],
                &[false, false, true, true],
            ),
            (
                "writes go on, and it keeps up",
                &[(0, 5, 100), (250, 100, 200), (500, 200, 300)],
                &[false, true, true],
            ),
            (
                "writes go on, and it does not",
                &[(0, 5, 100), (600, 100, 400), (1300, 400, 900), (2100, 900, 1900)],
                &[false, false, false, false],
            ),
            (
                "it kept up, and then stopped",
                &[(0, 5, 9), (250, 9, 50), (500, 9, 90), (750, 9, 120)],
                &[false, true, true, false],
            ),
            (
                "it lost what it had",
                &[(0, 5, 9), (250, 9, 50), (500, 0, 90), (750, 90, 91), (1000, 91, 91)],
                &[false, true, false, true, true],
            ),
        ];
        for (what, looks, expected) in stories {
            let (mut rounds, start) = (Rounds::default(), Instant::now());
            let seen: Vec<bool> = looks
                .iter()
                .map(|(at, applied, last)| {
                    let now = start + ms(*at);
                    rounds.look(&learner(*applied, *last), now);
                    rounds.has_caught_up(RaftId(2), T, now)
                })
                .collect();
            assert_eq!(seen, *expected, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_no_learner_has_no_rounds() {
        let (mut rounds, now) = (Rounds::default(), Instant::now());
        rounds.look(&learner(9, 9), now);
        rounds.look(&learner(9, 9), now + ms(250));
        assert!(rounds.has_caught_up(RaftId(2), T, now + ms(250)));
        assert!(!rounds.has_caught_up(RaftId(1), T, now + ms(250)));
        rounds.look(&learner(9, 9)[..1], now + ms(500));
        rounds.look(&learner(9, 9), now + ms(750));
        assert!(!rounds.has_caught_up(RaftId(2), T, now + ms(750)), "it begins anew");
    }
}

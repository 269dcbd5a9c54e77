//! Which process is a member: of two with one identity, as after a data directory was copied, the
//! one that started later. Pure.
//!
//! Each start of the program is an *incarnation*. A node tells the others its incarnation when it
//! starts and every second after that, and each of them remembers the latest of every member. The
//! number of an incarnation is the wall clock at its start, which makes the usual case, a restart,
//! the greater one. But a clock may have been set back, so a greater number alone does not prove a
//! later start:
//!
//! | a node is told | because | then |
//! |---|---|---|
//! | `Known` | nobody greater spoke lately | it notes since when it is known |
//! | `Replaced`, by one heard *after* it was known | both speak: a later process is there | it stops |
//! | `Replaced`, by one *not* heard since then | that may be the process before it | it takes a greater number |
//!
//! The third row covers the copy as well: a copy under a slow clock is told of the first process,
//! was not known before, and takes a greater number; with its next hello it is the latest, and the
//! first process is told of it and stops.
//!
//! 'After' allows for `IN_FLIGHT`: what a process said just before it ended may arrive later than
//! the first hello of its successor. An answer to a number that was given up meanwhile says
//! nothing.
//!
//! An incarnation that has not been heard of for `INCARNATION_KEPT` is forgotten: a copy that is
//! gone keeps nobody out. Nothing is on disk, where a copy would have it as well.
//!
//! For some seconds two processes may both speak, and vote, for the member. What that can lose, and
//! who notices, is in decisions 13 and 14.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::domain::ids::RaftId;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// For how long an incarnation that falls silent is remembered: several times as long as those that
/// go on are silent.
const INCARNATION_KEPT: Duration = Duration::from_secs(10);

/// For how long what a process said before it ended may still be on its way.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// One start of the program. The later is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation {
    /// When it started, milliseconds by its own wall clock, or one more than an incarnation before
    /// it.
    pub number: u64,
    /// Drawn by chance: no two processes have one incarnation.
    pub chance: u128,
}

/// What a member says to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Where it says that the others reach it.
    pub node_addr: String,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// It is the latest incarnation of the member.
    Known,
    /// There is a later one.
    Replaced {
        /// What that one said.
        later: Hello,
        /// How long ago.
        heard_ms_ago: u64,
    },
}

/// The latest incarnation of each member that was heard of.
#[derive(Debug, Default)]
pub(super) struct LatestIncarnations(BTreeMap<RaftId, (Hello, Instant)>);

/// This process's own incarnation.
#[derive(Debug)]
pub(super) struct OwnIncarnation {
    pub(super) incarnation: Incarnation,
    /// Since when another member has known it as the latest.
    known_since: Option<Instant>,
}

impl LatestIncarnations {
    /// Hears a member, and answers it.
    pub(super) fn hear(&mut self, from: RaftId, hello: Hello, now: Instant) -> HelloReply {
        if let Some((latest, heard)) = self.0.get(&from) {
            let age = now.duration_since(*heard);
            if latest.incarnation > hello.incarnation && age < INCARNATION_KEPT {
                let heard_ms_ago = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                return HelloReply::Replaced { later: latest.clone(), heard_ms_ago };
            }
        }
        self.0.insert(from, (hello, now));
        HelloReply::Known
    }

    /// Forgets who is no member.
    pub(super) fn retain(&mut self, raft_ids: &[RaftId]) {
        self.0.retain(|id, _| raft_ids.contains(id));
    }
}

impl OwnIncarnation {
    pub(super) const fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, known_since: None }
    }

    /// Another member answered the hello of `said`. Gives the later incarnation that replaces this
    /// one.
    pub(super) fn welcomed(
        &mut self,
        said: Incarnation,
        welcome: HelloReply,
        now: Instant,
    ) -> Option<Hello> {
        match welcome {
            // Of a number given up meanwhile nothing follows.
            _ if said != self.incarnation => None,
            HelloReply::Known => {
                self.known_since.get_or_insert(now);
                None
            }
            HelloReply::Replaced { later, heard_ms_ago } => {
                let heard = Duration::from_millis(heard_ms_ago).saturating_add(IN_FLIGHT);
                if self.known_since.is_some_and(|since| now.duration_since(since) > heard) {
                    return Some(later);
                }
                self.incarnation.number = later.incarnation.number.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn incarnation(number: u64, chance: u128) -> Incarnation {
        Incarnation { number, chance }
    }

    fn hello(incarnation: Incarnation) -> Hello {
        Hello { incarnation, node_addr: format!("at-{}:1", incarnation.chance) }
    }

    /// One member says hello to another.
    fn says(
        own: &mut OwnIncarnation,
        other: &mut LatestIncarnations,
        now: Instant,
    ) -> Option<Hello> {
        let said = own.incarnation;
        let welcome = other.hear(RaftId(2), hello(said), now);
        own.welcomed(said, welcome, now)
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_processes_with_one_identity_the_earlier_stops() {
        let start = Instant::now();
        // The clock of the machine with the copy may be right, equal, or behind; it may come soon
        // after the first or long after.
        for number in [20, 10, 3] {
            for after in [1, 2, 60] {
                let mut other = LatestIncarnations::default();
                let (mut first, mut copy) = (
                    OwnIncarnation::new(incarnation(10, 1)),
                    OwnIncarnation::new(incarnation(number, 9)),
                );
                let mut replaced = None;
                for second in 0..after + 10 {
                    let now = start + SECOND * second;
                    if second >= after {
                        // Twice: who is told of a later incarnation says hello again at once.
                        for _ in 0..2 {
                            assert_eq!(says(&mut copy, &mut other, now), None, "it is the later");
                        }
                    }
                    replaced = replaced.or_else(|| says(&mut first, &mut other, now + SECOND / 2));
                    if replaced.is_some() {
                        break;
                    }
                }
                let later = replaced.expect("the first is told");
                assert_eq!(later.node_addr, "at-9:1", "{number} after {after} s");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_under_a_clock_that_was_set_back_is_no_copy() {
        let start = Instant::now();
        let (mut remembers, mut forgot) =
            (LatestIncarnations::default(), LatestIncarnations::default());
        let mut before = OwnIncarnation::new(incarnation(1_000_000, 1));
        assert_eq!(says(&mut before, &mut remembers, start), None);
        // It ends, and starts again; the first that it meets has started again as well.
        let mut again = OwnIncarnation::new(incarnation(20, 2));
        for second in 1..20 {
            let now = start + SECOND * second;
            assert_eq!(says(&mut again, &mut forgot, now), None);
            assert_eq!(says(&mut again, &mut remembers, now), None);
        }
        assert_eq!(again.incarnation.number, 1_000_001);
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_is_gone_keeps_nobody_out() {
        let start = Instant::now();
        let mut other = LatestIncarnations::default();
        // Of a machine whose clock is far ahead.
        let mut copy = OwnIncarnation::new(incarnation(1_000_000, 2));
        assert_eq!(says(&mut copy, &mut other, start), None);
        let mut again = OwnIncarnation::new(incarnation(20, 1));
        assert_eq!(says(&mut again, &mut other, start + INCARNATION_KEPT), None);
        assert_eq!(
            (again.incarnation.number, again.known_since),
            (20, Some(start + INCARNATION_KEPT))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_earlier_number_says_nothing() {
        let now = Instant::now();
        let mut own = OwnIncarnation::new(incarnation(10, 1));
        let early = own.incarnation;
        let replaced =
            |number| HelloReply::Replaced { later: hello(incarnation(number, 2)), heard_ms_ago: 0 };
        assert_eq!(own.welcomed(early, replaced(50), now), None);
        assert_eq!(own.welcomed(early, HelloReply::Known, now), None);
        assert_eq!(own.welcomed(early, replaced(60), now + SECOND * 9), None);
        assert_eq!((own.incarnation.number, own.known_since), (51, None));
    }

    #[test]
    fn who_is_no_member_is_forgotten() {
        let mut incarnations = LatestIncarnations::default();
        incarnations.hear(RaftId(2), hello(incarnation(9, 9)), Instant::now());
        incarnations.retain(&[RaftId(3)]);
        assert_eq!(
            incarnations.hear(RaftId(2), hello(incarnation(1, 1)), Instant::now()),
            HelloReply::Known
        );
    }
}

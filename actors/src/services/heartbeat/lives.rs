//! Which process is a member: of two with one identity, as after a data directory was copied, the
//! one that started later. Pure.
//!
//! Each start of the program is a *life*. A node tells the others its life when it starts and every
//! second after that, and each of them remembers the latest of every member. Whoever is told of a
//! later life of itself that was heard since it was itself known has been replaced, and stops.
//! A life that was not heard since then may be the one before it: the wall clock that lives are
//! numbered by may have been set back. Then this one is the later, and takes a greater number.
//!
//! A life that has not been heard of for [`LIFE_KEPT`] is forgotten: a copy that is gone keeps
//! nobody out.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// For how long a life that falls silent is remembered: several times as long as those that go on
/// are silent.
const LIFE_KEPT: Duration = Duration::from_secs(10);

/// For how long what a process said before it ended may still be on its way.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// One start of the program. The later is the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Life {
    /// When it started, milliseconds by its own wall clock, or one more than a life before it.
    pub number: u64,
    /// Drawn by chance: no two processes have one life.
    pub chance: u128,
}

/// What a member says to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its life.
    pub life: Life,
    /// Where it says that the others reach it.
    pub node_addr: String,
}

/// What it is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// It is the latest life of the member.
    Known,
    /// There is a later one.
    Replaced {
        /// What that one said.
        later: Hello,
        /// How long ago.
        heard_ms_ago: u64,
    },
}

/// The latest life of each member that was heard of.
#[derive(Debug, Default)]
pub(super) struct Lives(BTreeMap<u64, (Hello, Instant)>);

/// This process's own life.
#[derive(Debug)]
pub(super) struct OwnLife {
    pub(super) life: Life,
    /// Since when another member has known it as the latest.
    known_since: Option<Instant>,
}

impl Lives {
    /// Hears a member, and answers it.
    pub(super) fn hear(&mut self, from: u64, hello: Hello, now: Instant) -> Welcome {
        if let Some((latest, heard)) = self.0.get(&from) {
            let age = now.duration_since(*heard);
            if latest.life > hello.life && age < LIFE_KEPT {
                let heard_ms_ago = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
                return Welcome::Replaced { later: latest.clone(), heard_ms_ago };
            }
        }
        self.0.insert(from, (hello, now));
        Welcome::Known
    }

    /// Forgets who is no member.
    pub(super) fn retain(&mut self, raft_ids: &[u64]) {
        self.0.retain(|id, _| raft_ids.contains(id));
    }
}

impl OwnLife {
    pub(super) const fn new(life: Life) -> Self {
        Self { life, known_since: None }
    }

    /// Another member answered the hello of `said`. Gives the later life that replaces this one.
    pub(super) fn welcomed(&mut self, said: Life, welcome: Welcome, now: Instant) -> Option<Hello> {
        match welcome {
            // Of a number given up meanwhile nothing follows.
            _ if said != self.life => None,
            Welcome::Known => {
                self.known_since.get_or_insert(now);
                None
            }
            Welcome::Replaced { later, heard_ms_ago } => {
                let heard = Duration::from_millis(heard_ms_ago).saturating_add(IN_FLIGHT);
                if self.known_since.is_some_and(|since| now.duration_since(since) > heard) {
                    return Some(later);
                }
                self.life.number = later.life.number.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn life(number: u64, chance: u128) -> Life {
        Life { number, chance }
    }

    fn hello(life: Life) -> Hello {
        Hello { life, node_addr: format!("at-{}:1", life.chance) }
    }

    /// One member says hello to another.
    fn says(own: &mut OwnLife, other: &mut Lives, now: Instant) -> Option<Hello> {
        let said = own.life;
        let welcome = other.hear(2, hello(said), now);
        own.welcomed(said, welcome, now)
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_processes_with_one_identity_the_earlier_stops() {
        let start = Instant::now();
        // The clock of the machine with the copy may be right, equal, or behind; it may come soon
        // after the first or long after.
        for number in [20, 10, 3] {
            for after in [1, 2, 60] {
                let mut other = Lives::default();
                let (mut first, mut copy) =
                    (OwnLife::new(life(10, 1)), OwnLife::new(life(number, 9)));
                let mut replaced = None;
                for second in 0..after + 10 {
                    let now = start + SECOND * second;
                    if second >= after {
                        // Twice: who is told of a later life says hello again at once.
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
        let (mut remembers, mut forgot) = (Lives::default(), Lives::default());
        let mut before = OwnLife::new(life(1_000_000, 1));
        assert_eq!(says(&mut before, &mut remembers, start), None);
        // It ends, and starts again; the first that it meets has started again as well.
        let mut again = OwnLife::new(life(20, 2));
        for second in 1..20 {
            let now = start + SECOND * second;
            assert_eq!(says(&mut again, &mut forgot, now), None);
            assert_eq!(says(&mut again, &mut remembers, now), None);
        }
        assert_eq!(again.life.number, 1_000_001);
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_is_gone_keeps_nobody_out() {
        let start = Instant::now();
        let mut other = Lives::default();
        // Of a machine whose clock is far ahead.
        let mut copy = OwnLife::new(life(1_000_000, 2));
        assert_eq!(says(&mut copy, &mut other, start), None);
        let mut again = OwnLife::new(life(20, 1));
        assert_eq!(says(&mut again, &mut other, start + LIFE_KEPT), None);
        assert_eq!((again.life.number, again.known_since), (20, Some(start + LIFE_KEPT)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_earlier_number_says_nothing() {
        let now = Instant::now();
        let mut own = OwnLife::new(life(10, 1));
        let early = own.life;
        let replaced =
            |number| Welcome::Replaced { later: hello(life(number, 2)), heard_ms_ago: 0 };
        assert_eq!(own.welcomed(early, replaced(50), now), None);
        assert_eq!(own.welcomed(early, Welcome::Known, now), None);
        assert_eq!(own.welcomed(early, replaced(60), now + SECOND * 9), None);
        assert_eq!((own.life.number, own.known_since), (51, None));
    }

    #[test]
    fn who_is_no_member_is_forgotten() {
        let mut lives = Lives::default();
        lives.hear(2, hello(life(9, 9)), Instant::now());
        lives.retain(&[3]);
        assert_eq!(lives.hear(2, hello(life(1, 1)), Instant::now()), Welcome::Known);
    }
}

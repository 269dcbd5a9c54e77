//! Which process is a member: of two with one identity, as after a data directory was copied, the
//! one that started later. Pure.
//!
//! Each start of the program is a *life*. A node tells the others its life when it starts and every
//! second after that, and each of them remembers the latest of every member. Whoever is told that
//! there is a later life of itself has been replaced and stops, if it has been heard before;
//! otherwise it has only just started, is the later one by that, and takes a greater number: the
//! wall clock that lives are numbered by may have been set back.
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
    Replaced(Hello),
}

/// The latest life of each member that was heard of.
#[derive(Debug, Default)]
pub(super) struct Lives(BTreeMap<u64, (Hello, Instant)>);

/// This process's own life.
#[derive(Debug)]
pub(super) struct OwnLife {
    pub(super) life: Life,
    /// Whether another member has known it as the latest.
    is_known: bool,
}

impl Lives {
    /// Hears a member, and answers it.
    pub(super) fn hear(&mut self, from: u64, hello: Hello, now: Instant) -> Welcome {
        if let Some((latest, heard)) = self.0.get(&from)
            && latest.life > hello.life
            && now.duration_since(*heard) < LIFE_KEPT
        {
            return Welcome::Replaced(latest.clone());
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
        Self { life, is_known: false }
    }

    /// Another member answered the hello of `said`. Gives the later life that replaces this one.
    pub(super) fn welcomed(&mut self, said: Life, welcome: Welcome) -> Option<Hello> {
        match welcome {
            // Of a number given up meanwhile nothing follows.
            _ if said != self.life => None,
            Welcome::Known => {
                self.is_known = true;
                None
            }
            Welcome::Replaced(later) if self.is_known => Some(later),
            Welcome::Replaced(later) => {
                self.life.number = later.life.number.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        own.welcomed(said, welcome)
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_processes_with_one_identity_the_earlier_stops() {
        let now = Instant::now();
        // The clock of the machine with the copy may be right, equal, or behind.
        for copy in [life(20, 9), life(10, 9), life(10, 0), life(3, 9)] {
            let mut other = Lives::default();
            let mut first = OwnLife::new(life(10, 1));
            assert_eq!(says(&mut first, &mut other, now), None);
            let mut copy = OwnLife::new(copy);
            for _ in 0..2 {
                assert_eq!(says(&mut copy, &mut other, now), None, "it has only just started");
            }
            let replaced = says(&mut first, &mut other, now).expect("the first is told");
            assert_eq!(replaced, hello(copy.life));
            assert_eq!(says(&mut copy, &mut other, now), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn members_that_hear_them_in_another_order_agree() {
        let now = Instant::now();
        let (mut one, mut other) = (Lives::default(), Lives::default());
        let (mut first, mut copy) = (OwnLife::new(life(10, 1)), OwnLife::new(life(20, 2)));
        assert_eq!(says(&mut first, &mut one, now), None);
        assert_eq!(says(&mut copy, &mut other, now), None);
        // Each is news to the member that knows the other.
        assert_eq!(says(&mut copy, &mut one, now), None);
        assert!(says(&mut first, &mut other, now).is_some());
        assert!(says(&mut first, &mut one, now).is_some());
        assert_eq!(says(&mut copy, &mut other, now), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_copy_that_is_gone_keeps_nobody_out() {
        let start = Instant::now();
        let mut other = Lives::default();
        // Of a machine whose clock is far ahead.
        let mut copy = OwnLife::new(life(1_000_000, 2));
        assert_eq!(says(&mut copy, &mut other, start), None);
        // The first is started again, at once.
        let mut again = OwnLife::new(life(20, 1));
        assert_eq!(says(&mut again, &mut other, start), None);
        assert_eq!(says(&mut again, &mut other, start), None);
        assert_eq!(again.life.number, 1_000_001);
        // Or later, where another member takes it and this one has to forget the copy.
        let mut other = Lives::default();
        assert_eq!(says(&mut copy, &mut other, start), None);
        let mut later = OwnLife::new(life(30, 1));
        assert_eq!(says(&mut later, &mut Lives::default(), start), None);
        assert_eq!(says(&mut later, &mut other, start + LIFE_KEPT), None);
        assert_eq!(later.life.number, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_an_earlier_number_says_nothing() {
        let mut own = OwnLife::new(life(10, 1));
        let early = own.life;
        assert_eq!(own.welcomed(early, Welcome::Replaced(hello(life(50, 2)))), None);
        assert_eq!(own.welcomed(early, Welcome::Known), None);
        assert_eq!(own.welcomed(early, Welcome::Replaced(hello(life(60, 2)))), None);
        assert_eq!((own.life.number, own.is_known), (51, false));
    }

    #[test]
    fn who_is_no_member_is_forgotten() {
        let mut lives = Lives::default();
        lives.hear(2, hello(life(9, 9)), Instant::now());
        lives.retain(&[3]);
        assert_eq!(lives.hear(2, hello(life(1, 1)), Instant::now()), Welcome::Known);
    }
}

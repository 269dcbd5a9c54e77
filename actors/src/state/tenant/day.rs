//! Counts the runs accepted in a day, though the clock may be wrong about the day. Pure.
//!
//! The rule:
//! - a run counts for the day that the command which starts it is in;
//! - when a command is in an earlier day than the one before it, the clock was ahead: the days
//!   ahead are given up, and what was counted in them counts for the earlier day, together with
//!   what that day had already;
//! - so a true day lets in at most the limit each time that a leader's clock turns to a later day
//!   in its course: where the clocks are right, that is once. And once the clock is right, no run
//!   counts in a day after the one it was accepted in.

use serde::{Deserialize, Serialize};

use crate::mutants::{self, Mutant};

/// Days in which runs were accepted, and how many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DayCount {
    /// The latest day, since 1970.
    pub(super) day: i64,
    /// Runs accepted in it.
    pub(super) runs: u64,
    /// The day before it that was counted, and its runs: to go back to.
    pub(super) before: Option<(i64, u64)>,
}

impl DayCount {
    /// Takes the day of a command.
    pub(super) fn turn_to(&mut self, day: i64) {
        *self = self.as_of(day);
    }

    /// Runs accepted in `day`.
    pub(super) fn used(&self, day: i64) -> u64 {
        self.as_of(day).runs
    }

    fn as_of(self, day: i64) -> Self {
        if day == self.day || (day < self.day && mutants::is(Mutant::DayRatchet)) {
            return self;
        }
        if day > self.day {
            return Self { day, runs: 0, before: Some((self.day, self.runs)) };
        }
        match self.before {
            Some((before, runs)) if before >= day => {
                Self { day, runs: self.runs.saturating_add(runs), before: None }
            }
            before => Self { day, runs: self.runs, before },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accept(count: &mut DayCount, day: i64, limit: u64) -> bool {
        count.turn_to(day);
        let has_room = count.runs < limit;
        count.runs += u64::from(has_room);
        has_room
    }

    #[test]
    fn a_day_that_was_ahead_is_given_up() {
        let mut count = DayCount { day: 100, ..DayCount::default() };
        assert!(accept(&mut count, 130, 3));
        // Back in the true day, which the run was accepted in.
        assert!(accept(&mut count, 100, 3));
        assert!(accept(&mut count, 100, 3));
        assert!(!accept(&mut count, 100, 3));
        assert_eq!((count.used(100), count.used(101), count.used(130)), (3, 0, 0));
        assert!(accept(&mut count, 101, 3));
        assert_eq!(count.used(130), 0);
    }

    #[test]
    fn a_clock_that_jumps_back_and_forth_gives_no_day_anew() {
        let mut count = DayCount { day: 100, ..DayCount::default() };
        assert!(accept(&mut count, 100, 2));
        assert!(accept(&mut count, 100, 2));
        assert!(accept(&mut count, 101, 2));
        assert!(!accept(&mut count, 100, 2), "what the day had is not forgotten");
        assert!(!accept(&mut count, 99, 2));
    }

    proptest! {
        /// However the clock is wrong: at most the limit each time it turns to a later day.
        #[test]
        fn no_day_has_more_than_the_limit_each_time_it_is_claimed(
            claimed in prop::collection::vec(90_i64..94, 1..60), limit in 1_u64..4,
        ) {
            let mut count = DayCount { day: 90, ..DayCount::default() };
            let (mut accepted, mut turns, mut last) = (0, 1, 90);
            for day in claimed {
                turns += u64::from(day > last);
                last = day;
                accepted += u64::from(accept(&mut count, day, limit));
                prop_assert!(accepted <= limit * turns);
                prop_assert!(count.runs <= accepted);
                prop_assert_eq!(count.used(day), count.runs);
                prop_assert_eq!(count.used(day + 1), 0);
            }
        }
    }
}

//! The time of a state machine, as its log tells it. Pure; replicated with the state machine.
//!
//! An entry carries the wall clock of whoever proposed it, and any of these clocks may be wrong.
//! Three times are therefore kept apart:
//! - [`StateClock::now`] labels things. It does not go back by less than [`SKEW_MS_MAX`], so that
//!   two leaders whose clocks differ a little tell one story; it does go back by more, for then
//!   the clock was ahead and has been set right;
//! - [`StateClock::own`] is what the present entry itself says. Moments that lie ahead are computed
//!   from it;
//! - [`StateClock::aged`] measures how long something has been kept. It only grows, from entry to
//!   entry by at most [`AGE_STEP_MS_MAX`], whatever the clocks say: a clock that is ahead for
//!   years makes nothing older by more than that. A longer pause counts in full when a leader
//!   that watched it with its monotonic clock says how long it was.

use serde::{Deserialize, Serialize};

use super::RowBuffer;
use crate::domain::codec;
use crate::domain::time::{Pause, Timestamp};
use crate::mutants::{self, Mutant};
use crate::ports::{Row, StoreError};

/// Clocks of members differ by this much without anything being wrong, milliseconds.
pub const SKEW_MS_MAX: u64 = 5_000;
/// Two entries are at most this far apart for the age of what is kept, milliseconds.
pub const AGE_STEP_MS_MAX: u64 = 60 * 60 * 1000;

/// The kind of the row: the only byte of its key, in every state machine.
const TIME_ROW: u8 = b'y';

/// See the module.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateClock {
    now: Timestamp,
    own: Timestamp,
    aged: Timestamp,
}

impl StateClock {
    /// As it was written down. `last_at` is what a directory knows that was written before there
    /// was such a row.
    ///
    /// # Errors
    /// When the row cannot be read.
    pub fn load(rows: &RowBuffer, last_at: Timestamp) -> Result<Self, StoreError> {
        let before = Self { now: last_at, own: last_at, aged: last_at };
        Ok(rows.get(&[TIME_ROW])?.unwrap_or(before))
    }

    /// The row that [`Self::load`] reads.
    pub fn row(&self) -> Row {
        (vec![TIME_ROW], Some(codec::encode(self)))
    }

    /// The moment that things are labelled with.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// The moment that the present entry itself carries.
    pub const fn own(&self) -> Timestamp {
        self.own
    }

    /// The moment that ages are counted by. It has nothing to do with the time of day.
    pub const fn aged(&self) -> Timestamp {
        self.aged
    }

    /// Takes in the time of an entry, and the pause before it where the entry tells of one.
    pub fn tell(&mut self, at: Timestamp, pause: Option<Pause>) {
        let before = self.now;
        // A pause that does not begin with the last entry was measured beside another one.
        let watched = pause.filter(|pause| pause.since == self.own).map(|pause| pause.ms);
        let step = watched.unwrap_or_else(|| at.ms_since(before).min(AGE_STEP_MS_MAX));
        self.aged =
            if mutants::is(Mutant::ForgetKeysByClock) { at } else { self.aged.plus_ms(step) };
        self.own = at;
        let is_set_back = before.ms_since(at) > SKEW_MS_MAX;
        self.now = if is_set_back { at } else { before.max(at) };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DAY: i64 = 86_400_000;

    #[test]
    fn a_small_difference_of_clocks_does_not_turn_time_back() {
        let mut time = StateClock::default();
        time.tell(Timestamp(10_000), None);
        time.tell(Timestamp(5_000), None);
        assert_eq!((time.now(), time.own()), (Timestamp(10_000), Timestamp(5_000)));
        // The same second is not counted twice.
        time.tell(Timestamp(10_000), None);
        assert_eq!(time.aged(), Timestamp(10_000));
    }

    #[test]
    fn a_clock_that_was_ahead_is_believed_no_longer_than_it_is() {
        let mut time = StateClock::default();
        time.tell(Timestamp(1_000), None);
        time.tell(Timestamp(30 * DAY), None);
        time.tell(Timestamp(2_000), None);
        assert_eq!((time.now(), time.own()), (Timestamp(2_000), Timestamp(2_000)));
        assert_eq!(time.aged(), Timestamp(1_000).plus_ms(AGE_STEP_MS_MAX));
    }

    #[test]
    fn a_pause_counts_in_full_when_it_was_watched_from_its_beginning() {
        let mut time = StateClock::default();
        time.tell(Timestamp(1_000), None);
        let pause = |since| Some(Pause { since: Timestamp(since), ms: 25 * 3_600_000 });
        time.tell(Timestamp(2_000), pause(999));
        assert_eq!(time.aged(), Timestamp(2_000), "another pause");
        time.tell(Timestamp(3_000), pause(2_000));
        assert_eq!(time.aged(), Timestamp(2_000).plus_ms(25 * 3_600_000));
    }

    proptest! {
        #[test]
        fn age_grows_by_no_more_than_a_step_an_entry(at in prop::collection::vec(any::<i64>(), 1..50)) {
            let mut time = StateClock::default();
            for at in at {
                let before = time;
                time.tell(Timestamp(at), None);
                prop_assert!(time.aged() >= before.aged());
                prop_assert!(time.aged().ms_since(before.aged()) <= AGE_STEP_MS_MAX);
                // The label is never further from the entry's own time than clocks may differ.
                prop_assert!(time.now() >= time.own());
                prop_assert!(time.now().ms_since(time.own()) <= SKEW_MS_MAX);
            }
        }

        #[test]
        fn a_reload_changes_nothing(at in prop::collection::vec(0_i64..DAY, 0..20)) {
            let mut time = StateClock::default();
            for at in at {
                time.tell(Timestamp(at), None);
                let mut rows = RowBuffer::default();
                rows.put(vec![time.row()]);
                prop_assert_eq!(StateClock::load(&rows, Timestamp(7)).unwrap(), time);
            }
        }
    }
}

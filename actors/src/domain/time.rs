//! Moments of wall time, and pauses that were measured. Who reads the clock is no matter of these:
//! see [`Clock`](crate::ports::seams::Clock).

use std::fmt;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

/// A moment of wall time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Timestamp(pub i64);

/// Milliseconds in a day of UTC.
const DAY_MS: i64 = 86_400_000;

impl Timestamp {
    /// The day of UTC this moment is in, counted from 1970-01-01.
    pub const fn day(self) -> i64 {
        self.0.div_euclid(DAY_MS)
    }

    /// The first moment of the next day of UTC.
    pub const fn next_day(self) -> Self {
        Self((self.day() + 1) * DAY_MS)
    }

    /// This moment and `ms` milliseconds.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add_unsigned(ms))
    }

    /// Milliseconds from `earlier` to this moment; 0 when it is not later.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        let ms = self.0.saturating_sub(earlier.0);
        if ms > 0 { ms.unsigned_abs() } else { 0 }
    }

    /// Parses RFC 3339, any offset.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|at| Self(at.timestamp_millis()))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, milliseconds, `Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at: DateTime<Utc> = DateTime::from_timestamp_millis(self.0).unwrap_or(if self.0 < 0 {
            DateTime::<Utc>::MIN_UTC
        } else {
            DateTime::<Utc>::MAX_UTC
        });
        f.write_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

/// How long a leader saw nothing happen to a state machine, by its monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// The time in the last entry before the pause.
    pub since: Timestamp,
    /// Length of the pause, milliseconds.
    pub ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_and_write_rfc3339() {
        let at = Timestamp::parse_rfc3339("2024-01-05T13:00:00.5+01:00").unwrap();
        assert_eq!(at.to_string(), "2024-01-05T12:00:00.500Z");
        assert_eq!(at.next_day().to_string(), "2024-01-06T00:00:00.000Z");
        assert_eq!(Timestamp(-1).day(), -1);
        assert_eq!(Timestamp(5).ms_since(Timestamp(9)), 0);
        assert!(!Timestamp(i64::MAX).to_string().is_empty());
    }
}

//! Stored quotas are never exceeded: read from the log of a tenant, whose order is the order in
//! which its state changed.
//!
//! The quota of a day holds for each day that a clock says, each time that it turns to that day
//! from an earlier one: where no clock was wrong by days, that is once. A clock that was ahead and
//! is right again has turned back, so that the true day gives no room anew.

use std::collections::BTreeMap;

use outside::checks::events;
use outside::ensure;
use serde_json::Value;
use shiioo_actors::domain::time::Timestamp;

use super::Checked;
use crate::facts::Limits;

/// How often a leader's clock may have turned to each day from an earlier one, days counted from
/// the true one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turns(BTreeMap<i64, u64>);

impl Turns {
    /// Of nodes whose clocks were so many days off, one time after the other. A tenant has one
    /// leader all its life, so that what one node's clock can do is all that any did.
    pub fn of<'a>(nodes: impl IntoIterator<Item = &'a Vec<i64>>) -> Self {
        let mut most = BTreeMap::from([(0, 1)]);
        for off in nodes {
            for (day, times) in Self::of_clock(off) {
                let before: &mut u64 = most.entry(day).or_default();
                *before = times.max(*before);
            }
        }
        Self(most)
    }

    fn of_clock(off: &[i64]) -> BTreeMap<i64, u64> {
        let mut turns = BTreeMap::from([(0, 1)]);
        let mut ahead = None;
        for days in off {
            *turns.entry(*days).or_default() += 1;
            // From behind, it turns to the true day when it is right again. Twice ahead, and nobody
            // asked between, it turns to the second day from the first, and what the true one had
            // is forgotten.
            let forgets = *days < 0 || ahead.is_some_and(|before| before < *days);
            *turns.entry(0).or_default() += u64::from(forgets);
            ahead = Some(*days).filter(|days| *days > 0);
        }
        turns
    }

    fn to(&self, days: i64) -> u64 {
        self.0.get(&days).copied().unwrap_or(0)
    }
}

/// Checks the limits that a tenant has had all its life, in a world in which it is `today`.
///
/// # Errors
/// When there was one run too many.
pub fn check(
    tenant: &str,
    limits: Limits,
    (today, turns): (Timestamp, &Turns),
    events: &[Value],
) -> Checked {
    if let Some(limit) = limits.concurrent {
        events::at_a_time(tenant, limit, events)?;
    }
    let mut of_day: BTreeMap<i64, u64> = BTreeMap::new();
    for event in events.iter().filter(|event| event["event_type"]["type"] == "run_started") {
        let at = event["timestamp"].as_str().and_then(Timestamp::parse_rfc3339);
        let day = at.map_or(0, Timestamp::day) - today.day();
        let started = of_day.entry(day).or_default();
        *started += 1;
        ensure!(
            limits.per_day.is_none_or(|limit| *started <= limit * turns.to(day)),
            "{tenant}: one run a day too many, {limits:?}, in a day that began {} times: {event}",
            turns.to(day)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// 2030-01-01.
    const TODAY: Timestamp = Timestamp(1_893_456_000_000);

    fn event(kind: &str, run: &str) -> Value {
        on(1, kind, run)
    }

    fn on(day: u32, kind: &str, run: &str) -> Value {
        let timestamp = format!("2030-01-{day:02}T10:00:00.000Z");
        json!({ "run_id": run, "timestamp": timestamp, "event_type": { "type": kind } })
    }

    #[test]
    fn one_too_many_is_noticed() {
        let events = [
            event("run_started", "a"),
            event("run_started", "b"),
            event("run_completed", "a"),
            event("run_started", "c"),
        ];
        let limits = |concurrent, per_day| Limits { concurrent, per_day };
        let turns = Turns::of([]);
        let check = |limits| check("t", limits, (TODAY, &turns), &events);
        assert_eq!(check(limits(Some(2), Some(3))), Ok(()));
        assert!(check(limits(Some(1), None)).is_err());
        assert!(check(limits(None, Some(2))).is_err());
    }

    #[test]
    fn a_day_that_begins_again_has_room_again_and_no_other_has() {
        let limits = Limits { concurrent: None, per_day: Some(1) };
        let holds = |off: &[i64], days: &[u32]| {
            let events: Vec<_> = days.iter().map(|day| on(*day, "run_started", "a")).collect();
            let nodes = [Vec::new(), off.to_vec()];
            check("t", limits, (TODAY, &Turns::of(&nodes)), &events).is_ok()
        };
        assert!(holds(&[4], &[1, 5]));
        assert!(!holds(&[4], &[1, 5, 1]), "it was ahead, and the true day is as full as before");
        assert!(!holds(&[4], &[1, 6]), "a day that no clock said");
        assert!(holds(&[4, 4], &[1, 5, 5]));
        assert!(!holds(&[4, 2], &[1, 5, 3, 1]));
        assert!(holds(&[2, 4], &[1, 3, 5, 1]), "the true day was too far back");
        assert!(holds(&[-1], &[1, 1]), "it was behind");
    }
}

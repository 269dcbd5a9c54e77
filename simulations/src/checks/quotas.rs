//! Stored quotas are never exceeded: read from the log of a tenant, whose order is the order in
//! which its state changed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Checked;
use crate::board::Limits;
use crate::ensure;

/// Checks the limits that a tenant has had all its life.
///
/// # Errors
/// When there was one run too many.
pub fn check(tenant: &str, limits: Limits, events: &[Value]) -> Checked {
    let mut running = BTreeSet::new();
    let mut of_day: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events {
        let run = event["run_id"].as_str().unwrap_or_default();
        match event["event_type"]["type"].as_str() {
            Some("run_started") => {
                running.insert(run);
                let at = event["timestamp"].as_str().unwrap_or_default();
                let started = of_day.entry(at.split('T').next().unwrap_or_default()).or_default();
                *started += 1;
                ensure!(
                    limits.per_day.is_none_or(|limit| *started <= limit),
                    "{tenant}: one run a day too many, {limits:?}: {event}"
                );
            }
            Some("run_completed" | "run_failed" | "run_cancelled") => {
                running.remove(run);
            }
            _ => {}
        }
        ensure!(
            limits.concurrent.is_none_or(|limit| running.len() as u64 <= limit),
            "{tenant}: one run at a time too many, {limits:?}: {event}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, run: &str) -> Value {
        let timestamp = "2030-01-01T10:00:00.000Z";
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
        assert_eq!(check("t", limits(Some(2), Some(3)), &events), Ok(()));
        assert!(check("t", limits(Some(1), None), &events).is_err());
        assert!(check("t", limits(None, Some(2)), &events).is_err());
    }
}

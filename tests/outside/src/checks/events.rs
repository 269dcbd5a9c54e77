//! The event log of a tenant: whole, the same wherever it is, and telling each run once and no more
//! runs at a time than the quota has.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Checked, Violation};
use crate::ensure;

/// Parses the whole lines of a log: JSON, numbered 1, 2, 3, ... Tells as well whether they are all
/// there is: a file that is being written may end in half a line for a moment.
///
/// # Errors
/// When a whole line is not what it should be.
pub fn parse(path: &str, bytes: &[u8]) -> Checked<(Vec<Value>, bool)> {
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let mut events = Vec::new();
    for (line, expected) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').zip(1_u64..) {
        let event: Value = serde_json::from_slice(line)
            .map_err(|error| Violation(format!("{path}: {error} in line {expected}")))?;
        ensure!(event["seq"] == expected, "{path}: {expected} should be the number of {event}");
        events.push(event);
    }
    Ok((events, whole == bytes.len()))
}

/// Two copies of a log, each with where it is, are the same byte for byte.
///
/// # Errors
/// When they differ.
pub fn same((one, is): (&str, &[u8]), (other, expected): (&str, &[u8])) -> Checked {
    let same = is.iter().zip(expected).take_while(|(a, b)| a == b).count();
    let (length, expected_length) = (is.len(), expected.len());
    ensure!(
        is == expected,
        "{one} ({length} bytes) and {other} ({expected_length} bytes) differ after {same} bytes"
    );
    Ok(())
}

/// The story of every run, given with the ids of its steps, is told once: one start, one end, one
/// result for each step.
///
/// # Errors
/// When something is missing or is there twice.
pub fn told_once(tenant: &str, runs: &BTreeMap<String, Vec<String>>, events: &[Value]) -> Checked {
    let mut told: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    for event in events {
        let step = event["event_type"]["step_id"].as_str().unwrap_or_default();
        *told.entry((run(event), kind(event), step)).or_default() += 1;
    }
    let times =
        |run: &str, kind: &str, step: &str| told.get(&(run, kind, step)).copied().unwrap_or(0);
    for (run, steps) in runs {
        for kind in ["run_started", "run_completed"] {
            let times = times(run, kind, "");
            ensure!(times == 1, "{tenant}: {times} times {kind} for run {run}");
        }
        for step in steps {
            let times = times(run, "step_completed", step);
            ensure!(times == 1, "{tenant}: {times} results of step {step} of run {run}");
        }
    }
    Ok(())
}

/// No more runs than `limit` were under way at a time: the order of the events is the order in which
/// the tenant's state changed.
///
/// # Errors
/// When there was one too many.
pub fn at_a_time(tenant: &str, limit: u64, events: &[Value]) -> Checked {
    let mut running = BTreeSet::new();
    for event in events {
        match kind(event) {
            "run_started" => {
                running.insert(run(event));
            }
            "run_completed" | "run_failed" | "run_cancelled" => {
                running.remove(run(event));
            }
            _ => {}
        }
        let fits = running.len() as u64 <= limit;
        ensure!(fits, "{tenant}: one run at a time too many, the limit is {limit}: {event}");
    }
    Ok(())
}

/// The run that an event is of.
fn run(event: &Value) -> &str {
    event["run_id"].as_str().unwrap_or_default()
}

fn kind(event: &Value) -> &str {
    event["event_type"]["type"].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(kind: &str, run: &str, step: Option<&str>) -> Value {
        json!({ "run_id": run, "event_type": { "type": kind, "step_id": step } })
    }

    #[test]
    fn whole_logs_pass_and_others_do_not() {
        let whole =
            |text: &str| parse("a", text.as_bytes()).map(|(events, all)| (events.len(), all));
        assert_eq!(whole(""), Ok((0, true)));
        assert_eq!(whole("{\"seq\":1}\n{\"seq\":2}\n"), Ok((2, true)));
        assert_eq!(whole("{\"seq\":1}\n{\"s"), Ok((1, false)));
        for broken in ["{\"seq\":2}\n", "{\"seq\":1}\n\0\n", "{\"seq\":1}\n\n"] {
            assert!(whole(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn copies_that_differ_are_noticed() {
        assert_eq!(same(("a", b"12"), ("b", b"12")), Ok(()));
        for other in ["", "1", "123", "13"] {
            assert!(same(("a", b"12"), ("b", other.as_bytes())).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_told_twice_or_never_is_noticed() {
        let whole = [
            event("run_started", "r", None),
            event("step_completed", "r", Some("a")),
            event("run_completed", "r", None),
        ];
        let runs = BTreeMap::from([("r".to_owned(), vec!["a".to_owned()])]);
        assert_eq!(told_once("t", &runs, &whole), Ok(()));
        let twice: Vec<Value> = whole.iter().cloned().chain([whole[1].clone()]).collect();
        assert!(told_once("t", &runs, &twice).is_err());
        assert!(told_once("t", &runs, &whole[..2]).is_err());
    }

    #[test]
    fn one_run_too_many_is_noticed() {
        let events = [("run_started", "a"), ("run_started", "b"), ("run_failed", "a")];
        let events = events.map(|(kind, run)| event(kind, run, None));
        assert_eq!(at_a_time("t", 2, &events), Ok(()));
        assert!(at_a_time("t", 1, &events).is_err());
        assert_eq!(
            at_a_time("t", 1, &[events[0].clone(), events[2].clone(), events[1].clone()]),
            Ok(())
        );
    }
}

//! The story of every acknowledged run is told once: one start, one end, one result for each step.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Checked;
use crate::ensure;

/// Checks the runs of a tenant, with the ids of their steps, against its log.
///
/// # Errors
/// When something is missing or is there twice.
pub fn check(tenant: &str, runs: &BTreeMap<String, Vec<String>>, events: &[Value]) -> Checked {
    let mut told: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    for event in events {
        let run = event["run_id"].as_str().unwrap_or_default();
        let kind = event["event_type"]["type"].as_str().unwrap_or_default();
        let step = event["event_type"]["step_id"].as_str().unwrap_or_default();
        *told.entry((run, kind, step)).or_default() += 1;
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_told_twice_or_never_is_noticed() {
        let of = |kind: &str, step: Option<&str>| json!({ "run_id": "r", "event_type": { "type": kind, "step_id": step } });
        let whole =
            [of("run_started", None), of("step_completed", Some("a")), of("run_completed", None)];
        let runs = BTreeMap::from([("r".to_owned(), vec!["a".to_owned()])]);
        assert_eq!(check("t", &runs, &whole), Ok(()));
        let twice: Vec<Value> = whole.iter().cloned().chain([whole[1].clone()]).collect();
        assert!(check("t", &runs, &twice).is_err());
        assert!(check("t", &runs, &whole[..2]).is_err());
    }
}

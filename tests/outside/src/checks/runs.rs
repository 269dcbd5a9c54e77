//! Runs as the API tells of them: acknowledged is there, once, and ends as its input demands.
//!
//! What a run was started with carries a *mark*, which nobody uses twice: in the input, and in the
//! output of its last step, `end`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Checked, Violation};
use crate::ensure;

/// Every acknowledged run, given as id and mark, is listed as such, and no mark was started twice.
/// Gives the listed runs by mark.
///
/// # Errors
/// When not.
pub fn acknowledged<'a, 'k>(
    listed: &'a [Value],
    known: impl IntoIterator<Item = (&'k str, &'k str)>,
) -> Checked<BTreeMap<&'a str, &'a Value>> {
    let mut by_mark: BTreeMap<&str, &Value> = BTreeMap::new();
    for run in listed {
        let mark = mark_of(run);
        if let Some(before) = by_mark.insert(mark, run) {
            return Err(Violation(format!("{mark} was started twice: {run} and {before}")));
        }
    }
    for (id, mark) in known {
        let found = by_mark.get(mark);
        let found = found.ok_or_else(|| {
            let listed: Vec<_> = by_mark.keys().collect();
            Violation(format!("acknowledged run {id} with {mark} is lost, there are {listed:?}"))
        })?;
        ensure!(found["id"] == id, "{mark} became another run than {id}: {found}");
    }
    Ok(by_mark)
}

/// A run has ended as its mark demands; each of these steps of it, which call a service, was made:
/// `calls` tells how often, by the key that the run's id and the step make.
///
/// # Errors
/// When not.
pub fn completed<'a>(
    run: &Value,
    mark: &str,
    calling: impl IntoIterator<Item = &'a str>,
    calls: impl Fn(&str) -> u64,
) -> Checked {
    let output = json!({ "end": mark });
    let is_well = run["status"] == "completed" && run["output"] == output;
    ensure!(is_well, "a run should have completed with {output}: {run}");
    let mut steps = run["steps"].as_array().into_iter().flatten();
    let all = steps.all(|step| step["status"] == "completed");
    ensure!(all, "a completed run has an open step: {run}");
    for step in calling {
        let key = format!("{}/{step}", run["id"].as_str().unwrap_or_default());
        ensure!(calls(&key) > 0, "{key} is completed and was never called: {run}");
    }
    Ok(())
}

/// The mark of a run. A job takes no input: of a job, the id of its first step.
fn mark_of(run: &Value) -> &str {
    let of_job = || {
        let steps = run["steps"].as_array().into_iter().flatten();
        steps.filter_map(|step| step["id"].as_str()).find(|id| *id != "end")
    };
    run["input"]["mark"].as_str().or_else(of_job).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(id: &str, mark: &str) -> Value {
        json!({ "id": id, "input": { "mark": mark } })
    }

    #[test]
    fn runs_that_are_lost_or_doubled_are_noticed() {
        let known = [("a", "m-1")];
        let listed = [run("a", "m-1"), run("b", "m-2")];
        assert_eq!(acknowledged(&listed, known).map(|runs| runs.len()), Ok(2));
        let job = json!({ "id": "a", "steps": [{ "id": "m-1" }, { "id": "end" }] });
        assert!(acknowledged(&[job], known).is_ok());
        for broken in [vec![], vec![run("b", "m-1")], vec![run("a", "m-1"), run("b", "m-1")]] {
            assert!(acknowledged(&broken, known).is_err(), "{broken:?}");
        }
    }

    #[test]
    fn a_run_that_did_not_end_as_it_should_is_noticed() {
        let seen = |status: &str, output: &str, step: &str| {
            let steps = json!([{ "id": "call", "status": step }]);
            json!({ "id": "r", "status": status, "output": { "end": output }, "steps": steps })
        };
        let good = seen("completed", "m", "completed");
        let called = |key: &str| u64::from(key == "r/call");
        assert_eq!(completed(&good, "m", ["call"], called), Ok(()));
        for broken in [
            seen("running", "m", "completed"),
            seen("completed", "another", "completed"),
            seen("completed", "m", "running"),
        ] {
            assert!(completed(&broken, "m", [], called).is_err(), "{broken}");
        }
        assert!(completed(&good, "m", ["call"], |_| 0).is_err(), "it was never called");
    }
}

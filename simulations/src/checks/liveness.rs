//! After the faults have stopped, everything acknowledged finishes, and well.

use std::time::Duration;

use outside::checks::runs;
use outside::ensure;
use serde_json::Value;

use super::Checked;
use crate::facts::RunModel;

/// From the end of the faults to the end of everything that was begun, simulated time.
pub const SETTLE_MAX: Duration = Duration::from_secs(60);
/// From the end of the faults to a leader that all nodes name, simulated time.
pub const LEADER_MAX: Duration = Duration::from_secs(10);
/// From the end of the faults to a cluster in which every node votes, simulated time.
pub const VOTERS_MAX: Duration = Duration::from_secs(30);
/// From the moment when everybody has what he waited for to equal answers of all nodes.
pub const AGREE_MAX: Duration = Duration::from_secs(10);
/// From the moment when all is done until nobody has anything of a group that was assigned to others.
pub const LET_GO_MAX: Duration = Duration::from_secs(60);
/// From the moment when all is done until nobody has files of a deleted tenant: each node looks for them once a
/// minute.
pub const DELETED_MAX: Duration = Duration::from_secs(90);
/// From the end of the faults until no node has a tenant in quarantine any more: one that kept failing
/// on a disk that failed is tried again every 15 s.
pub const QUARANTINE_MAX: Duration = Duration::from_secs(30);
/// So much longer it may take until all is as it should be where a node has lost its disk: the member
/// that it was is given up only after it has been silent for long.
pub const REPLACED_MAX: Duration = Duration::from_secs(60);
/// From the end of the faults to the end of the last process that could not go on because of them.
pub const EXCUSED_MAX: Duration = Duration::from_secs(15);
/// From the request to stop to the end of the process, simulated time.
pub const STOP_MAX: Duration = Duration::from_secs(15);
/// From the start of a process on a disk that works to readiness, simulated time.
pub const READY_MAX: Duration = Duration::from_secs(5);

/// A run has ended as its input demands, with all its steps, and its calls were made: `calls` tells how
/// often, by key.
///
/// # Errors
/// When not.
pub fn completed(known: &RunModel, seen: &Value, calls: impl Fn(&str) -> u64) -> Checked {
    let calling = known.steps.iter().map(String::as_str).filter(|step| *step == "call");
    runs::completed(seen, &known.mark, calling, calls)?;
    let steps = seen["steps"].as_array().map_or(0, Vec::len);
    ensure!(steps == known.steps.len(), "{:?} are the steps of {seen}", known.steps);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_did_not_end_with_all_its_steps_is_noticed() {
        let known = |steps: &[&str]| {
            let steps = steps.iter().map(ToString::to_string).collect();
            RunModel { mark: "m".into(), steps, ended: None }
        };
        let steps = json!([{ "id": "end", "status": "completed" }]);
        let seen =
            json!({ "id": "r", "status": "completed", "output": { "end": "m" }, "steps": steps });
        assert_eq!(completed(&known(&["end"]), &seen, |_| 0), Ok(()));
        for steps in [&["call"][..], &["end", "wait"]] {
            assert!(completed(&known(steps), &seen, |_| 0).is_err(), "{steps:?}");
        }
    }
}

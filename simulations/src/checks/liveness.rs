//! After the faults have stopped, everything acknowledged finishes, and well.

use std::time::Duration;

use serde_json::Value;

use super::Checked;
use crate::ensure;
use crate::workload::RunModel;
use crate::world::Service;

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

/// A run has ended as its input demands, and its calls were made.
///
/// # Errors
/// When not.
pub fn completed(known: &RunModel, seen: &Value, service: &Service) -> Checked {
    let output = serde_json::json!({ "end": known.mark });
    ensure!(
        seen["status"] == "completed" && seen["output"] == output,
        "a run should have completed with {output}: {seen}"
    );
    let empty = Vec::new();
    let steps = seen["steps"].as_array().unwrap_or(&empty);
    ensure!(steps.len() == known.steps.len(), "{:?} are the steps of {seen}", known.steps);
    for step in steps {
        ensure!(step["status"] == "completed", "a completed run has an open step: {seen}");
        if step["id"] == "call" {
            let key = format!("{}/call", seen["id"].as_str().unwrap_or_default());
            ensure!(service.calls(&key) > 0, "{key} is completed and was never called: {seen}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_that_did_not_end_as_it_should_is_noticed() {
        let known = RunModel { mark: "m".into(), steps: vec!["end".into()], ended: None };
        let seen = |status: &str, output: &str, step: &str| {
            let steps = json!([{ "id": "end", "status": step }]);
            json!({ "id": "r", "status": status, "output": { "end": output }, "steps": steps })
        };
        let service = Service::new(1);
        assert_eq!(completed(&known, &seen("completed", "m", "completed"), &service), Ok(()));
        for broken in [
            seen("running", "m", "completed"),
            seen("completed", "another", "completed"),
            seen("completed", "m", "running"),
        ] {
            assert!(completed(&known, &broken, &service).is_err(), "{broken}");
        }
        let called = RunModel { steps: vec!["call".into()], ..known };
        let mut seen = seen("completed", "m", "completed");
        seen["steps"][0]["id"] = "call".into();
        assert!(completed(&called, &seen, &service).is_err(), "it was never called");
    }
}

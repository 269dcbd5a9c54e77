//! Shows runs and jobs as clients see them.

use super::{Job, Run, StepState, StepStatus, Waiting};
use crate::domain::json::Json;
use crate::domain::run::RunStatus;
use crate::domain::views::{JobView, RunView, StepView};

/// A run. `is_active` tells whether its tenant lets new steps begin.
pub fn run_view(run: &Run, is_active: bool) -> RunView {
    let paused = if is_active || run.status.has_ended() { Vec::new() } else { run.ready() };
    let steps = (0_u16..).zip(run.workflow.steps.iter().zip(&run.steps));
    let steps = steps.map(|(index, (spec, state))| StepView {
        id: spec.id.clone(),
        status: status_name(state.status),
        started_at: state.started_at,
        completed_at: state.completed_at,
        attempt: state.attempt,
        error: state.error.clone(),
        output: state.output.clone(),
        waiting_for: waiting_name(state, paused.contains(&index)),
    });
    RunView {
        id: run.id,
        work_item_id: run.work_item.clone(),
        workflow_name: run.workflow_name.clone(),
        status: run.status,
        started_at: run.started_at,
        completed_at: run.completed_at,
        input: run.input.clone(),
        output: (run.status == RunStatus::Completed).then(|| output(run)),
        error: run.error.clone().filter(|_| run.status.has_ended()),
        steps: steps.collect(),
    }
}

/// A job.
pub fn job_view(job: &Job) -> JobView {
    JobView {
        id: job.id,
        name: job.name.clone(),
        description: job.description.clone(),
        workflow: job.workflow.json(),
        created_by: job.created_by.clone(),
        created_at: job.created_at,
        run_id: job.run,
    }
}

/// Outputs of the steps nobody depends on, by step id.
fn output(run: &Run) -> Json {
    let mut is_needed = vec![false; run.steps.len()];
    for need in run.workflow.steps.iter().flat_map(|step| &step.needs) {
        is_needed[usize::from(*need)] = true;
    }
    let mut text = String::from("{");
    for (index, state) in run.steps.iter().enumerate().filter(|(index, _)| !is_needed[*index]) {
        if text.len() > 1 {
            text.push(',');
        }
        let id = &run.workflow.steps[index].id;
        text.push_str(&serde_json::Value::from(id.as_str()).to_string());
        text.push(':');
        text.push_str(state.output.as_ref().map_or("null", Json::as_str));
    }
    text.push('}');
    Json::from_text(text)
}

const fn status_name(status: StepStatus) -> &'static str {
    match status {
        StepStatus::Pending => "pending",
        StepStatus::Running => "running",
        StepStatus::Completed => "completed",
        StepStatus::Failed => "failed",
        StepStatus::Skipped => "skipped",
    }
}

const fn waiting_name(state: &StepState, is_paused: bool) -> Option<&'static str> {
    match state.waiting {
        Waiting::Timer(_) => Some("timer"),
        Waiting::Retry(_) => Some("retry"),
        Waiting::Resume => Some("resume"),
        Waiting::Nothing if is_paused => Some("resume"),
        Waiting::Nothing => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::Timestamp;

    #[test]
    fn steps_say_where_they_stand_and_what_they_wait_for() {
        use StepStatus::{Completed, Failed, Pending, Running, Skipped};
        let names = [Pending, Running, Completed, Failed, Skipped].map(status_name);
        assert_eq!(names, ["pending", "running", "completed", "failed", "skipped"]);
        let at = Timestamp(1);
        for (waiting, is_paused, expected) in [
            (Waiting::Nothing, false, None),
            (Waiting::Nothing, true, Some("resume")),
            (Waiting::Resume, false, Some("resume")),
            (Waiting::Timer(at), true, Some("timer")),
            (Waiting::Retry(at), true, Some("retry")),
        ] {
            let state = StepState { waiting, ..StepState::pending() };
            assert_eq!(waiting_name(&state, is_paused), expected, "{waiting:?}");
        }
    }
}

//! Moves runs forward: results, moments that have come, failures, cancellation.
//!
//! A step that fails for good fails its run: attempts under way finish and are recorded, what only
//! waits is given up, what has not begun is skipped.

use super::events::Fields;
use super::run::{HELD_BYTES_MAX, RUN_PAYLOAD_BYTES_MAX, held_bytes};
use super::{Run, StepStatus, TenantEffect, TenantState, Waiting, run_rows};
use crate::command::{Cause, Outcome, Refusal, StepResult};
use crate::domain::ids::RunId;
use crate::domain::json::Json;
use crate::domain::run::{RunStatus, StepAttempt};
use crate::domain::tenant::Quota;
use crate::domain::time::Timestamp;

impl TenantState {
    pub(super) fn step_result(
        &mut self,
        attempt: StepAttempt,
        result: &StepResult,
        effects: &mut Vec<TenantEffect>,
    ) -> Outcome {
        if !self.is_under_way(attempt, |waiting| waiting == Waiting::Nothing) {
            return Outcome::Ignored;
        }
        let StepAttempt { run: id, step, .. } = attempt;
        match result {
            StepResult::Succeeded { output } => match self.lack_of_room_for(id, output) {
                None => self.complete_step(id, step, output.clone()),
                Some(error) => self.fail_attempt(id, step, &error, None),
            },
            StepResult::Failed { error, retry_in_ms } => {
                self.fail_attempt(id, step, error, *retry_in_ms);
            }
            StepResult::WaitsUntil { due_at } => {
                self.wait(id, step, *due_at, Waiting::Timer(*due_at));
            }
        }
        self.advance(id, effects);
        Outcome::Done
    }

    pub(super) fn step_due(
        &mut self,
        attempt: StepAttempt,
        effects: &mut Vec<TenantEffect>,
    ) -> Outcome {
        // The leader that armed the timer says that the moment has come, in its own term: no clock
        // is asked again here, for the wall clock may have been set since.
        let is_waiting = |waiting| matches!(waiting, Waiting::Timer(_) | Waiting::Retry(_));
        if !self.is_under_way(attempt, is_waiting) {
            return Outcome::Ignored;
        }
        let StepAttempt { run: id, step, .. } = attempt;
        // Before the next attempt begins: a wait is found under the number of the attempt it belongs to.
        match self.stop_waiting(id, step) {
            Waiting::Timer(_) => self.complete_step(id, step, Json::null()),
            Waiting::Retry(_) if self.is_active() => self.begin_attempt(id, step, effects),
            Waiting::Retry(_) => self.set_waiting(id, step, Waiting::Resume),
            Waiting::Nothing | Waiting::Resume => {}
        }
        self.advance(id, effects);
        Outcome::Done
    }

    pub(super) fn cancel_run(
        &mut self,
        id: RunId,
        reason: Option<&str>,
        cause: Option<&Cause>,
        effects: &mut Vec<TenantEffect>,
    ) -> Result<Outcome, Refusal> {
        // Whether it ended or never was, its row tells: the actor looks there.
        if !self.runs.contains_key(&id) {
            return Err(Refusal::RunNotFound);
        }
        for step in self.unfinished(id) {
            self.stop_step(id, step, "the run was cancelled", effects);
        }
        self.audit(cause, "run_cancelled", &id.to_string(), Some(id));
        let reason = reason.map(str::to_owned);
        if let Some(run) = self.runs.get_mut(&id) {
            run.error = Some(reason.clone().unwrap_or_else(|| "cancelled".to_owned()));
        }
        let fields = Fields::new("run_cancelled").optional("reason", reason.as_deref());
        self.end_run(id, RunStatus::Cancelled, fields, effects);
        Ok(Outcome::Done)
    }

    /// Goes on with every run that stood still while the tenant was not active.
    pub(super) fn resume(&mut self, effects: &mut Vec<TenantEffect>) {
        if !self.is_active() {
            return;
        }
        let runs: Vec<RunId> = self.runs.keys().copied().collect();
        for id in runs {
            let waiting = self.steps_of(id, |run, step| run.steps[step].waiting == Waiting::Resume);
            for step in waiting {
                self.stop_waiting(id, step);
                self.begin_attempt(id, step, effects);
            }
            self.advance(id, effects);
        }
    }

    /// Begins what is ready, and ends the run when nothing is left to do.
    pub(super) fn advance(&mut self, id: RunId, effects: &mut Vec<TenantEffect>) {
        self.dirty.runs.insert(id);
        if self.runs.get(&id).is_some_and(|run| run.error.is_some()) {
            return self.wind_down(id, effects);
        }
        if self.is_active() {
            for step in self.runs.get(&id).map(Run::ready).unwrap_or_default() {
                self.begin_step(id, step, effects);
            }
        }
        let Some(run) = self.runs.get(&id) else { return };
        if run.steps.iter().all(|step| step.status == StepStatus::Completed) {
            let duration = run.duration_secs(self.meta.last_at);
            let fields = Fields::new("run_completed").number("duration_secs", duration);
            self.end_run(id, RunStatus::Completed, fields, effects);
        }
    }

    /// Ends a run that has failed, once no attempt is under way.
    fn wind_down(&mut self, id: RunId, effects: &mut Vec<TenantEffect>) {
        for step in self.unfinished(id) {
            let is_busy = self.runs.get(&id).is_some_and(|run| {
                let step = &run.steps[usize::from(step)];
                step.status == StepStatus::Running && step.waiting == Waiting::Nothing
            });
            if !is_busy {
                self.stop_step(id, step, "the run failed", effects);
            }
        }
        // Looked at anew: steps have been skipped just now, and a busy one keeps the run open until its
        // result comes back here.
        let Some(run) = self.runs.get(&id) else { return };
        if run.steps.iter().all(super::StepState::has_ended) {
            let fields = Fields::new("run_failed")
                .text("error", run.error.as_deref().unwrap_or_default())
                .number("duration_secs", run.duration_secs(self.meta.last_at));
            self.end_run(id, RunStatus::Failed, fields, effects);
        }
    }

    fn begin_step(&mut self, id: RunId, step: u16, effects: &mut Vec<TenantEffect>) {
        let Some(run) = self.runs.get(&id) else { return };
        let spec = &run.workflow.steps[usize::from(step)];
        let fields = Fields::new("step_scheduled")
            .text("step_id", &spec.id)
            .json("step_spec", spec.json.as_str());
        self.run_event(id, fields);
        self.begin_attempt(id, step, effects);
    }

    fn begin_attempt(&mut self, id: RunId, step: u16, effects: &mut Vec<TenantEffect>) {
        let (at, own) = (self.meta.last_at, self.time.own());
        let Some(run) = self.runs.get_mut(&id) else { return };
        let state = &mut run.steps[usize::from(step)];
        state.status = StepStatus::Running;
        state.attempt += 1;
        state.started_at.get_or_insert(at.max(run.started_at));
        state.attempt_at = Some(own);
        let attempt = run.attempt(step);
        let fields = Fields::new("step_started")
            .text("step_id", run.workflow.id(step))
            .number("attempt", u64::from(attempt.number));
        self.run_event(id, fields);
        effects.push(TenantEffect::PerformStep(attempt));
    }

    fn complete_step(&mut self, id: RunId, step: u16, output: Json) {
        let at = self.meta.last_at;
        let Some(run) = self.runs.get_mut(&id) else { return };
        let state = &mut run.steps[usize::from(step)];
        let bytes = output.as_str().len() as u64;
        run.payload_bytes += bytes;
        state.status = StepStatus::Completed;
        state.completed_at = Some(state.ends_at(at));
        state.output = Some(output);
        let duration = state.started_at.map_or(0, |started| at.ms_since(started) / 1000);
        self.settled.extend(run_rows::output(run, step));
        let fields = Fields::new("step_completed")
            .text("step_id", run.workflow.id(step))
            .number("duration_secs", duration);
        self.run_event(id, fields);
        self.add_payload(bytes);
        self.held_bytes += bytes;
    }

    /// Returns how many bytes the tenant may hold in memory.
    pub(super) fn held_limit(&self) -> u64 {
        let quota = self.meta.record.as_ref().and_then(|it| it.quotas.limit(Quota::StorageBytes));
        quota.map_or(HELD_BYTES_MAX, |quota| quota.min(HELD_BYTES_MAX))
    }

    /// Tells why an output does not fit into its run, or beside what else the tenant holds.
    fn lack_of_room_for(&self, id: RunId, output: &Json) -> Option<String> {
        let bytes = output.as_str().len() as u64;
        let used = self.runs.get(&id).map_or(0, |run| run.payload_bytes);
        if used + bytes > RUN_PAYLOAD_BYTES_MAX {
            return Some(format!(
                "input and outputs of the run would be larger than {RUN_PAYLOAD_BYTES_MAX} bytes"
            ));
        }
        let limit = self.held_limit();
        let is_over = self.bounds_held_bytes && self.held_bytes + bytes > limit;
        is_over.then(|| {
            format!(
                "the tenant's named workflows and its runs that have not ended would be larger than \
                 {limit} bytes together: start it again when others have ended"
            )
        })
    }

    fn fail_attempt(&mut self, id: RunId, step: u16, error: &str, retry_in_ms: Option<u64>) {
        let at = self.meta.last_at;
        let Some(run) = self.runs.get_mut(&id) else { return };
        let max_attempts = run.workflow.steps[usize::from(step)].max_attempts;
        let is_failing = run.error.is_some();
        let state = &mut run.steps[usize::from(step)];
        state.error = Some(error.to_owned());
        let retry = retry_in_ms.filter(|_| state.attempt < max_attempts && !is_failing);
        if retry.is_none() {
            state.status = StepStatus::Failed;
            state.completed_at = Some(state.ends_at(at));
        }
        let attempt = u64::from(state.attempt);
        let step_id = run.workflow.id(step).to_owned();
        if retry.is_none() && !is_failing {
            run.error = Some(format!("step {step_id:?} failed: {error}"));
        }
        let fields = Fields::new("step_failed")
            .text("step_id", &step_id)
            .text("error", error)
            .number("attempt", attempt)
            .json("will_retry", if retry.is_some() { "true" } else { "false" });
        self.run_event(id, fields);
        if let Some(retry_in_ms) = retry {
            let due_at = self.time.own().plus_ms(retry_in_ms);
            self.wait(id, step, due_at, Waiting::Retry(due_at));
        }
    }

    /// Ends a step that will not be done.
    fn stop_step(&mut self, id: RunId, step: u16, why: &str, effects: &mut Vec<TenantEffect>) {
        self.stop_waiting(id, step);
        let Some(run) = self.runs.get_mut(&id) else { return };
        if run.steps[usize::from(step)].status == StepStatus::Running {
            effects.push(TenantEffect::StopStep(run.attempt(step)));
        }
        let state = &mut run.steps[usize::from(step)];
        state.status = StepStatus::Skipped;
        state.completed_at = Some(state.ends_at(self.meta.last_at));
        let fields =
            Fields::new("step_skipped").text("step_id", run.workflow.id(step)).text("reason", why);
        self.run_event(id, fields);
    }

    fn end_run(
        &mut self,
        id: RunId,
        status: RunStatus,
        fields: Fields,
        effects: &mut Vec<TenantEffect>,
    ) {
        // Before the run is removed: its row is final from here on, and says where its events are.
        self.run_event(id, fields);
        let Some(mut run) = self.runs.remove(&id) else { return };
        self.held_bytes -= held_bytes(&run);
        run.status = status;
        run.completed_at = Some(self.meta.last_at.max(run.started_at));
        self.settled.extend(run_rows::ended(&run));
        self.dirty.runs.remove(&id);
        effects.push(TenantEffect::RunEnded(id));
    }

    fn wait(&mut self, id: RunId, step: u16, due_at: Timestamp, waiting: Waiting) {
        self.set_waiting(id, step, waiting);
        let own = self.time.own();
        if let Some(run) = self.runs.get_mut(&id) {
            run.steps[usize::from(step)].attempt_at = Some(own);
            self.due.insert((due_at, run.attempt(step)));
        }
    }

    fn stop_waiting(&mut self, id: RunId, step: u16) -> Waiting {
        let Some(run) = self.runs.get_mut(&id) else { return Waiting::Nothing };
        let state = &mut run.steps[usize::from(step)];
        let waiting = std::mem::replace(&mut state.waiting, Waiting::Nothing);
        if let Waiting::Timer(at) | Waiting::Retry(at) = waiting {
            self.due.remove(&(at, run.attempt(step)));
        }
        waiting
    }

    fn set_waiting(&mut self, id: RunId, step: u16, waiting: Waiting) {
        if let Some(run) = self.runs.get_mut(&id) {
            run.steps[usize::from(step)].waiting = waiting;
        }
    }

    fn is_under_way(&self, attempt: StepAttempt, waits: impl Fn(Waiting) -> bool) -> bool {
        let StepAttempt { run, step, number } = attempt;
        let state = self.runs.get(&run).and_then(|run| run.steps.get(usize::from(step)));
        state.is_some_and(|state| {
            state.status == StepStatus::Running && state.attempt == number && waits(state.waiting)
        })
    }

    fn unfinished(&self, id: RunId) -> Vec<u16> {
        self.steps_of(id, |run, step| !run.steps[step].has_ended())
    }

    fn steps_of(&self, id: RunId, wanted: impl Fn(&Run, usize) -> bool) -> Vec<u16> {
        let Some(run) = self.runs.get(&id) else { return Vec::new() };
        (0_u16..).take(run.steps.len()).filter(|step| wanted(run, usize::from(*step))).collect()
    }
}

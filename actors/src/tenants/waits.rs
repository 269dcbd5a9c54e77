//! Steps that wait for a moment.
//!
//! A duration (`wait secs`, the backoff of a retry) runs on the monotonic clock from when this node,
//! which leads, learned of it; setting the wall clock neither shortens nor lengthens it. Only after
//! a restart or a change of lead is what is left of it computed from the wall clock, and then it is
//! never more than the whole. The end of a `wait until` is a moment of the wall clock itself, which
//! is looked at again and again.

use std::time::Duration;

use ractor::ActorRef;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::TenantMessage;
use super::actor::TenantShell;
use super::steps::{self, StepKey};
use crate::json::Json;
use crate::seams::Timestamp;
use crate::tenant::{StepState, TenantState, Wait, Waiting};

/// Longest time before a moment of the wall clock is looked at again: it may be set.
const WALL_CHECK_MAX: Duration = Duration::from_secs(30);
/// Time before a moment that has come is looked at again, while the task of its step ends.
const RECHECK: Duration = Duration::from_millis(100);
/// Steps whose moment has come that are told to the group at once.
const TOLD_AT_ONCE_MAX: usize = 1024;

impl TenantShell {
    /// Arms what has begun to wait, tells the group whose moment has come, and sets the timer for
    /// the next.
    pub(super) fn follow_waits(&mut self, myself: &ActorRef<TenantMessage>) {
        // Also while this node follows: what is not taken would pile up.
        let new = self.runner.machine.take_new_waits();
        if self.leads.is_none() {
            return;
        }
        for wait in new {
            self.arm(wait);
        }
        self.tell_due(myself);
        self.set_timer(myself);
    }

    /// Arms everything that waits: this node has just begun to lead.
    pub(super) fn arm_all(&mut self) {
        let waits: Vec<Wait> = self.runner.machine.waits().collect();
        for wait in waits {
            self.arm(wait);
        }
    }

    fn arm(&mut self, (due_at, run, step, attempt): Wait) {
        let key = (run, step, attempt);
        let Some(state) = step_of(&self.runner.machine, key) else { return };
        let left = due_at.ms_since(self.deps.seams.clock.now());
        let left = if self.is_until(key) {
            Duration::from_millis(left).min(WALL_CHECK_MAX)
        } else {
            Duration::from_millis(left.min(whole_ms(due_at, state)))
        };
        self.alarms.set(key, Instant::now() + left);
    }

    /// Tells the group which steps' moments have come.
    fn tell_due(&mut self, myself: &ActorRef<TenantMessage>) {
        let now = Instant::now();
        for _ in 0..TOLD_AT_ONCE_MAX {
            let Some(key) = self.alarms.take_due(now) else { return };
            let Some(state) = step_of(&self.runner.machine, key) else { continue };
            let (Waiting::Timer(due_at) | Waiting::Retry(due_at)) = state.waiting else { continue };
            let (run, step, attempt) = key;
            if self.tasks.contains_key(&key) {
                // The task that said what to wait for is not seen to have ended.
                self.alarms.set(key, now + RECHECK);
            } else if self.is_until(key) && due_at > self.deps.seams.clock.now() {
                self.arm((due_at, run, step, attempt));
            } else {
                let Some(link) = self.link() else { return };
                self.spawn(myself, key, steps::tell_due(link, run, step, attempt));
            }
        }
    }

    fn set_timer(&mut self, myself: &ActorRef<TenantMessage>) {
        let Some(next) = self.alarms.next() else { return };
        match &self.timer {
            Some((at, timer)) if *at <= next && !timer.is_finished() => return,
            Some((_, timer)) => timer.abort(),
            None => {}
        }
        let myself = myself.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(next).await;
            let _ = myself.send_message(TenantMessage::Due);
        });
        self.timer = Some((next, timer.abort_handle()));
    }

    /// Whether the step waits for a moment of the wall clock.
    fn is_until(&self, (run, step, attempt): StepKey) -> bool {
        let state = step_of(&self.runner.machine, (run, step, attempt));
        let is_timer = state.is_some_and(|state| matches!(state.waiting, Waiting::Timer(_)));
        let live = self.runner.machine.runs().get(&run);
        let spec = live.and_then(|live| live.workflow.steps.get(usize::from(step)));
        is_timer && spec.is_some_and(|spec| says_until(&spec.json))
    }
}

/// All of a wait, milliseconds: its end and its beginning were stamped by one clock.
fn whole_ms(due_at: Timestamp, state: &StepState) -> u64 {
    state.attempt_at.map_or(u64::MAX, |began| due_at.ms_since(began))
}

fn step_of(state: &TenantState, (run, step, attempt): StepKey) -> Option<&StepState> {
    let step = state.runs().get(&run)?.steps.get(usize::from(step))?;
    (step.attempt == attempt).then_some(step)
}

fn says_until(spec: &Json) -> bool {
    #[derive(Deserialize)]
    struct Spec {
        action: Action,
    }
    #[derive(Deserialize)]
    struct Action {
        #[serde(default)]
        until: Option<IgnoredAny>,
    }
    serde_json::from_str::<Spec>(spec.as_str()).is_ok_and(|spec| spec.action.until.is_some())
}

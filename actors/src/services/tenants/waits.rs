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
use crate::domain::json::Json;
use crate::domain::time::Timestamp;
use crate::mutants::{self, Mutant};
use crate::state::tenant::{StepState, TenantState, Wait, Waiting};

/// Longest time before a moment of the wall clock is looked at again: it may be set.
const WALL_CHECK_MAX: Duration = Duration::from_secs(30);
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
        let now = self.deps.seams.clock.now();
        let left = left_of(due_at, state.attempt_at, now, self.is_until(key));
        self.timers.set(key, Instant::now() + left);
    }

    /// Tells the group which steps' moments have come.
    fn tell_due(&mut self, myself: &ActorRef<TenantMessage>) {
        let now = Instant::now();
        for _ in 0..TOLD_AT_ONCE_MAX {
            let Some(key) = self.timers.take_due(now) else { return };
            let Some(state) = step_of(&self.runner.machine, key) else { continue };
            let (Waiting::Timer(due_at) | Waiting::Retry(due_at)) = state.waiting else { continue };
            let (run, step, attempt) = key;
            if self.tasks.contains_key(&key) {
                // The task that said what to wait for is not seen to have ended.
                self.late.insert(key);
            } else if self.is_until(key) && due_at > self.deps.seams.clock.now() {
                self.arm((due_at, run, step, attempt));
            } else {
                let Some(link) = self.link() else { return };
                self.spawn(myself, key, steps::tell_due(link, run, step, attempt));
            }
        }
    }

    fn set_timer(&mut self, myself: &ActorRef<TenantMessage>) {
        let Some(next) = self.timers.next() else { return };
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
        if mutants::is(Mutant::WaitsByWallClock) {
            return true;
        }
        let state = step_of(&self.runner.machine, (run, step, attempt));
        let is_timer = state.is_some_and(|state| matches!(state.waiting, Waiting::Timer(_)));
        let live = self.runner.machine.runs().get(&run);
        let spec = live.and_then(|live| live.workflow.steps.get(usize::from(step)));
        is_timer && spec.is_some_and(|spec| says_until(&spec.json))
    }
}

/// How long to wait from now on for what is due at `due_at`, and has waited since `began`; both were
/// stamped by one clock, perhaps another than `now` is from.
fn left_of(
    due_at: Timestamp,
    began: Option<Timestamp>,
    now: Timestamp,
    is_until: bool,
) -> Duration {
    let left = Duration::from_millis(due_at.ms_since(now));
    if is_until {
        return left.min(WALL_CHECK_MAX);
    }
    let whole = began.map_or(u64::MAX, |began| due_at.ms_since(began));
    left.min(Duration::from_millis(whole))
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

#[cfg(test)]
mod tests {
    use super::super::timers::Timers;
    use super::*;

    #[test]
    fn what_is_left_of_a_wait_is_never_more_than_the_whole() {
        const DAY_MS: i64 = 86_400_000;
        let left = |due_at: i64, began: i64, now: i64| {
            left_of(Timestamp(due_at), Some(Timestamp(began)), Timestamp(now), false).as_millis()
        };
        assert_eq!(left(11_000, 10_000, 10_000), 1_000, "just begun");
        assert_eq!(left(11_000, 10_000, 10_400), 600, "after a restart");
        assert_eq!(left(11_000, 10_000, 99_000), 0, "over while the node was down");
        // A clock that was 30 days ahead stamped both, and is right again.
        let ahead = 30 * DAY_MS;
        assert_eq!(left(ahead + 1_000, ahead, 500), 1_000);
        let until =
            |due_at, now| left_of(Timestamp(due_at), Some(Timestamp(0)), Timestamp(now), true);
        assert_eq!(until(5_000, 2_000), Duration::from_secs(3));
        assert_eq!(until(DAY_MS, 0), WALL_CHECK_MAX, "the wall clock may be set");
    }

    #[test]
    fn until_is_told_from_secs() {
        let says = |text: &str| says_until(&Json::from_text(text.to_owned()));
        assert!(says(r#"{"id":"a","action":{"type":"wait","until":"2030-01-01T00:00:00Z"}}"#));
        assert!(!says(r#"{"id":"a","action":{"type":"wait","secs":1}}"#));
        assert!(!says(r#"{"id":"a","action":{"type":"wait","secs":1,"until":null}}"#));
    }

    #[test]
    fn timers_go_off_in_order_and_once() {
        let now = Instant::now();
        let at = |secs| now + Duration::from_secs(secs);
        let mut timers = Timers::default();
        for (key, secs) in [(1, 3), (2, 1), (3, 2), (1, 2)] {
            timers.set(key, at(secs));
        }
        timers.clear(3);
        assert_eq!(timers.next(), Some(at(1)));
        assert_eq!(timers.take_due(now), None);
        let taken: Vec<_> = std::iter::from_fn(|| timers.take_due(at(2))).collect();
        assert_eq!((taken, timers.next()), (vec![2, 1], None));
    }
}

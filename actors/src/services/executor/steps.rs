//! The steps of one tenant that this node performs: a task for each attempt, a timer for each wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::timers::Timers;
use super::{Link, StepEvent, TellActor, attempt};
use crate::domain::json::Json;
use crate::domain::run::StepAttempt;
use crate::domain::time::Timestamp;
use crate::mutants::{self, Mutant};
use crate::state::tenant::{StepState, TenantEffect, TenantState, Wait, Waiting};

/// Longest time before a moment of the wall clock is compared again: the clock may be set.
const WALL_CHECK_MAX: Duration = Duration::from_secs(30);
/// Steps whose moment has come that are told to the group at once.
const TOLD_AT_ONCE_MAX: usize = 1024;

/// Holds the tasks and timers of a tenant's steps. Its owner is the tenant's actor.
pub(in crate::services) struct TenantSteps {
    tell: TellActor,
    /// Tasks under way, by attempt.
    tasks: BTreeMap<StepAttempt, AbortHandle>,
    /// When attempts that wait go on.
    timers: Timers<StepAttempt>,
    /// Attempts whose timer went off while their task was still seen as under way.
    late: BTreeSet<StepAttempt>,
    /// For when the actor is to be woken, and the task that wakes it.
    alarm: Option<(Instant, AbortHandle)>,
}

impl TenantSteps {
    /// Makes the steps of a tenant whose actor hears through `tell`.
    pub(in crate::services) fn new(tell: TellActor) -> Self {
        let (tasks, timers, late) = (BTreeMap::new(), Timers::default(), BTreeSet::new());
        Self { tell, tasks, timers, late, alarm: None }
    }

    /// Tells whether no task is under way.
    pub(in crate::services) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Begins an attempt, unless its task is under way.
    pub(in crate::services) fn perform(
        &mut self,
        state: &TenantState,
        link: Link,
        key: StepAttempt,
    ) {
        let live = state.runs().get(&key.run);
        let spec = live.and_then(|live| live.workflow.steps.get(usize::from(key.step)));
        // The definition alone: the task takes the rest when its turn has come, because thousands may
        // wait for theirs.
        let Some(spec) = spec else { return };
        let task = attempt::perform(link, key, spec.json.clone(), Arc::clone(&self.tell));
        self.spawn(key, task);
    }

    /// Performs everything that is outstanding and arms every wait: this node has begun to lead.
    pub(in crate::services) fn take_over(&mut self, state: &TenantState, link: &Link) {
        for effect in state.outstanding() {
            if let TenantEffect::PerformStep(attempt) = effect {
                self.perform(state, link.clone(), attempt);
            }
        }
        for wait in state.waits() {
            self.arm(state, link, wait);
        }
    }

    /// Ends an attempt that the state has given up.
    pub(in crate::services) fn stop(&mut self, key: StepAttempt) {
        self.timers.clear(key);
        if let Some(task) = self.tasks.remove(&key) {
            task.abort();
        }
    }

    /// Ends all attempts: this node does not lead any more, or the actor ends.
    pub(in crate::services) fn stop_all(&mut self) {
        self.timers.clear_all();
        self.late.clear();
        for task in std::mem::take(&mut self.tasks).into_values() {
            task.abort();
        }
    }

    /// Notes that the task of an attempt has ended.
    pub(in crate::services) fn ended(&mut self, key: StepAttempt) {
        self.tasks.remove(&key);
        // The result 'waits until' is applied before its task is seen to end, and a short wait may be
        // over by then. Its timer has been taken; without this nobody would tell the group.
        if self.late.remove(&key) {
            self.timers.set(key, Instant::now());
        }
    }

    /// Notes that the alarm has gone off.
    pub(in crate::services) fn alarm_went_off(&mut self) {
        self.alarm = None;
    }

    /// Arms what has begun to wait, tells the group which steps' moments have come, and sets the alarm
    /// for the next. `link` is there while this node leads.
    pub(in crate::services) fn follow(&mut self, state: &mut TenantState, link: Option<Link>) {
        // Also while this node follows: waits that are not taken would pile up. A new leader arms all
        // waits in any case.
        let new = state.take_new_waits();
        let Some(link) = link else { return };
        for wait in new {
            self.arm(state, &link, wait);
        }
        self.tell_due(state, &link);
        self.set_alarm();
    }

    /// Sets the timer of a wait, on the monotonic clock.
    fn arm(&mut self, state: &TenantState, link: &Link, (due_at, key): Wait) {
        let Some(step) = step_of(state, key) else { return };
        let now = link.deps.seams.clock.now();
        let left = left_of(due_at, step.attempt_at, now, is_until(state, key));
        self.timers.set(key, Instant::now() + left);
    }

    /// Tells the group which steps' moments have come.
    fn tell_due(&mut self, state: &TenantState, link: &Link) {
        let now = Instant::now();
        // Bounded: the rest is told with the next message, and the alarm brings one at once.
        for _ in 0..TOLD_AT_ONCE_MAX {
            let Some(key) = self.timers.take_due(now) else { return };
            // The run may have been cancelled, or the attempt may be over.
            let Some(step) = step_of(state, key) else { continue };
            let (Waiting::Timer(due_at) | Waiting::Retry(due_at)) = step.waiting else { continue };
            if self.tasks.contains_key(&key) {
                // The task that proposed the wait is not seen to have ended, and one attempt has one
                // task. `ended` sets the timer again.
                self.late.insert(key);
            } else if is_until(state, key) && due_at > link.deps.seams.clock.now() {
                // The wall clock was set back, or the moment is further away than one look.
                self.arm(state, link, (due_at, key));
            } else {
                self.spawn(key, attempt::tell_due(link.clone(), key));
            }
        }
    }

    /// Has the actor woken when the next timer goes off, if it would not be woken earlier.
    fn set_alarm(&mut self) {
        let Some(next) = self.timers.next() else { return };
        match &self.alarm {
            Some((at, alarm)) if *at <= next && !alarm.is_finished() => return,
            Some((_, alarm)) => alarm.abort(),
            None => {}
        }
        let tell = Arc::clone(&self.tell);
        let alarm = tokio::spawn(async move {
            tokio::time::sleep_until(next).await;
            tell(StepEvent::Due);
        });
        self.alarm = Some((next, alarm.abort_handle()));
    }

    /// Runs a task for an attempt, unless one is under way.
    fn spawn(&mut self, key: StepAttempt, task: impl Future<Output = ()> + Send + 'static) {
        if self.tasks.contains_key(&key) {
            return;
        }
        let tell = Arc::clone(&self.tell);
        let task = tokio::spawn(async move {
            task.await;
            tell(StepEvent::Ended(key));
        });
        self.tasks.insert(key, task.abort_handle());
    }
}

/// Tells whether the attempt waits for a moment of the wall clock.
fn is_until(state: &TenantState, key: StepAttempt) -> bool {
    if mutants::is(Mutant::WaitsByWallClock) {
        return true;
    }
    let is_timer =
        step_of(state, key).is_some_and(|step| matches!(step.waiting, Waiting::Timer(_)));
    let live = state.runs().get(&key.run);
    let spec = live.and_then(|live| live.workflow.steps.get(usize::from(key.step)));
    is_timer && spec.is_some_and(|spec| says_until(&spec.json))
}

/// Computes how long to wait from now on for what is due at `due_at` and has waited since `began`. One
/// clock stamped both, perhaps another than the clock of `now`: so the rest is never longer than the
/// whole.
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

/// Finds the state of an attempt; `None` when another attempt has followed it.
fn step_of(state: &TenantState, key: StepAttempt) -> Option<&StepState> {
    let step = state.runs().get(&key.run)?.steps.get(usize::from(key.step))?;
    (step.attempt == key.number).then_some(step)
}

/// Tells whether the definition of a `wait` has an `until`.
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
}

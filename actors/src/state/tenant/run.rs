//! A run and its steps.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::definitions::definition_bytes;
use crate::domain::ids::RunId;
use crate::domain::json::Json;
use crate::domain::run::{RunStatus, StepAttempt};
use crate::domain::time::Timestamp;
use crate::domain::workflow::Workflow;

/// Most bytes of a run's input and outputs together: they are in memory while the run lives.
pub const RUN_PAYLOAD_BYTES_MAX: u64 = 16 << 20;
/// Most bytes that a tenant holds in the memory of every replica, where its storage quota is not less:
/// workflows, inputs and outputs of its live runs, and its named workflows.
pub const HELD_BYTES_MAX: u64 = 128 << 20;

/// A run, live or ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Place in the order the tenant's runs were accepted in.
    pub seq: u64,
    /// What it works on.
    pub work_item: String,
    /// The workflow, in the version it started with.
    pub workflow: Arc<Workflow>,
    /// The name the workflow was started by.
    pub workflow_name: Option<String>,
    /// Where it stands.
    pub status: RunStatus,
    /// When it was accepted.
    pub started_at: Timestamp,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Its input.
    pub input: Json,
    /// Bytes of its input and of the outputs of its steps.
    pub payload_bytes: u64,
    /// The failure that ends the run once what is under way has finished, or why it ended.
    pub error: Option<String>,
    /// Its steps, as in the workflow.
    pub steps: Vec<StepState>,
    /// Where its events are in the tenant's log, in order.
    pub events: Vec<EventSpan>,
    /// Whether its long parts have rows of their own while it is live. Which rows there are tells.
    #[serde(skip)]
    pub is_in_parts: bool,
}

/// Returns what a live run holds in memory, bytes. Runs of one named workflow share it until they are
/// loaded again: it counts for each.
pub(super) fn held_bytes(run: &Run) -> u64 {
    run.payload_bytes + definition_bytes(&run.workflow)
}

/// A line of the event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSpan {
    /// First byte.
    pub offset: u64,
    /// Bytes, the line's end included; with [`EventSpan::CHECKED`] where the line has a checksum.
    len: u32,
}

impl EventSpan {
    /// Set in `len` of a line with a checksum. Lines of the first version had none; said here, a
    /// line whose checksum is damaged beyond recognition is not taken for one of those.
    const CHECKED: u32 = 1 << 31;

    /// A line.
    pub fn new(offset: u64, len: usize, is_checked: bool) -> Self {
        let len = u32::try_from(len).unwrap_or(u32::MAX) & !Self::CHECKED;
        Self { offset, len: if is_checked { len | Self::CHECKED } else { len } }
    }

    /// Bytes, the line's end included.
    pub const fn bytes(self) -> usize {
        (self.len & !Self::CHECKED) as usize
    }

    /// Whether the line has a checksum.
    pub const fn is_checked(self) -> bool {
        self.len & Self::CHECKED != 0
    }
}

/// A step of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepState {
    /// Where it stands.
    pub status: StepStatus,
    /// The present attempt, from 1; 0 before the first.
    pub attempt: u32,
    /// When its first attempt began.
    pub started_at: Option<Timestamp>,
    /// When the present attempt began, or the wait behind it, by the clock of the leader then. A
    /// wait that is armed anew takes no longer than from here to its end.
    pub attempt_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// What it waits for.
    pub waiting: Waiting,
    /// Its output.
    pub output: Option<Json>,
    /// The last error.
    pub error: Option<String>,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepStatus {
    /// Not begun.
    Pending,
    /// Begun; perhaps between two attempts.
    Running,
    /// Done.
    Completed,
    /// Failed for good.
    Failed,
    /// Never to be begun, or stopped.
    Skipped,
}

/// What a step waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Waiting {
    /// Nothing, or other steps.
    Nothing,
    /// A moment: the end of a `wait`.
    Timer(Timestamp),
    /// A moment: the next attempt.
    Retry(Timestamp),
    /// The tenant's activation.
    Resume,
}

impl StepState {
    /// A step that has not begun.
    pub const fn pending() -> Self {
        Self {
            status: StepStatus::Pending,
            attempt: 0,
            started_at: None,
            attempt_at: None,
            completed_at: None,
            waiting: Waiting::Nothing,
            output: None,
            error: None,
        }
    }

    /// What to show as its end when it ends at `at`: no step ends before it began.
    pub(super) fn ends_at(&self, at: Timestamp) -> Timestamp {
        self.started_at.map_or(at, |started| at.max(started))
    }

    /// Whether nothing can change any more.
    pub const fn has_ended(&self) -> bool {
        !matches!(self.status, StepStatus::Pending | StepStatus::Running)
    }
}

impl Run {
    /// Names the present attempt of a step.
    pub fn attempt(&self, step: u16) -> StepAttempt {
        StepAttempt { run: self.id, step, number: self.steps[usize::from(step)].attempt }
    }

    /// Steps that have not begun and whose needs are all completed.
    pub fn ready(&self) -> Vec<u16> {
        let completed = |need: &u16| self.steps[usize::from(*need)].status == StepStatus::Completed;
        (0_u16..)
            .zip(self.steps.iter().zip(&self.workflow.steps))
            .filter(|(_, (state, step))| {
                state.status == StepStatus::Pending && step.needs.iter().all(completed)
            })
            .map(|(index, _)| index)
            .collect()
    }

    /// Whole seconds from its start to `at`.
    pub const fn duration_secs(&self, at: Timestamp) -> u64 {
        at.ms_since(self.started_at) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_keeps_its_length_whether_it_has_a_checksum_or_not() {
        for is_checked in [true, false] {
            for len in [0, 1, 1 << 20] {
                let span = EventSpan::new(7, len, is_checked);
                assert_eq!((span.bytes(), span.is_checked()), (len, is_checked));
            }
        }
    }
}

//! Runs the group commit: on a thread in production, where a job is handed in in a simulation.
//!
//! Both do the same: take what waits, make batches until nothing waits, and try again after a while
//! when the disk is full or no descriptor is left.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::QUEUE_JOBS_MAX;
use super::group_commit::{GroupCommit, Pause};
use super::job::Job;
use crate::disk::Shortage;
use crate::executor::Pace;

/// How often the queue is looked at while there is no room and nothing waits for it. Votes come
/// then, which an election waits for.
const FULL_POLL: Duration = Duration::from_millis(10);

/// Serves the queue until no sender is left. Runs on a thread of its own, which may block.
pub(crate) fn serve(mut commits: GroupCommit, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        commits.push(job);
        loop {
            // Group commit: jobs that came while the last batch was synced are the next one.
            while commits.waiting() < QUEUE_JOBS_MAX {
                let Ok(job) = jobs.try_recv() else { break };
                commits.push(job);
            }
            match commits.run() {
                Pause::Idle => break,
                Pause::Blocked(shortage) => std::thread::park_timeout(shortage.retry_after()),
                Pause::Probing if jobs.is_closed() => return,
                Pause::Probing => wait_for_job(&jobs),
            }
        }
    }
}

/// Waits until it is time to look for room again, or a job is handed in.
fn wait_for_job(jobs: &mpsc::Receiver<Job>) {
    for _ in 0..Shortage::Room.retry_after().as_millis() / FULL_POLL.as_millis() {
        if !jobs.is_empty() || jobs.is_closed() {
            return;
        }
        std::thread::park_timeout(FULL_POLL);
    }
}

/// Runs the group commit on the thread of whoever hands in a job, or after the time that a
/// simulated disk takes. Jobs that come in that time become one batch.
#[derive(Clone)]
pub(crate) struct InlineDriver {
    pace: Pace,
    state: Arc<Mutex<InlineState>>,
}

struct InlineState {
    commits: GroupCommit,
    /// Whether a task waits for a slow disk, and runs the group commit then.
    is_syncing: bool,
    /// Whether a task tries again while there is no room, or no descriptor.
    is_retrying: bool,
}

impl InlineDriver {
    pub fn new(commits: GroupCommit, pace: Pace) -> Self {
        let state = InlineState { commits, is_syncing: false, is_retrying: false };
        Self { pace, state: Arc::new(Mutex::new(state)) }
    }

    pub fn submit(&self, job: Job) {
        // The lock is held over the whole write: a simulation has one thread, and completions only
        // send on channels, so nobody comes back here meanwhile.
        let mut state = self.state.lock();
        state.commits.push(job);
        let pace = self.pace.get();
        match Handle::try_current() {
            // The task that waits for the disk takes this job along. One that ran it at once would
            // overtake those before it.
            _ if state.is_syncing => {}
            Ok(runtime) if !pace.is_zero() => {
                state.is_syncing = true;
                runtime.spawn(self.clone().sync(pace));
            }
            _ => self.run(&mut state),
        }
    }

    async fn sync(self, pace: Duration) {
        tokio::time::sleep(pace).await;
        let mut state = self.state.lock();
        state.is_syncing = false;
        self.run(&mut state);
    }

    fn run(&self, state: &mut InlineState) {
        let shortage = match state.commits.run() {
            Pause::Idle => return,
            Pause::Blocked(shortage) => shortage,
            Pause::Probing => Shortage::Room,
        };
        // One task is enough: it goes on until nothing waits.
        if !state.is_retrying
            && let Ok(runtime) = Handle::try_current()
        {
            state.is_retrying = true;
            runtime.spawn(self.clone().retry(shortage.retry_after()));
        }
    }

    async fn retry(self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            let mut state = self.state.lock();
            if state.commits.run() == Pause::Idle {
                state.is_retrying = false;
                return;
            }
        }
    }
}

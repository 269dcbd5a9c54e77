//! Makes batches of the jobs that wait.
//!
//! A batch that found no room stays made up, and is tried again as it is: its records name the
//! offset at which they stand, and their jobs are taken already.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::QUEUE_JOBS_MAX;
use super::job::{Completion, Job, Op};
use super::shared::Shared;
use super::writer::{CommitError, Writer};
use crate::disk::Shortage;

/// The writer, and the jobs that wait for it.
pub(crate) struct GroupCommit {
    writer: Writer,
    shared: Arc<Shared>,
    waiting: VecDeque<Job>,
    /// The completions of the batch that is made up and not durable.
    batch: Option<Vec<Completion>>,
    is_closed: bool,
}

/// Why [`GroupCommit::run`] has returned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pause {
    /// Nothing waits.
    Idle,
    /// A batch waits for room, or for a descriptor.
    Blocked(Shortage),
    /// Nothing waits, but the disk was full: somebody has to look whether it still is.
    Probing,
}

impl GroupCommit {
    pub fn new(writer: Writer, shared: Arc<Shared>) -> Self {
        Self { writer, shared, waiting: VecDeque::new(), batch: None, is_closed: false }
    }

    /// Counts the jobs that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes a job, or completes it with an error where the log is closed or too many wait.
    pub fn push(&mut self, job: Job) {
        // The record that closes the log is a witness for everything before it. A record behind it
        // would be without one.
        if self.is_closed {
            (job.completion)(Err(self.shared.error()));
        } else if self.waiting.len() >= QUEUE_JOBS_MAX {
            (job.completion)(Err(io::ErrorKind::StorageFull.into()));
        } else {
            self.waiting.push_back(job);
        }
    }

    /// Writes until nothing waits, or nothing can be written for now.
    pub fn run(&mut self) -> Pause {
        while self.batch.is_some() || !self.waiting.is_empty() {
            // Jobs behind the one that closed the log, in a batch of their own.
            if self.batch.is_none() && self.is_closed {
                self.fail_all();
                break;
            }
            match self.run_batch() {
                // Only descriptors: whether there is room again is asked below, once nothing waits.
                Ok(()) => {
                    self.shared.set_exhausted(false);
                    self.shared.set_blocked(false);
                }
                Err(CommitError::ShortOf(shortage)) => {
                    self.shared.set_short_of(shortage);
                    self.shared.set_blocked(true);
                    // The batch and all jobs behind it wait; their owners wait with them. A node
                    // that stops cannot, and nobody was told that these jobs are durable.
                    if !self.shared.is_closing() {
                        return Pause::Blocked(shortage);
                    }
                    self.fail_all();
                }
                Err(CommitError::Dead) => self.fail_all(),
            }
        }
        if !self.shared.is_full() || self.is_closed {
            return Pause::Idle;
        }
        // The reserve is filled again before the disk counts as having room: the next shortage must
        // find it whole.
        if !self.writer.has_room() {
            return Pause::Probing;
        }
        self.shared.set_full(false);
        Pause::Idle
    }

    fn run_batch(&mut self) -> Result<(), CommitError> {
        // A batch that was short of something is committed as it is: its jobs are taken from the
        // queue.
        if self.batch.is_none() {
            self.writer.begin()?;
            self.batch = Some(self.fill());
        }
        self.writer.commit()?;
        // After the commit, which has published the changes: whoever is told finds them.
        for completion in self.batch.take().into_iter().flatten() {
            completion(Ok(()));
        }
        Ok(())
    }

    /// Moves jobs into the writer's batch, up to its bound or the job that closes the log.
    fn fill(&mut self) -> Vec<Completion> {
        let mut batch = Vec::new();
        while !self.is_closed {
            let left = self.writer.batch_bytes_left();
            if left == 0 {
                break;
            }
            let Some(mut job) = self.waiting.pop_front() else { break };
            // One append may hold what many have proposed at once.
            let rest = job.split_off(left);
            self.is_closed = job.ops.iter().any(|op| matches!(op, Op::Close));
            let added = self.writer.add(&job);
            match (added, rest) {
                // Whoever waits for the job waits for all of it. First in the queue: a group's jobs keep their order.
                (Ok(()), Some(rest)) => self.waiting.push_front(rest),
                (Ok(()), None) => batch.push(job.completion),
                // Too large ever to be written. The rest of the batch is not affected.
                (Err(error), rest) => (rest.unwrap_or(job).completion)(Err(error)),
            }
        }
        batch
    }

    fn fail_all(&mut self) {
        let waiting = self.waiting.drain(..).map(|job| job.completion);
        for completion in self.batch.take().into_iter().flatten().chain(waiting) {
            completion(Err(self.shared.error()));
        }
    }
}

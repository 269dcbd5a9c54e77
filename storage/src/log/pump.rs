//! Drives the writer: makes batches of the jobs that wait, and tries again while the disk is full or
//! no descriptor is left.
//!
//! In production a thread does that, in a simulation whoever hands in a job. Both go through
//! [`Pump`].

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::writer::{Done, Job, Op, Trouble, Writer};
use super::{FULL_RETRY, QUEUE_JOBS_MAX, Shared};
use crate::executor::Pace;

/// How often the queue is looked at while there is no room, and nothing waits for it: votes come
/// then, which others wait for.
const FULL_POLL: Duration = Duration::from_millis(10);

/// The writer and what waits for it.
pub(crate) struct Pump {
    writer: Writer,
    shared: Arc<Shared>,
    waiting: VecDeque<Job>,
    /// Whom to tell of the batch that is made up and not written.
    batch: Option<Vec<Done>>,
    is_closed: bool,
}

/// Why the pump rests.
#[derive(Debug, PartialEq, Eq)]
enum Rest {
    /// Nothing waits.
    Idle,
    /// There is no room for what waits, or no descriptor for the file it goes to.
    Stuck,
    /// Nothing waits, and there was no room lately.
    Looking,
}

impl Pump {
    pub fn new(writer: Writer, shared: Arc<Shared>) -> Self {
        Self { writer, shared, waiting: VecDeque::new(), batch: None, is_closed: false }
    }

    fn push(&mut self, job: Job) {
        if self.is_closed {
            (job.done)(Err(self.shared.error()));
        } else if self.waiting.len() >= QUEUE_JOBS_MAX {
            (job.done)(Err(io::ErrorKind::StorageFull.into()));
        } else {
            self.waiting.push_back(job);
        }
    }

    /// Writes until nothing waits or nothing can be written for now.
    fn run(&mut self) -> Rest {
        while self.batch.is_some() || !self.waiting.is_empty() {
            if self.batch.is_none() && self.is_closed {
                self.fail_all();
                break;
            }
            match self.run_batch() {
                Ok(()) => self.shared.set_exhausted(false),
                Err(trouble @ (Trouble::Full | Trouble::Exhausted)) => {
                    match trouble {
                        Trouble::Full => self.shared.set_full(true),
                        _ => self.shared.set_exhausted(true),
                    }
                    if !self.shared.closing.load(Ordering::Acquire) {
                        return Rest::Stuck;
                    }
                    self.fail_all();
                }
                Err(Trouble::Dead) => self.fail_all(),
            }
        }
        if !self.shared.full.load(Ordering::Acquire) || self.is_closed {
            return Rest::Idle;
        }
        if !self.writer.has_room() {
            return Rest::Looking;
        }
        self.shared.set_full(false);
        Rest::Idle
    }

    fn run_batch(&mut self) -> Result<(), Trouble> {
        if self.batch.is_none() {
            self.writer.begin()?;
            self.batch = Some(self.fill());
        }
        self.writer.commit()?;
        for done in self.batch.take().into_iter().flatten() {
            done(Ok(()));
        }
        Ok(())
    }

    fn fill(&mut self) -> Vec<Done> {
        let mut batch = Vec::new();
        while !self.writer.is_batch_full() && !self.is_closed {
            let Some(job) = self.waiting.pop_front() else { break };
            self.is_closed = job.ops.iter().any(|op| matches!(op, Op::Mark));
            match self.writer.add(&job) {
                Ok(()) => batch.push(job.done),
                Err(error) => (job.done)(Err(error)),
            }
        }
        batch
    }

    fn fail_all(&mut self) {
        let waiting = self.waiting.drain(..).map(|job| job.done);
        for done in self.batch.take().into_iter().flatten().chain(waiting) {
            done(Err(self.shared.error()));
        }
    }
}

/// Serves the queue until nobody can hand in anything more.
pub(crate) fn serve(mut pump: Pump, mut jobs: mpsc::Receiver<Job>) {
    while let Some(job) = jobs.blocking_recv() {
        pump.push(job);
        loop {
            // Group commit: whatever came while the last batch was synced is the next one.
            while pump.waiting.len() < QUEUE_JOBS_MAX {
                let Ok(job) = jobs.try_recv() else { break };
                pump.push(job);
            }
            match pump.run() {
                Rest::Idle => break,
                Rest::Stuck => std::thread::park_timeout(FULL_RETRY),
                Rest::Looking if jobs.is_closed() => return,
                Rest::Looking => wait_for_job(&jobs),
            }
        }
    }
}

/// Waits until it is time to look for room again, or somebody hands something in.
fn wait_for_job(jobs: &mpsc::Receiver<Job>) {
    for _ in 0..FULL_RETRY.as_millis() / FULL_POLL.as_millis() {
        if !jobs.is_empty() || jobs.is_closed() {
            return;
        }
        std::thread::park_timeout(FULL_POLL);
    }
}

/// The pump of a simulation: runs when a job is handed in, or after the time that the disk takes.
/// Group commit: whatever comes in that time becomes one batch.
#[derive(Clone)]
pub(crate) struct Inline {
    pace: Pace,
    driven: Arc<Mutex<Driven>>,
}

struct Driven {
    pump: Pump,
    /// Whether a task waits for a slow disk, and runs the pump then.
    is_syncing: bool,
    /// Whether a task tries again while the disk is full.
    is_retrying: bool,
}

impl Inline {
    pub fn new(pump: Pump, pace: Pace) -> Self {
        let driven = Driven { pump, is_syncing: false, is_retrying: false };
        Self { pace, driven: Arc::new(Mutex::new(driven)) }
    }

    pub fn submit(&self, job: Job) {
        let mut driven = self.lock();
        driven.pump.push(job);
        let pace = self.pace.get();
        match Handle::try_current() {
            _ if driven.is_syncing => {}
            Ok(runtime) if !pace.is_zero() => {
                driven.is_syncing = true;
                runtime.spawn(self.clone().sync(pace));
            }
            _ => self.run(&mut driven),
        }
    }

    async fn sync(self, pace: Duration) {
        tokio::time::sleep(pace).await;
        let mut driven = self.lock();
        driven.is_syncing = false;
        self.run(&mut driven);
    }

    fn run(&self, driven: &mut Driven) {
        if driven.pump.run() != Rest::Idle
            && !driven.is_retrying
            && let Ok(runtime) = Handle::try_current()
        {
            driven.is_retrying = true;
            runtime.spawn(self.clone().retry());
        }
    }

    async fn retry(self) {
        loop {
            tokio::time::sleep(FULL_RETRY).await;
            let mut driven = self.lock();
            if driven.pump.run() == Rest::Idle {
                driven.is_retrying = false;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Driven> {
        self.driven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

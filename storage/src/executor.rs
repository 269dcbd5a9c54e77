//! Runs work that blocks: on threads in production, on the caller's thread in a simulation.
#![allow(clippy::disallowed_methods, reason = "this file is the seam that the others go through")]

use std::future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use shiioo_actors::ports::{Job, WorkerPool};

/// Runs work that blocks. In a simulation it runs on the caller's thread, because a thread would be
/// a source of chance that no seed controls; else on threads that may block.
#[derive(Debug, Clone)]
pub enum Executor {
    /// Runs work at once on the caller's thread. No thread is ever made.
    Inline,
    /// Runs work on the caller's thread, after the time that a simulated disk takes for it.
    Paced(Pace),
    /// Runs work on the runtime's threads for blocking work. The log's writer has a thread of its
    /// own.
    Threads,
}

/// The simulated latency of a piece of work with a sync in it. Jobs that reach the log meanwhile
/// become one batch. A simulation changes it while the program runs.
#[derive(Debug, Clone, Default)]
pub struct Pace(Arc<AtomicU64>);

impl Pace {
    /// Sets the simulated latency of work that starts from now on. Zero disables it.
    pub fn set(&self, pace: Duration) {
        self.0.store(u64::try_from(pace.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Gives the simulated latency of work that starts now.
    pub fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

impl Executor {
    /// Runs a job to its end. The job goes on when the caller stops waiting.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Self::Inline => job(),
            Self::Paced(pace) => {
                let pace = pace.get();
                if pace.is_zero() {
                    return job();
                }
                let paced = async move {
                    tokio::time::sleep(pace).await;
                    job()
                };
                ended(tokio::spawn(paced).await).await
            }
            Self::Threads => ended(tokio::task::spawn_blocking(job).await).await,
        }
    }

    /// Gives the latency of the simulated disk; zero where there is none.
    pub(crate) fn pace(&self) -> Pace {
        match self {
            Self::Paced(pace) => pace.clone(),
            Self::Inline | Self::Threads => Pace::default(),
        }
    }

    /// Runs a job that nobody waits for, off the runtime's threads where there is a runtime.
    pub(crate) fn run_detached(&self, job: impl FnOnce() + Send + 'static) {
        match (self, tokio::runtime::Handle::try_current()) {
            (Self::Threads, Ok(runtime)) => drop(runtime.spawn_blocking(job)),
            _ => job(),
        }
    }

    /// Starts a thread that lives as long as what it serves. Only under [`Executor::Threads`].
    pub(crate) fn spawn_thread(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        debug_assert!(matches!(self, Self::Threads));
        std::thread::Builder::new().name(name.into()).spawn(body).map(drop)
    }
}

/// Threads for tenants' work: rendering templates, and reading services' answers.
const WORKERS: usize = 2;
/// Nice value of such a thread. Low enough to get on while everything else is busy: neighbours' templates
/// are rendered there as well.
#[cfg(target_os = "linux")]
const WORKER_NICE: i32 = 5;
/// Stack of such a thread, bytes. Only the pages in use take memory.
const WORKER_STACK_BYTES: usize = 16 << 20;

impl Executor {
    /// Starts the threads for tenants' work. In a simulation there are none, and the work runs on
    /// the caller's thread.
    ///
    /// # Errors
    /// When the system gives no threads.
    pub fn workers(&self) -> io::Result<Arc<dyn WorkerPool>> {
        if !matches!(self, Self::Threads) {
            return Ok(Arc::new(InlineWorkers));
        }
        let (jobs, next) = mpsc::channel::<Job>();
        let next = Arc::new(Mutex::new(next));
        for _ in 0..WORKERS {
            let next = Arc::clone(&next);
            let work = move || {
                step_back();
                // Ends when the last sender is gone.
                while let Some(job) = take_job(&next) {
                    job();
                }
            };
            let thread = std::thread::Builder::new().name("worker".into());
            thread.stack_size(WORKER_STACK_BYTES).spawn(work)?;
        }
        Ok(Arc::new(WorkerThreads(jobs)))
    }
}

/// Has this thread go behind the threads that serve everybody, where processors are short.
fn step_back() {
    // By the thread, as Linux has it; elsewhere it would be the whole process. A thread that keeps its
    // priority works as well.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(None, WORKER_NICE);
}

/// Waits for a job. The queue is locked during the wait and free during the job, so that the other
/// threads wait for the next one meanwhile.
fn take_job(next: &Mutex<mpsc::Receiver<Job>>) -> Option<Job> {
    next.lock().recv().ok()
}

struct WorkerThreads(mpsc::Sender<Job>);

impl WorkerPool for WorkerThreads {
    fn threads(&self) -> usize {
        WORKERS
    }

    fn run(&self, job: Job) {
        // Cannot fail: the threads live as long as this sender.
        let _ = self.0.send(job);
    }
}

struct InlineWorkers;

impl WorkerPool for InlineWorkers {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, job: Job) {
        job();
    }
}

/// Gives the result of a job. Its panic goes on in the caller.
async fn ended<T>(done: Result<T, tokio::task::JoinError>) -> T {
    match done.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The runtime stops and never ran the job: nobody will poll this again.
        Err(Err(_)) => future::pending().await,
    }
}

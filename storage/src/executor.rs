//! Where blocking work runs.
#![allow(clippy::disallowed_methods, reason = "this file is the seam that the others go through")]

use std::future;
use std::io;

/// Where blocking work runs: on the caller's thread in a simulation, where every thread would be
/// an unseen source of chance, else on threads that may block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Executor {
    /// At once, on the caller's thread. No thread is ever made.
    Inline,
    /// On the runtime's threads for blocking work; the log's writer has a thread of its own.
    Threads,
}

impl Executor {
    /// Runs a job to its end. Under [`Executor::Threads`] the job goes on when the caller stops
    /// waiting.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Self::Inline => job(),
            Self::Threads => match tokio::task::spawn_blocking(job).await {
                Ok(done) => done,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime stops and never ran the job: nobody will poll this again.
                    Err(_) => future::pending().await,
                },
            },
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
        debug_assert_eq!(*self, Self::Threads);
        std::thread::Builder::new().name(name.into()).spawn(body).map(drop)
    }
}

//! Work of tenants that takes long, away from the runtime's threads: filling templates in, and reading
//! long bodies of requests and long answers of services. Tenants take turns, and one alone never has all threads.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::fair_semaphore::FairSemaphore;
use crate::domain::ids::{RunId, TenantId};
use crate::domain::workflow::template::{Limits, Parsed, Templates};
use crate::ports::WorkerPool;

/// Longest time for filling in the templates of one step.
const RENDER_MAX: Duration = Duration::from_secs(5);

/// Does such work on threads of its own.
pub struct Renderer {
    templates: Arc<Templates>,
    parsed: Arc<Parsed>,
    workers: Arc<dyn WorkerPool>,
    turns: FairSemaphore,
}

/// Carries what a piece of work has at hand.
pub(crate) struct Tools {
    pub(super) templates: Arc<Templates>,
    pub(super) parsed: Arc<Parsed>,
    pub(super) limits: Limits,
}

/// Tells a piece of work, when it is dropped, that nobody waits for the result any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Renderer {
    /// Makes a renderer that works on these threads.
    pub fn new(workers: Arc<dyn WorkerPool>) -> Self {
        let threads = workers.threads();
        let turns = FairSemaphore::new(threads, threads.saturating_sub(1));
        Self { templates: Arc::default(), parsed: Arc::default(), workers, turns }
    }

    /// Forgets the values that were parsed for a run.
    pub(in crate::services) fn forget(&self, run: RunId) {
        self.parsed.forget(run);
    }

    /// Does a piece of work for a tenant, in its turn. `None` when the work panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        tenant: TenantId,
        work: impl FnOnce(Tools) -> T + Send + 'static,
    ) -> Option<T> {
        let turn = self.turns.enter(tenant).await;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = Cancel(Arc::clone(&cancelled));
        // From when the turn has come: waiting for others is no fault of the step.
        let deadline = Instant::now() + RENDER_MAX;
        let is_late = Arc::new(move || Instant::now() >= deadline);
        let tools = Tools {
            templates: Arc::clone(&self.templates),
            parsed: Arc::clone(&self.parsed),
            limits: Limits { is_late: Some(is_late), cancelled },
        };
        let (reply, answer) = oneshot::channel();
        self.workers.run(Box::new(move || {
            // A panic must not take the thread with it.
            let done = std::panic::catch_unwind(AssertUnwindSafe(|| work(tools)));
            // The turn belongs to the work, not to its caller: a caller that has gone leaves the thread
            // taken, and another piece of the same tenant must not come on top.
            drop(turn);
            let _ = reply.send(done.ok());
        }));
        answer.await.ok().flatten()
    }

    /// Does a short piece of work, out of turn, that nobody waits for.
    pub(super) fn run_detached(&self, work: impl FnOnce() + Send + 'static) {
        self.workers.run(Box::new(work));
    }
}

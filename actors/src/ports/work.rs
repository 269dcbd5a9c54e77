//! Where work of tenants runs that takes long, and what of it was under way when a process died.

use crate::domain::ids::TenantId;
use crate::domain::run::StepAttempt;

/// Deaths of this node's process in a row, with one attempt under way at each, after which the
/// attempt is not performed here again.
pub const DEATHS_MAX: u32 = 3;

/// A piece of work.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs what takes long or needs a stack of known size, off the threads that everything else runs
/// on.
pub trait WorkerPool: Send + Sync + 'static {
    /// Pieces of work that run at once; further ones wait in line.
    fn threads(&self) -> usize;

    /// Runs a piece of work. Returns at once, but for a simulation, which runs it here and now.
    fn run(&self, job: Job);
}

/// An attempt of a step, among those of all tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// Whose.
    pub tenant: TenantId,
    /// Which of its attempts.
    pub of: StepAttempt,
}

/// Remembers which attempts are under way, over the death of the process but not over a clean stop.
/// Only a hint, and never in the way: what cannot be written down is not remembered.
pub trait AttemptJournal: Send + Sync + 'static {
    /// In how many deaths in a row, the last one included, the attempt was under way.
    fn deaths(&self, attempt: &Attempt) -> u32;

    /// Writes down that the attempt is about to be performed. Blocks.
    fn begin(&self, attempt: &Attempt);

    /// Writes down that the attempt has ended, or has gone on for so long that it is not what ends
    /// the process. Blocks.
    fn end(&self, attempt: &Attempt);
}

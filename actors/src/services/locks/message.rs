//! What the lock manager is told and asked.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Space;
use crate::command::{Cause, Outcome};
use crate::domain::json::Json;
use crate::domain::lock::LockView;
use crate::domain::views::Acquired;
use crate::ports::error::CallError;
use crate::state::tables::lock_table::LockNotice;

/// How much longer a caller waits for the manager than the manager for an outcome, so that the
/// manager's own answer wins.
pub(super) const GRACE: Duration = Duration::from_millis(250);

/// An attempt to take a lock.
#[derive(Debug)]
pub struct AcquireRequest {
    /// Key space.
    pub space: Space,
    /// Key.
    pub key: String,
    /// Who wants it.
    pub holder: String,
    /// Length of a lease, milliseconds.
    pub ttl_ms: u64,
    /// Shown with the lock.
    pub metadata: Json,
    /// Who asks.
    pub cause: Cause,
    /// When an attempt comes to no outcome.
    pub deadline: Instant,
    /// Queue until then.
    pub wait_until: Option<Instant>,
    /// Since when the client waits, on whatever node: who waits longest is served first.
    pub since: Instant,
    /// Whom to tell. Closed when the client has gone.
    pub reply: oneshot::Sender<Result<Acquired, CallError>>,
}

/// A renewal.
#[derive(Debug)]
pub struct RenewRequest {
    /// Key space.
    pub space: Space,
    /// Key.
    pub key: String,
    /// Who holds it.
    pub holder: String,
    /// The token it is held with, if given.
    pub token: Option<u64>,
    /// New length of a lease, milliseconds.
    pub ttl_ms: Option<u64>,
    /// Who asks.
    pub cause: Cause,
    /// When it comes to no outcome.
    pub deadline: Instant,
    /// Whom to tell.
    pub reply: oneshot::Sender<Result<LockView, CallError>>,
}

/// A message to the lock manager.
#[derive(Debug)]
pub enum LockMessage {
    /// Take a lock.
    Acquire(AcquireRequest),
    /// Renew a lock.
    Renew(RenewRequest),
    /// An attempt came to an outcome.
    Settled {
        /// What was asked.
        request: AcquireRequest,
        /// Whether it stood first in its queue.
        was_first: bool,
        /// What came of it.
        result: Result<Outcome, CallError>,
    },
    /// A table changed.
    Notice {
        /// Key space.
        space: Space,
        /// The change.
        notice: LockNotice,
    },
    /// This node leads a space now.
    Lead {
        /// Key space.
        space: Space,
        /// The locks that are held.
        locks: Vec<LockView>,
    },
    /// This node does not lead a space any more.
    Unlead {
        /// Key space.
        space: Space,
    },
    /// A moment has come.
    Tick,
    /// How many wait?
    Waiters {
        /// Key space.
        space: Space,
        /// Keys.
        keys: Vec<String>,
        /// Whom to tell.
        reply: oneshot::Sender<Vec<u64>>,
    },
}

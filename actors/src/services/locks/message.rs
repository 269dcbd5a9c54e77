//! The messages to the lock manager.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Space;
use crate::command::{Cause, Outcome};
use crate::domain::json::Json;
use crate::domain::lock::{FencingToken, Holder, LockKey, LockView};
use crate::domain::views::Acquired;
use crate::ports::error::CallError;
use crate::state::tables::lock_table::LockNotice;

/// Time that a caller waits for the manager beyond the manager's own deadline, so that the manager's
/// answer wins.
pub(super) const GRACE: Duration = Duration::from_millis(250);

/// Asks for a lock.
#[derive(Debug)]
pub struct AcquireRequest {
    /// Key space.
    pub space: Space,
    /// Key.
    pub key: LockKey,
    /// The holder to be.
    pub holder: Holder,
    /// Length of a lease, milliseconds.
    pub ttl_ms: u64,
    /// Metadata that is shown with the lock.
    pub metadata: Json,
    /// Who asks, under which request id.
    pub cause: Cause,
    /// Until when an attempt may take.
    pub deadline: Instant,
    /// Until when the request may wait in the queue. `None`: it does not wait.
    pub wait_until: Option<Instant>,
    /// Since when the client waits, at whatever node. The longest wait is served first.
    pub since: Instant,
    /// The way back to the client. Closed when the client has gone.
    pub reply: oneshot::Sender<Result<Acquired, CallError>>,
}

/// Asks for a renewal.
#[derive(Debug)]
pub struct RenewRequest {
    /// Key space.
    pub space: Space,
    /// Key.
    pub key: LockKey,
    /// The holder.
    pub holder: Holder,
    /// The token of the lease, if the client gave one.
    pub token: Option<FencingToken>,
    /// New length of a lease, milliseconds.
    pub ttl_ms: Option<u64>,
    /// Who asks, under which request id.
    pub cause: Cause,
    /// Until when the renewal may take.
    pub deadline: Instant,
    /// The way back to the client.
    pub reply: oneshot::Sender<Result<LockView, CallError>>,
}

/// A message to the lock manager.
#[derive(Debug)]
pub enum LockMessage {
    /// Asks for a lock.
    Acquire(AcquireRequest),
    /// Asks for a renewal.
    Renew(RenewRequest),
    /// Tells that an attempt has ended.
    Settled {
        /// The request.
        request: AcquireRequest,
        /// Whether the request stood first in its queue.
        was_first: bool,
        /// The outcome of the attempt.
        result: Result<Outcome, CallError>,
    },
    /// Tells that a table has changed.
    Notice {
        /// Key space.
        space: Space,
        /// The change.
        notice: LockNotice,
    },
    /// Tells that this node leads a table now.
    Lead {
        /// Key space.
        space: Space,
        /// The locks that are held.
        locks: Vec<LockView>,
    },
    /// Tells that this node does not lead a table any more.
    Unlead {
        /// Key space.
        space: Space,
    },
    /// Tells that a lease or a wait may be over.
    Tick,
    /// Asks what is to be shown of locks that a table has.
    Look {
        /// Key space.
        space: Space,
        /// The locks.
        locks: Vec<LockView>,
        /// The way back: each as it is to be shown, and how many wait for it.
        reply: oneshot::Sender<Vec<(LockView, u64)>>,
    },
}

//! Why an operation on a handle did not do what was asked.

use crate::command::Refusal;
use crate::mutants::{self, Mutant};
use crate::ports::{ProposeError, StoreError};

/// One list for all operations: the edge maps it in one place, to the last variant.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// Refused, by rule. Nothing changed.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// Too much is waiting for this tenant already. Nothing changed.
    #[error("too many requests of this tenant are waiting")]
    Busy,
    /// The node has no file descriptor left for this, or too much waits on it. Nothing changed.
    #[error("the node is busy: too much is open or waiting on it at the moment")]
    NodeBusy,
    /// The node, or the tenant on it, is still getting ready. Nothing changed.
    #[error("{what} is starting")]
    Starting {
        /// What is.
        what: &'static str,
    },
    /// Nobody leads the group that owns it. Nothing changed.
    #[error("the group that stores this has no leader at the moment: try again")]
    NoLeader,
    /// The disk of the node is full. Nothing changed.
    #[error("the disk of the node is full: reads work, writes do not")]
    DiskFull,
    /// The tenant's actor failed again and again and was put aside. Nothing changed.
    #[error("this tenant is quarantined on its node: {reason}")]
    Quarantined {
        /// Why.
        reason: String,
    },
    /// What was asked is decided and will be done, but the tenant's actor was put aside and does
    /// not take part for now.
    #[error(
        "the change is decided and takes effect once the tenant is served again; it is \
         quarantined on its node: {reason}"
    )]
    DecidedButQuarantined {
        /// Why.
        reason: String,
    },
    /// The node is stopping. Nothing changed.
    #[error("the node is stopping")]
    Stopping,
    /// It may have been done or not: ask, or retry with the same idempotency key.
    #[error("the outcome is unknown: {why}")]
    Unknown {
        /// What happened to the answer.
        why: String,
    },
    /// A read took longer than its deadline.
    #[error("no answer within the deadline")]
    DeadlineExceeded,
    /// The tenant's files cannot be read.
    #[error("{0}")]
    Store(#[from] StoreError),
}

impl CallError {
    /// Whether a proposal that was answered so is not to be tried again: the state lasts.
    pub(crate) const fn ends_attempts(&self) -> bool {
        matches!(self, Self::DiskFull | Self::Stopping | Self::Quarantined { .. })
    }

    /// The same, of a call whose command was accepted before it failed: what the command did stands,
    /// so that nothing may be said to be unchanged, nor to be refused.
    #[must_use]
    pub fn after_write(self) -> Self {
        match self {
            Self::Unknown { .. } | Self::DecidedButQuarantined { .. } => self,
            denied if mutants::is(Mutant::DenyAfterAccept) => denied,
            Self::Quarantined { reason } => Self::DecidedButQuarantined { reason },
            other => Self::Unknown { why: format!("it was accepted, and then: {other}") },
        }
    }
}

impl From<ProposeError> for CallError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader | ProposeError::NoLeader => Self::NoLeader,
            ProposeError::DiskFull => Self::DiskFull,
            ProposeError::Busy => Self::NodeBusy,
            ProposeError::Unknown(why) => Self::Unknown { why },
            ProposeError::Stopping => Self::Stopping,
            ProposeError::Quarantined(reason) => Self::Quarantined { reason },
        }
    }
}

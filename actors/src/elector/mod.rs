//! The elector: publishes and steers leadership of the system group. It never votes: Raft does.
//!
//! Invariants:
//! - `current` names a leader only while this node knows one that a quorum confirmed;
//! - each term this node leads is visible as the lock `cluster/leader`, with a fencing token.

mod actor;
mod message;
mod state;

use tokio::sync::watch;

pub use actor::{ElectorActor, ElectorArguments};
pub use message::ElectorMessage;

use crate::ports::Leadership;

/// Handle to what the elector publishes.
#[derive(Debug, Clone)]
pub struct Elector {
    leadership: watch::Receiver<Leadership>,
}

impl Elector {
    /// A handle to a published leadership.
    pub const fn new(leadership: watch::Receiver<Leadership>) -> Self {
        Self { leadership }
    }

    /// Who leads now, as far as this node knows.
    pub fn current(&self) -> Leadership {
        *self.leadership.borrow()
    }
}

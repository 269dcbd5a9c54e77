//! What the control plane's actor is told and asked.

use tokio::sync::oneshot;

use crate::ports::{Staged, StoreError};
use crate::replica::ReplicaRequest;
use crate::state::system::SystemState;

/// Reads the state and answers.
pub type ReadSystem = Box<dyn FnOnce(&SystemState) + Send>;

/// What another replica holds of the control plane, for a node whose files of it are damaged.
#[derive(Debug)]
pub struct ControlCopy {
    /// All of it.
    pub staged: Staged,
    /// Is told when it is in the place of the files.
    pub taken: oneshot::Sender<Result<(), StoreError>>,
}

/// A message to the control plane's actor.
pub enum ControlMessage {
    /// The queue has entries.
    Drain,
    /// Make what has changed durable.
    Flush,
    /// Leadership of group 0 may have changed.
    Leadership,
    /// Send again what tenants' groups have not confirmed.
    Reconcile,
    /// Carry out the moves of tenants whose source this node leads.
    Moves,
    /// Read the state.
    Read(ReadSystem),
    /// Index of the last entry applied.
    Applied(oneshot::Sender<u64>),
    /// Give or take what replicas send to each other.
    Replica(ReplicaRequest),
}

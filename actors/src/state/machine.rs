//! What every replicated state machine is to the replica that runs it.

use crate::command::{Envelope, Outcome};
use crate::domain::ids::Position;
use crate::ports::{Row, StoreError};
use crate::state::RowBuffer;

/// A replicated, deterministic state machine. It reads no clock, no chance and no file.
pub trait StateMachine: Sized + Send + 'static {
    /// What the leader is to do after a command has been applied.
    type Effect: Send;

    /// The state that `rows` hold; the state before the first command when there are none.
    ///
    /// # Errors
    /// When the rows cannot be read or understood.
    fn load(rows: &RowBuffer) -> Result<Self, StoreError>;

    /// Applies one command. Changes nothing when it refuses.
    fn apply(&mut self, position: Position, envelope: &Envelope) -> (Outcome, Vec<Self::Effect>);

    /// Events that were written since the last call: whole lines.
    fn take_events(&mut self) -> Vec<u8>;

    /// Rows that are complete and that the state itself has let go of (ended runs).
    fn take_final_rows(&mut self) -> Vec<Row>;

    /// Rows of everything else that changed since the last call.
    fn take_dirty_rows(&mut self) -> Vec<Row>;

    /// Whether there is anything that has to be in files. A tenant that was never set has not, and
    /// one that was deleted has not any more: its files are removed.
    fn needs_files(&self) -> bool;

    /// Whether the replica has to be started with each new leader, though nothing is handed to it:
    /// it has work that goes on, or timers to be armed.
    fn has_work(&self) -> bool;
}

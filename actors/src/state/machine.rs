//! What every replicated state machine is to the replica that runs it, and how each of its commands
//! is applied.
//!
//! Replicas of a group apply the same entries in the same order and must come to the same state,
//! byte for byte. Applying is therefore a function of the state and of the entry alone: ids,
//! moments and chance are in the entry, put there by whoever proposed it, and the position of the
//! entry in the log is the only other input. The same entries are applied again after a restart.
//!
//! What is to be done in the world (a step, a timer, a message to another group) is an effect.
//! Every replica computes it and only the leader performs it, once the entry is applied; what a
//! leader left undone the next one finds in the state. A command that comes of an effect or of a
//! timer carries the term of the leader that armed it, and does nothing in an entry of another
//! term: the next leader has timers of its own.
//!
//! [`apply`] is the beginning that all machines share. Its order matters:
//! 1. a command of another term, or one that the machine does not take, changes nothing, not even
//!    the clock: a machine that does not exist has no files to remember anything in;
//! 2. the clock takes the time of the entry, for refusals and late copies too, so that ages are
//!    the same on replicas that were loaded again;
//! 3. a request that was done before is answered as then, before any rule could refuse it now;
//! 4. only what changed something is remembered, after it has been done, in the same entry.

use crate::command::{Envelope, Outcome};
use crate::domain::ids::Position;
use crate::ports::{Row, StoreError};
use crate::state::RowBuffer;
use crate::state::tables::completion_records::{CompletionRecords, RequestState};

/// The rules of one kind of state machine, which [`apply`] calls in its order.
pub(super) trait Rules {
    /// What the leader is to do after a command.
    type Effect;

    /// Looks whether the machine takes the command at all.
    ///
    /// # Errors
    /// The outcome of a command that it does not take.
    fn takes(&self, envelope: &Envelope) -> Result<(), Outcome>;

    /// Takes the time of the entry, and the rules of the version that it was written by.
    fn begin(&mut self, envelope: &Envelope);

    /// What is kept of requests that were done.
    fn completions(&mut self) -> &mut CompletionRecords;

    /// Does what the command says, or refuses it.
    fn execute(&mut self, term: u64, envelope: &Envelope) -> (Outcome, Vec<Self::Effect>);
}

/// Applies an entry: see the module.
pub(super) fn apply<M: Rules>(
    machine: &mut M,
    position: Position,
    envelope: &Envelope,
) -> (Outcome, Vec<M::Effect>) {
    if envelope.term.is_some_and(|term| term != position.term) {
        return (Outcome::Ignored, Vec::new());
    }
    if let Err(outcome) = machine.takes(envelope) {
        return (outcome, Vec::new());
    }
    machine.begin(envelope);
    let Some(rpc_id) = &envelope.rpc_id else {
        return machine.execute(position.term, envelope);
    };
    match machine.completions().check(rpc_id, position.index) {
        RequestState::New => {}
        RequestState::Completed(outcome) => return (outcome, Vec::new()),
        RequestState::Stale => return (Outcome::Ignored, Vec::new()),
    }
    let (outcome, effects) = machine.execute(position.term, envelope);
    machine.completions().remember(rpc_id, position.index, &outcome);
    (outcome, effects)
}

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

    /// Checks the whole events at the beginning of `bytes`, which begin where an event does, and
    /// returns how many bytes they are. `is_sealed` is kept from one call to the next.
    ///
    /// # Errors
    /// Where the event begins that is not as it was written.
    fn check_events(bytes: &[u8], is_sealed: &mut bool) -> Result<usize, usize>;

    /// Rows that are complete and that the state itself has let go of (ended runs).
    fn take_final_rows(&mut self) -> Vec<Row>;

    /// Rows of everything else that changed since the last call.
    fn take_dirty_rows(&mut self) -> Vec<Row>;

    /// Whether there is anything that has to be in files. A tenant that was never set has not, and
    /// one that was deleted has not any more: its files are removed.
    fn needs_files(&self) -> bool;

    /// Tells, once, that everything it has written down before is none of its any more.
    fn take_reset(&mut self) -> bool {
        false
    }

    /// Whether all rows are to be loaded before a command is applied: it wakes what other commands wrote.
    fn is_loaded_by(&self, _: &Envelope) -> bool {
        false
    }

    /// Loads the state that the command at a position is applied to, where [`Self::is_loaded_by`] says so.
    ///
    /// # Errors
    /// When the rows cannot be read or understood.
    fn load_for(rows: &RowBuffer, _: Position) -> Result<Self, StoreError> {
        Self::load(rows)
    }

    /// Whether the replica has to be started with each new leader, though nothing is handed to it:
    /// it has work that goes on, or timers to be armed.
    fn has_work(&self) -> bool;
}

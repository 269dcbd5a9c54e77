//! Runs one replica: takes entries, applies them, writes rows behind.
//!
//! [`files`] opens, closes and removes the files; [`dump`] reads them for another replica, [`snapshot`] takes over what
//! another has sent; [`scrub`] looks for damage; [`digest`] hashes what there is, to be compared with other replicas.

mod digest;
mod dump;
mod files;
mod scrub;
mod snapshot;

pub use digest::DigestCursor;
pub use scrub::ScrubCursor;
pub use snapshot::ReplicaRequest;

use std::collections::VecDeque;
use std::sync::Arc;

use self::files::{not_of_log, opened};
use super::ApplyQueue;
use super::apply_queue::Batch;
use crate::command::{Envelope, Outcome};
use crate::domain::codec;
use crate::domain::ids::{GroupId, Position, StateMachineId};
use crate::mutants::{self, Mutant};
use crate::ports::{Durability, LogMismatch, Payload, Reply, Store, StoreError, Stores};
use crate::state::{RowBuffer, StateMachine};

/// Bytes of rows and events that wait in memory before they are made durable. Nothing is written to an
/// index earlier: a full disk would take it back, and the memory would not have it any more.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Entries applied since the last durable write that cause the next. Bounds the replay after a crash.
const UNDURABLE_ENTRIES_MAX: u64 = 4096;

/// Bytes of entries applied since the last durable write that cause the next. Few, for others' sake: the
/// rows of sixty megabytes at once are copied, hashed and written for half a second, and the tasks of other
/// tenants wait for the processors meanwhile, heartbeats among them.
const UNDURABLE_BYTES_MAX: usize = 2 << 20;

/// Carries what a runner needs from outside.
#[derive(Clone)]
pub struct ReplicaDeps {
    /// The replicated log.
    pub log: Arc<dyn Durability>,
    /// The files.
    pub stores: Arc<dyn Stores>,
}

/// Runs a replica, and knows how far the replica has come.
pub struct ReplicaRunner<M: StateMachine> {
    deps: ReplicaDeps,
    group: GroupId,
    part: StateMachineId,
    queue: Arc<ApplyQueue>,
    /// The state machine.
    pub machine: M,
    /// The rows, in the files and in memory.
    pub rows: RowBuffer,
    /// The last entry applied.
    applied: Option<Position>,
    /// The last entry that need not be applied again. Never above `applied`; the log may forget
    /// everything up to here.
    durable: Option<Position>,
    /// The position in the files. Below `durable` where a state needs no files.
    in_files: Option<Position>,
    /// Entries applied since the last durable write.
    undurable_entries: u64,
    /// Bytes of those entries.
    undurable_bytes: usize,
    /// Whether an entry was applied since the state was loaded: then the log is known to go on where
    /// they end.
    is_continued: bool,
    /// Whether the files of a deleted tenant are still to be removed.
    has_to_remove: bool,
    /// What the replica held where it was last asked to note it.
    noted: Option<DigestCursor>,
}

impl<M: StateMachine> ReplicaRunner<M> {
    /// Opens the replica's files and applies what has been delivered so far. Waits while a tenant's
    /// files cannot be opened for lack of room on the disk.
    ///
    /// # Errors
    /// When the files or the log cannot be read.
    pub async fn start(
        deps: ReplicaDeps,
        group: GroupId,
        part: StateMachineId,
        queue: Arc<ApplyQueue>,
    ) -> Result<(Self, Vec<M::Effect>), StoreError> {
        let store = if deps.stores.exists(part)? { Some(opened(&deps, part).await?) } else { None };
        // Files without a position were made and never written: they are not missing.
        let held = store.as_ref().map(|store| store.position().unwrap_or_default());
        let belongs = deps.log.belongs(group, part, held);
        belongs.map_err(|why| not_of_log(part, &why))?;
        // Only files that belong to the log are read: a copy would load, and go on from a wrong state.
        Self::over(deps, group, part, queue, store)?.begin().await
    }

    /// Goes on from `store`, whose contents are known to belong to the log.
    fn over(
        deps: ReplicaDeps,
        group: GroupId,
        part: StateMachineId,
        queue: Arc<ApplyQueue>,
        store: Option<Box<dyn Store>>,
    ) -> Result<Self, StoreError> {
        let applied = store.as_ref().and_then(|store| store.position());
        let rows = RowBuffer::new(store);
        let machine = M::load(&rows)?;
        Ok(Self {
            deps,
            group,
            part,
            queue,
            machine,
            rows,
            applied,
            durable: applied,
            in_files: applied,
            undurable_entries: 0,
            is_continued: false,
            undurable_bytes: 0,
            has_to_remove: false,
            noted: None,
        })
    }

    /// Applies what has been delivered so far.
    async fn begin(mut self) -> Result<(Self, Vec<M::Effect>), StoreError> {
        self.offer_files();
        // Before `drain`, which reports the files as durable: a crash may have come between the
        // durable write that began some work and the removal of the mark.
        self.unmark_idle().await?;
        let mut effects = Vec::new();
        // First what an actor before this one took out of the queue, then what is in the queue: the
        // order of the log.
        if let Some(upto) = self.queue.taken_up_to() {
            self.replay(upto, VecDeque::new(), &mut effects).await?;
        }
        effects.extend(self.drain().await?);
        Ok((self, effects))
    }

    /// Applies everything that has been delivered.
    ///
    /// # Errors
    /// When the files or the log fail. The replica has to be started again then.
    pub async fn drain(&mut self) -> Result<Vec<M::Effect>, StoreError> {
        let mut effects = Vec::new();
        let mut has_taken = false;
        while self.queue.has_work() {
            has_taken = true;
            // Before entries are taken: an error here leaves them in the queue.
            self.ensure_files().await?;
            let Batch { entries, then_replay_to, asking, room } = self.queue.take();
            self.undurable_bytes += room.bytes();
            let mut replies = Vec::with_capacity(entries.len());
            for entry in entries {
                let outcome = match entry.payload {
                    Payload::Command(envelope) => {
                        let outcome = self.apply(entry.position, &envelope, &mut effects)?;
                        self.note_if_asked(entry.position, &envelope, &outcome).await?;
                        outcome
                    }
                    Payload::NewTerm => Outcome::Ignored,
                };
                replies.extend(entry.reply.map(|reply: Reply| (reply, outcome)));
            }
            self.write_behind().await?;
            // The entries are out of memory now, so that others may use their room.
            drop(room);
            // After `write_behind`: when the files fail, this actor ends before it answers, and the
            // proposers learn that the outcome is unknown.
            for (reply, outcome) in replies {
                reply.send(outcome);
            }
            if let Some(upto) = then_replay_to {
                self.replay(upto, asking, &mut effects).await?;
            }
        }
        // On a full disk the files are given up later: the wish stays until it is fulfilled, because
        // nobody asks the same replica twice.
        if self.queue.are_files_wanted() && self.give_up_files().await? {
            self.queue.files_given_up();
        }
        if let Some(applied) = self.applied.filter(|_| mutants::is(Mutant::MarkTooEarly)) {
            self.tell_durable(applied);
        }
        if let Some(durable) = self.durable.filter(|_| has_taken && !self.is_dirty()) {
            // After a restart the log delivers what the files have already. Without a report its
            // low-water mark would stay where it is until the next durable write.
            self.tell_durable(durable);
        }
        Ok(effects)
    }

    /// Returns the position of the last entry applied.
    pub const fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// Tells whether something applied is not durable yet.
    pub fn is_dirty(&self) -> bool {
        self.applied != self.durable
    }

    /// Makes everything applied durable and tells the log. On a full disk the replica goes on from
    /// memory, stays dirty, and tries again with the next call: the log has what the files lack, and
    /// takes nothing more until there is room.
    ///
    /// # Errors
    /// When the files fail in another way.
    pub async fn make_durable(&mut self) -> Result<(), StoreError> {
        let Some(applied) = self.applied.filter(|_| self.is_dirty()) else { return Ok(()) };
        self.ensure_files().await?;
        if !self.settle_files().await? {
            return Ok(());
        }
        // Before the write: once the beginning of some work is durable, nothing is delivered after a
        // crash that would start the replica, and only the missing mark does.
        match self.unmark_idle().await {
            Err(StoreError::Full) => return self.wait_for_room().await,
            unmarked => unmarked?,
        }
        (self.undurable_entries, self.undurable_bytes) = (0, 0);
        self.rows.put(self.machine.take_final_rows());
        self.rows.put(self.machine.take_dirty_rows());
        let pending = self.rows.take_pending();
        // The rows stay in memory until the write has succeeded: a full disk takes it back.
        let kept = pending.clone();
        // Events first: the index records the length of their file.
        let events = self.rows.write_events();
        let written = match (events, &mut self.rows.store) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(store)) => store.make_durable(pending, applied).await,
            (Ok(()), None) => Ok(()),
        };
        match written {
            Err(StoreError::Full) => {
                // `put` does not overwrite anything newer: nothing was applied meanwhile.
                self.rows.put(kept);
                return self.wait_for_room().await;
            }
            written => written?,
        }
        self.rows.settled();
        self.durable = Some(applied);
        if self.rows.store.is_some() {
            self.in_files = Some(applied);
        }
        // Last: from here on the log may cut what the files have.
        self.tell_durable(applied);
        Ok(())
    }

    /// Lets the log forget what is durable here.
    fn tell_durable(&self, upto: Position) {
        // First the log notes that there are files. A log that has been cut below a low-water mark
        // must know which files hold what was cut, or it would not miss them.
        if self.rows.store.is_some() {
            self.deps.log.filed(self.part, upto);
        }
        self.deps.log.durable(self.group, self.part, upto);
    }

    /// Returns why the files fail every call, once they do.
    pub fn failure(&self) -> Option<StoreError> {
        self.rows.store.as_ref()?.failure()
    }

    /// Applies what the log has for this replica up to an index, and answers the proposers.
    async fn replay(
        &mut self,
        upto: u64,
        mut asking: VecDeque<(u64, Reply)>,
        effects: &mut Vec<M::Effect>,
    ) -> Result<(), StoreError> {
        self.ensure_files().await?;
        let mut from = self.applied.map_or(0, |applied| applied.index + 1);
        loop {
            // Some MiB at a time. What the files have already is skipped by `apply`.
            let batch = self.deps.log.replay(self.group, self.part, from, upto).await?;
            let mut replies = Vec::new();
            for (position, envelope) in batch.entries {
                self.undurable_bytes += codec::encoded_len(&*envelope);
                let outcome = self.apply(position, &envelope, effects)?;
                self.note_if_asked(position, &envelope, &outcome).await?;
                self.write_behind().await?;
                // Both are in the order of the log. A reply whose entry the log does not give is
                // dropped, which tells its proposer that the outcome is unknown.
                while asking.front().is_some_and(|(index, _)| *index <= position.index) {
                    let asked = asking.pop_front().filter(|(index, _)| *index == position.index);
                    replies.extend(asked.map(|(_, reply)| (reply, outcome.clone())));
                }
            }
            for (reply, outcome) in replies {
                reply.send(outcome);
            }
            match batch.next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    fn apply(
        &mut self,
        position: Position,
        envelope: &Envelope,
        effects: &mut Vec<M::Effect>,
    ) -> Result<Outcome, StoreError> {
        if let Some(applied) = self.applied {
            let forked = || not_of_log(self.part, &LogMismatch::Foreign);
            if position.index <= applied.index {
                // The same index in another term is another entry: the files went on from a log that
                // is not this one.
                if position.index == applied.index && position.term != applied.term {
                    return Err(forked());
                }
                // The files have this entry already. No proposer waits for its outcome: it is
                // delivered again only after a restart, which the proposer did not outlive.
                return Ok(Outcome::Ignored);
            }
            // A term and an index name one entry (Raft's log matching property). If the log has the
            // last entry of the files under the same term, it has everything before as it was applied
            // here. Looked at for the first entry only: from then on one entry follows the other.
            let term = || self.deps.log.term_at(self.group, applied.index);
            if !self.is_continued && term().is_some_and(|term| term != applied.term) {
                return Err(forked());
            }
        }
        // A command of an earlier leader is not applied: nothing is loaded for it.
        let is_late = envelope.term.is_some_and(|term| term != position.term);
        if !is_late && self.machine.is_loaded_by(envelope) {
            self.load_for(position)?;
        }
        self.is_continued = true;
        self.applied = Some(position);
        self.undurable_entries += 1;
        let (outcome, new_effects) = self.machine.apply(position, envelope);
        effects.extend(new_effects);
        if self.machine.take_reset() {
            self.let_go_of_rows();
        }
        Ok(outcome)
    }

    /// Loads what earlier commands have written, of which the state machine has held nothing so far.
    fn load_for(&mut self, position: Position) -> Result<(), StoreError> {
        self.rows.put_events(&self.machine.take_events());
        self.rows.put(self.machine.take_final_rows());
        self.rows.put(self.machine.take_dirty_rows());
        self.machine = M::load_for(&self.rows, position)?;
        Ok(())
    }

    /// Lets go of everything that was written before. At once, as what the next entries write is another
    /// life's: files with rows of both would be wrong.
    fn let_go_of_rows(&mut self) {
        self.has_to_remove |= self.rows.has_files();
        self.rows = RowBuffer::default();
        self.in_files = None;
        self.noted = None;
    }

    /// Appends events, and makes everything durable when many rows wait or much was applied. On a full
    /// disk rows and events wait in memory.
    async fn write_behind(&mut self) -> Result<(), StoreError> {
        if self.applied.is_none() {
            return Ok(());
        }
        // Into memory first, whatever the disk says: the state machine has let go of them.
        self.rows.put_events(&self.machine.take_events());
        self.rows.put(self.machine.take_final_rows());
        if !self.settle_files().await? {
            return Ok(());
        }
        match self.rows.write_events() {
            Err(StoreError::Full) => return self.wait_for_room().await,
            written => written?,
        }
        if self.undurable_entries >= UNDURABLE_ENTRIES_MAX
            || self.undurable_bytes >= UNDURABLE_BYTES_MAX
            || self.rows.pending_bytes() >= PENDING_BYTES_MAX
        {
            return self.make_durable().await;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;

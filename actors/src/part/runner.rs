//! Runs one part: takes entries, applies them, writes rows behind.

use std::sync::Arc;

use super::{Machine, Overlay, PartQueue};
use crate::command::Envelope;
use crate::ids::{GroupId, Part, Position};
use crate::outcome::Outcome;
use crate::ports::{Dump, Found, Ledger, Payload, Reply, StoreError, Stores};

/// Rows wait in memory until they are this many bytes; then they are written without a sync.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Entries applied since the last durable write; then comes the next. Bounds what a crash costs.
const UNDURABLE_ENTRIES_MAX: u64 = 4096;

/// No key of a row is longer, bytes: the longest are those of locks.
const KEY_BYTES_MAX: usize = 1024;

/// What a runner needs from outside.
#[derive(Clone)]
pub struct PartDeps {
    /// The replicated log.
    pub ledger: Arc<dyn Ledger>,
    /// The files.
    pub stores: Arc<dyn Stores>,
}

/// A part and how far it has come.
pub struct PartRunner<M: Machine> {
    deps: PartDeps,
    group: GroupId,
    part: Part,
    queue: Arc<PartQueue>,
    /// The state.
    pub machine: M,
    /// The rows.
    pub rows: Overlay,
    applied: Option<Position>,
    durable: Option<Position>,
    undurable_entries: u64,
}

impl<M: Machine> PartRunner<M> {
    /// Opens the part's files and brings its state up to what has been handed over so far.
    ///
    /// # Errors
    /// When the files or the log cannot be read.
    pub async fn start(
        deps: PartDeps,
        group: GroupId,
        part: Part,
        queue: Arc<PartQueue>,
    ) -> Result<(Self, Vec<M::Effect>), StoreError> {
        let store =
            if deps.stores.exists(part)? { Some(deps.stores.open(part).await?) } else { None };
        let applied = store.as_ref().and_then(|store| store.position());
        let rows = Overlay::new(store);
        let machine = M::load(&rows)?;
        let mut runner = Self {
            deps,
            group,
            part,
            queue,
            machine,
            rows,
            applied,
            durable: applied,
            undurable_entries: 0,
        };
        let mut effects = Vec::new();
        if let Some(upto) = runner.queue.taken_up_to() {
            runner.replay(upto, &mut effects).await?;
        }
        effects.extend(runner.drain().await?);
        Ok((runner, effects))
    }

    /// Applies everything that has been handed over.
    ///
    /// # Errors
    /// When the files or the log fail; the part has to be started anew then.
    pub async fn drain(&mut self) -> Result<Vec<M::Effect>, StoreError> {
        let mut effects = Vec::new();
        while self.queue.has_work() {
            let batch = self.queue.take();
            let mut replies = Vec::with_capacity(batch.entries.len());
            for entry in batch.entries {
                let outcome = match entry.payload {
                    Payload::Command(envelope) => {
                        self.apply(entry.position, &envelope, &mut effects)
                    }
                    Payload::NewTerm => Outcome::Ignored,
                };
                replies.extend(entry.reply.map(|reply: Reply| (reply, outcome)));
            }
            self.write_behind().await?;
            for (reply, outcome) in replies {
                reply.send(outcome);
            }
            if let Some(upto) = batch.then_replay_to {
                self.replay(upto, &mut effects).await?;
            }
        }
        if let Some(durable) = self.durable.filter(|_| !self.is_dirty()) {
            // After a restart the log hands over what the files have already: say so.
            self.deps.ledger.durable(self.group, self.part, durable);
        }
        Ok(effects)
    }

    /// The last entry applied.
    pub const fn applied(&self) -> Option<Position> {
        self.applied
    }

    /// Whether something applied is not durable yet.
    pub fn is_dirty(&self) -> bool {
        self.applied != self.durable
    }

    /// Makes everything applied durable and tells the log. Where the disk is full the control plane
    /// goes on from memory, stays dirty, and tries again with the next call: the log has what its
    /// file lacks. A tenant fails then, and is started again from its files and the log.
    ///
    /// # Errors
    /// When the files fail.
    pub async fn make_durable(&mut self) -> Result<(), StoreError> {
        let Some(applied) = self.applied.filter(|_| self.is_dirty()) else { return Ok(()) };
        self.rows.put(self.machine.take_settled_rows());
        self.rows.put(self.machine.take_dirty_rows());
        let pending = self.rows.take_pending();
        let may_wait = self.may_wait_for_room();
        let kept = if may_wait { pending.clone() } else { Vec::new() };
        let written = match &mut self.rows.store {
            Some(store) => store.make_durable(pending, applied).await,
            None if may_wait => Err(StoreError::Full),
            None => Ok(()),
        };
        self.undurable_entries = 0;
        match written {
            Err(StoreError::Full) if may_wait => {
                self.rows.put(kept);
                return self.reopen().await;
            }
            written => written?,
        }
        self.durable = Some(applied);
        self.deps.ledger.durable(self.group, self.part, applied);
        Ok(())
    }

    /// Whether everything since the last durable write is still in memory: the control plane has no
    /// events, and commits nothing that is not durable.
    fn may_wait_for_room(&self) -> bool {
        self.part == Part::System
    }

    /// Opens the files again, which a failed write has closed. They hold what was durable last; the
    /// rows since then are pending.
    async fn reopen(&mut self) -> Result<(), StoreError> {
        tracing::warn!(part = %self.part, "the disk is full: what changed waits in memory and the log");
        self.rows.store = None;
        match self.deps.stores.open(self.part).await {
            Ok(store) => self.rows.store = Some(store),
            Err(StoreError::Full) => {}
            Err(error) if error.is_passing() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Everything the part holds, which is durable then unless the disk is full.
    ///
    /// # Errors
    /// When the files fail.
    pub async fn dump(&mut self) -> Result<Dump, StoreError> {
        self.make_durable().await?;
        Ok(Dump { position: self.applied, rows: self.all_rows()? })
    }

    /// Takes over what another replica's part holds; whether it is newer than what is here. It is
    /// durable then.
    ///
    /// # Errors
    /// When the files fail.
    pub async fn install(&mut self, dump: Dump) -> Result<bool, StoreError> {
        let Some(position) = dump.position.filter(|position| Some(*position) > self.applied) else {
            return Ok(false);
        };
        if self.rows.store.is_none() {
            self.rows.store = Some(self.deps.stores.open(self.part).await?);
        }
        let gone = self.all_rows()?.into_iter().map(|(key, _)| (key, None));
        self.rows.put(gone.collect());
        let new = dump.rows.into_iter().map(|(key, value)| (key, Some(value)));
        self.rows.put(new.collect());
        self.machine = M::load(&self.rows)?;
        self.applied = Some(position);
        self.make_durable().await?;
        if self.is_dirty() { Err(StoreError::Full) } else { Ok(true) }
    }

    fn all_rows(&self) -> Result<Vec<Found>, StoreError> {
        self.rows.scan(&[], &[u8::MAX; KEY_BYTES_MAX], usize::MAX / 2, false)
    }

    /// Lets go of the files, for an actor that stops.
    pub fn close_files(&mut self) {
        self.rows = Overlay::default();
    }

    async fn replay(&mut self, upto: u64, effects: &mut Vec<M::Effect>) -> Result<(), StoreError> {
        let entries = self.deps.ledger.replay(self.group, self.part, self.applied, upto).await?;
        for (position, envelope) in entries {
            self.apply(position, &envelope, effects);
            self.write_behind().await?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        position: Position,
        envelope: &Envelope,
        effects: &mut Vec<M::Effect>,
    ) -> Outcome {
        if self.applied.is_some_and(|applied| position.index <= applied.index) {
            // The index has it already. Nobody waits for the outcome: after a restart the
            // proposer is gone.
            return Outcome::Ignored;
        }
        self.applied = Some(position);
        self.undurable_entries += 1;
        let (outcome, new_effects) = self.machine.apply(position, envelope);
        effects.extend(new_effects);
        outcome
    }

    /// Appends events. Rows are written when many wait, and made durable when much was applied.
    async fn write_behind(&mut self) -> Result<(), StoreError> {
        let Some(applied) = self.applied else { return Ok(()) };
        match (self.rows.store.is_some(), self.machine.needs_files()) {
            (false, true) => match self.deps.stores.open(self.part).await {
                Err(StoreError::Full) if self.may_wait_for_room() => {}
                Err(error) if self.may_wait_for_room() && error.is_passing() => {}
                opened => self.rows.store = Some(opened?),
            },
            // Before anything says that the deletion is durable: else it would not be repeated.
            (true, false) => self.remove_files().await?,
            _ => {}
        }
        self.append_events()?;
        self.rows.put(self.machine.take_settled_rows());
        let is_large = self.rows.pending_bytes() >= PENDING_BYTES_MAX;
        if self.undurable_entries >= UNDURABLE_ENTRIES_MAX || is_large && self.may_wait_for_room() {
            return self.make_durable().await;
        }
        if is_large {
            self.rows.put(self.machine.take_dirty_rows());
            let pending = self.rows.take_pending();
            if let Some(store) = &mut self.rows.store {
                store.commit(pending, applied)?;
            }
        }
        Ok(())
    }

    async fn remove_files(&mut self) -> Result<(), StoreError> {
        self.rows = Overlay::default();
        match self.part {
            Part::Tenant(tenant) => self.deps.stores.remove(tenant).await,
            Part::System => Ok(()),
        }
    }

    fn append_events(&mut self) -> Result<(), StoreError> {
        let events = self.machine.take_events();
        match &mut self.rows.store {
            Some(store) if !events.is_empty() => store.append_events(&events),
            _ => Ok(()),
        }
    }
}

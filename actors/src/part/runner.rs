//! Runs one part: takes entries, applies them, writes rows behind.

use std::sync::Arc;
use std::time::Duration;

use super::{Machine, Overlay, PartQueue};
use crate::command::Envelope;
use crate::ids::{GroupId, Part, Position};
use crate::outcome::Outcome;
use crate::ports::{Dump, Found, Ledger, Payload, Reply, Store, StoreError, Stores};

/// Rows and events wait in memory until they are this many bytes; then they are made durable. Nothing
/// is written to an index before: what a full disk takes back of it would be lost to memory.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Entries applied since the last durable write; then comes the next. Bounds what a crash costs.
const UNDURABLE_ENTRIES_MAX: u64 = 4096;

/// Wait before files that could not be opened for lack of room are opened again.
const ROOM_RETRY: Duration = Duration::from_millis(250);

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
    /// Files of a state that needs none any more are still there.
    has_to_remove: bool,
    /// What another replica's part sent, while it waits for room.
    to_install: Option<Dump>,
}

impl<M: Machine> PartRunner<M> {
    /// Opens the part's files and brings its state up to what has been handed over so far. A tenant
    /// whose files cannot be opened for lack of room waits for it.
    ///
    /// # Errors
    /// When the files or the log cannot be read.
    pub async fn start(
        deps: PartDeps,
        group: GroupId,
        part: Part,
        queue: Arc<PartQueue>,
    ) -> Result<(Self, Vec<M::Effect>), StoreError> {
        let store = if deps.stores.exists(part)? { Some(opened(&deps, part).await?) } else { None };
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
            has_to_remove: false,
            to_install: None,
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

    /// Makes everything applied durable and tells the log. Where the disk is full the part goes on
    /// from memory, stays dirty, and tries again with the next call: the log has what its files
    /// lack, and takes nothing more until there is room.
    ///
    /// # Errors
    /// When the files fail in another way.
    pub async fn make_durable(&mut self) -> Result<(), StoreError> {
        let Some(applied) = self.applied.filter(|_| self.is_dirty()) else { return Ok(()) };
        if !self.deps.ledger.has_room() || !self.settle_files().await? {
            return Ok(());
        }
        self.undurable_entries = 0;
        self.rows.put(self.machine.take_settled_rows());
        self.rows.put(self.machine.take_dirty_rows());
        let pending = self.rows.take_pending();
        let kept = pending.clone();
        let events = self.rows.write_events();
        let written = match (events, &mut self.rows.store) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(store)) => store.make_durable(pending, applied).await,
            (Ok(()), None) => Ok(()),
        };
        match written {
            Err(StoreError::Full) => {
                self.rows.put(kept);
                return self.wait_for_room().await;
            }
            written => written?,
        }
        self.rows.settled();
        self.durable = Some(applied);
        self.deps.ledger.durable(self.group, self.part, applied);
        Ok(())
    }

    /// Opens the files again, which a failed write has closed. They hold what was durable last; the
    /// rows and events since then are in memory.
    async fn wait_for_room(&mut self) -> Result<(), StoreError> {
        tracing::warn!(part = %self.part, "the disk is full: what changed waits in memory and the log");
        self.deps.ledger.found_no_room();
        self.rows.store = None;
        self.rows.is_shut = self.deps.stores.exists(self.part)?;
        self.open_files().await.map(drop)
    }

    /// Opens the files; whether there was room for that.
    async fn open_files(&mut self) -> Result<bool, StoreError> {
        match self.deps.stores.open(self.part).await {
            Ok(store) => {
                self.rows.store = Some(store);
                self.rows.is_shut = false;
                Ok(true)
            }
            Err(StoreError::Full) => {
                self.deps.ledger.found_no_room();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the files that the state needs, and removes those that it needs no more; whether there
    /// was room for that. A deletion is not durable before its files are gone: else it would not be
    /// repeated.
    async fn settle_files(&mut self) -> Result<bool, StoreError> {
        if (self.rows.store.is_some() || self.rows.is_shut) && !self.machine.needs_files() {
            self.rows = Overlay::default();
            self.has_to_remove = true;
        }
        if self.has_to_remove {
            match self.remove_files().await {
                Err(StoreError::Full) => {
                    self.deps.ledger.found_no_room();
                    return Ok(false);
                }
                removed => removed?,
            }
            self.has_to_remove = false;
        }
        if self.rows.store.is_none() && self.machine.needs_files() {
            return self.open_files().await;
        }
        Ok(true)
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
    /// [`StoreError::Full`] when it was taken over, and waits in memory for room; and when the files
    /// fail.
    pub async fn install(&mut self, dump: Dump) -> Result<bool, StoreError> {
        let is_newer = dump.position > self.applied;
        if is_newer {
            self.to_install = Some(dump);
        }
        self.settle().await?;
        Ok(is_newer)
    }

    /// Makes everything durable, first of all what another replica's part sent.
    ///
    /// # Errors
    /// [`StoreError::Full`] while there is no room for it, and when the files fail.
    pub async fn settle(&mut self) -> Result<(), StoreError> {
        self.take_over().await?;
        self.make_durable().await?;
        if self.is_dirty() { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Puts what another replica's part sent in the place of what is here. For that the files have to
    /// be open: what they hold goes.
    async fn take_over(&mut self) -> Result<(), StoreError> {
        if self.to_install.is_none() {
            return Ok(());
        }
        if self.rows.store.is_none() && !self.open_files().await? && self.rows.is_shut {
            return Err(StoreError::Full);
        }
        let gone = self.all_rows()?.into_iter().map(|(key, _)| (key, None)).collect();
        let Some(dump) = self.to_install.take() else { return Ok(()) };
        if dump.position > self.applied {
            self.rows.put(gone);
            let new = dump.rows.into_iter().map(|(key, value)| (key, Some(value)));
            self.rows.put(new.collect());
            self.machine = M::load(&self.rows)?;
            self.applied = dump.position;
        }
        Ok(())
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

    /// Appends events. Rows are made durable when many wait, or when much was applied. Where the
    /// disk is full both wait in memory.
    async fn write_behind(&mut self) -> Result<(), StoreError> {
        if self.applied.is_none() {
            return Ok(());
        }
        self.rows.put_events(&self.machine.take_events());
        self.rows.put(self.machine.take_settled_rows());
        if !self.deps.ledger.has_room() || !self.settle_files().await? {
            return Ok(());
        }
        match self.rows.write_events() {
            Err(StoreError::Full) => return self.wait_for_room().await,
            written => written?,
        }
        if self.undurable_entries >= UNDURABLE_ENTRIES_MAX
            || self.rows.pending_bytes() >= PENDING_BYTES_MAX
        {
            return self.make_durable().await;
        }
        Ok(())
    }

    async fn remove_files(&mut self) -> Result<(), StoreError> {
        match self.part {
            Part::Tenant(tenant) => self.deps.stores.remove(tenant).await,
            Part::System => Ok(()),
        }
    }
}

/// Opens the files of a part that has some.
async fn opened(deps: &PartDeps, part: Part) -> Result<Box<dyn Store>, StoreError> {
    loop {
        match deps.stores.open(part).await {
            // Failing would put the tenant in quarantine, for something that passes by itself.
            Err(StoreError::Full) if part != Part::System => {
                deps.ledger.found_no_room();
                tokio::time::sleep(ROOM_RETRY).await;
            }
            opened => return opened,
        }
    }
}

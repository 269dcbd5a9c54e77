//! Runs one part: takes entries, applies them, writes rows behind.

use std::collections::VecDeque;
use std::sync::Arc;

use super::queue::Batch;
use super::{Machine, Overlay, PartQueue};
use crate::codec;
use crate::command::Envelope;
use crate::ids::{GroupId, Part, Position};
use crate::outcome::Outcome;
use crate::ports::{Dump, Found, Ledger, NotOfLog, Payload, Reply, StoreError, Stores};

/// Rows wait in memory until they are this many bytes; then they are written without a sync.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Entries applied since the last durable write; then comes the next. Bounds what a crash costs.
const UNDURABLE_ENTRIES_MAX: u64 = 4096;

/// Bytes of entries applied since the last durable write; then comes the next.
const UNDURABLE_BYTES_MAX: usize = 64 << 20;

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
    /// Whether it is certain that the log goes on where the files end.
    is_continued: bool,
    undurable_bytes: usize,
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
        let belongs = deps.ledger.belongs(group, part, applied);
        belongs.map_err(|why| not_of_log(part, &why))?;
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
            is_continued: false,
            undurable_bytes: 0,
        };
        runner.offer_files();
        runner.unmark_idle().await?;
        let mut effects = Vec::new();
        if let Some(upto) = runner.queue.taken_up_to() {
            runner.replay(upto, VecDeque::new(), &mut effects).await?;
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
            self.ensure_files().await?;
            let Batch { entries, then_replay_to, asking, room } = self.queue.take();
            let mut replies = Vec::with_capacity(entries.len());
            for entry in entries {
                let outcome = match entry.payload {
                    Payload::Command(envelope) => {
                        self.apply(entry.position, &envelope, &mut effects)?
                    }
                    Payload::NewTerm => Outcome::Ignored,
                };
                replies.extend(entry.reply.map(|reply: Reply| (reply, outcome)));
            }
            self.write_behind().await?;
            drop(room);
            for (reply, outcome) in replies {
                reply.send(outcome);
            }
            if let Some(upto) = then_replay_to {
                self.replay(upto, asking, &mut effects).await?;
            }
        }
        if self.queue.take_files_wanted() {
            self.give_up_files().await?;
        }
        if let Some(durable) = self.durable.filter(|_| !self.is_dirty()) {
            // After a restart the log hands over what the files have already: say so.
            self.tell_durable(durable);
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
        self.ensure_files().await?;
        self.unmark_idle().await?;
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
        self.undurable_bytes = 0;
        match written {
            Err(StoreError::Full) if may_wait => {
                self.rows.put(kept);
                return self.reopen().await;
            }
            written => written?,
        }
        self.durable = Some(applied);
        self.tell_durable(applied);
        Ok(())
    }

    /// Lets the log forget what is durable here. First the log remembers that there are files: a
    /// floor that leaves entries behind must never stand in a log that does not miss them.
    fn tell_durable(&self, upto: Position) {
        if self.rows.store.is_some() {
            self.deps.ledger.filed(self.part, upto);
        }
        self.deps.ledger.durable(self.group, self.part, upto);
    }

    /// Why the files fail every call, once they do.
    pub fn failure(&self) -> Option<StoreError> {
        self.rows.store.as_ref()?.failure()
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
        self.is_continued = false;
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

    /// Opens the files again if they were let go. To be called before rows are read.
    ///
    /// # Errors
    /// When the files cannot be opened, or are not those that were closed.
    pub async fn ensure_files(&mut self) -> Result<(), StoreError> {
        if !self.rows.is_let_go() {
            return Ok(());
        }
        // They held everything when they were closed: what is missing now is lost.
        let lost = |what: &str| StoreError::Damaged {
            file: format!("the index of {}", self.part),
            offset: 0,
            what: what.to_owned(),
        };
        if !self.deps.stores.exists(self.part)? {
            return Err(lost("it has vanished while it was closed"));
        }
        let store = self.deps.stores.open(self.part).await?;
        if store.position() != self.durable {
            return Err(lost("it was changed while it was closed"));
        }
        self.rows.take_back(store);
        self.offer_files();
        Ok(())
    }

    /// Makes everything durable and closes the files until they are needed again: others need
    /// their descriptors. The state stays.
    async fn give_up_files(&mut self) -> Result<(), StoreError> {
        if self.rows.store.is_none() {
            return Ok(());
        }
        self.make_durable().await?;
        if !self.is_dirty() {
            self.mark_idle().await?;
            self.rows.let_go();
        }
        Ok(())
    }

    /// Lets others ask for the descriptors of the open files.
    fn offer_files(&mut self) {
        let queue = Arc::downgrade(&self.queue);
        if let Some(store) = &mut self.rows.store {
            store.on_wanted(Box::new(move || {
                if let Some(queue) = queue.upgrade() {
                    queue.want_files();
                }
            }));
        }
    }

    /// Takes the mark of an idle part away when the part has work. Before what began the work is
    /// durable in the files, and before the log is told so: from then on nothing is handed over
    /// that would start the part after a crash.
    async fn unmark_idle(&mut self) -> Result<(), StoreError> {
        match &mut self.rows.store {
            Some(store) if store.is_idle() && self.machine.has_work() => {
                store.set_idle(false).await
            }
            _ => Ok(()),
        }
    }

    /// Marks the part as idle when it has no work and everything is durable. To be called before
    /// the files are closed.
    ///
    /// # Errors
    /// When the files fail.
    pub async fn mark_idle(&mut self) -> Result<(), StoreError> {
        let may_mark = !self.is_dirty() && !self.machine.has_work();
        match &mut self.rows.store {
            Some(store) if may_mark && !store.is_idle() => store.set_idle(true).await,
            _ => Ok(()),
        }
    }

    /// Applies what the log has for this part up to an index, and tells who asks.
    async fn replay(
        &mut self,
        upto: u64,
        mut asking: VecDeque<(u64, Reply)>,
        effects: &mut Vec<M::Effect>,
    ) -> Result<(), StoreError> {
        self.ensure_files().await?;
        let mut from = self.applied.map_or(0, |applied| applied.index + 1);
        loop {
            let batch = self.deps.ledger.replay(self.group, self.part, from, upto).await?;
            let mut replies = Vec::new();
            for (position, envelope) in batch.entries {
                let outcome = self.apply(position, &envelope, effects)?;
                self.write_behind().await?;
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
            let forked = || not_of_log(self.part, &NotOfLog::Foreign);
            if position.index <= applied.index {
                if position.index == applied.index && position.term != applied.term {
                    return Err(forked());
                }
                // The index has it already. Nobody waits for the outcome: after a restart the
                // proposer is gone.
                return Ok(Outcome::Ignored);
            }
            // Terms and indexes name entries: where the log has this one of the same term, it has
            // everything before it as it was applied here.
            let term = || self.deps.ledger.term_at(self.group, applied.index);
            if !self.is_continued && term().is_some_and(|term| term != applied.term) {
                return Err(forked());
            }
        }
        self.is_continued = true;
        self.applied = Some(position);
        self.undurable_entries += 1;
        self.undurable_bytes += codec::encoded_len(envelope);
        let (outcome, new_effects) = self.machine.apply(position, envelope);
        effects.extend(new_effects);
        Ok(outcome)
    }

    /// Appends events. Rows are written when many wait, and made durable when much was applied.
    async fn write_behind(&mut self) -> Result<(), StoreError> {
        let Some(applied) = self.applied else { return Ok(()) };
        match (self.rows.store.is_some(), self.machine.needs_files()) {
            (false, true) => match self.deps.stores.open(self.part).await {
                Err(StoreError::Full) if self.may_wait_for_room() => {}
                opened => {
                    self.rows.store = Some(opened?);
                    self.offer_files();
                }
            },
            // Before anything says that the deletion is durable: else it would not be repeated.
            (true, false) => self.remove_files().await?,
            _ => {}
        }
        self.append_events()?;
        self.rows.put(self.machine.take_settled_rows());
        let is_large = self.rows.pending_bytes() >= PENDING_BYTES_MAX;
        let is_due = self.undurable_entries >= UNDURABLE_ENTRIES_MAX
            || self.undurable_bytes >= UNDURABLE_BYTES_MAX;
        if is_due || is_large && self.may_wait_for_room() {
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
        let Part::Tenant(tenant) = self.part else { return Ok(()) };
        // Killed in between, the log says that there are none, and the next start applies the
        // deletion once more. The other way round they would be missed.
        self.deps.ledger.unfile(self.group, self.part).await?;
        self.deps.stores.remove(tenant).await
    }

    fn append_events(&mut self) -> Result<(), StoreError> {
        let events = self.machine.take_events();
        match &mut self.rows.store {
            Some(store) if !events.is_empty() => store.append_events(&events),
            _ => Ok(()),
        }
    }
}

/// What is said of files that do not belong to the log beside them.
fn not_of_log(part: Part, why: &NotOfLog) -> StoreError {
    let file = match part {
        Part::System => "system.redb".to_owned(),
        Part::Tenant(tenant) => format!("tenants/{tenant}"),
    };
    let way_out = "put the whole data directory back as it was, or, where other members hold the \
                   data, remove it and join anew";
    StoreError::Damaged { file, offset: 0, what: format!("{why}; {way_out}") }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;

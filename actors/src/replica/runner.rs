//! Runs one replica: takes entries, applies them, writes rows behind.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::ApplyQueue;
use super::apply_queue::Batch;
use crate::command::{Envelope, Outcome};
use crate::domain::codec;
use crate::domain::ids::{GroupId, Position, StateMachineId};
use crate::ports::{
    Dump, Found, LogMismatch, Payload, ReplicatedLog, Reply, Store, StoreError, Stores,
};
use crate::state::{RowBuffer, StateMachine};

/// Rows and events wait in memory until they are this many bytes; then they are made durable. Nothing
/// is written to an index before: what a full disk takes back of it would be lost to memory.
const PENDING_BYTES_MAX: usize = 4 << 20;

/// Entries applied since the last durable write; then comes the next. Bounds what a crash costs.
const UNDURABLE_ENTRIES_MAX: u64 = 4096;

/// Bytes of entries applied since the last durable write; then comes the next.
const UNDURABLE_BYTES_MAX: usize = 64 << 20;

/// Wait before files that could not be opened for lack of room are opened again.
const ROOM_RETRY: Duration = Duration::from_millis(250);

/// No key of a row is longer, bytes: the longest are those of locks.
const KEY_BYTES_MAX: usize = 1024;

/// What a runner needs from outside.
#[derive(Clone)]
pub struct ReplicaDeps {
    /// The replicated log.
    pub log: Arc<dyn ReplicatedLog>,
    /// The files.
    pub stores: Arc<dyn Stores>,
}

/// A replica and how far it has come.
pub struct ReplicaRunner<M: StateMachine> {
    deps: ReplicaDeps,
    group: GroupId,
    part: StateMachineId,
    queue: Arc<ApplyQueue>,
    /// The state.
    pub machine: M,
    /// The rows.
    pub rows: RowBuffer,
    applied: Option<Position>,
    durable: Option<Position>,
    /// What the files hold durably; `durable` also rises where there is nothing to keep.
    in_files: Option<Position>,
    undurable_entries: u64,
    /// Whether it is certain that the log goes on where the files end.
    is_continued: bool,
    undurable_bytes: usize,
    /// Files of a state that needs none any more are still there.
    has_to_remove: bool,
    /// What another replica sent, while it waits for room.
    to_install: Option<Dump>,
}

impl<M: StateMachine> ReplicaRunner<M> {
    /// Opens the replica's files and brings its state up to what has been handed over so far. A
    /// tenant whose files cannot be opened for lack of room waits for it.
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
        let applied = store.as_ref().and_then(|store| store.position());
        // Files without a position were made and never written: they are not missing.
        let held = store.as_ref().map(|store| store.position().unwrap_or_default());
        let belongs = deps.log.belongs(group, part, held);
        belongs.map_err(|why| not_of_log(part, &why))?;
        let rows = RowBuffer::new(store);
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
            in_files: applied,
            undurable_entries: 0,
            is_continued: false,
            undurable_bytes: 0,
            has_to_remove: false,
            to_install: None,
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
    /// When the files or the log fail; the replica has to be started anew then.
    pub async fn drain(&mut self) -> Result<Vec<M::Effect>, StoreError> {
        let mut effects = Vec::new();
        let mut has_taken = false;
        while self.queue.has_work() {
            has_taken = true;
            self.ensure_files().await?;
            let Batch { entries, then_replay_to, asking, room } = self.queue.take();
            self.undurable_bytes += room.bytes();
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
        // On a full disk they are given up later: whoever wants them asks nobody twice.
        if self.queue.are_files_wanted() && self.give_up_files().await? {
            self.queue.files_given_up();
        }
        if let Some(durable) = self.durable.filter(|_| has_taken && !self.is_dirty()) {
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

    /// Makes everything applied durable and tells the log. Where the disk is full the replica goes
    /// on from memory, stays dirty, and tries again with the next call: the log has what its files
    /// lack, and takes nothing more until there is room.
    ///
    /// # Errors
    /// When the files fail in another way.
    pub async fn make_durable(&mut self) -> Result<(), StoreError> {
        let Some(applied) = self.applied.filter(|_| self.is_dirty()) else { return Ok(()) };
        self.ensure_files().await?;
        if !self.deps.log.has_room() || !self.settle_files().await? {
            return Ok(());
        }
        match self.unmark_idle().await {
            Err(StoreError::Full) => return self.wait_for_room().await,
            unmarked => unmarked?,
        }
        (self.undurable_entries, self.undurable_bytes) = (0, 0);
        self.rows.put(self.machine.take_final_rows());
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
        if self.rows.store.is_some() {
            self.in_files = Some(applied);
        }
        self.tell_durable(applied);
        Ok(())
    }

    /// Lets the log forget what is durable here. First the log remembers that there are files: a
    /// floor that leaves entries behind must never stand in a log that does not miss them.
    fn tell_durable(&self, upto: Position) {
        if self.rows.store.is_some() {
            self.deps.log.filed(self.part, upto);
        }
        self.deps.log.durable(self.group, self.part, upto);
    }

    /// Why the files fail every call, once they do.
    pub fn failure(&self) -> Option<StoreError> {
        self.rows.store.as_ref()?.failure()
    }

    /// Opens the files again, which a failed write has closed. They hold what was durable last; the
    /// rows and events since then are in memory.
    async fn wait_for_room(&mut self) -> Result<(), StoreError> {
        tracing::warn!(part = %self.part, "the disk is full: what changed waits in memory and the log");
        self.deps.log.found_no_room();
        self.rows.store = None;
        self.rows.is_shut = self.deps.stores.exists(self.part)?;
        self.open_files().await.map(drop)
    }

    /// Opens the files; whether there was room for that.
    async fn open_files(&mut self) -> Result<bool, StoreError> {
        // What closed files held and lack now is lost.
        let had_files = self.rows.has_files();
        let lost = |what: &str| StoreError::Damaged {
            file: format!("the index of {}", self.part),
            offset: 0,
            what: what.to_owned(),
        };
        if had_files && !self.deps.stores.exists(self.part)? {
            return Err(lost("it has vanished while it was closed"));
        }
        match self.deps.stores.open(self.part).await {
            Ok(store) if had_files && store.position() < self.in_files => {
                Err(lost("it was changed while it was closed"))
            }
            Ok(store) => {
                self.rows.take_back(store);
                self.offer_files();
                Ok(true)
            }
            Err(StoreError::Full) => {
                self.deps.log.found_no_room();
                self.rows.shut();
                Ok(false)
            }
            // The control plane goes on without its file until there is a descriptor for it.
            Err(error) if error.is_passing() && self.part == StateMachineId::System => {
                self.rows.shut();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the files that the state needs, and removes those that it needs no more; whether there
    /// was room for that. A deletion is not durable before its files are gone: else it would not be
    /// repeated.
    async fn settle_files(&mut self) -> Result<bool, StoreError> {
        if self.rows.has_files() && !self.machine.needs_files() {
            self.rows = RowBuffer::default();
            self.in_files = None;
            self.has_to_remove = true;
        }
        if self.has_to_remove {
            match self.remove_files().await {
                Err(StoreError::Full) => {
                    self.deps.log.found_no_room();
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

    /// Everything the replica holds, which is durable then unless the disk is full.
    ///
    /// # Errors
    /// When the files fail.
    pub async fn dump(&mut self) -> Result<Dump, StoreError> {
        self.make_durable().await?;
        Ok(Dump { position: self.applied, rows: self.all_rows()? })
    }

    /// Takes over what another replica holds; whether it is newer than what is here. It is
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

    /// Makes everything durable, first of all what another replica sent.
    ///
    /// # Errors
    /// [`StoreError::Full`] while there is no room for it, and when the files fail.
    pub async fn settle(&mut self) -> Result<(), StoreError> {
        self.take_over().await?;
        self.make_durable().await?;
        if self.is_dirty() { Err(StoreError::Full) } else { Ok(()) }
    }

    /// Puts what another replica sent in the place of what is here. For that the files have to
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
            self.is_continued = false;
        }
        Ok(())
    }

    fn all_rows(&self) -> Result<Vec<Found>, StoreError> {
        self.rows.scan(&[], &[u8::MAX; KEY_BYTES_MAX], usize::MAX / 2, false)
    }

    /// Lets go of the files, for an actor that stops.
    pub fn close_files(&mut self) {
        self.rows = RowBuffer::default();
        self.queue.files_given_up();
    }

    /// Opens the files again if they were let go, or could not be opened for lack of room that is
    /// there by now. To be called before rows are read.
    ///
    /// # Errors
    /// When the files cannot be opened, or lack what they held when they were closed.
    pub async fn ensure_files(&mut self) -> Result<(), StoreError> {
        let may_open = self.rows.is_let_go() || self.rows.is_shut && self.deps.log.has_room();
        if self.rows.store.is_none() && may_open {
            self.open_files().await?;
        }
        Ok(())
    }

    /// Makes everything durable and closes the files until they are needed again: others need
    /// their descriptors. The state stays. Whether they are closed: not while the disk is full.
    async fn give_up_files(&mut self) -> Result<bool, StoreError> {
        if self.rows.store.is_none() {
            return Ok(true);
        }
        self.make_durable().await?;
        if self.is_dirty() {
            return Ok(false);
        }
        self.mark_idle().await?;
        self.rows.let_go();
        Ok(true)
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

    /// Takes the mark of an idle replica away when the replica has work. Before what began the work
    /// is durable in the files, and before the log is told so: from then on nothing is handed over
    /// that would start the replica after a crash.
    async fn unmark_idle(&mut self) -> Result<(), StoreError> {
        match &mut self.rows.store {
            Some(store) if store.is_idle() && self.machine.has_work() => {
                store.set_idle(false).await
            }
            _ => Ok(()),
        }
    }

    /// Marks the replica as idle when it has no work and everything is durable. To be called before
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

    /// Applies what the log has for this replica up to an index, and tells who asks.
    async fn replay(
        &mut self,
        upto: u64,
        mut asking: VecDeque<(u64, Reply)>,
        effects: &mut Vec<M::Effect>,
    ) -> Result<(), StoreError> {
        self.ensure_files().await?;
        let mut from = self.applied.map_or(0, |applied| applied.index + 1);
        loop {
            let batch = self.deps.log.replay(self.group, self.part, from, upto).await?;
            let mut replies = Vec::new();
            for (position, envelope) in batch.entries {
                self.undurable_bytes += codec::encoded_len(&*envelope);
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
            let forked = || not_of_log(self.part, &LogMismatch::Foreign);
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
            let term = || self.deps.log.term_at(self.group, applied.index);
            if !self.is_continued && term().is_some_and(|term| term != applied.term) {
                return Err(forked());
            }
        }
        self.is_continued = true;
        self.applied = Some(position);
        self.undurable_entries += 1;
        let (outcome, new_effects) = self.machine.apply(position, envelope);
        effects.extend(new_effects);
        Ok(outcome)
    }

    /// Appends events. Rows are made durable when many wait, or when much was applied. Where the
    /// disk is full both wait in memory.
    async fn write_behind(&mut self) -> Result<(), StoreError> {
        if self.applied.is_none() {
            return Ok(());
        }
        self.rows.put_events(&self.machine.take_events());
        self.rows.put(self.machine.take_final_rows());
        if !self.deps.log.has_room() || !self.settle_files().await? {
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

    async fn remove_files(&mut self) -> Result<(), StoreError> {
        let StateMachineId::Tenant(tenant) = self.part else { return Ok(()) };
        // Killed in between, the log says that there are none, and the next start applies the
        // deletion once more. The other way round they would be missed.
        self.deps.log.unfile(self.group, self.part).await?;
        self.deps.stores.remove(tenant).await
    }
}

/// Opens the files of a replica that has some.
async fn opened(deps: &ReplicaDeps, part: StateMachineId) -> Result<Box<dyn Store>, StoreError> {
    loop {
        match deps.stores.open(part).await {
            // Failing would put the tenant in quarantine, for something that passes by itself.
            Err(StoreError::Full) if part != StateMachineId::System => {
                deps.log.found_no_room();
                tokio::time::sleep(ROOM_RETRY).await;
            }
            opened => return opened,
        }
    }
}

/// What is said of files that do not belong to the log beside them.
fn not_of_log(part: StateMachineId, why: &LogMismatch) -> StoreError {
    let file = match part {
        StateMachineId::System => "system.redb".to_owned(),
        StateMachineId::Tenant(tenant) => format!("tenants/{tenant}"),
    };
    let way_out = "put the whole data directory back as it was, or, where other members hold the \
                   data, remove it and join anew";
    StoreError::Damaged { file, offset: 0, what: format!("{why}; {way_out}") }
}

#[cfg(test)]
#[path = "runner_tests.rs"]
mod tests;

//! The files of a replica: when they are opened, closed, marked and removed.
//!
//! Files are in one of four states, which `RowBuffer` keeps:
//!
//! | state | `store` | reads | left by |
//! |---|---|---|---|
//! | none: the state needs no files | none | empty | the first durable write of a state that needs them |
//! | open | some | memory over files | `let_go`, `wait_for_room`, the deletion of the tenant |
//! | let go: closed, because others needed descriptors | none | fail | [`ReplicaRunner::ensure_files`] |
//! | shut: there, and cannot be opened for lack of room | none | memory only, else fail | room on the disk |

use std::sync::Arc;
use std::time::Duration;

use super::{ReplicaDeps, ReplicaRunner};
use crate::domain::ids::StateMachineId;
use crate::ports::{LogMismatch, Store, StoreError};
use crate::state::{RowBuffer, StateMachine};

/// Wait before files that could not be opened for lack of room on the disk are opened again.
const ROOM_RETRY: Duration = Duration::from_millis(250);

impl<M: StateMachine> ReplicaRunner<M> {
    /// Opens the files again if they were let go, or if there is room for them by now. To be called
    /// before rows are read.
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

    /// Closes the files for good, because the actor stops. Everything has to be durable.
    pub fn close_files(&mut self) {
        self.rows = RowBuffer::default();
        // Whoever wanted the descriptors has them now. The next actor must not close its files for it.
        self.queue.files_given_up();
    }

    /// Makes everything durable and closes the files until they are needed again, because others need
    /// their descriptors. The state stays in memory. Tells whether the files are closed: not while
    /// the disk is full, or another replica is being sent what is in them.
    pub(super) async fn give_up_files(&mut self) -> Result<bool, StoreError> {
        let Some(store) = &self.rows.store else { return Ok(true) };
        // What another replica is being sent would have to be sent from its beginning.
        if store.is_viewed() {
            return Ok(false);
        }
        self.make_durable().await?;
        if self.is_dirty() {
            return Ok(false);
        }
        // Last chance to set the mark: while the files are closed nobody can.
        self.mark_idle().await?;
        self.rows.let_go();
        Ok(true)
    }

    /// Opens the files. Tells whether there was room for that.
    pub(super) async fn open_files(&mut self) -> Result<bool, StoreError> {
        // Somebody may have touched the files while they were closed. What they held and lack now is
        // lost: the log may have been cut up to there.
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
            // An older position: a copy was put in their place.
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
            // A tenant's actor fails and is started again without blame. The control plane cannot:
            // its failure stops the node. It goes on from memory until there is a descriptor.
            Err(error) if error.is_passing() && self.part == StateMachineId::System => {
                self.rows.shut();
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes files that the state needs no more, also on a full disk, which has room again by it; and makes those
    /// that it needs. Tells whether the state can be made durable: one without files can always.
    pub(super) async fn settle_files(&mut self) -> Result<bool, StoreError> {
        // A deletion is reported as durable only after its files are gone. The other way round a crash
        // in between would leave files behind, and the log would not deliver the deletion again.
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
        if !self.machine.needs_files() {
            return Ok(true);
        }
        if !self.deps.log.has_room() {
            return Ok(false);
        }
        if self.rows.store.is_none() { self.open_files().await } else { Ok(true) }
    }

    async fn remove_files(&mut self) -> Result<(), StoreError> {
        let StateMachineId::Tenant(tenant) = self.part else { return Ok(()) };
        // A crash in between: the log says that there are no files, and the next start applies the
        // deletion once more. The other way round the log would miss the files, which is damage.
        self.deps.log.unfile(self.group, self.part).await?;
        self.deps.stores.remove(tenant).await
    }

    /// Goes on from memory after a write found the disk full. Opens the files again, because the failed
    /// write has closed them: they hold what was durable last, and the rows and events since then are
    /// in memory.
    pub(super) async fn wait_for_room(&mut self) -> Result<(), StoreError> {
        tracing::warn!(part = %self.part, "the disk is full: what changed waits in memory and the log");
        // First nobody may propose any more: the memory that waits for room has to stay bounded.
        self.deps.log.found_no_room();
        self.rows.store = None;
        self.rows.is_shut = self.deps.stores.exists(self.part)?;
        self.open_files().await.map(drop)
    }

    /// Lets others ask for the descriptors of the open files.
    pub(super) fn offer_files(&mut self) {
        // Weak: the store is owned, through the actor, by the one whom it wakes.
        let queue = Arc::downgrade(&self.queue);
        if let Some(store) = &mut self.rows.store {
            store.on_wanted(Box::new(move || {
                if let Some(queue) = queue.upgrade() {
                    queue.want_files();
                }
            }));
        }
    }

    /// Takes the mark of an idle replica away when the replica has work. To be called before the
    /// beginning of the work is durable, and before the log is told so: from then on nothing is
    /// delivered that would start the replica after a crash.
    pub(super) async fn unmark_idle(&mut self) -> Result<(), StoreError> {
        match &mut self.rows.store {
            Some(store) if store.is_idle() && self.machine.has_work() => {
                store.set_idle(false).await
            }
            _ => Ok(()),
        }
    }

    /// Marks the replica as idle when it has no work and everything is durable, so that a new leader
    /// need not start it. To be called after the end of the work is durable, and before the files are
    /// closed.
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
}

/// Opens the files of a replica that has some, at the start of its actor.
pub(super) async fn opened(
    deps: &ReplicaDeps,
    part: StateMachineId,
) -> Result<Box<dyn Store>, StoreError> {
    loop {
        match deps.stores.open(part).await {
            // To fail would put the tenant in quarantine, for something that passes by itself.
            Err(StoreError::Full) if part != StateMachineId::System => {
                deps.log.found_no_room();
                tokio::time::sleep(ROOM_RETRY).await;
            }
            opened => return opened,
        }
    }
}

/// Makes the error about files that do not belong to the log beside them.
pub(super) fn not_of_log(part: StateMachineId, why: &LogMismatch) -> StoreError {
    let file = match part {
        StateMachineId::System => "system.redb".to_owned(),
        StateMachineId::Tenant(tenant) => format!("tenants/{tenant}"),
    };
    let way_out = "put the whole data directory back as it was, or, where other members hold the \
                   data, remove it and join anew";
    StoreError::Damaged { file, offset: 0, what: format!("{why}; {way_out}") }
}

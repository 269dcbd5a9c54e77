//! The store of one state machine: the `Store` port over open files.
//!
//! Invariants:
//! - The index never becomes durable before the events it speaks of (`files`).
//! - After any failed call the store is broken, and every later call fails alike, until it is
//!   opened again and takes up what is on disk.
//! - The files are held until the last user is done: a durable commit that nobody waits for any
//!   more still ends before the files can be opened again.

use std::io;
use std::sync::{Arc, OnceLock};

use shiioo_actors::domain::ids::{Position, StateMachineId};
use shiioo_actors::ports::{BoxFuture, Row, Store, StoreError, StoreStats, View};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use uuid::Uuid;

use super::directory::{is_marked, set_mark};
use super::files::{Files, create, open_events, sync_names};
use super::open_stores::{OpenStores, Registration};
use super::paths::{self, Paths};
use super::row_index::{RowIndex, State};
use super::view::Views;
use crate::disk::{Disk, OpenMode, store_error};
use crate::executor::Executor;

/// The files of one state machine, and the state that they hold.
pub(crate) struct FileStore {
    disk: Arc<dyn Disk>,
    executor: Executor,
    part: StateMachineId,
    /// Always there; taken out only to be dropped where blocking is allowed.
    files: Option<Arc<Files>>,
    state: Option<State>,
    events_len: u64,
    is_idle: bool,
    views: Views,
    /// Its registration among those who can be asked to close their files. The control plane has
    /// none.
    registration: Option<Registration>,
}

/// The right to hold a tenant's files open, and the list to register in.
pub(crate) type OpenPermit = (OwnedSemaphorePermit, Arc<OpenStores>);

impl FileStore {
    /// Opens the files, which are made where there are none. Blocks.
    pub fn open(
        disk: Arc<dyn Disk>,
        executor: Executor,
        paths: Paths,
        log: Option<Uuid>,
        held: OwnedMutexGuard<()>,
        permit: Option<OpenPermit>,
        events_max: u64,
    ) -> Result<Self, StoreError> {
        let part = paths.part;
        let is_there = disk
            .exists(&paths.index)
            .map_err(|error| store_error(format!("look for {}", paths.index), error))?;
        if !is_there {
            create(disk.as_ref(), &paths, log)?;
        }
        // Before anything is written to them, also to files that were there.
        sync_names(disk.as_ref(), &paths)
            .map_err(|error| store_error(format!("open {}", paths.index), error))?;
        let is_idle = is_marked(disk.as_ref(), &paths)
            .map_err(|error| store_error(format!("look at {}", paths.dir), error))?;
        let index = disk
            .open(&paths.index, OpenMode::Existing)
            .map_err(|error| store_error(format!("open {}", paths.index), error))?;
        let (index, state) = RowIndex::open(&paths.index, index, log)?;
        let events_len = state.map_or(0, |state| state.events_len).min(events_max);
        let events = match part {
            StateMachineId::System => None,
            StateMachineId::Tenant(_) => {
                match open_events(disk.as_ref(), &paths.events, events_len) {
                    Ok(events) => Some(events),
                    Err(error) => {
                        // Closing an index writes: not into files that do not belong together.
                        index.fence();
                        return Err(error);
                    }
                }
            }
        };
        let (permit, registration) = permit.map(|(permit, all)| (permit, all.register())).unzip();
        let broken = OnceLock::new();
        let files = Files { paths, index, events, broken, _held: Some(held), _permit: permit };
        let (files, views) = (Some(Arc::new(files)), Views::default());
        Ok(Self { disk, executor, part, files, state, events_len, is_idle, views, registration })
    }

    fn files(&self) -> Result<&Arc<Files>, StoreError> {
        let files = self.files.as_ref().ok_or_else(|| {
            store_error(
                format!("use the files of {}", self.part),
                io::Error::other("the store is closed"),
            )
        })?;
        files.check()?;
        if let Some(registration) = &self.registration {
            registration.touch();
        }
        Ok(files)
    }

    fn state_at(&self, position: Position) -> State {
        State { position, events_len: self.events_len }
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        // Nobody reads a file that is closed, and may be another's soon.
        self.views.take_back();
        // Closing writes and syncs: not on a thread of the runtime.
        if let Some(files) = self.files.take() {
            self.executor.run_detached(move || drop(files));
        }
    }
}

impl Store for FileStore {
    fn position(&self) -> Option<Position> {
        self.state.map(|state| state.position)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let files = self.files()?;
        files.noted(files.index.get(key))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        limit: usize,
        descending: bool,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StoreError> {
        let files = self.files()?;
        files.noted(files.index.scan(from, to, limit, descending))
    }

    fn append_events(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let files = self.files()?;
        let events = files.events.as_ref().ok_or_else(|| no_events(self.part))?;
        let written = events
            .write_at(self.events_len, bytes)
            .map_err(|error| store_error(format!("write {}", files.paths.events), error));
        files.noted(written)?;
        // Moves only after a whole write. After a failed one the store is broken, and the bytes are
        // cut off when it is opened again.
        self.events_len += bytes.len() as u64;
        Ok(())
    }

    fn events_len(&self) -> u64 {
        self.events_len
    }

    fn read_events(&self, offset: u64, len: usize) -> Result<Vec<u8>, StoreError> {
        let files = self.files()?;
        let events = files.events.as_ref().ok_or_else(|| no_events(self.part))?;
        let what = || format!("read {} at {offset}", files.paths.events);
        // A range beyond the end is the caller's mistake and breaks nothing.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.events_len) {
            return Err(store_error(what(), io::ErrorKind::UnexpectedEof.into()));
        }
        let mut bytes = vec![0; len];
        let read = events.read_at(offset, &mut bytes).map_err(|error| store_error(what(), error));
        files.noted(read.map(|()| bytes))
    }

    fn make_durable(
        &mut self,
        rows: Vec<Row>,
        position: Position,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let state = self.state_at(position);
            let files = Arc::clone(self.files()?);
            let working = Arc::clone(&files);
            // Should the caller stop waiting, the job still ends. Then the state here is behind the
            // index, and the next commit writes the difference again. `working` keeps the files
            // held meanwhile.
            self.executor.run(move || working.make_durable(&rows, state)).await?;
            self.state = Some(state);
            Ok(())
        })
    }

    fn view(&mut self) -> Result<Box<dyn View>, StoreError> {
        let files = Arc::clone(self.files()?);
        let rows = files.noted(files.index.view())?;
        Ok(Box::new(self.views.open(files, rows, self.executor.clone())))
    }

    fn is_viewed(&self) -> bool {
        self.views.are_open()
    }

    fn failure(&self) -> Option<StoreError> {
        self.files.as_ref()?.broken.get().cloned()
    }

    fn on_wanted(&mut self, ask: Box<dyn Fn() + Send + Sync>) {
        if let Some(registration) = &self.registration {
            registration.on_wanted(ask);
        }
    }

    fn is_idle(&self) -> bool {
        self.is_idle
    }

    fn set_idle(&mut self, is_idle: bool) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let files = Arc::clone(self.files()?);
            let disk = Arc::clone(&self.disk);
            let set = move || {
                let Some(mark) = &files.paths.idle_mark else { return Ok(()) };
                let set = set_mark(disk.as_ref(), &files.paths.dir, mark, is_idle);
                let set = set.map_err(|error| store_error(format!("change {mark}"), error));
                // A mark that cannot be made costs the next leader a moment. One that cannot be
                // taken away would hide a run, so that breaks the store.
                if is_idle { set } else { files.noted(set) }
            };
            match self.executor.run(set).await {
                Err(error) if is_idle => {
                    tracing::debug!(part = %self.part, %error, "not marked as idle");
                }
                set => {
                    set?;
                    self.is_idle = is_idle;
                }
            }
            Ok(())
        })
    }

    fn stats(&self) -> Result<StoreStats, StoreError> {
        paths::stats(self.disk.as_ref(), &self.files()?.paths)
    }
}

pub(crate) fn no_events(part: StateMachineId) -> StoreError {
    store_error(format!("events of {part}"), io::ErrorKind::Unsupported.into())
}

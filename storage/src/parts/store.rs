//! The open files of one part.
//!
//! Invariants:
//! - The index never becomes durable before the events it speaks of: every durable commit, and the
//!   close of the index (redb makes pending commits durable then), is preceded by a sync of
//!   `events.jsonl`. Where that sync fails the index is fenced first, so that nothing reaches it.
//! - After any failed call the store is broken, and every later call fails alike, until it is
//!   opened again and takes up what is on disk.
//! - The files are held until the last one who uses them is done: a durable commit that nobody
//!   waits for any more still ends before the part can be opened again.

use std::io;
use std::sync::{Arc, OnceLock};

use shiioo_actors::domain::ids::{Position, StateMachineId};
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{BoxFuture, Row, Store, StoreError, StoreStats};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use uuid::Uuid;

use super::index::{PartIndex, State};
use super::open_stores::{Listed, OpenStores};
use super::paths::{self, Paths};
use crate::disk::{Disk, DiskFile, OpenMode, parent, store_error};
use crate::executor::Executor;

/// See the module.
#[derive(Debug)]
pub(crate) struct PartStore {
    disk: Arc<dyn Disk>,
    executor: Executor,
    part: StateMachineId,
    /// Always there; taken out only to be dropped where blocking is allowed.
    files: Option<Arc<Files>>,
    state: Option<State>,
    events_len: u64,
    /// Whether the mark of a tenant without work is there.
    is_idle: bool,
    /// Among those who can be asked to close their files; not the control plane.
    listed: Option<Listed>,
}

/// The files, and what holds the part's place.
#[derive(Debug)]
struct Files {
    paths: Paths,
    index: PartIndex,
    events: Option<Arc<dyn DiskFile>>,
    broken: OnceLock<StoreError>,
    _held: OwnedMutexGuard<()>,
    /// Comes back last, when the descriptors are free.
    _permit: Option<OwnedSemaphorePermit>,
}

/// The right to hold a tenant's files open, and among whom.
pub(crate) type Lease = (OwnedSemaphorePermit, Arc<OpenStores>);

impl Files {
    fn check(&self) -> Result<(), StoreError> {
        self.broken.get().cloned().map_or(Ok(()), Err)
    }

    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && self.broken.set(error.clone()).is_ok()
        {
            tracing::error!(part = %self.paths.part, %error, "the store is broken until it is opened again");
        }
        result
    }

    fn sync_events(&self) -> Result<(), StoreError> {
        match &self.events {
            Some(events) if !mutants::is(Mutant::NoEventsSync) => events
                .sync_data()
                .map_err(|error| store_error(format!("sync {}", self.paths.events), error)),
            _ => Ok(()),
        }
    }

    fn make_durable(&self, rows: &[Row], state: State) -> Result<(), StoreError> {
        self.noted(self.sync_events().and_then(|()| self.index.commit(rows, state, true)))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let may_close = self.broken.get().is_none() && self.sync_events().is_ok();
        if !may_close {
            self.index.fence();
        }
    }
}

impl PartStore {
    /// Opens the files, making them where there are none. Blocks.
    pub fn open(
        disk: Arc<dyn Disk>,
        executor: Executor,
        paths: Paths,
        log: Option<Uuid>,
        held: OwnedMutexGuard<()>,
        lease: Option<Lease>,
    ) -> Result<Self, StoreError> {
        let part = paths.part;
        let is_there = disk
            .exists(&paths.index)
            .map_err(|error| store_error(format!("look for {}", paths.index), error))?;
        if !is_there {
            create(disk.as_ref(), &paths, log).map_err(|error| error.into_store_error(&paths))?;
        }
        settle_names(disk.as_ref(), &paths)
            .map_err(|error| store_error(format!("open {}", paths.index), error))?;
        let is_idle = super::is_marked(disk.as_ref(), &paths)
            .map_err(|error| store_error(format!("look at {}", paths.dir), error))?;
        let index = disk
            .open(&paths.index, OpenMode::Existing)
            .map_err(|error| store_error(format!("open {}", paths.index), error))?;
        let (index, state) = PartIndex::open(&paths.index, index, log)?;
        let events_len = state.map_or(0, |state| state.events_len);
        let events = match part {
            StateMachineId::System => None,
            StateMachineId::Tenant(_) => {
                match open_events(disk.as_ref(), &paths.events, events_len) {
                    Ok(events) => Some(events),
                    Err(error) => {
                        index.fence();
                        return Err(error);
                    }
                }
            }
        };
        let (permit, listed) = lease.map(|(permit, all)| (permit, all.list())).unzip();
        let broken = OnceLock::new();
        let files = Files { paths, index, events, broken, _held: held, _permit: permit };
        let files = Some(Arc::new(files));
        Ok(Self { disk, executor, part, files, state, events_len, is_idle, listed })
    }

    fn files(&self) -> Result<&Arc<Files>, StoreError> {
        let files = self.files.as_ref().ok_or_else(|| {
            store_error(self.part.to_string(), io::Error::other("the store is closed"))
        })?;
        files.check()?;
        if let Some(listed) = &self.listed {
            listed.touch();
        }
        Ok(files)
    }

    fn state_at(&self, position: Position) -> State {
        State { position, events_len: self.events_len }
    }
}

impl Drop for PartStore {
    fn drop(&mut self) {
        // Closing syncs: not on a thread of the runtime.
        if let Some(files) = self.files.take() {
            self.executor.run_detached(move || drop(files));
        }
    }
}

impl Store for PartStore {
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
        // Asking for too much is the caller's mistake and breaks nothing.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.events_len) {
            return Err(store_error(what(), io::ErrorKind::UnexpectedEof.into()));
        }
        let mut bytes = vec![0; len];
        let read = events.read_at(offset, &mut bytes).map_err(|error| store_error(what(), error));
        files.noted(read.map(|()| bytes))
    }

    fn commit(&mut self, rows: Vec<Row>, position: Position) -> Result<(), StoreError> {
        let state = self.state_at(position);
        let files = self.files()?;
        files.noted(files.index.commit(&rows, state, false))?;
        self.state = Some(state);
        Ok(())
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
            // Should the caller stop waiting, the job still ends, and the state here is behind the
            // index only by what the next commit writes again.
            self.executor.run(move || working.make_durable(&rows, state)).await?;
            self.state = Some(state);
            Ok(())
        })
    }

    fn failure(&self) -> Option<StoreError> {
        self.files.as_ref()?.broken.get().cloned()
    }

    fn on_wanted(&mut self, ask: Box<dyn Fn() + Send + Sync>) {
        if let Some(listed) = &self.listed {
            listed.on_wanted(ask);
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
                // That the mark cannot be made costs the next start a moment. That it cannot be
                // taken away would cost a run.
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

fn no_events(part: StateMachineId) -> StoreError {
    store_error(format!("events of {part}"), io::ErrorKind::Unsupported.into())
}

/// Opens the event log and cuts it to the length that the index knows.
fn open_events(disk: &dyn Disk, path: &str, len: u64) -> Result<Arc<dyn DiskFile>, StoreError> {
    let failed = |error| store_error(format!("open {path}"), error);
    let events = disk.open(path, OpenMode::OpenOrCreate).map_err(failed)?;
    let found = events.len().map_err(failed)?;
    if found < len {
        let what = format!("{} bytes of events are missing", len - found);
        return Err(StoreError::Damaged { file: path.to_owned(), offset: found, what });
    }
    if found > len {
        tracing::debug!(file = path, bytes = found - len, "cutting off events nobody was told of");
        events.set_len(len).map_err(failed)?;
    }
    Ok(events)
}

enum CreateError {
    Io(io::Error),
    Store(StoreError),
}

impl From<io::Error> for CreateError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl CreateError {
    fn into_store_error(self, paths: &Paths) -> StoreError {
        match self {
            Self::Io(error) => store_error(format!("create {}", paths.index), error),
            Self::Store(error) => error,
        }
    }
}

/// Makes an empty file, or removes it durably.
fn set_mark(disk: &dyn Disk, dir: &str, mark: &str, is_there: bool) -> io::Result<()> {
    if is_there {
        return disk.open(mark, OpenMode::OpenOrCreate).map(drop);
    }
    match disk.remove_file(mark) {
        // Also when it is gone already: that may not be durable.
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    disk.sync_dir(dir)
}

/// Makes a part's files; their names are settled by the caller. The index comes last and by its name only when it is whole: where it is,
/// everything is.
fn create(disk: &dyn Disk, paths: &Paths, log: Option<Uuid>) -> Result<(), CreateError> {
    if let Some(blobs) = &paths.blobs {
        disk.create_dir_all(blobs)?;
        let events = disk.open(&paths.events, OpenMode::OpenOrCreate)?;
        // Events are written only once the index is there, durably: so it is the index that is
        // missing, and with it what the events were of.
        let len = events.len()?;
        if len > 0 {
            return Err(CreateError::Store(StoreError::Damaged {
                file: paths.index.clone(),
                offset: 0,
                what: format!("it is missing, and {len} bytes of events are there"),
            }));
        }
        events.sync_data()?;
    }
    let beside = format!("{}.new", paths.index);
    let file = disk.open(&beside, OpenMode::OpenOrCreate)?;
    file.set_len(0)?;
    drop(PartIndex::create(&paths.index, file, log).map_err(CreateError::Store)?);
    disk.rename(&beside, &paths.index)?;
    Ok(())
}

/// Makes the names of a part's files durable, also when it was an earlier life, then killed, that
/// made them.
fn settle_names(disk: &dyn Disk, paths: &Paths) -> io::Result<()> {
    disk.sync_dir(&paths.dir)?;
    // What is above the folder of a tenant was made durable when the stores were opened.
    disk.sync_dir(parent(&paths.dir))
}

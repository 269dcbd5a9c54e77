//! Files that are written from what another replica sends, beside those whose place they are to take.
//!
//! ```text
//! begin --> put, put, .. --> seal --> install
//!   empty     a sync every 4 MiB   closed    in place, or removed
//! ```
//!
//! Invariants:
//! - Staged files are read by nobody until they are sealed, and never from their own place after a crash.
//! - Whatever ends a staging removes its files: what is not installed goes when it is dropped, with the next one, or at
//!   the next start.
//! - An index that is put in place finds its events there, durable. The rename of the index, or of the folder that holds
//!   both, is the one step by which the new state takes the place of the old one.
//! - The files in whose place they come are open to nobody meanwhile.
//! - They take nothing of what the log is to have ([`room_for_copies`]): what finds less ends the staging.
//! - A want of descriptors ends nothing. What is put in place goes on where it was, once there are some.

use std::io;
use std::sync::{Arc, OnceLock};

use shiioo_actors::domain::ids::{Position, StateMachineId};
use shiioo_actors::ports::{BoxFuture, DumpPart, Place, Row, Staging, StoreError};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use uuid::Uuid;

use super::directory::{remove, remove_staged, set_aside, set_mark};
use super::file_store::no_events;
use super::files::{Files, create, open_events, sync_names};
use super::keyed_mutex::KeyedMutex;
use super::open_stores::OpenStores;
use super::paths::Paths;
use super::row_index::{RowIndex, State};
use crate::disk::{
    Disk, DiskFile as _, OpenMode, PiecemealFile, Shortage, room_for_copies, store_error,
};
use crate::executor::Executor;

/// Bytes that are put between two commits: what waits in memory, and what one transaction writes.
const UNSYNCED_BYTES_MAX: usize = 4 << 20;

/// Bytes of events that are copied at once.
const COPIED_BYTES: usize = 1 << 20;

/// Where the files are, and where they are to go.
#[derive(Debug, Clone)]
pub(crate) struct StagedFiles {
    pub disk: Arc<dyn Disk>,
    pub staged: Paths,
    pub live: Paths,
    pub tenants_dir: Arc<str>,
    /// Where the events begin, in all events of the replica.
    pub events_from: u64,
}

/// What a staging shares with the open files.
#[derive(Debug, Clone)]
pub(crate) struct Sharing {
    pub executor: Executor,
    /// Held by whoever has the files of a state machine open.
    pub users: Arc<KeyedMutex<StateMachineId>>,
    /// Who can be asked to close files.
    pub open: Arc<OpenStores>,
}

/// Staged files of one state machine.
#[derive(Debug)]
pub(crate) struct FileStaging {
    at: StagedFiles,
    sharing: Sharing,
    /// The open files, until they are sealed.
    open: Option<Arc<Files>>,
    /// Rows that are not written yet.
    rows: Vec<Row>,
    unsynced_bytes: usize,
    events_len: u64,
    /// Kept until the files are gone.
    held: Option<OwnedMutexGuard<()>>,
}

impl FileStaging {
    /// Makes empty files. Blocks.
    pub fn begin(
        at: StagedFiles,
        sharing: Sharing,
        log: Option<Uuid>,
        held: OwnedMutexGuard<()>,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Self, StoreError> {
        let StagedFiles { disk, staged: paths, .. } = &at;
        let failed = |error| store_error(format!("make {}", paths.index), error);
        remove_staged(disk.as_ref(), paths).map_err(failed)?;
        check_room(disk.as_ref(), 0)?;
        create(disk.as_ref(), paths, log)?;
        // Before anything is written to them: a folder is renamed with durable names in it.
        sync_names(disk.as_ref(), paths).map_err(failed)?;
        let index = disk.open(&paths.index, OpenMode::Existing).map_err(failed)?;
        let (index, _) = RowIndex::open(&paths.index, index, log)?;
        let events = match paths.part {
            StateMachineId::System => None,
            StateMachineId::Tenant(_) => {
                let events = open_events(disk.as_ref(), &paths.events, 0)?;
                Some(Arc::new(PiecemealFile::over(events)) as _)
            }
        };
        let (paths, broken) = (paths.clone(), OnceLock::new());
        let files = Files { paths, index, events, broken, _held: None, _permit: permit };
        Ok(Self {
            at,
            sharing,
            open: Some(Arc::new(files)),
            rows: Vec::new(),
            unsynced_bytes: 0,
            events_len: 0,
            held: Some(held),
        })
    }

    fn open_files(&self) -> Result<Arc<Files>, StoreError> {
        let sealed = || {
            let what = format!("add to {}", self.at.staged.index);
            store_error(what, io::Error::other("it is sealed"))
        };
        let files = self.open.as_ref().ok_or_else(sealed)?;
        files.check()?;
        Ok(Arc::clone(files))
    }
}

impl Staging for FileStaging {
    fn put(&mut self, part: DumpPart) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let files = self.open_files()?;
            self.unsynced_bytes += part.cost();
            let DumpPart { rows, events } = part;
            self.rows.extend(rows.into_iter().map(|(key, value)| (key, Some(value))));
            let at = self.events_len;
            self.events_len += events.len() as u64;
            let is_due = self.unsynced_bytes >= UNSYNCED_BYTES_MAX;
            let unsynced = self.unsynced_bytes as u64;
            let mut rows = Vec::new();
            if is_due {
                self.unsynced_bytes = 0;
                rows = std::mem::take(&mut self.rows);
            }
            let disk = Arc::clone(&self.at.disk);
            let write = move || {
                // What waits is written in pages of the index at last, and twice where pages are copied.
                check_room(disk.as_ref(), unsynced)?;
                if !events.is_empty() {
                    let file = files.events.as_ref().ok_or_else(|| no_events(files.paths.part))?;
                    let what = || format!("write {}", files.paths.events);
                    let written = file.write_at(at, &events);
                    files.noted(written.map_err(|error| store_error(what(), error)))?;
                }
                if !is_due {
                    return Ok(());
                }
                // Of no position yet.
                files
                    .make_durable(&rows, State { position: Position::default(), events_len: 0 })?;
                check_room(disk.as_ref(), 0)
            };
            self.sharing.executor.run(write).await
        })
    }

    fn seal(&mut self, position: Position) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let files = self.open_files()?;
            let rows = std::mem::take(&mut self.rows);
            let state = State { position, events_len: self.at.events_from + self.events_len };
            // No other user is left of them: they are closed when this returns, and so is redb.
            self.open = None;
            let (disk, unsynced) = (Arc::clone(&self.at.disk), self.unsynced_bytes as u64);
            let seal = move || {
                check_room(disk.as_ref(), unsynced)?;
                files.make_durable(&rows, state)
            };
            self.sharing.executor.run(seal).await
        })
    }

    fn events_len(&self) -> u64 {
        self.events_len
    }

    fn install(self: Box<Self>, place: Place) -> BoxFuture<'static, Result<(), StoreError>> {
        Box::pin(async move {
            // Waits until the files in whose place these come are closed.
            let held = self.sharing.users.lock(self.at.live.part).await;
            let sharing = self.sharing.clone();
            let mut job = (self, held, false);
            loop {
                let install = move || {
                    // All of it is held by the job, which goes on when the caller stops waiting.
                    let (staging, held, mut is_in_place) = job;
                    let installed = staging.at.install(place, &mut is_in_place);
                    ((staging, held, is_in_place), installed)
                };
                let (again, installed) = sharing.executor.run(install).await;
                match installed {
                    Err(error) if Shortage::of_store(&error) == Some(Shortage::Descriptors) => {
                        tracing::warn!(%error, "no descriptors are left to put files in place");
                    }
                    installed => return installed,
                }
                job = again;
                sharing.open.ask_least_recently_used();
                tokio::time::sleep(Shortage::Descriptors.retry_after()).await;
            }
        })
    }
}

impl Drop for FileStaging {
    fn drop(&mut self) {
        let (disk, staged) = (Arc::clone(&self.at.disk), self.at.staged.clone());
        let (open, held) = (self.open.take(), self.held.take());
        let remove = move || {
            drop(open);
            if let Err(error) = remove_staged(disk.as_ref(), &staged) {
                tracing::debug!(part = %staged.part, %error, "staged files are left");
            }
            // The next one makes its files in the same place.
            drop(held);
        };
        self.sharing.executor.run_detached(remove);
    }
}

impl StagedFiles {
    /// Puts the files in place. To be called again after a want of descriptors, with what it has made of
    /// `is_in_place`: nothing may be removed again then, since what is there are the new files.
    fn install(&self, place: Place, is_in_place: &mut bool) -> Result<(), StoreError> {
        let Self { disk, staged, live, tenants_dir, .. } = self;
        let disk = disk.as_ref();
        let failed = |error| store_error(format!("replace {}", live.index), error);
        let (from, to, names) = match (place, live.part) {
            (Place::Cleared, StateMachineId::Tenant(_)) => (&staged.dir, &live.dir, &**tenants_dir),
            _ => (&staged.index, &live.index, &*live.dir),
        };
        if !*is_in_place {
            match (place, live.part) {
                (Place::Whole { events }, _) => self.prepare_whole(events)?,
                (Place::Cleared, StateMachineId::System) => {
                    set_aside(disk, live).map_err(failed)?;
                }
                (Place::Cleared, StateMachineId::Tenant(tenant)) => {
                    remove(disk, tenants_dir, tenant).map_err(failed)?;
                }
            }
            disk.rename(from, to).map_err(failed)?;
            *is_in_place = true;
        }
        disk.sync_dir(names).map_err(failed)
    }

    /// Prepares files that are whole, with so many bytes of events, for another index. Can be done again.
    fn prepare_whole(&self, events: u64) -> Result<(), StoreError> {
        let Self { disk, live, .. } = self;
        let failed = |error| store_error(format!("replace {}", live.index), error);
        if !disk.exists(&live.index).map_err(failed)? {
            let what = "it is missing, and was there; put the file back from a copy".to_owned();
            return Err(StoreError::Damaged { file: live.index.clone(), offset: 0, what });
        }
        if live.part != StateMachineId::System {
            // Before the index that speaks of them. What the old one does not know of is cut off when that is opened.
            self.add_events(events)?;
        }
        if let Some(mark) = &live.idle_mark {
            // The new state may have work, which the mark would hide.
            set_mark(disk.as_ref(), &live.dir, mark, false).map_err(failed)?;
        }
        Ok(())
    }

    /// Adds to the replica's events what these have beyond them, durably.
    fn add_events(&self, known: u64) -> Result<(), StoreError> {
        let Self { disk, staged, live, events_from, .. } = self;
        let failed = |error| store_error(format!("add to {}", live.events), error);
        let from = disk.open(&staged.events, OpenMode::Existing).map_err(failed)?;
        let to = PiecemealFile::over(open_events(disk.as_ref(), &live.events, known)?);
        let len = from.len().map_err(failed)?;
        let mut at = known.checked_sub(*events_from).filter(|at| *at <= len).ok_or_else(|| {
            failed(io::Error::other("the staged events do not go on from those that are there"))
        })?;
        if at < len {
            check_room(disk.as_ref(), len - at)?;
        }
        let mut bytes = Vec::new();
        while at < len {
            let rest = usize::try_from(len - at).unwrap_or(usize::MAX);
            bytes.resize(rest.min(COPIED_BYTES), 0);
            from.read_at(at, &mut bytes).map_err(failed)?;
            to.write_at(events_from + at, &bytes).map_err(failed)?;
            at += bytes.len() as u64;
        }
        to.sync_data().map_err(failed)
    }
}

/// Finds out whether so many bytes more leave the log what it is to have.
fn check_room(disk: &dyn Disk, bytes: u64) -> Result<(), StoreError> {
    let room = room_for_copies(disk).map_err(|error| store_error("look for room", error))?;
    if room > bytes { Ok(()) } else { Err(StoreError::Full) }
}

//! Makes and opens the files of one state machine.

use std::io;
use std::sync::{Arc, OnceLock};

use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{Row, StoreError};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use uuid::Uuid;

use super::paths::Paths;
use super::row_index::{RowIndex, State};
use crate::disk::{Disk, DiskFile, OpenMode, parent, store_error};

/// The open files, and the rights to hold them open.
///
/// Fields are dropped in this order: the files close first, so that the next user of the key finds
/// nothing half written, and whoever gets the permit finds descriptors free.
#[derive(Debug)]
pub(crate) struct Files {
    pub paths: Paths,
    pub index: RowIndex,
    pub events: Option<Arc<dyn DiskFile>>,
    pub broken: OnceLock<StoreError>,
    /// The right to have the replica's files open. Staged files are nobody's.
    pub _held: Option<OwnedMutexGuard<()>>,
    pub _permit: Option<OwnedSemaphorePermit>,
}

impl Files {
    /// Fails where an earlier call has failed.
    pub fn check(&self) -> Result<(), StoreError> {
        self.broken.get().cloned().map_or(Ok(()), Err)
    }

    /// Breaks the store with an error. Nobody may go on from a state of which a part is unknown.
    pub fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &result
            && self.broken.set(error.clone()).is_ok()
        {
            tracing::error!(
                part = %self.paths.part, %error,
                "the store is broken until it is opened again"
            );
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

    /// Makes a state durable: events first, then the index, which says how long they are. Blocks.
    pub fn make_durable(&self, rows: &[Row], state: State) -> Result<(), StoreError> {
        // Where the sync fails the index is not touched: it must not speak of events that may be
        // lost.
        self.noted(self.sync_events().and_then(|()| self.index.commit(rows, state)))
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // redb writes when it is closed. After a failure it must not: what it would write may say
        // more than is on disk.
        if self.broken.get().is_some() {
            self.index.fence();
        }
    }
}

/// Opens the event log and cuts it to the length that the index knows.
///
/// The cut is not synced. The bytes behind it are nobody's: they are written over, or cut again.
pub(crate) fn open_events(
    disk: &dyn Disk,
    path: &str,
    len: u64,
) -> Result<Arc<dyn DiskFile>, StoreError> {
    let failed = |error| store_error(format!("open {path}"), error);
    let events = disk.open(path, OpenMode::OpenOrCreate).map_err(failed)?;
    let found = events.len().map_err(failed)?;
    if found < len {
        let what = format!(
            "{} bytes of events are missing: the index knows {len}; put the tenant's files back \
             from a copy",
            len - found
        );
        return Err(StoreError::Damaged { file: path.to_owned(), offset: found, what });
    }
    if found > len {
        tracing::debug!(file = path, bytes = found - len, "cutting off events nobody was told of");
        events.set_len(len).map_err(failed)?;
    }
    Ok(events)
}

/// Creates the files. The index is written under a temporary name and renamed last, so that its
/// presence implies that the rest exists. The caller syncs the directory.
pub(crate) fn create(disk: &dyn Disk, paths: &Paths, log: Option<Uuid>) -> Result<(), StoreError> {
    let failed = |error| store_error(format!("create {}", paths.index), error);
    if let Some(blobs) = &paths.blobs {
        disk.create_dir_all(blobs).map_err(failed)?;
        let events = disk.open(&paths.events, OpenMode::OpenOrCreate).map_err(failed)?;
        // Events are written only once the index is there, durably: so it is the index that is
        // missing, and with it what the events were of.
        let len = events.len().map_err(failed)?;
        if len > 0 {
            let what = format!(
                "it is missing, and {len} bytes of events are there; put the tenant's files back \
                 from a copy"
            );
            return Err(StoreError::Damaged { file: paths.index.clone(), offset: 0, what });
        }
        events.sync_data().map_err(failed)?;
    }
    let beside = paths.new_index();
    let file = disk.open(&beside, OpenMode::OpenOrCreate).map_err(failed)?;
    // A leftover of an attempt that a crash ended.
    file.set_len(0).map_err(failed)?;
    // Closed before the rename: creating commits durably, and closing writes once more.
    drop(RowIndex::create(&paths.index, file, log)?);
    disk.rename(&beside, &paths.index).map_err(failed)
}

/// Makes the names of the files durable, also when it was an earlier process, then killed, that
/// made them. Nothing is written to the files before: what is durable in a file whose name is not
/// is lost.
pub(crate) fn sync_names(disk: &dyn Disk, paths: &Paths) -> io::Result<()> {
    disk.sync_dir(&paths.dir)?;
    // What is above the folder of a tenant was made durable when the stores were opened.
    disk.sync_dir(parent(&paths.dir))
}

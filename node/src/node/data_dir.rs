//! The data directory: who uses it, and where the running node is.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shiioo_actors::ports::{BoxFuture, StoreError};
use shiioo_storage::disk::{Disk, DiskLock, read_small, store_error, write_durably};
use tokio::task::AbortHandle;

use super::error::StartError;
use crate::seams::NodeSeams;

/// Tells where the running node is; relative to the data directory.
pub(super) const READY_FILE: &str = "node.json";
/// Locked while the node runs; relative to the data directory.
const LOCK_FILE: &str = "node.lock";
/// Pause before `node.json` is written again, after there was no room for it.
const ANNOUNCE_RETRY: Duration = Duration::from_secs(1);

/// Holds the contents of [`READY_FILE`].
#[derive(Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) node_id: String,
    pub(super) api_addr: String,
    pub(super) node_addr: String,
    pub(super) pid: u32,
    pub(super) version: String,
}

/// Keeps every other process from the data directory, and changes nothing in it.
pub(crate) fn hold(dir: &Path, disk: &dyn Disk) -> Result<DiskLock, StartError> {
    disk.lock(LOCK_FILE).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => {
            StartError::DataDirLocked { dir: dir.to_owned(), holder: holder(disk) }
        }
        _ => StartError::DataDir { dir: dir.to_owned(), source },
    })
}

/// Locks the data directory for this node.
pub(super) async fn lock(dir: &Path, seams: &NodeSeams) -> Result<DiskLock, StartError> {
    let (dir, disk) = (dir.to_owned(), Arc::clone(&seams.disk));
    let lock = move || {
        let lock = hold(&dir, &*disk)?;
        // Under the lock, so that the file is not another running node's: a node that was killed
        // left its addresses, which are not this node's.
        match disk.remove_file(READY_FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StartError::DataDir { dir, source: error })
            }
            _ => Ok(lock),
        }
    };
    seams.executor.run(lock).await
}

/// Describes the node that holds the lock, for people.
fn holder(disk: &dyn Disk) -> String {
    let ready = read_small(disk, READY_FILE).ok().flatten();
    match ready.and_then(|bytes| serde_json::from_slice::<Ready>(&bytes).ok()) {
        Some(Ready { pid, api_addr, .. }) => {
            format!("a running node (process {pid}, API at {api_addr})")
        }
        None => "a running node".to_owned(),
    }
}

/// Writes [`READY_FILE`]. While the disk is full the node works without it: then a task writes it as
/// soon as there is room, and is returned.
pub(super) async fn announce(
    dir: &Path,
    seams: &NodeSeams,
    ready: &Ready,
) -> Result<Option<AbortHandle>, StartError> {
    let failed = |error: StoreError| StartError::DataDir {
        dir: dir.to_owned(),
        source: io::Error::other(error),
    };
    let bytes = serde_json::to_vec(ready)
        .map_err(|error| failed(store_error(format!("write {READY_FILE}"), error.into())))?;
    let (disk, executor) = (Arc::clone(&seams.disk), seams.executor.clone());
    let write = move || {
        let (disk, executor, bytes) = (Arc::clone(&disk), executor.clone(), bytes.clone());
        let write =
            async move { executor.run(move || write_durably(&*disk, READY_FILE, &bytes)).await };
        Box::pin(write) as BoxFuture<'static, _>
    };
    match write().await {
        Err(StoreError::Full) => {
            tracing::warn!("the disk is full: {READY_FILE} is written when there is room");
            Ok(Some(tokio::spawn(retry_while_full(write)).abort_handle()))
        }
        written => written.map(|()| None).map_err(failed),
    }
}

async fn retry_while_full(write: impl Fn() -> BoxFuture<'static, Result<(), StoreError>> + Send) {
    loop {
        tokio::time::sleep(ANNOUNCE_RETRY).await;
        match write().await {
            Err(StoreError::Full) => {}
            Err(error) => return tracing::warn!(%error, "cannot write {READY_FILE}"),
            Ok(()) => return,
        }
    }
}

/// Removes [`READY_FILE`]. A failure is only logged: the next start removes the file.
pub(super) async fn retract(seams: &NodeSeams) {
    let disk = Arc::clone(&seams.disk);
    let removed = seams.executor.run(move || disk.remove_file(READY_FILE)).await;
    if let Err(error) = removed {
        tracing::warn!(%error, "cannot remove {READY_FILE}");
    }
}

//! The files of parts: the control plane's and every tenant's.
//!
//! Architecture invariant: redb's types do not leave this module; the actors see the [`Stores`]
//! port.
//!
//! A part is open once at a time: opening it waits until whoever had it open before is done with
//! its files. So does removing it.

mod backend;
mod index;
mod paths;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use shiioo_actors::ids::{Part, TenantId};
use shiioo_actors::ports::{BoxFuture, Store, StoreError, Stores};
use tokio::sync::OwnedMutexGuard;

use crate::disk::{Disk, create_dir_durably, store_error};
use crate::executor::Executor;
use paths::{Paths, TENANTS_DIR, TRASH_PREFIX, tenant_dir};
use store::PartStore;

/// The parts' files below one data directory.
pub struct FileStores {
    disk: Arc<dyn Disk>,
    executor: Executor,
    /// Who has a part open holds its place. A place that nobody knows any more is forgotten.
    places: Mutex<BTreeMap<Part, Arc<tokio::sync::Mutex<()>>>>,
}

impl FileStores {
    /// Prepares the directory of tenants and removes what a removal left.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(disk: Arc<dyn Disk>, executor: Executor) -> Result<Arc<Self>, StoreError> {
        let preparing = Arc::clone(&disk);
        executor
            .run(move || prepare(preparing.as_ref()))
            .await
            .map_err(|error| store_error(format!("prepare {TENANTS_DIR}"), error))?;
        Ok(Arc::new(Self { disk, executor, places: Mutex::default() }))
    }

    async fn hold(&self, part: Part) -> OwnedMutexGuard<()> {
        let place = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.retain(|_, place| Arc::strong_count(place) > 1);
            Arc::clone(places.entry(part).or_default())
        };
        place.lock_owned().await
    }
}

fn prepare(disk: &dyn Disk) -> io::Result<()> {
    create_dir_durably(disk, TENANTS_DIR)?;
    for entry in disk.list(TENANTS_DIR)? {
        if entry.is_dir && entry.name.starts_with(TRASH_PREFIX) {
            disk.remove_dir_all(&format!("{TENANTS_DIR}/{}", entry.name))?;
        }
    }
    Ok(())
}

/// Renames first, so that a folder is there whole or is not there; what is left is removed at the
/// next start when power goes in between.
fn remove(disk: &dyn Disk, tenant: TenantId) -> io::Result<()> {
    let dir = tenant_dir(tenant);
    if disk.exists(&dir) {
        let trash = format!("{TENANTS_DIR}/{TRASH_PREFIX}{tenant}");
        if disk.exists(&trash) {
            disk.remove_dir_all(&trash)?;
        }
        disk.rename(&dir, &trash)?;
        disk.sync_dir(TENANTS_DIR)?;
        disk.remove_dir_all(&trash)?;
    }
    // Also when it was gone: an earlier removal may have failed before it was durable.
    disk.sync_dir(TENANTS_DIR)
}

impl Stores for FileStores {
    fn open(&self, part: Part) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>> {
        Box::pin(async move {
            let held = self.hold(part).await;
            let (disk, executor) = (Arc::clone(&self.disk), self.executor);
            let open = move || PartStore::open(disk, executor, part, held);
            let store = self.executor.run(open).await?;
            Ok(Box::new(store) as Box<dyn Store>)
        })
    }

    fn exists(&self, part: Part) -> bool {
        self.disk.exists(&Paths::of(part).index)
    }

    fn remove(&self, tenant: TenantId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let held = self.hold(Part::Tenant(tenant)).await;
            let disk = Arc::clone(&self.disk);
            let remove = move || {
                let _held = held;
                remove(disk.as_ref(), tenant)
            };
            let removed = self.executor.run(remove).await;
            removed.map_err(|error| store_error(format!("remove {}", tenant_dir(tenant)), error))
        })
    }

    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let entries = self
            .disk
            .list(TENANTS_DIR)
            .map_err(|error| store_error(format!("list {TENANTS_DIR}"), error))?;
        let folders = entries.into_iter().filter(|entry| entry.is_dir);
        let tenants = folders.filter_map(|entry| entry.name.parse().ok());
        Ok(tenants.filter(|tenant| self.exists(Part::Tenant(*tenant))).collect())
    }
}

impl fmt::Debug for FileStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStores").field("disk", &self.disk).finish_non_exhaustive()
    }
}

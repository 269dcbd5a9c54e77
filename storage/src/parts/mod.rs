//! The files of parts: the control plane's and every tenant's.
//!
//! Architecture invariant: redb's types do not leave this module; the actors see the [`Stores`]
//! port.
//!
//! A part is open once at a time: opening it waits until whoever had it open before is done with
//! its files. So does removing it.

mod backend;
pub(crate) mod index;
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
use paths::{Paths, TRASH_PREFIX, tenant_dir, tenants_dir};
use store::PartStore;

/// The parts' files below one data directory.
pub struct FileStores {
    disk: Arc<dyn Disk>,
    executor: Executor,
    /// Where this node's tenants are: a node holds tenants of its own region only.
    tenants_dir: Arc<str>,
    /// Who has a part open holds its place. A place that nobody knows any more is forgotten.
    places: Mutex<BTreeMap<Part, Arc<tokio::sync::Mutex<()>>>>,
}

impl FileStores {
    /// Prepares the directory of the region's tenants and removes what a removal left.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(
        disk: Arc<dyn Disk>,
        executor: Executor,
        region: &str,
    ) -> Result<Arc<Self>, StoreError> {
        let tenants_dir: Arc<str> = tenants_dir(region).into();
        let (preparing, dir) = (Arc::clone(&disk), Arc::clone(&tenants_dir));
        executor
            .run(move || prepare(preparing.as_ref(), &dir))
            .await
            .map_err(|error| store_error(format!("prepare {tenants_dir}"), error))?;
        Ok(Arc::new(Self { disk, executor, tenants_dir, places: Mutex::default() }))
    }

    fn paths(&self, part: Part) -> Paths {
        Paths::of(part, &self.tenants_dir)
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

fn prepare(disk: &dyn Disk, tenants_dir: &str) -> io::Result<()> {
    create_dir_durably(disk, tenants_dir)?;
    for entry in disk.list(tenants_dir)? {
        if entry.is_dir && entry.name.starts_with(TRASH_PREFIX) {
            disk.remove_dir_all(&format!("{tenants_dir}/{}", entry.name))?;
        }
    }
    Ok(())
}

/// Renames first, so that a folder is there whole or is not there; what is left is removed at the
/// next start when power goes in between.
fn remove(disk: &dyn Disk, tenants_dir: &str, tenant: TenantId) -> io::Result<()> {
    let dir = tenant_dir(tenants_dir, tenant);
    if disk.exists(&dir)? {
        let trash = format!("{tenants_dir}/{TRASH_PREFIX}{tenant}");
        if disk.exists(&trash)? {
            disk.remove_dir_all(&trash)?;
        }
        disk.rename(&dir, &trash)?;
        disk.sync_dir(tenants_dir)?;
        disk.remove_dir_all(&trash)?;
    }
    // Also when it was gone: an earlier removal may have failed before it was durable.
    disk.sync_dir(tenants_dir)
}

impl Stores for FileStores {
    fn open(&self, part: Part) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>> {
        Box::pin(async move {
            let held = self.hold(part).await;
            let (disk, executor) = (Arc::clone(&self.disk), self.executor.clone());
            let paths = self.paths(part);
            let open = move || PartStore::open(disk, executor, paths, held);
            let store = self.executor.run(open).await?;
            Ok(Box::new(store) as Box<dyn Store>)
        })
    }

    fn exists(&self, part: Part) -> Result<bool, StoreError> {
        let index = self.paths(part).index;
        self.disk.exists(&index).map_err(|error| store_error(format!("look for {index}"), error))
    }

    fn remove(&self, tenant: TenantId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let held = self.hold(Part::Tenant(tenant)).await;
            let (disk, dir) = (Arc::clone(&self.disk), Arc::clone(&self.tenants_dir));
            let remove = move || {
                let _held = held;
                remove(disk.as_ref(), &dir, tenant)
            };
            let removed = self.executor.run(remove).await;
            removed.map_err(|error| {
                store_error(format!("remove {}", tenant_dir(&self.tenants_dir, tenant)), error)
            })
        })
    }

    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        let entries = self
            .disk
            .list(&self.tenants_dir)
            .map_err(|error| store_error(format!("list {}", self.tenants_dir), error))?;
        let folders = entries.into_iter().filter(|entry| entry.is_dir);
        let mut tenants = Vec::new();
        for tenant in folders.filter_map(|entry| entry.name.parse().ok()) {
            if self.exists(Part::Tenant(tenant))? {
                tenants.push(tenant);
            }
        }
        Ok(tenants)
    }
}

impl fmt::Debug for FileStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStores").field("disk", &self.disk).finish_non_exhaustive()
    }
}

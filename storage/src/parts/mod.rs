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
use uuid::Uuid;

use crate::disk::{Disk, create_dir_durably, store_error};
use crate::executor::Executor;
use paths::{Paths, TRASH_PREFIX, tenant_dir, tenants_dir};
use store::PartStore;

/// The parts' files below one data directory.
pub struct FileStores {
    disk: Arc<dyn Disk>,
    executor: Executor,
    /// The log whose entries the parts apply; `None` where that is not looked at.
    log: Option<Uuid>,
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
        Self::open_any(disk, executor, region, None).await
    }

    /// The same, for parts that apply the entries of one log: files of a part that took their
    /// entries from another log are damage.
    ///
    /// # Errors
    /// As [`FileStores::open`].
    pub async fn open_of_log(
        disk: Arc<dyn Disk>,
        executor: Executor,
        region: &str,
        log: Uuid,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_any(disk, executor, region, Some(log)).await
    }

    async fn open_any(
        disk: Arc<dyn Disk>,
        executor: Executor,
        region: &str,
        log: Option<Uuid>,
    ) -> Result<Arc<Self>, StoreError> {
        let tenants_dir: Arc<str> = tenants_dir(region).into();
        let (preparing, dir) = (Arc::clone(&disk), Arc::clone(&tenants_dir));
        executor
            .run(move || prepare(preparing.as_ref(), &dir))
            .await
            .map_err(|error| store_error(format!("prepare {tenants_dir}"), error))?;
        Ok(Arc::new(Self { disk, executor, log, tenants_dir, places: Mutex::default() }))
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

/// The parts that have files below a data directory.
pub(crate) fn present(disk: &dyn Disk, region: &str) -> Result<Vec<Part>, StoreError> {
    let dir = tenants_dir(region);
    let failed = |error| store_error(format!("list {dir}"), error);
    let system = Paths::of(Part::System, &dir).index;
    let mut parts = Vec::new();
    if disk.exists(&system).map_err(|error| store_error(format!("look for {system}"), error))? {
        parts.push(Part::System);
    }
    if disk.exists(&dir).map_err(failed)? {
        parts.extend(tenants_in(disk, &dir)?.into_iter().map(Part::Tenant));
    }
    Ok(parts)
}

/// The tenants that have files in a directory of tenants.
fn tenants_in(disk: &dyn Disk, dir: &str) -> Result<Vec<TenantId>, StoreError> {
    let entries = disk.list(dir).map_err(|error| store_error(format!("list {dir}"), error))?;
    let folders = entries.into_iter().filter(|entry| entry.is_dir);
    let mut tenants = Vec::new();
    for tenant in folders.filter_map(|entry| entry.name.parse().ok()) {
        let index = Paths::of(Part::Tenant(tenant), dir).index;
        let is_there = disk.exists(&index);
        if is_there.map_err(|error| store_error(format!("look for {index}"), error))? {
            tenants.push(tenant);
        }
    }
    Ok(tenants)
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
            let (paths, log) = (self.paths(part), self.log);
            let open = move || PartStore::open(disk, executor, paths, log, held);
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
        tenants_in(self.disk.as_ref(), &self.tenants_dir)
    }
}

impl fmt::Debug for FileStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStores").field("disk", &self.disk).finish_non_exhaustive()
    }
}

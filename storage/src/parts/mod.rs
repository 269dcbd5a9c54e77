//! The files of parts: the control plane's and every tenant's.
//!
//! Architecture invariant: redb's types do not leave this module; the actors see the [`Stores`]
//! port.
//!
//! A part is open once at a time: opening it waits until whoever had it open before is done with
//! its files. So does removing it.

mod backend;
pub(crate) mod index;
mod open_stores;
mod paths;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shiioo_actors::domain::ids::{StateMachineId, TenantId};
use shiioo_actors::ports::{BoxFuture, Store, StoreError, Stores};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

use crate::disk::{Disk, create_dir_durably, store_error};
use crate::executor::Executor;
use open_stores::{OPEN_STORES_MAX, OpenStores};
use paths::{Paths, TRASH_PREFIX, tenant_dir, tenants_dir};
use store::PartStore;

/// Wait before what found no descriptors is tried again.
const DESCRIPTORS_RETRY: Duration = Duration::from_millis(100);

/// The lack of descriptors is told with the first of so many tries.
const TELL_EVERY_TRIES: u32 = 100;

/// The parts' files below one data directory.
pub struct FileStores {
    disk: Arc<dyn Disk>,
    executor: Executor,
    /// The log whose entries the parts apply; `None` where that is not looked at.
    log: Option<Uuid>,
    /// Where this node's tenants are: a node holds tenants of its own region only.
    tenants_dir: Arc<str>,
    /// Who has a part open holds its place. A place that nobody knows any more is forgotten.
    places: Mutex<BTreeMap<StateMachineId, Arc<tokio::sync::Mutex<()>>>>,
    /// Bounds the tenants that are open at the same time.
    open: Arc<OpenStores>,
}

/// What a node's [`FileStores`] are opened with.
#[derive(Debug, Clone, Copy)]
pub struct StoresConfig {
    /// The log whose entries the parts apply: files of a part that took their entries from another
    /// log are damage. `None` where that is not to be looked at.
    pub log: Option<Uuid>,
    /// How many tenants may be open at the same time.
    pub open_stores: usize,
}

impl Default for StoresConfig {
    fn default() -> Self {
        Self { log: None, open_stores: OPEN_STORES_MAX }
    }
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
        Self::open_with(disk, executor, region, StoresConfig::default()).await
    }

    /// As [`FileStores::open`], with a configuration.
    ///
    /// # Errors
    /// As [`FileStores::open`].
    pub async fn open_with(
        disk: Arc<dyn Disk>,
        executor: Executor,
        region: &str,
        config: StoresConfig,
    ) -> Result<Arc<Self>, StoreError> {
        let tenants_dir: Arc<str> = tenants_dir(region).into();
        let (preparing, dir) = (Arc::clone(&disk), Arc::clone(&tenants_dir));
        executor
            .run(move || prepare(preparing.as_ref(), &dir))
            .await
            .map_err(|error| store_error(format!("prepare {tenants_dir}"), error))?;
        let (places, open) = (Mutex::default(), OpenStores::new(config.open_stores));
        Ok(Arc::new(Self { disk, executor, log: config.log, tenants_dir, places, open }))
    }

    fn paths(&self, part: StateMachineId) -> Paths {
        Paths::of(part, &self.tenants_dir)
    }

    async fn hold(&self, part: StateMachineId) -> OwnedMutexGuard<()> {
        let place = {
            let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
            places.retain(|_, place| Arc::strong_count(place) > 1);
            Arc::clone(places.entry(part).or_default())
        };
        place.lock_owned().await
    }

    async fn try_open(&self, part: StateMachineId) -> Result<PartStore, StoreError> {
        let held = self.hold(part).await;
        let lease = match part {
            StateMachineId::System => None,
            StateMachineId::Tenant(_) => Some((self.open.permit().await, Arc::clone(&self.open))),
        };
        let (disk, executor) = (Arc::clone(&self.disk), self.executor.clone());
        let (paths, log) = (self.paths(part), self.log);
        let open = move || PartStore::open(disk, executor, paths, log, held, lease);
        self.executor.run(open).await
    }

    async fn try_remove(&self, tenant: TenantId) -> Result<(), StoreError> {
        let held = self.hold(StateMachineId::Tenant(tenant)).await;
        let (disk, dir) = (Arc::clone(&self.disk), Arc::clone(&self.tenants_dir));
        let remove = move || {
            let _held = held;
            remove(disk.as_ref(), &dir, tenant)
        };
        let removed = self.executor.run(remove).await;
        removed.map_err(|error| {
            store_error(format!("remove {}", tenant_dir(&self.tenants_dir, tenant)), error)
        })
    }

    /// Does what needs descriptors, and waits while there are none: their lack passes, and is no
    /// damage of the tenant that happens to come then. Meanwhile others are asked to close files.
    async fn when_descriptors<'a, T>(
        &'a self,
        work: impl Fn() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut tries = 0_u32;
        loop {
            match work().await {
                Err(error) if lacks_descriptors(&error) => {
                    if tries.is_multiple_of(TELL_EVERY_TRIES) {
                        tracing::warn!(%error, "no descriptors are left; waiting for some");
                    }
                }
                done => return done,
            }
            tries += 1;
            self.open.ask_one();
            tokio::time::sleep(DESCRIPTORS_RETRY).await;
        }
    }
}

/// Whether an operation failed because the process, or the system, has no descriptors left.
fn lacks_descriptors(error: &StoreError) -> bool {
    /// `ENFILE` and `EMFILE`, the same on all systems that we know.
    const CODES: [i32; 2] = [23, 24];
    matches!(error, StoreError::Io { source, .. }
        if source.raw_os_error().is_some_and(|code| CODES.contains(&code)))
}

/// The parts that have files below a data directory.
pub(crate) fn present(disk: &dyn Disk, region: &str) -> Result<Vec<StateMachineId>, StoreError> {
    let dir = tenants_dir(region);
    let failed = |error| store_error(format!("list {dir}"), error);
    let system = Paths::of(StateMachineId::System, &dir).index;
    let mut parts = Vec::new();
    if disk.exists(&system).map_err(|error| store_error(format!("look for {system}"), error))? {
        parts.push(StateMachineId::System);
    }
    if disk.exists(&dir).map_err(failed)? {
        parts.extend(tenants(disk, &dir, |_| Ok(true))?.into_iter().map(StateMachineId::Tenant));
    }
    Ok(parts)
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
    fn open(&self, part: StateMachineId) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>> {
        Box::pin(async move {
            let store = self.when_descriptors(|| Box::pin(self.try_open(part))).await?;
            Ok(Box::new(store) as Box<dyn Store>)
        })
    }

    fn exists(&self, part: StateMachineId) -> Result<bool, StoreError> {
        let index = self.paths(part).index;
        self.disk.exists(&index).map_err(|error| store_error(format!("look for {index}"), error))
    }

    fn remove(&self, tenant: TenantId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.when_descriptors(move || Box::pin(self.try_remove(tenant))))
    }

    fn tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        tenants(self.disk.as_ref(), &self.tenants_dir, |_| Ok(true))
    }

    fn tenants_with_work(&self) -> BoxFuture<'_, Result<Vec<TenantId>, StoreError>> {
        Box::pin(async move {
            let (disk, dir) = (Arc::clone(&self.disk), Arc::clone(&self.tenants_dir));
            let list =
                move || tenants(disk.as_ref(), &dir, |paths| Ok(!is_marked(disk.as_ref(), paths)?));
            self.executor.run(list).await
        })
    }
}

/// Whether the mark of a tenant without work is there.
fn is_marked(disk: &dyn Disk, paths: &Paths) -> io::Result<bool> {
    paths.idle_mark.as_ref().map_or(Ok(false), |mark| disk.exists(mark))
}

/// The tenants that have files and are `wanted`.
fn tenants(
    disk: &dyn Disk,
    tenants_dir: &str,
    wanted: impl Fn(&Paths) -> io::Result<bool>,
) -> Result<Vec<TenantId>, StoreError> {
    let failed = |error| store_error(format!("list {tenants_dir}"), error);
    let entries = disk.list(tenants_dir).map_err(failed)?;
    let folders = entries.into_iter().filter(|entry| entry.is_dir);
    let mut tenants = Vec::new();
    for tenant in folders.filter_map(|entry| entry.name.parse().ok()) {
        let paths = Paths::of(StateMachineId::Tenant(tenant), tenants_dir);
        if disk.exists(&paths.index).map_err(failed)? && wanted(&paths).map_err(failed)? {
            tenants.push(tenant);
        }
    }
    Ok(tenants)
}

impl fmt::Debug for FileStores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStores").field("disk", &self.disk).finish_non_exhaustive()
    }
}

//! The files below one data directory: the `Stores` port.

use std::sync::Arc;

use shiioo_actors::domain::ids::{StateMachineId, TenantId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::{BoxFuture, Staging, Store, StoreError, Stores};
use uuid::Uuid;

use super::directory::{is_marked, prepare, remove, tenants};
use super::file_store::FileStore;
use super::keyed_mutex::KeyedMutex;
use super::open_stores::{OPEN_STORES_MAX, OpenStores};
use super::paths::{Paths, tenant_dir, tenants_dir};
use super::staging::{FileStaging, Sharing, StagedFiles};
use crate::disk::{Disk, Shortage, store_error};
use crate::executor::Executor;

/// The lack of descriptors is told with the first of so many tries.
const TELL_EVERY_TRIES: u32 = 100;

/// The files of all state machines below one data directory.
pub struct FileStores {
    disk: Arc<dyn Disk>,
    executor: Executor,
    /// The log whose entries the files are made of; `None` where that is not checked.
    log: Option<Uuid>,
    /// Directory of this node's tenants, all of which are of its own region.
    tenants_dir: Arc<str>,
    /// Held for as long as files are open, or are being removed or replaced.
    users: Arc<KeyedMutex<StateMachineId>>,
    /// Held for as long as there are staged files.
    staging: KeyedMutex<StateMachineId>,
    /// Bounds the tenants that are open at the same time.
    open: Arc<OpenStores>,
}

/// What a node's [`FileStores`] are opened with.
#[derive(Debug, Clone, Copy)]
pub struct StoresConfig {
    /// The log whose entries the files are made of. Files made of another log are damage. `None`
    /// where that is not to be checked.
    pub log: Option<Uuid>,
    /// Tenants whose files may be open at the same time.
    pub open_stores: usize,
}

impl Default for StoresConfig {
    fn default() -> Self {
        Self { log: None, open_stores: OPEN_STORES_MAX }
    }
}

impl FileStores {
    /// Makes the directory of the region's tenants, and ends removals that a crash interrupted.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub async fn open(
        disk: Arc<dyn Disk>,
        executor: Executor,
        region: &Region,
    ) -> Result<Arc<Self>, StoreError> {
        Self::open_with(disk, executor, region, StoresConfig::default()).await
    }

    /// Opens the files as [`FileStores::open`] does, with a configuration.
    ///
    /// # Errors
    /// As [`FileStores::open`].
    pub async fn open_with(
        disk: Arc<dyn Disk>,
        executor: Executor,
        region: &Region,
        config: StoresConfig,
    ) -> Result<Arc<Self>, StoreError> {
        let tenants_dir: Arc<str> = tenants_dir(region).into();
        let (preparing, dir) = (Arc::clone(&disk), Arc::clone(&tenants_dir));
        executor
            .run(move || prepare(preparing.as_ref(), &dir))
            .await
            .map_err(|error| store_error(format!("prepare {tenants_dir}"), error))?;
        let open = OpenStores::new(config.open_stores);
        let (users, staging) = (Arc::default(), KeyedMutex::default());
        Ok(Arc::new(Self { disk, executor, log: config.log, tenants_dir, users, staging, open }))
    }

    fn paths(&self, part: StateMachineId) -> Paths {
        Paths::of(part, &self.tenants_dir)
    }

    /// Opens the files of a tenant whose events are damaged from a byte on, without those. The next durable
    /// write has to come with rows that speak of none of them.
    ///
    /// # Errors
    /// As [`Stores::open`], and when there are fewer bytes of events.
    pub async fn open_cut(
        &self,
        tenant: TenantId,
        events_len: u64,
    ) -> Result<Box<dyn Store>, StoreError> {
        let part = StateMachineId::Tenant(tenant);
        let open = || -> BoxFuture<'_, _> { Box::pin(self.try_open(part, events_len)) };
        Ok(Box::new(self.when_descriptors(open).await?))
    }

    async fn try_open(
        &self,
        part: StateMachineId,
        events_max: u64,
    ) -> Result<FileStore, StoreError> {
        // The key before the permit: a waiter for files that are in use must not keep a permit from
        // those whose files are free. A holder of a permit waits for nobody, so there is no circle.
        let held = self.users.lock(part).await;
        let permit = match part {
            // The control plane is open always, and counted elsewhere.
            StateMachineId::System => None,
            StateMachineId::Tenant(_) => Some((self.open.permit().await, Arc::clone(&self.open))),
        };
        let (disk, executor) = (Arc::clone(&self.disk), self.executor.clone());
        let (paths, log) = (self.paths(part), self.log);
        let open = move || FileStore::open(disk, executor, paths, log, held, permit, events_max);
        self.executor.run(open).await
    }

    async fn try_stage(
        &self,
        part: StateMachineId,
        events_from: u64,
    ) -> Result<FileStaging, StoreError> {
        let held = self.staging.lock(part).await;
        // As for open files: whoever holds it waits for nobody who needs one.
        let permit = match part {
            StateMachineId::System => None,
            StateMachineId::Tenant(_) => Some(self.open.permit().await),
        };
        let files = StagedFiles {
            disk: Arc::clone(&self.disk),
            staged: Paths::staged(part, &self.tenants_dir),
            live: self.paths(part),
            tenants_dir: Arc::clone(&self.tenants_dir),
            events_from,
        };
        let (executor, log) = (self.executor.clone(), self.log);
        let (users, open) = (Arc::clone(&self.users), Arc::clone(&self.open));
        let sharing = Sharing { executor: executor.clone(), users, open };
        let begin = move || FileStaging::begin(files, sharing, log, held, permit);
        executor.run(begin).await
    }

    async fn try_remove(&self, tenant: TenantId) -> Result<(), StoreError> {
        let held = self.users.lock(StateMachineId::Tenant(tenant)).await;
        let (disk, dir) = (Arc::clone(&self.disk), Arc::clone(&self.tenants_dir));
        let remove = move || {
            // Held by the job: it goes on when the caller stops waiting.
            let _held = held;
            remove(disk.as_ref(), &dir, tenant)
        };
        let removed = self.executor.run(remove).await;
        removed.map_err(|error| {
            store_error(format!("remove {}", tenant_dir(&self.tenants_dir, tenant)), error)
        })
    }

    /// Does work that needs descriptors, and waits while there are none. Meanwhile others are asked
    /// to close files.
    async fn when_descriptors<'a, T>(
        &'a self,
        work: impl Fn() -> BoxFuture<'a, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let mut tries = 0_u32;
        loop {
            match work().await {
                Err(error) if Shortage::of_store(&error) == Some(Shortage::Descriptors) => {
                    if tries.is_multiple_of(TELL_EVERY_TRIES) {
                        tracing::warn!(%error, "no descriptors are left; waiting for some");
                    }
                }
                done => return done,
            }
            tries += 1;
            self.open.ask_least_recently_used();
            tokio::time::sleep(Shortage::Descriptors.retry_after()).await;
        }
    }
}

impl Stores for FileStores {
    fn open(&self, part: StateMachineId) -> BoxFuture<'_, Result<Box<dyn Store>, StoreError>> {
        Box::pin(async move {
            let store = self.when_descriptors(|| Box::pin(self.try_open(part, u64::MAX))).await?;
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

    fn stage(
        &self,
        part: StateMachineId,
        events_from: u64,
    ) -> BoxFuture<'_, Result<Box<dyn Staging>, StoreError>> {
        Box::pin(async move {
            let stage = || -> BoxFuture<'_, _> { Box::pin(self.try_stage(part, events_from)) };
            Ok(Box::new(self.when_descriptors(stage).await?) as Box<dyn Staging>)
        })
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

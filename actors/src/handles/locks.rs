//! Locks: the cluster's, and each tenant's own.

use std::sync::Arc;
use std::time::Duration;

use crate::command::{LockCommand, Refusal};
use crate::domain::json::Json;
use crate::domain::lock::{FencingToken, Holder, LockKey, LockView};
use crate::domain::page::{Page, PageBudget, PageRequest};
use crate::domain::views::{Acquired, LockDetail};
use crate::handles::TenantHandle;
use crate::ports::Proposals;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::services::Call;
use crate::services::control::Control;
use crate::services::locks::{LockManager, Space};
use crate::services::mailbox::{answer, client_envelope, until};
use crate::state::tables::lock_table::LockTable;

/// Handle to the locks.
#[derive(Clone)]
pub struct Locks {
    pub(crate) manager: LockManager,
    pub(crate) control: Control,
    pub(crate) log: Arc<dyn Proposals>,
    pub(crate) seams: Seams,
}

/// A key space: keys and fencing tokens of different spaces have nothing to do with each other.
#[derive(Clone, Copy)]
pub enum LockSpace<'a> {
    /// The cluster's.
    Cluster,
    /// A tenant's own.
    Tenant(&'a TenantHandle),
}

impl LockSpace<'_> {
    const fn space(self) -> Space {
        match self {
            Self::Cluster => Space::CLUSTER,
            Self::Tenant(tenant) => tenant.space(),
        }
    }

    fn check_key(self, key: &LockKey) -> Result<(), Refusal> {
        match self {
            Self::Cluster if key.is_reserved() => Err(Refusal::ReservedKey),
            _ => Ok(()),
        }
    }
}

/// An attempt to take a lock.
#[derive(Debug, Clone)]
pub struct AcquireLock {
    /// Key.
    pub key: LockKey,
    /// Who wants it.
    pub holder: Holder,
    /// Length of a lease.
    pub ttl: Duration,
    /// How long to queue for it.
    pub wait: Duration,
    /// Free JSON shown with the lock.
    pub metadata: Json,
}

impl Locks {
    /// Takes the lock, or queues for it.
    ///
    /// # Errors
    /// When the key is reserved, too many wait, or it came to no outcome by the deadline.
    pub async fn acquire(
        &self,
        call: &Call,
        space: LockSpace<'_>,
        acquire: AcquireLock,
    ) -> Result<Acquired, CallError> {
        space.check_key(&acquire.key)?;
        let AcquireLock { key, holder, ttl, wait, metadata } = acquire;
        let request = (key, holder, millis(ttl), metadata);
        let (cause, waits) = (call.cause.clone(), (wait, call.elapsed_upstream));
        self.manager.acquire(space.space(), cause, call.deadline, waits, request).await
    }

    /// Begins the holder's lease again.
    ///
    /// # Errors
    /// When the lock is not (any more) held so, or it came to no outcome by the deadline.
    pub async fn renew(
        &self,
        call: &Call,
        space: LockSpace<'_>,
        key: LockKey,
        holder: Holder,
        token: Option<FencingToken>,
        ttl: Option<Duration>,
    ) -> Result<LockView, CallError> {
        space.check_key(&key)?;
        let request = (key, holder, token, ttl.map(millis));
        self.manager.renew(space.space(), call.cause.clone(), call.deadline, request).await
    }

    /// Gives the lock back; whether it was held so.
    ///
    /// # Errors
    /// When the key is reserved, or it came to no outcome by the deadline.
    pub async fn release(
        &self,
        call: &Call,
        space: LockSpace<'_>,
        key: LockKey,
        holder: Holder,
        token: Option<FencingToken>,
    ) -> Result<bool, CallError> {
        space.check_key(&key)?;
        let space = space.space();
        let command = space.command(LockCommand::Release { key, holder, token });
        let envelope = client_envelope(&self.seams, &call.cause, call.rpc_id, command);
        answer(until(call.deadline, self.log.propose(space.group, envelope)).await?)
    }

    /// One lock.
    ///
    /// # Errors
    /// When it is not held, or no answer came by the deadline.
    pub async fn get(
        &self,
        call: &Call,
        space: LockSpace<'_>,
        key: LockKey,
    ) -> Result<LockDetail, CallError> {
        let wanted = key.clone();
        let lock = self.read(call, space, move |locks| locks.get(&wanted).cloned()).await?;
        let lock = lock.ok_or(Refusal::LockNotFound { key })?;
        let mut page = self.with_waiters(call, space, vec![lock]).await?;
        page.pop().ok_or(CallError::DeadlineExceeded)
    }

    /// The held locks whose keys begin with `prefix`, by key.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn list(
        &self,
        call: &Call,
        space: LockSpace<'_>,
        prefix: String,
        page: PageRequest,
    ) -> Result<Page<LockDetail>, CallError> {
        let (locks, more) = self
            .read(call, space, move |locks| {
                let found = locks.list(&prefix, page.cursor.as_deref());
                PageBudget::new(page.limit).fill(found.cloned())
            })
            .await?;
        let next_cursor = locks.last().filter(|_| more).map(|last| last.key.to_string());
        Ok(Page { items: self.with_waiters(call, space, locks).await?, next_cursor })
    }

    async fn read<T: Send + 'static>(
        &self,
        call: &Call,
        space: LockSpace<'_>,
        read: impl FnOnce(&LockTable) -> T + Send + 'static,
    ) -> Result<T, CallError> {
        match space {
            LockSpace::Cluster => {
                let read = move |state: &crate::state::system::SystemState| read(state.locks());
                self.control.read_for(call, read).await
            }
            LockSpace::Tenant(tenant) => {
                tenant.catch_up(call).await?;
                tenant.read(call, move |reader| read(reader.state.locks())).await
            }
        }
    }

    async fn with_waiters(
        &self,
        call: &Call,
        space: LockSpace<'_>,
        locks: Vec<LockView>,
    ) -> Result<Vec<LockDetail>, CallError> {
        let locks = self.manager.look(space.space(), locks, call.deadline).await?.into_iter();
        Ok(locks.map(|(lock, waiters)| LockDetail { lock, waiters }).collect())
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

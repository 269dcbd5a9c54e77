//! The way to one tenant: where it lives, whether a request is let in there, what it uses.

use std::sync::Arc;

use tokio::time::Instant;

use super::tenants::Tenants;
use crate::cluster::routing::TenantLocation;
use crate::command::Refusal;
use crate::domain::ids::{GroupId, StateMachineId, TenantId};
use crate::domain::tenant::Quota;
use crate::domain::views::{RateLimit, Usage};
use crate::handles::TenantHandle;
use crate::ports::error::CallError;
use crate::ports::{StoreError, StoreStats};
use crate::services::Call;
use crate::services::mailbox::call;
use crate::services::tenants::{Activation, AdmitReply, Quarantined, TenantMessage, TestHook};
use crate::state::system::SystemState;

/// What a tenant stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageStats {
    /// Its real files.
    pub files: StoreStats,
    /// Inputs and outputs of its runs, named workflows and jobs, as the replicated state counts
    /// them, bytes.
    pub payload_bytes: u64,
}

/// A request that was let in, with the state of the rate limit after it.
pub struct Admitted {
    /// The tenant.
    pub tenant: TenantHandle,
    /// State of the per-minute quota; `None` where it is unlimited.
    pub rate: Option<RateLimit>,
}

/// A request that was not let in.
#[derive(Debug)]
pub struct NotAdmitted {
    /// Why.
    pub error: CallError,
    /// State of the per-minute quota, where it is known.
    pub rate: Option<RateLimit>,
}

impl From<CallError> for NotAdmitted {
    fn from(error: CallError) -> Self {
        Self { error, rate: None }
    }
}

impl Tenants {
    /// Quotas and what is used of them. Not rate limited.
    ///
    /// # Errors
    /// When there is no such tenant, or no answer came by the deadline.
    pub async fn usage(&self, call: &Call, id: TenantId) -> Result<Vec<Usage>, CallError> {
        let now = self.0.seams.clock.now();
        let tenant = self.told(call, id).await?;
        tenant
            .read(call, move |reader| {
                let record = reader.state.record()?;
                let usage = Quota::ALL.into_iter().map(|quota| {
                    let (requests, reset_secs) = reader.requests;
                    let used = match quota {
                        Quota::ApiRequestsPerMinute => requests,
                        _ => reader.state.used(quota, now),
                    };
                    let resets_at = match quota {
                        Quota::WorkflowsPerDay => Some(now.next_day()),
                        Quota::ApiRequestsPerMinute => Some(now.plus_ms(reset_secs * 1000)),
                        _ => None,
                    };
                    Usage { quota, limit: record.quotas.limit(quota), used, resets_at }
                });
                Some(usage.collect())
            })
            .await?
            .ok_or_else(|| Refusal::TenantNotFound.into())
    }

    /// Sizes of the tenant's real files. Not rate limited.
    ///
    /// # Errors
    /// When there is no such tenant, its files cannot be read, or no answer came by the deadline.
    pub async fn storage_stats(
        &self,
        call: &Call,
        id: TenantId,
    ) -> Result<StorageStats, CallError> {
        let tenant = self.told(call, id).await?;
        let stats = tenant
            .read(call, |reader| {
                let store = reader.rows.store.as_ref();
                if store.is_none() && reader.rows.has_files() {
                    return Err(StoreError::Full);
                }
                let mut files = store.map(|store| store.stats()).transpose()?.unwrap_or_default();
                files.events_bytes += reader.rows.events_to_write();
                let payload_bytes = reader.state.payload_bytes();
                Ok::<_, StoreError>(StorageStats { files, payload_bytes })
            })
            .await?;
        Ok(stats?)
    }

    /// Lets a request on the tenant's own resources in, counting it, or refuses it.
    ///
    /// # Errors
    /// When there is no such tenant, it is over its rate, or it cannot be reached.
    pub async fn admit(&self, call: &Call, id: TenantId) -> Result<Admitted, NotAdmitted> {
        let tenant = self.handle(call.deadline, id).await?;
        let mut reply = ask_to_admit(&tenant, call).await?;
        if reply.refusal == Some(Refusal::TenantNotFound) {
            // Group 0 knows it: its own group is behind, as after a restart, or has not been told.
            tenant.catch_up(call).await?;
            self.0.control.sync_tenant(id, None, call.deadline).await?;
            self.still_here(&tenant).map_err(CallError::from)?;
            reply = ask_to_admit(&tenant, call).await?;
        }
        match reply.refusal {
            Some(refusal) => Err(NotAdmitted { error: refusal.into(), rate: reply.rate }),
            None => Ok(Admitted { tenant, rate: reply.rate }),
        }
    }

    /// Has a tenant's actor misbehave. Reachable on nodes started with `--test-hooks` only.
    ///
    /// # Errors
    /// When there is no such tenant.
    pub fn test_hook(&self, id: TenantId, hook: TestHook) -> Result<(), CallError> {
        let placed = self.0.directory.get(id).ok_or(Refusal::TenantNotFound)?;
        let activation = self.activation(id, placed)?;
        activation.set_test_hook(hook);
        activation.wake();
        Ok(())
    }

    /// Tells whether this node knows a tenant. A hint: a tenant that was created just now may not be
    /// known yet.
    pub fn is_known(&self, id: TenantId) -> bool {
        self.0.directory.get(id).is_some()
    }

    pub(super) fn activation(
        &self,
        id: TenantId,
        placed: TenantLocation,
    ) -> Result<Arc<Activation>, CallError> {
        let activation = self.0.registry.activation(placed.group, id);
        activation.ok_or(CallError::Starting { what: "the node" })
    }

    /// Where the tenant lives. The directory is a hint: that it does not know a tenant is asked of
    /// group 0 before it is believed.
    async fn placed(&self, deadline: Instant, id: TenantId) -> Result<TenantLocation, CallError> {
        if let Some(placed) = self.0.directory.get(id) {
            return Ok(placed);
        }
        let find = move |state: &SystemState| {
            let entry = state.tenant(id).filter(|entry| entry.record.is_some())?;
            Some(TenantLocation { group: entry.group, epoch: entry.epoch })
        };
        let found = self.0.control.read_linearizable(deadline, find).await?;
        Ok(found.ok_or(Refusal::TenantNotFound)?)
    }

    /// The group a tenant lives in; `None` when there is no such tenant.
    pub(crate) async fn group_of(
        &self,
        id: TenantId,
        deadline: Instant,
    ) -> Result<Option<GroupId>, CallError> {
        match self.placed(deadline, id).await {
            Ok(placed) => Ok(Some(placed.group)),
            Err(CallError::Refused(Refusal::TenantNotFound)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn handle(
        &self,
        deadline: Instant,
        id: TenantId,
    ) -> Result<TenantHandle, CallError> {
        let placed = self.placed(deadline, id).await?;
        let activation = self.activation(id, placed)?;
        let permit = activation.permit()?;
        let actor = activation.actor(deadline).await?;
        let (log, seams) = (Arc::clone(&self.0.log), self.0.seams.clone());
        let workers = Arc::clone(&self.0.workers);
        Ok(TenantHandle { id, placed, actor, activation, log, seams, workers, _permit: permit })
    }

    /// The tenant, once its group has been told of it. Absent is only what group 0 says is absent: a
    /// group that does not know of a tenant yet is told.
    async fn told(&self, call: &Call, id: TenantId) -> Result<TenantHandle, CallError> {
        let tenant = self.handle(call.deadline, id).await?;
        tenant.catch_up(call).await?;
        if let Err(CallError::Refused(Refusal::TenantNotFound)) = tenant.read(call, |_| ()).await {
            self.0.control.sync_tenant(id, None, call.deadline).await?;
            self.still_here(&tenant)?;
        }
        Ok(tenant)
    }

    /// Refuses a handle to where the tenant lived before it moved, as far as this node knows by now: its absence
    /// there says nothing.
    fn still_here(&self, tenant: &TenantHandle) -> Result<(), Refusal> {
        match self.0.directory.get(tenant.id) {
            Some(placed) if placed != tenant.placed => Err(Refusal::StaleEpoch),
            _ => Ok(()),
        }
    }

    /// Counts how often the files of all tenants have been looked through for damage.
    pub fn scrubs(&self) -> u64 {
        self.0.registry.scrubs()
    }

    /// Counts the comparisons of a tenant's replicas, and those in which the replicas differed.
    pub fn comparisons(&self) -> (u64, u64) {
        self.0.registry.comparisons()
    }

    /// The tenants of this node that are quarantined, and what of the log is kept for them.
    pub fn quarantined(&self) -> Vec<Quarantined> {
        self.0.registry.quarantined(&*self.0.kept)
    }

    /// Tenants that have files on this node, for the metrics.
    pub fn with_files(&self) -> usize {
        let activations = self.0.registry.activations();
        // A tenant whose directory cannot be read is not counted.
        let has_files =
            |tenant| self.0.stores.exists(StateMachineId::Tenant(tenant)).unwrap_or(false);
        activations.iter().filter(|activation| has_files(activation.tenant)).count()
    }
}

async fn ask_to_admit(tenant: &TenantHandle, call_: &Call) -> Result<AdmitReply, CallError> {
    call(&tenant.actor, call_.deadline, TenantMessage::Admit).await.map_err(unanswered)
}

/// An actor that stopped with a question has not done anything about it.
pub(super) fn unanswered(error: CallError) -> CallError {
    match error {
        CallError::Unknown { .. } => CallError::Starting { what: "the tenant" },
        other => other,
    }
}

//! Tenants: their records in group 0, and the way to one of them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use crate::cluster::routing::{Directory, Router, TenantLocation};
use crate::command::{
    CreateTenant, DeleteTenant, Refusal, TenantCreated, TenantKnown, TenantWritten, UpdateTenant,
};
use crate::domain::ids::{GroupId, RaftId, StateMachineId, TenantId};
use crate::domain::page::{Page, PageBudget, PageRequest};
use crate::domain::region::Region;
use crate::domain::tenant::{Quota, Quotas, Settings, TenantChange, TenantRecord, TenantStatus};
use crate::domain::time::Timestamp;
use crate::domain::views::{RateLimit, TenantView, Usage};
use crate::handles::TenantHandle;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::ports::{Durability, Proposals, StoreError, StoreStats, Stores};
use crate::services::control::Control;
use crate::services::executor::Renderer;
use crate::services::mailbox::call;
use crate::services::tenants::{
    Activation, AdmitReply, Quarantined, Registry, TenantMessage, TestHook,
};
use crate::services::{Call, Created};
use crate::state::system::{MovePhase, SystemState};

/// A tenant that starts while it is to be changed shows by then that it is damaged, if it is.
const DAMAGE_SHOWS_MAX: Duration = Duration::from_secs(1);

/// Time between two looks whether a tenant has moved.
const MOVE_POLL: Duration = Duration::from_millis(20);
/// How long a call that waits for a move waits for its last step, after which the tenant may move again.
const LEAVING_AWAITED: Duration = Duration::from_secs(1);
/// A call that waits for a move is answered so long before its deadline, so that the answer still arrives.
const MOVE_ANSWERED_BEFORE: Duration = Duration::from_millis(500);

/// Handle to the tenants.
#[derive(Clone)]
pub struct Tenants(Arc<Inner>);

/// What the handle works with.
pub(crate) struct Inner {
    pub(crate) control: Control,
    pub(crate) directory: Arc<Directory>,
    pub(crate) router: Router,
    pub(crate) registry: Arc<Registry>,
    pub(crate) log: Arc<dyn Proposals>,
    /// Tells what of the log is kept for a tenant.
    pub(crate) kept: Arc<dyn Durability>,
    pub(crate) stores: Arc<dyn Stores>,
    pub(crate) seams: Seams,
    /// Does what takes long, away from the runtime's threads.
    pub(crate) workers: Arc<Renderer>,
    /// Region of this node: where tenants go that name none, when nobody is in `default`.
    pub(crate) region: Region,
}

impl std::fmt::Debug for Tenants {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tenants")
    }
}

/// What a new tenant is made of.
#[derive(Debug, Clone)]
pub struct NewTenant {
    /// For people, 1-200 characters.
    pub name: String,
    /// For people.
    pub description: String,
    /// Limits.
    pub quotas: Quotas,
    /// Choices.
    pub settings: Settings,
    /// Region named in the field: refused when no node is there.
    pub region: Option<Region>,
    /// Region named in the metadata only: a wish.
    pub wished_region: Option<Region>,
}

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
#[derive(Debug)]
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
    pub(crate) fn new(inner: Inner) -> Self {
        Self(Arc::new(inner))
    }

    /// Creates a tenant. Returns when both groups have it.
    ///
    /// # Errors
    /// When no node is in the region, or it came to no outcome by the deadline.
    pub async fn create(
        &self,
        call: &Call,
        new: NewTenant,
    ) -> Result<Created<TenantView>, CallError> {
        let strict_region = new.region.is_some();
        let region = new.region.or(new.wished_region);
        let command = CreateTenant {
            tenant: TenantId::from_uuid(self.0.seams.uuid()),
            record: TenantRecord {
                name: new.name,
                description: new.description,
                status: TenantStatus::Active,
                quotas: new.quotas,
                settings: new.settings,
                region: region.unwrap_or_default(),
                created_at: Timestamp::default(),
                updated_at: Timestamp::default(),
            },
            strict_region,
            fallback_region: self.fallback_region(call).await?,
            idempotency: call.idempotency,
        };
        match self.0.control.ask(call, command).await? {
            TenantCreated::Now(TenantWritten { tenant, version, record }) => {
                let resource = self.finish(call.deadline, tenant, version, *record).await?;
                Ok(Created { resource, replayed: false })
            }
            // The tenant is shown as it is now.
            TenantCreated::Before(TenantKnown { tenant, .. }) => {
                let synced = self.0.control.sync_tenant(tenant, None, call.deadline).await;
                synced.map_err(CallError::after_write)?;
                let resource = match self.view(call.deadline, tenant).await {
                    // It was deleted since.
                    Err(gone @ CallError::Refused(_)) => return Err(gone),
                    shown => shown.map_err(CallError::after_write)?,
                };
                Ok(Created { resource, replayed: true })
            }
        }
    }

    /// One tenant.
    ///
    /// # Errors
    /// When there is none with this id, or no answer came by the deadline.
    pub async fn get(&self, call: &Call, id: TenantId) -> Result<TenantView, CallError> {
        let router = self.0.router.clone();
        self.0.control.read_for(call, move |state| view(state, &router, id)).await?
    }

    /// Tenants by creation.
    ///
    /// # Errors
    /// When no answer came by the deadline.
    pub async fn list(
        &self,
        call: &Call,
        status: Option<TenantStatus>,
        page: PageRequest,
    ) -> Result<Page<TenantView>, CallError> {
        let router = self.0.router.clone();
        let after = page.cursor.as_deref().and_then(|cursor| cursor.parse().ok());
        self.0
            .control
            .read_for(call, move |state| {
                let found = state
                    .tenants_by_creation(after)
                    .filter(|(_, _, record)| status.is_none_or(|status| record.status == status))
                    .map(|(id, entry, record)| {
                        (
                            entry.created_seq,
                            show(state, &router, id, entry.group, entry.version, record),
                        )
                    });
                let (items, more) = PageBudget::new(page.limit).fill(found);
                let last = items.last().filter(|_| more);
                let next_cursor = last.map(|(created_seq, _)| created_seq.to_string());
                Page { items: items.into_iter().map(|(_, view)| view).collect(), next_cursor }
            })
            .await
    }

    /// Changes a tenant. Returns when both groups have the change, and with another region when the tenant
    /// lives there: or, when that takes longer than the call may, while it is on its way.
    ///
    /// # Errors
    /// When there is no such tenant, it is at another version than `if_version`, or the change
    /// came to no outcome by the deadline.
    pub async fn update(
        &self,
        call: &Call,
        tenant: TenantId,
        change: TenantChange,
        if_version: Option<u64>,
    ) -> Result<TenantView, CallError> {
        self.refuse_damaged(call, tenant).await?;
        let may_move = change.region.is_some();
        let command = UpdateTenant { tenant, change, if_version };
        let TenantWritten { version, record, .. } = self.0.control.ask(call, command).await?;
        let shown = self.finish(call.deadline, tenant, version, *record).await?;
        if may_move { self.settled(call, shown).await } else { Ok(shown) }
    }

    /// Waits until a tenant's move is over, or the call has to be answered. What is `shown` is right where there was
    /// none.
    async fn settled(&self, call: &Call, shown: TenantView) -> Result<TenantView, CallError> {
        let (id, until) = (shown.id, call.deadline - MOVE_ANSWERED_BEFORE);
        let look = move |state: &SystemState| {
            let is_confirmed = state.tenant(id).is_none_or(|it| it.confirmed >= it.version);
            let phase = state.tenant_move(id).map(|it| it.phase);
            (phase.filter(|phase| *phase != MovePhase::Over), is_confirmed)
        };
        let mut arrived: Option<Instant> = None;
        loop {
            let read = self.0.control.read(call.deadline, look).await;
            let now = Instant::now();
            match read.map_err(CallError::after_write)? {
                _ if now >= until => break,
                (None, true) => break,
                // It works there; what it left behind may be on nodes that do not answer.
                (Some(MovePhase::Leaving), true)
                    if *arrived.get_or_insert(now) + LEAVING_AWAITED <= now =>
                {
                    break;
                }
                _ => sleep(MOVE_POLL).await,
            }
        }
        match self.view(call.deadline, id).await {
            // It was deleted since.
            Err(CallError::Refused(_)) => Ok(shown),
            now => now.map_err(CallError::after_write),
        }
    }

    /// Deletes a tenant, its runs and its data.
    ///
    /// # Errors
    /// When there is no such tenant, it is at another version than `if_version`, or the deletion
    /// came to no outcome by the deadline.
    pub async fn delete(
        &self,
        call: &Call,
        tenant: TenantId,
        if_version: Option<u64>,
    ) -> Result<(), CallError> {
        let deleted = self.0.control.ask(call, DeleteTenant { tenant, if_version }).await?;
        let version = Some(deleted.version);
        let synced = self.0.control.sync_tenant(tenant, version, call.deadline).await;
        synced.map_err(CallError::after_write)
    }

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

    /// Refuses a change to a tenant that this node has and whose data is damaged: its group could not
    /// take the change over, and nothing is to be decided that cannot be done.
    async fn refuse_damaged(&self, call: &Call, id: TenantId) -> Result<(), CallError> {
        let Some(placed) = self.0.directory.get(id) else { return Ok(()) };
        if self.0.log.leadership(placed.group).is_none() {
            return Ok(());
        }
        // One that starts has a moment to show that it is damaged; the call needs its time itself.
        let deadline = call.deadline.min(Instant::now() + DAMAGE_SHOWS_MAX);
        match self.activation(id, placed)?.actor(deadline).await {
            Err(error @ CallError::Quarantined { .. }) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Tells whether this node knows a tenant. A hint: a tenant that was created just now may not be
    /// known yet.
    pub fn is_known(&self, id: TenantId) -> bool {
        self.0.directory.get(id).is_some()
    }

    fn activation(
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

    async fn handle(&self, deadline: Instant, id: TenantId) -> Result<TenantHandle, CallError> {
        let placed = self.placed(deadline, id).await?;
        let activation = self.activation(id, placed)?;
        let permit: OwnedSemaphorePermit = activation.permit()?;
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

    /// Waits until the tenant's group has what group 0 has just decided, and shows that, whatever
    /// group 0 has decided since.
    async fn finish(
        &self,
        deadline: Instant,
        id: TenantId,
        version: u64,
        record: TenantRecord,
    ) -> Result<TenantView, CallError> {
        let synced = self.0.control.sync_tenant(id, Some(version), deadline).await;
        synced.map_err(CallError::after_write)?;
        let router = self.0.router.clone();
        let read = move |state: &SystemState| {
            let group = state.tenant(id).map_or(GroupId::SYSTEM, |entry| entry.group);
            show(state, &router, id, group, version, &record)
        };
        self.0.control.read(deadline, read).await.map_err(CallError::after_write)
    }

    async fn view(&self, deadline: Instant, id: TenantId) -> Result<TenantView, CallError> {
        let router = self.0.router.clone();
        self.0.control.read(deadline, move |state| view(state, &router, id)).await?
    }

    /// `default`, or the region of the node that was asked, where no node is in `default`.
    async fn fallback_region(&self, call: &Call) -> Result<Region, CallError> {
        let asked = call.ingress_node;
        let find = move |state: &SystemState| {
            let mut members = state.members();
            if members.any(|(_, node, _)| node.region.is_default()) {
                return Some(Region::default());
            }
            let mut members = state.members();
            let asked = members.find(|(_, _, member)| Some(member.raft_id) == asked);
            asked.map(|(_, node, _)| node.region.clone())
        };
        let found = self.0.control.read(call.deadline, find).await?;
        Ok(found.unwrap_or_else(|| self.0.region.clone()))
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

fn view(state: &SystemState, router: &Router, id: TenantId) -> Result<TenantView, CallError> {
    let entry = state.tenant(id).ok_or(Refusal::TenantNotFound)?;
    let record = entry.record.as_ref().ok_or(Refusal::TenantNotFound)?;
    Ok(show(state, router, id, entry.group, entry.version, record))
}

fn show(
    state: &SystemState,
    router: &Router,
    id: TenantId,
    group: GroupId,
    version: u64,
    record: &TenantRecord,
) -> TenantView {
    let placed = state.groups().get(&group).map_or(&[][..], |group| &group.replicas);
    let voters = router.voters(group, placed);
    let node = |raft_id: RaftId| state.member(raft_id);
    TenantView {
        id,
        version,
        record: record.clone(),
        group: group_number(group),
        leader: router.leader(group).and_then(node),
        replicas: voters.replicas().into_iter().filter_map(node).collect(),
        moving_to: state
            .tenant_move(id)
            .filter(|it| it.phase == MovePhase::Copying)
            .map(|it| it.region.clone()),
    }
}

const fn group_number(group: GroupId) -> u32 {
    group.0
}

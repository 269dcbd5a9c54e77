//! Tenants: their records in group 0.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::routing::{Directory, Router};
use crate::command::{
    CreateTenant, DeleteTenant, Refusal, TenantCreated, TenantKnown, TenantWritten, UpdateTenant,
};
use crate::domain::ids::{GroupId, RaftId, TenantId};
use crate::domain::page::{Page, PageBudget, PageRequest};
use crate::domain::region::Region;
use crate::domain::tenant::{Quotas, Settings, TenantChange, TenantRecord, TenantStatus};
use crate::domain::time::Timestamp;
use crate::domain::views::TenantView;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::ports::{Durability, Proposals, Stores};
use crate::services::control::Control;
use crate::services::executor::Renderer;
use crate::services::tenants::Registry;
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
pub struct Tenants(pub(super) Arc<Inner>);

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
        group: group.0,
        leader: router.leader(group).and_then(node),
        replicas: voters.replicas().into_iter().filter_map(node).collect(),
        moving_to: state
            .tenant_move(id)
            .filter(|it| it.phase == MovePhase::Copying)
            .map(|it| it.region.clone()),
    }
}

//! `/api/tenants`: the registry of tenants, their quotas and settings.

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::{NodeId, TenantId};
use shiioo_actors::domain::json::Json;
use shiioo_actors::domain::region::Region;
use shiioo_actors::domain::tenant::{Quota, Quotas, Settings, TenantChange, TenantStatus};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::TenantView;
use shiioo_actors::handles::NewTenant;
use utoipa::{IntoParams, ToSchema};

use crate::input::extract::{IfMatch, InPath, PageQuery, Paging, Query};
use crate::input::fields::{Bytes, Count, Metadata, Name, Parsed, Text, nullable, object};
use crate::input::payload::Payload;
use crate::output::page::List;
use crate::output::problem::Problem;
use crate::output::reply::{Answer, MessageBody, Raw, Reply, Shown};
use crate::request::ctx::Ctx;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// Lists the routes of the registry of tenants.
pub(crate) fn routes() -> Vec<Route> {
    let system = RouteOwner::SystemGroup;
    vec![
        Route::post("/api/tenants", create, __path_create).served(system, Credential::Admin),
        Route::get("/api/tenants", list, __path_list).served(system, Credential::Admin).page(),
        Route::get("/api/tenants/{tenant_id}", get, __path_get).served(system, Credential::Tenant),
        Route::put("/api/tenants/{tenant_id}", update, __path_update)
            .served(system, Credential::Admin),
        Route::delete("/api/tenants/{tenant_id}", delete, __path_delete)
            .served(system, Credential::Admin),
        Route::post("/api/tenants/{tenant_id}/suspend", suspend, __path_suspend)
            .served(system, Credential::Admin),
        Route::post("/api/tenants/{tenant_id}/activate", activate, __path_activate)
            .served(system, Credential::Admin),
    ]
}

/// Quotas as clients send them. A quota that is `null` is unlimited; one that is absent has its
/// default in a new tenant, and stays as it is in a change.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = QuotaChange)]
pub(crate) struct QuotaInput {
    /// Runs that have not ended.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    max_concurrent_workflows: Option<Option<Count>>,
    /// Runs accepted since 00:00 UTC.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    max_workflows_per_day: Option<Option<Count>>,
    /// Routines defined.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    max_routines: Option<Option<Count>>,
    /// Bytes of events, inputs, outputs, definitions, jobs and metadata of locks.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u64>, maximum = 9_223_372_036_854_775_807_u64)]
    max_storage_bytes: Option<Option<Bytes>>,
    /// Requests in any 60 s.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>)]
    max_api_requests_per_minute: Option<Option<Count>>,
}

impl QuotaInput {
    /// Those that were given.
    fn given(self) -> Vec<(Quota, Option<u64>)> {
        let count =
            |given: Option<Option<Count>>| given.map(|limit| limit.map(|count| u64::from(count.0)));
        [
            (Quota::ConcurrentWorkflows, count(self.max_concurrent_workflows)),
            (Quota::WorkflowsPerDay, count(self.max_workflows_per_day)),
            (Quota::Routines, count(self.max_routines)),
            (Quota::StorageBytes, self.max_storage_bytes.map(|limit| limit.map(|bytes| bytes.0))),
            (Quota::ApiRequestsPerMinute, count(self.max_api_requests_per_minute)),
        ]
        .into_iter()
        .filter_map(|(quota, given)| Some((quota, given?)))
        .collect()
    }
}

/// Settings as clients send them.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = SettingsChange)]
pub(crate) struct SettingsInput {
    /// Days that ended runs and their events are to be kept; 90 if not given. Nothing is removed yet.
    #[schema(value_type = Option<u32>)]
    data_retention_days: Option<Count>,
    /// Whether changes write an `audit` event; true if not given.
    enable_audit_logging: Option<bool>,
    /// Texts of the owner's by name. `region` in it is a wish for the placement.
    #[schema(value_type = Option<std::collections::BTreeMap<String, String>>)]
    metadata: Option<Metadata>,
}

/// What a new tenant is made of.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewTenant)]
pub(crate) struct NewTenantBody {
    /// For people; need not be unique.
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    /// For people.
    #[schema(value_type = Option<String>)]
    description: Option<Text>,
    /// Limits.
    #[serde(default, deserialize_with = "object")]
    quota: Option<QuotaInput>,
    /// Choices.
    #[serde(default, deserialize_with = "object")]
    settings: Option<SettingsInput>,
    /// Region to place the tenant in; it must have a node.
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9-]{1,63}$")]
    region: Option<Parsed<Region>>,
}

impl NewTenantBody {
    fn into_new(self) -> NewTenant {
        let mut quotas = Quotas::default();
        for (quota, limit) in self.quota.unwrap_or_default().given() {
            *quotas.limit_mut(quota) = limit;
        }
        let default = Settings::default();
        let settings = self.settings.unwrap_or_default();
        let metadata = settings.metadata.map_or(default.metadata, |metadata| metadata.0);
        NewTenant {
            name: self.name.0,
            description: self.description.map_or_else(String::new, |text| text.0),
            quotas,
            wished_region: wished_region(&metadata),
            settings: Settings {
                data_retention_days: settings
                    .data_retention_days
                    .map_or(default.data_retention_days, |days| days.0),
                enable_audit_logging: settings
                    .enable_audit_logging
                    .unwrap_or(default.enable_audit_logging),
                metadata,
            },
            region: self.region.map(|region| region.0),
        }
    }
}

/// The region that the metadata names. It is the owner's free JSON: what is no region there is
/// no error.
fn wished_region(metadata: &Json) -> Option<Region> {
    #[derive(Deserialize)]
    struct Wish {
        region: Option<String>,
    }

    let wish: Wish = serde_json::from_str(metadata.as_str()).ok()?;
    Region::try_from(wish.region?).ok()
}

/// A change to a tenant: what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TenantChange)]
pub(crate) struct TenantChangeBody {
    /// New name.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    name: Option<Name>,
    /// New description.
    #[schema(value_type = Option<String>)]
    description: Option<Text>,
    /// New limits.
    #[serde(default, deserialize_with = "object")]
    quota: Option<QuotaInput>,
    /// New choices.
    #[serde(default, deserialize_with = "object")]
    settings: Option<SettingsInput>,
    /// New status: `Active`, `Suspended` or `Disabled`.
    #[schema(value_type = Option<String>)]
    status: Option<TenantStatus>,
    /// New region: the tenant moves there while it works. Its present one calls a move off.
    #[schema(value_type = Option<String>, pattern = "^[a-z0-9-]{1,63}$")]
    region: Option<Parsed<Region>>,
}

impl TenantChangeBody {
    fn into_change(self) -> TenantChange {
        let settings = self.settings.unwrap_or_default();
        TenantChange {
            name: self.name.map(|name| name.0),
            description: self.description.map(|text| text.0),
            status: self.status,
            quotas: self.quota.unwrap_or_default().given(),
            data_retention_days: settings.data_retention_days.map(|days| days.0),
            enable_audit_logging: settings.enable_audit_logging,
            metadata: settings.metadata.map(|metadata| metadata.0),
            region: self.region.map(|region| region.0),
        }
    }
}

/// The limits of a tenant; `null` is unlimited, 0 is none.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Quota)]
pub(crate) struct QuotaBody {
    max_concurrent_workflows: Option<u64>,
    max_workflows_per_day: Option<u64>,
    max_routines: Option<u64>,
    max_storage_bytes: Option<u64>,
    max_api_requests_per_minute: Option<u64>,
}

impl From<Quotas> for QuotaBody {
    fn from(quotas: Quotas) -> Self {
        Self {
            max_concurrent_workflows: quotas.max_concurrent_workflows,
            max_workflows_per_day: quotas.max_workflows_per_day,
            max_routines: quotas.max_routines,
            max_storage_bytes: quotas.max_storage_bytes,
            max_api_requests_per_minute: quotas.max_api_requests_per_minute,
        }
    }
}

/// The choices of a tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Settings)]
pub(crate) struct SettingsBody {
    data_retention_days: u32,
    enable_audit_logging: bool,
    #[schema(value_type = Object)]
    metadata: Raw,
}

/// Where a tenant lives.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Placement)]
pub(crate) struct PlacementBody {
    /// The replication group it lives in.
    group: u32,
    /// The node that leads that group, if known.
    #[schema(value_type = Option<String>)]
    leader: Option<Shown<NodeId>>,
    /// The nodes with a replica.
    #[schema(value_type = Vec<String>)]
    replicas: Vec<Shown<NodeId>>,
    /// The region that it is on its way to; absent where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    moving_to: Option<String>,
}

/// A tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Tenant)]
pub(crate) struct TenantBody {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<TenantId>,
    name: String,
    description: String,
    /// `Active`, `Suspended` or `Disabled`.
    status: &'static str,
    quota: QuotaBody,
    settings: SettingsBody,
    region: String,
    placement: PlacementBody,
    #[schema(value_type = String, format = DateTime)]
    created_at: Shown<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    updated_at: Shown<Timestamp>,
}

impl From<TenantView> for TenantBody {
    fn from(view: TenantView) -> Self {
        let record = view.record;
        Self {
            id: Shown(view.id),
            name: record.name,
            description: record.description,
            status: record.status.name(),
            quota: record.quotas.into(),
            settings: SettingsBody {
                data_retention_days: record.settings.data_retention_days,
                enable_audit_logging: record.settings.enable_audit_logging,
                metadata: Raw(record.settings.metadata),
            },
            region: record.region.into(),
            placement: PlacementBody {
                group: view.group,
                leader: view.leader.map(Shown),
                replicas: view.replicas.into_iter().map(Shown).collect(),
                moving_to: view.moving_to.map(Into::into),
            },
            created_at: Shown(record.created_at),
            updated_at: Shown(record.updated_at),
        }
    }
}

/// Tenants.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantList)]
pub(crate) struct TenantsBody {
    tenants: Vec<TenantBody>,
    next_cursor: Option<String>,
}

/// Which tenants are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct TenantsQuery {
    /// Only those in this status: `Active`, `Suspended` or `Disabled`.
    #[param(value_type = Option<String>)]
    status: Option<TenantStatus>,
}

fn whole(view: TenantView) -> Reply {
    let version = view.version;
    Answer::ok(&TenantBody::from(view))?.etag(version)?.done()
}

async fn demanded(ctx: &Ctx, id: TenantId, if_match: &IfMatch) -> Result<Option<u64>, Problem> {
    let current = async || Ok(Some(ctx.handles()?.tenants.get(&ctx.call(), id).await?.version));
    if_match.demand(ctx.is_maybe_applied(), current()).await
}

/// Registers a tenant.
#[utoipa::path(post, path = "/api/tenants", operation_id = "create_tenant", tag = "Tenants",
    request_body = NewTenantBody,
    responses((status = 201, description = "The new tenant", body = TenantBody)))]
pub(crate) async fn create(ctx: Ctx, body: Payload<NewTenantBody>) -> Reply {
    let call = ctx.creating_call(&body.bytes)?;
    let created = ctx.handles()?.tenants.create(&call, body.value.into_new()).await?;
    let (id, version) = (created.resource.id, created.resource.version);
    Answer::created(&format!("/api/tenants/{id}"), &TenantBody::from(created.resource))?
        .etag(version)?
        .replayed(created.replayed)?
        .done()
}

/// Lists tenants, by creation.
#[utoipa::path(get, path = "/api/tenants", operation_id = "list_tenants", tag = "Tenants",
    params(TenantsQuery, PageQuery),
    responses((status = 200, description = "Tenants", body = TenantsBody)))]
pub(crate) async fn list(
    ctx: Ctx,
    Query(query): Query<TenantsQuery>,
    Paging(page): Paging,
) -> Reply {
    let listed = List::new("tenants", "cluster");
    let page = listed.open(page)?;
    let page = ctx.handles()?.tenants.list(&ctx.call(), query.status, page).await?;
    let (tenants, next_cursor) = listed.close(page);
    Answer::ok(&TenantsBody { tenants, next_cursor })?.done()
}

/// One tenant.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}", operation_id = "get_tenant", tag = "Tenants",
    responses((status = 200, description = "The tenant", body = TenantBody)))]
pub(crate) async fn get(ctx: Ctx, InPath(id): InPath<TenantId>) -> Reply {
    whole(ctx.handles()?.tenants.get(&ctx.call(), id).await?)
}

/// Changes a tenant: what is absent stays. A new region moves the tenant while it works; the answer comes when it is
/// there, or with 202 while it is on its way.
#[utoipa::path(put, path = "/api/tenants/{tenant_id}", operation_id = "update_tenant", tag = "Tenants",
    request_body = TenantChangeBody,
    responses((status = 200, description = "The tenant", body = TenantBody),
        (status = 202, description = "The tenant, which is on its way to another region", body = TenantBody),
        (status = 409, description = "Another move of the tenant is not over"),
        (status = 412, description = "If-Match names another version"),
        (status = 422, description = "No node is in the region")))]
pub(crate) async fn update(
    ctx: Ctx,
    InPath(id): InPath<TenantId>,
    if_match: IfMatch,
    body: Payload<TenantChangeBody>,
) -> Reply {
    let change = body.value.into_change();
    let version = demanded(&ctx, id, &if_match).await?;
    let asks_to_move = change.region.is_some();
    let view = ctx.handles()?.tenants.update(&ctx.call(), id, change, version).await?;
    // Whatever else was asked for is done, also while the tenant is on its way.
    if view.moving_to.is_none() || !asks_to_move {
        return whole(view);
    }
    let version = view.version;
    Answer::accepted(&TenantBody::from(view))?.etag(version)?.done()
}

/// Deletes a tenant: its runs stop, its data is removed on every replica.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}", operation_id = "delete_tenant",
    tag = "Tenants",
    responses((status = 200, description = "Deleted", body = MessageBody),
        (status = 412, description = "If-Match names another version")))]
pub(crate) async fn delete(ctx: Ctx, InPath(id): InPath<TenantId>, if_match: IfMatch) -> Reply {
    let version = demanded(&ctx, id, &if_match).await?;
    ctx.handles()?.tenants.delete(&ctx.call(), id, version).await?;
    Answer::message(format!("Tenant {id} deleted successfully"))
}

async fn set_status(ctx: &Ctx, id: TenantId, status: TenantStatus) -> Reply {
    let change = TenantChange { status: Some(status), ..TenantChange::default() };
    whole(ctx.handles()?.tenants.update(&ctx.call(), id, change, None).await?)
}

/// Suspends a tenant: reads work, and writes that wind work down.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/suspend", operation_id = "suspend_tenant",
    tag = "Tenants", responses((status = 200, description = "The tenant", body = TenantBody)))]
pub(crate) async fn suspend(ctx: Ctx, InPath(id): InPath<TenantId>) -> Reply {
    set_status(&ctx, id, TenantStatus::Suspended).await
}

/// Activates a tenant.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/activate", operation_id = "activate_tenant",
    tag = "Tenants", responses((status = 200, description = "The tenant", body = TenantBody)))]
pub(crate) async fn activate(ctx: Ctx, InPath(id): InPath<TenantId>) -> Reply {
    set_status(&ctx, id, TenantStatus::Active).await
}

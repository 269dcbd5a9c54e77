//! What a tenant uses: its quotas and its files, as the tenant's group tells.

use serde::Serialize;
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::Usage;
use shiioo_actors::handles::StorageStats;
use utoipa::ToSchema;

use crate::input::extract::InPath;
use crate::output::reply::{Answer, Reply, Shown};
use crate::request::ctx::Ctx;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// Lists the routes on what a tenant uses.
pub(crate) fn routes() -> Vec<Route> {
    let tenant = RouteOwner::TenantGroup;
    vec![
        Route::get("/api/tenants/{tenant_id}/storage-stats", storage_stats, __path_storage_stats)
            .served(tenant, Credential::Tenant),
        Route::get("/api/tenants/{tenant_id}/usage", usage, __path_usage)
            .served(tenant, Credential::Tenant),
    ]
}

/// Sizes of the tenant's real files on the node that owns it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = StorageStats)]
pub(crate) struct StorageStatsBody {
    total_bytes: u64,
    file_count: u64,
    blobs_bytes: u64,
    events_bytes: u64,
    index_bytes: u64,
    /// Inputs and outputs of its runs, named workflows and jobs: part of what the storage quota
    /// counts, and stored in the index.
    payload_bytes: u64,
}

impl From<StorageStats> for StorageStatsBody {
    fn from(StorageStats { files: stats, payload_bytes }: StorageStats) -> Self {
        let bytes = [stats.blobs_bytes, stats.events_bytes, stats.index_bytes];
        Self {
            total_bytes: bytes.into_iter().fold(0, u64::saturating_add),
            file_count: stats.file_count,
            blobs_bytes: stats.blobs_bytes,
            events_bytes: stats.events_bytes,
            index_bytes: stats.index_bytes,
            payload_bytes,
        }
    }
}

/// How much of a quota is used.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QuotaUsage)]
pub(crate) struct QuotaUsageBody {
    quota: &'static str,
    /// `null` is unlimited.
    limit: Option<u64>,
    used: u64,
    /// When it begins anew; `null` for quotas that do not.
    #[schema(value_type = Option<String>, format = DateTime)]
    resets_at: Option<Shown<Timestamp>>,
}

impl From<Usage> for QuotaUsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            quota: usage.quota.name(),
            limit: usage.limit,
            used: usage.used,
            resets_at: usage.resets_at.map(Shown),
        }
    }
}

/// One entry a quota.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Usage)]
pub(crate) struct UsageBody {
    usage: Vec<QuotaUsageBody>,
}

/// Sizes of the tenant's real files on the node that owns it.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/storage-stats",
    operation_id = "get_tenant_storage_stats", tag = "Tenants",
    responses((status = 200, description = "Sizes", body = StorageStatsBody)))]
pub(crate) async fn storage_stats(ctx: Ctx, InPath(id): InPath<TenantId>) -> Reply {
    let stats = ctx.handles()?.tenants.storage_stats(&ctx.call(), id).await?;
    Answer::ok(&StorageStatsBody::from(stats))?.done()
}

/// How much of each quota is used.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/usage", operation_id = "get_tenant_usage",
    tag = "Tenants", responses((status = 200, description = "Usage", body = UsageBody)))]
pub(crate) async fn usage(ctx: Ctx, InPath(id): InPath<TenantId>) -> Reply {
    let usage = ctx.handles()?.tenants.usage(&ctx.call(), id).await?;
    let usage = usage.into_iter().map(QuotaUsageBody::from).collect();
    Answer::ok(&UsageBody { usage })?.done()
}

//! `/api/tenants/{tenant_id}/workflows`: named workflows.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Uri;
use serde::Serialize;
use shiioo_actors::command::Refusal;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::WorkflowView;
use shiioo_actors::domain::workflow::Workflow;
use shiioo_actors::domain::workflow::spec::{self, WorkflowSpec};
use shiioo_actors::ports::error::CallError;
use utoipa::ToSchema;

use crate::input::extract::{IfMatch, InPath, PageQuery, Paging, WorkflowName};
use crate::input::payload::{Checked, CheckedPayload};
use crate::output::page::List;
use crate::output::problem::Problem;
use crate::output::reply::{Answer, MessageBody, Raw, Reply, Shown};
use crate::request::ctx::Ctx;
use crate::request::tenant::Tenant;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// Lists the routes on named workflows.
pub(crate) fn routes() -> Vec<Route> {
    let tenant = RouteOwner::TenantGroup;
    vec![
        Route::get("/api/tenants/{tenant_id}/workflows", list, __path_list)
            .served(tenant, Credential::Tenant)
            .metered()
            .page(),
        Route::get("/api/tenants/{tenant_id}/workflows/{name}", get, __path_get)
            .served(tenant, Credential::Tenant)
            .metered(),
        Route::put("/api/tenants/{tenant_id}/workflows/{name}", put, __path_put)
            .served(tenant, Credential::Tenant)
            .metered(),
        Route::delete("/api/tenants/{tenant_id}/workflows/{name}", delete, __path_delete)
            .served(tenant, Credential::Tenant)
            .metered(),
    ]
}

/// A workflow as clients send it. Every field of a step's action beside `type` depends on it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowSpec)]
pub(crate) struct WorkflowSpecBody {
    /// Its steps, at least one: `id`, `action`, and optionally `name`, `description`, `role`,
    /// `depends_on`, `timeout_secs`, `retry_policy`.
    #[schema(value_type = Vec<Object>, min_items = 1, max_items = 1000)]
    steps: Vec<serde_json::Value>,
    /// What each step needs, by id.
    dependencies: Option<BTreeMap<String, Vec<String>>>,
}

/// A named workflow.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Workflow)]
pub(crate) struct WorkflowBody {
    name: String,
    /// Grows with every change.
    version: u64,
    /// The spec, defaults filled in.
    #[schema(value_type = WorkflowSpecBody)]
    spec: Raw,
    /// When this version was written.
    #[schema(value_type = String, format = DateTime)]
    created_at: Shown<Timestamp>,
}

impl From<WorkflowView> for WorkflowBody {
    fn from(view: WorkflowView) -> Self {
        Self {
            name: view.name,
            version: view.version,
            spec: Raw(view.spec),
            created_at: Shown(view.created_at),
        }
    }
}

/// Named workflows.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowList)]
pub(crate) struct WorkflowsBody {
    workflows: Vec<WorkflowBody>,
    next_cursor: Option<String>,
}

impl Checked for Arc<Workflow> {
    type Body = WorkflowSpec;

    fn check(spec: WorkflowSpec) -> Result<Self, Problem> {
        Ok(Self::new(spec::parse(spec)?))
    }
}

/// The version to demand of a write; `*` and lists ask for the present one first.
async fn demanded(
    ctx: &Ctx,
    tenant: &Tenant,
    name: &str,
    if_match: &IfMatch,
) -> Result<Option<u64>, Problem> {
    let current = async || match tenant.handle.workflow(&ctx.call(), name).await {
        Ok(view) => Ok(Some(view.version)),
        Err(CallError::Refused(Refusal::WorkflowNotFound { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    };
    if_match.demand(ctx.is_maybe_applied(), current()).await
}

/// Writes a named workflow. Runs keep the version they started with.
#[utoipa::path(put, path = "/api/tenants/{tenant_id}/workflows/{name}",
    operation_id = "put_workflow", tag = "Workflows",
    request_body = WorkflowSpecBody,
    responses((status = 200, description = "Changed", body = WorkflowBody),
        (status = 201, description = "New", body = WorkflowBody),
        (status = 412, description = "If-Match names another version")))]
pub(crate) async fn put(
    ctx: Ctx,
    tenant: Tenant,
    uri: Uri,
    InPath(WorkflowName(name)): InPath<WorkflowName>,
    if_match: IfMatch,
    body: CheckedPayload<Arc<Workflow>>,
) -> Reply {
    let version = demanded(&ctx, &tenant, &name, &if_match).await?;
    let view = tenant.handle.put_workflow(&ctx.call(), name, body.value, version).await?;
    let version = view.version;
    let body = WorkflowBody::from(view);
    let answer =
        if version == 1 { Answer::created(uri.path(), &body)? } else { Answer::ok(&body)? };
    answer.etag(version)?.done()
}

/// One named workflow.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/workflows/{name}",
    operation_id = "get_workflow", tag = "Workflows",
    responses((status = 200, description = "The workflow", body = WorkflowBody)))]
pub(crate) async fn get(
    ctx: Ctx,
    tenant: Tenant,
    InPath(WorkflowName(name)): InPath<WorkflowName>,
) -> Reply {
    let view = tenant.handle.workflow(&ctx.call(), &name).await?;
    let version = view.version;
    Answer::ok(&WorkflowBody::from(view))?.etag(version)?.done()
}

/// Lists named workflows.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/workflows", operation_id = "list_workflows",
    tag = "Workflows", params(PageQuery),
    responses((status = 200, description = "Workflows", body = WorkflowsBody)))]
pub(crate) async fn list(ctx: Ctx, tenant: Tenant, Paging(page): Paging) -> Reply {
    let listed = List::new("workflows", tenant.id);
    let page = tenant.handle.workflows(&ctx.call(), listed.open(page)?).await?;
    let (workflows, next_cursor) = listed.close(page);
    Answer::ok(&WorkflowsBody { workflows, next_cursor })?.done()
}

/// Forgets a named workflow.
#[utoipa::path(delete, path = "/api/tenants/{tenant_id}/workflows/{name}",
    operation_id = "delete_workflow", tag = "Workflows",
    responses((status = 200, description = "Deleted", body = MessageBody),
        (status = 412, description = "If-Match names another version")))]
pub(crate) async fn delete(
    ctx: Ctx,
    tenant: Tenant,
    InPath(WorkflowName(name)): InPath<WorkflowName>,
    if_match: IfMatch,
) -> Reply {
    let version = demanded(&ctx, &tenant, &name, &if_match).await?;
    tenant.handle.delete_workflow(&ctx.call(), &name, version).await?;
    Answer::message(format!("Workflow {name} deleted successfully"))
}

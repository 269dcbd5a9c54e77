//! Jobs, named workflows kept with their run, under `/api/tenants/{tenant_id}/jobs` and `/api/jobs`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::{JobId, RunId};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::JobView;
use shiioo_actors::domain::workflow::spec::{self, WorkflowSpec};
use shiioo_actors::handles::NewJob;
use utoipa::ToSchema;

use crate::input::extract::{InPath, PageQuery, Paging};
use crate::input::fields::{Name, Text, object};
use crate::input::payload::{Checked, CheckedPayload};
use crate::output::page::List;
use crate::output::problem::Problem;
use crate::output::reply::{Answer, Raw, Reply, Shown};
use crate::request::ctx::Ctx;
use crate::request::tenant::Tenant;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// Lists the routes on jobs.
pub(crate) fn routes() -> Vec<Route> {
    let tenant = RouteOwner::TenantGroup;
    vec![
        Route::post("/api/tenants/{tenant_id}/jobs", create, __path_create)
            .served(tenant, Credential::Tenant)
            .metered()
            .short("/api/jobs"),
        Route::get("/api/tenants/{tenant_id}/jobs", list, __path_list)
            .served(tenant, Credential::Tenant)
            .metered()
            .page()
            .short("/api/jobs"),
        Route::get("/api/tenants/{tenant_id}/jobs/{job_id}", get, __path_get)
            .served(tenant, Credential::Tenant)
            .metered()
            .short("/api/jobs/{job_id}"),
    ]
}

/// What a new job is made of.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewJob)]
pub(crate) struct NewJobBody {
    /// Name shown.
    #[schema(value_type = String, min_length = 1, max_length = 200)]
    name: Name,
    #[schema(value_type = Option<String>)]
    description: Option<Text>,
    /// Required.
    #[serde(default, deserialize_with = "object")]
    #[schema(value_type = crate::routes::workflows::WorkflowSpecBody, required = true)]
    workflow: Option<WorkflowSpec>,
    /// Who makes it.
    #[schema(value_type = Option<String>)]
    created_by: Option<Text>,
    /// Whether a run is started at once; true if not given.
    execute: Option<bool>,
}

impl Checked for NewJob {
    type Body = NewJobBody;

    fn check(body: NewJobBody) -> Result<Self, Problem> {
        let spec = body
            .workflow
            .ok_or_else(|| Problem::invalid_field("workflow", "a job needs a workflow"))?;
        Ok(Self {
            name: body.name.0,
            description: body.description.map(|text| text.0),
            workflow: Arc::new(spec::parse(spec)?),
            created_by: body.created_by.map(|text| text.0),
            execute: body.execute.unwrap_or(true),
        })
    }
}

/// A new job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobCreated)]
pub(crate) struct JobCreatedBody {
    #[schema(value_type = String, format = "uuid")]
    job_id: Shown<JobId>,
    /// The run started with it, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = "uuid")]
    run_id: Option<Shown<RunId>>,
    message: &'static str,
}

impl From<&JobView> for JobCreatedBody {
    fn from(view: &JobView) -> Self {
        Self {
            job_id: Shown(view.id),
            run_id: view.run_id.map(Shown),
            message: match view.run_id {
                Some(_) => "Job created and its run started",
                None => "Job created",
            },
        }
    }
}

/// A job.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub(crate) struct JobBody {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<JobId>,
    name: String,
    description: Option<String>,
    #[schema(value_type = crate::routes::workflows::WorkflowSpecBody)]
    workflow: Raw,
    created_by: Option<String>,
    #[schema(value_type = String, format = DateTime)]
    created_at: Shown<Timestamp>,
    #[schema(value_type = Option<String>, format = "uuid")]
    run_id: Option<Shown<RunId>>,
}

impl From<JobView> for JobBody {
    fn from(view: JobView) -> Self {
        Self {
            id: Shown(view.id),
            name: view.name,
            description: view.description,
            workflow: Raw(view.workflow),
            created_by: view.created_by,
            created_at: Shown(view.created_at),
            run_id: view.run_id.map(Shown),
        }
    }
}

/// Jobs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JobList)]
pub(crate) struct JobsBody {
    jobs: Vec<JobBody>,
    next_cursor: Option<String>,
}

/// Creates a job and, unless told not to, starts its run.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/jobs", operation_id = "create_job",
    tag = "Jobs", request_body = NewJobBody,
    responses((status = 201, description = "The new job", body = JobCreatedBody)))]
pub(crate) async fn create(ctx: Ctx, tenant: Tenant, body: CheckedPayload<NewJob>) -> Reply {
    let call = ctx.creating_call(&body.bytes)?;
    let created = tenant.handle.create_job(&call, body.value).await?;
    let location = format!("/api/tenants/{}/jobs/{}", tenant.id, created.resource.id);
    Answer::created(&location, &JobCreatedBody::from(&created.resource))?
        .replayed(created.replayed)?
        .done()
}

/// Lists jobs, by creation.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/jobs", operation_id = "list_jobs",
    tag = "Jobs", params(PageQuery),
    responses((status = 200, description = "Jobs", body = JobsBody)))]
pub(crate) async fn list(ctx: Ctx, tenant: Tenant, Paging(page): Paging) -> Reply {
    let listed = List::new("jobs", tenant.id);
    let page = tenant.handle.jobs(&ctx.call(), listed.open(page)?).await?;
    let (jobs, next_cursor) = listed.close(page);
    Answer::ok(&JobsBody { jobs, next_cursor })?.done()
}

/// One job.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/jobs/{job_id}", operation_id = "get_job",
    tag = "Jobs", responses((status = 200, description = "The job", body = JobBody)))]
pub(crate) async fn get(ctx: Ctx, tenant: Tenant, InPath(id): InPath<JobId>) -> Reply {
    let job = tenant.handle.job(&ctx.call(), id).await?;
    Answer::ok(&JobBody::from(job))?.done()
}

//! Runs of workflows, under `/api/tenants/{tenant_id}/runs` and `/api/runs`.

use std::sync::Arc;

use http::request::Parts;
use serde::{Deserialize, Serialize};
use shiioo_actors::command::WorkflowSource;
use shiioo_actors::domain::ids::{RunId, TenantId};
use shiioo_actors::domain::json::Json;
use shiioo_actors::domain::run::RunStatus;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::{RunView, StepView};
use shiioo_actors::domain::workflow::spec::{self, WorkflowSpec};
use shiioo_actors::handles::NewRun;
use tokio::time::Duration;
use utoipa::{IntoParams, ToSchema};

use crate::input::extract::{InPath, PageQuery, Paging, Query};
use crate::input::fields::{Name, Text, Wait, object};
use crate::input::payload::{Checked, CheckedPayload, Payload};
use crate::input::raw_json::RawJson;
use crate::output::page::List;
use crate::output::problem::Problem;
use crate::output::reply::{Answer, Raw, Reply, Shown, Started};
use crate::request::ctx::Ctx;
use crate::request::tenant::Tenant;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// Lists the routes on runs.
pub(crate) fn routes() -> Vec<Route> {
    let tenant = RouteOwner::TenantGroup;
    vec![
        Route::post("/api/tenants/{tenant_id}/runs", start, __path_start)
            .served(tenant, Credential::Tenant)
            .metered()
            .short("/api/runs")
            .long_poll(wait_of),
        Route::get("/api/tenants/{tenant_id}/runs", list, __path_list)
            .served(tenant, Credential::Tenant)
            .metered()
            .page()
            .short("/api/runs"),
        Route::get("/api/tenants/{tenant_id}/runs/{run_id}", get, __path_get)
            .served(tenant, Credential::Tenant)
            .metered()
            .short("/api/runs/{run_id}")
            .long_poll(wait_of),
        Route::get("/api/tenants/{tenant_id}/runs/{run_id}/events", events, __path_events)
            .served(tenant, Credential::Tenant)
            .metered()
            .page()
            .short("/api/runs/{run_id}/events"),
        Route::post("/api/tenants/{tenant_id}/runs/{run_id}/cancel", cancel, __path_cancel)
            .served(tenant, Credential::Tenant)
            .metered()
            .short("/api/runs/{run_id}/cancel"),
    ]
}

/// Writes the path of a run.
fn location(tenant: TenantId, run: RunId) -> String {
    format!("/api/tenants/{tenant}/runs/{run}")
}

/// What a new run is made of: exactly one of `workflow` and `workflow_name`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewRun)]
pub(crate) struct NewRunBody {
    /// The workflow itself.
    #[serde(default, deserialize_with = "object")]
    #[schema(value_type = Option<crate::routes::workflows::WorkflowSpecBody>)]
    workflow: Option<WorkflowSpec>,
    /// The present version of a named workflow.
    #[schema(value_type = Option<String>, min_length = 1, max_length = 200)]
    workflow_name: Option<Name>,
    /// Any JSON, `input` in templates.
    #[schema(value_type = Option<Object>)]
    input: Option<RawJson>,
}

impl Checked for NewRun {
    type Body = NewRunBody;

    fn check(body: NewRunBody) -> Result<Self, Problem> {
        let workflow = match (body.workflow, body.workflow_name) {
            (Some(spec), None) => WorkflowSource::Inline(Arc::new(spec::parse(spec)?)),
            (None, Some(name)) => WorkflowSource::Named(name.0),
            (given, _) => {
                let given = if given.is_some() { "both are" } else { "neither is" };
                return Err(Problem::invalid_field(
                    "workflow",
                    format_args!(
                        "exactly one of workflow and workflow_name is needed, {given} given"
                    ),
                ));
            }
        };
        let input = body.input.map_or_else(Json::null, |input| input.0);
        Ok(Self { workflow, input })
    }
}

/// How long to wait for the end of a run.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Wait for the end of the run, at most this long; 0 to 300 s.
    #[param(value_type = Option<f64>)]
    wait_secs: Option<Wait>,
}

/// Which runs are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RunsQuery {
    /// Only those in this status: `pending`, `running`, `completed`, `failed` or `cancelled`.
    #[param(value_type = Option<String>)]
    status: Option<RunStatus>,
}

/// Why a run is cancelled.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CancelRun)]
pub(crate) struct CancelBody {
    #[schema(value_type = Option<String>)]
    reason: Option<Text>,
}

/// A step of a run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunStep)]
pub(crate) struct StepBody {
    id: String,
    /// `pending`, `running`, `completed`, `failed` or `skipped`.
    status: &'static str,
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Shown<Timestamp>>,
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Shown<Timestamp>>,
    /// The present attempt, from 1; 0 before the first.
    attempt: u32,
    error: Option<String>,
    #[schema(value_type = Option<Object>)]
    output: Option<Raw>,
    /// `timer`, `retry`, `resume`, or `null`.
    waiting_for: Option<&'static str>,
}

impl From<StepView> for StepBody {
    fn from(view: StepView) -> Self {
        Self {
            id: view.id,
            status: view.status,
            started_at: view.started_at.map(Shown),
            completed_at: view.completed_at.map(Shown),
            attempt: view.attempt,
            error: view.error,
            output: view.output.map(Raw),
            waiting_for: view.waiting_for,
        }
    }
}

/// A run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Run)]
pub(crate) struct RunBody {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<RunId>,
    /// What it works on: a job's id, or an id of its own.
    work_item_id: String,
    /// The named workflow it was started from.
    workflow_name: Option<String>,
    /// `pending`, `running`, `completed`, `failed` or `cancelled`.
    status: &'static str,
    #[schema(value_type = String, format = DateTime)]
    started_at: Shown<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Shown<Timestamp>>,
    #[schema(value_type = Object)]
    input: Raw,
    /// Outputs of the steps nobody depends on, by step id.
    #[schema(value_type = Option<Object>)]
    output: Option<Raw>,
    error: Option<String>,
    steps: Vec<StepBody>,
}

impl From<RunView> for RunBody {
    fn from(view: RunView) -> Self {
        Self {
            id: Shown(view.id),
            work_item_id: view.work_item_id,
            workflow_name: view.workflow_name,
            status: view.status.name(),
            started_at: Shown(view.started_at),
            completed_at: view.completed_at.map(Shown),
            input: Raw(view.input),
            output: view.output.map(Raw),
            error: view.error,
            steps: view.steps.into_iter().map(StepBody::from).collect(),
        }
    }
}

/// Runs.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RunList)]
pub(crate) struct RunsBody {
    runs: Vec<RunBody>,
    next_cursor: Option<String>,
}

/// Events of a run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EventList)]
pub(crate) struct EventsBody {
    #[schema(value_type = Vec<Object>)]
    events: Vec<Raw>,
    next_cursor: Option<String>,
}

/// Reads how long a request waits for the end of a run.
fn wait_of(parts: &Parts, _: &[u8]) -> Duration {
    // A query that cannot be read is refused by the handler.
    let query = axum::extract::Query::<WaitQuery>::try_from_uri(&parts.uri).ok();
    query.and_then(|query| query.0.wait_secs).unwrap_or_default().0
}

fn left_of(ctx: &Ctx, wait: Option<Wait>) -> Option<Duration> {
    wait.map(|wait| ctx.left_of(wait.0)).filter(|left| !left.is_zero())
}

/// Starts a run.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/runs", operation_id = "start_run",
    tag = "Runs", params(WaitQuery), request_body = NewRunBody,
    responses((status = 201, description = "The run", body = RunBody)))]
pub(crate) async fn start(
    ctx: Ctx,
    tenant: Tenant,
    Query(WaitQuery { wait_secs }): Query<WaitQuery>,
    body: CheckedPayload<NewRun>,
) -> Reply {
    let (mut run, replayed) = match ctx.started() {
        Some(Started { run, replayed }) => (tenant.handle.run(&ctx.call(), run).await?, replayed),
        None => {
            let call = ctx.creating_call(&body.bytes)?;
            let created = tenant.handle.start_run(&call, body.value).await?;
            (created.resource, created.replayed)
        }
    };
    let started = Started { run: run.id, replayed };
    let mut broke_off = false;
    if let Some(wait) = left_of(&ctx, wait_secs) {
        // The run is there whatever becomes of the wait: an error would say it may not be.
        match tenant.handle.wait_run(&ctx.waiting_call(wait), run.id, wait).await {
            Ok(ended) => run = ended,
            Err(error) => broke_off = Problem::from(error).retries().is_some(),
        }
    }
    let answer = Answer::created(&location(tenant.id, run.id), &RunBody::from(run))?;
    let answer = answer.replayed(replayed)?;
    // Where the lead has moved, another attempt waits for the rest of the time.
    if broke_off { answer.broke_off(started).done() } else { answer.done() }
}

/// Lists runs, newest first.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/runs", operation_id = "list_runs",
    tag = "Runs", params(RunsQuery, PageQuery),
    responses((status = 200, description = "Runs", body = RunsBody)))]
pub(crate) async fn list(
    ctx: Ctx,
    tenant: Tenant,
    Query(query): Query<RunsQuery>,
    Paging(page): Paging,
) -> Reply {
    let listed = List::new("runs", tenant.id);
    let page = tenant.handle.runs(&ctx.call(), query.status, listed.open(page)?).await?;
    let (runs, next_cursor) = listed.close(page);
    Answer::ok(&RunsBody { runs, next_cursor })?.done()
}

/// One run, at once or once it has ended.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/runs/{run_id}", operation_id = "get_run",
    tag = "Runs", params(WaitQuery),
    responses((status = 200, description = "The run", body = RunBody)))]
pub(crate) async fn get(
    ctx: Ctx,
    tenant: Tenant,
    InPath(id): InPath<RunId>,
    Query(WaitQuery { wait_secs }): Query<WaitQuery>,
) -> Reply {
    let run = match left_of(&ctx, wait_secs) {
        Some(wait) => tenant.handle.wait_run(&ctx.waiting_call(wait), id, wait).await?,
        None => tenant.handle.run(&ctx.call(), id).await?,
    };
    Answer::ok(&RunBody::from(run))?.done()
}

/// The events of a run, oldest first; `audit` events are in the tenant's log alone.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/runs/{run_id}/events",
    operation_id = "list_run_events", tag = "Runs", params(PageQuery),
    responses((status = 200, description = "Events", body = EventsBody)))]
pub(crate) async fn events(
    ctx: Ctx,
    tenant: Tenant,
    InPath(id): InPath<RunId>,
    Paging(page): Paging,
) -> Reply {
    let listed = List::new("run_events", format_args!("{} {id}", tenant.id));
    let page = tenant.handle.run_events(&ctx.call(), id, listed.open(page)?).await?;
    let (events, next_cursor) = listed.close(page);
    Answer::ok(&EventsBody { events, next_cursor })?.done()
}

/// Stops a run.
#[utoipa::path(post, path = "/api/tenants/{tenant_id}/runs/{run_id}/cancel",
    operation_id = "cancel_run", tag = "Runs", request_body = CancelBody,
    responses((status = 200, description = "The run", body = RunBody)))]
pub(crate) async fn cancel(
    ctx: Ctx,
    tenant: Tenant,
    InPath(id): InPath<RunId>,
    body: Payload<CancelBody>,
) -> Reply {
    let reason = body.value.reason.map(|reason| reason.0);
    let run = tenant.handle.cancel_run(&ctx.call(), id, reason).await?;
    Answer::ok(&RunBody::from(run))?.done()
}

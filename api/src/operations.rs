//! What operators ask for: liveness, readiness, version, metrics, documentation.

use axum::extract::State;
use axum::response::{Html, IntoResponse};
use http::{HeaderName, header};
use serde::Serialize;
use shiioo_actors::services::tenants::Quarantined;
use utoipa::ToSchema;

use crate::app::{App, Ctx};
use crate::problem::{Code, Problem};
use crate::reply::{Answer, Reply};
use crate::routes::Routes;
use crate::{openapi, pages};

/// What Prometheus text is called.
const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The pages load nothing and run nothing.
const PAGE_HEADERS: [(HeaderName, &str); 2] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

pub(crate) fn routes() -> Routes {
    probes()
        .get("/", start_page)
        .get("/metrics", metrics)
        .get("/docs", docs)
        .get("/api/health", health)
        .get("/api/openapi.json", openapi_json)
}

/// What a load balancer or a supervisor asks for: answered however busy the node is.
pub(crate) fn probes() -> Routes {
    Routes::default().get("/healthz", healthz).get("/readyz", readyz)
}

/// How the node is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Status)]
pub(crate) struct StatusBody {
    /// `ok`, or `ready`.
    status: &'static str,
    /// The version of the program.
    version: &'static str,
}

/// The node is ready.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Readiness)]
pub(crate) struct ReadyBody {
    /// `ready`.
    status: &'static str,
    /// The version of the program.
    version: &'static str,
    /// What somebody should look at, though the node serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// The node is alive: it answers.
#[utoipa::path(get, path = "/healthz", operation_id = "healthz", tag = "Operations",
    responses((status = 200, description = "Alive", body = StatusBody)))]
pub(crate) async fn healthz(State(app): State<App>) -> Reply {
    Answer::ok(&StatusBody { status: "ok", version: app.version })?.done()
}

/// The node serves: a quorum is reachable and it has caught up.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "Operations",
    responses((status = 200, description = "Ready", body = ReadyBody),
        (status = 503, description = "Not ready: `reasons` says why", body = crate::problem::ProblemBody)))]
pub(crate) async fn readyz(State(app): State<App>, ctx: Ctx) -> Reply {
    let handles = ctx.handles().map_err(|starting| {
        let reasons = vec![starting.to_string()];
        Problem::from(starting).facts(|facts| facts.reasons = reasons)
    })?;
    let reasons = ctx.in_time(handles.cluster.not_ready()).await;
    let reasons = reasons.unwrap_or_else(|| vec!["the node does not answer in time".to_owned()]);
    if reasons.is_empty() {
        let warnings = handles.tenants.quarantined().iter().map(warning).collect();
        return Answer::ok(&ReadyBody { status: "ready", version: app.version, warnings })?.done();
    }
    let text = format!("not ready: {}", reasons.join("; "));
    Err(Problem::new(Code::NoQuorum, text).retryable().facts(|facts| facts.reasons = reasons))
}

fn warning(tenant: &Quarantined) -> String {
    let Quarantined { tenant, reason, log_bytes_kept } = tenant;
    format!(
        "tenant {tenant} is quarantined, and {log_bytes_kept} bytes of the log are kept for it: \
         {reason}"
    )
}

/// Which program answers.
#[utoipa::path(get, path = "/api/health", operation_id = "get_health", tag = "Operations",
    responses((status = 200, description = "Version", body = StatusBody)))]
pub(crate) async fn health(State(app): State<App>) -> Reply {
    Answer::ok(&StatusBody { status: "ok", version: app.version })?.done()
}

/// Metrics in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", operation_id = "get_metrics", tag = "Operations",
    responses((status = 200, description = "Metrics", content_type = "application/openmetrics-text",
        body = String)))]
pub(crate) async fn metrics(State(app): State<App>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], app.metrics.text())
}

/// This document.
#[utoipa::path(get, path = "/api/openapi.json", operation_id = "get_openapi", tag = "Operations",
    responses((status = 200, description = "OpenAPI 3.1", content_type = "application/json",
        body = Object)))]
pub(crate) async fn openapi_json(State(app): State<App>) -> impl IntoResponse {
    let json = app.openapi.get_or_init(|| openapi::json(app.version));
    ([(header::CONTENT_TYPE, "application/json")], json.clone())
}

/// The operations of this API as a page.
#[utoipa::path(get, path = "/docs", operation_id = "get_docs", tag = "Operations",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(crate) async fn docs(State(app): State<App>) -> impl IntoResponse {
    (PAGE_HEADERS, Html(pages::operations(&openapi::document(app.version))))
}

/// The start page.
#[utoipa::path(get, path = "/", operation_id = "get_start_page", tag = "Operations",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(crate) async fn start_page() -> impl IntoResponse {
    (PAGE_HEADERS, Html(pages::START))
}

//! What operators and supervisors ask for: liveness, readiness, version, metrics, documentation.

use axum::extract::State;
use axum::response::{Html, IntoResponse};
use http::{HeaderName, header};
use serde::Serialize;
use shiioo_actors::services::tenants::Quarantined;
use utoipa::ToSchema;

use crate::docs::pages;
use crate::output::problem::{Code, Problem};
use crate::output::reply::{Answer, Reply};
use crate::request::ctx::Ctx;
use crate::routes::builder::Route;
use crate::server::app::App;
use crate::server::declaration::{Credential, RouteOwner};

/// The media type of Prometheus text.
const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Headers of the pages: they load nothing and run nothing.
const PAGE_HEADERS: [(HeaderName, &str); 2] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];

/// Lists the routes that operators and supervisors ask.
pub(crate) fn routes() -> Vec<Route> {
    let node = RouteOwner::ThisNode;
    vec![
        Route::get("/healthz", healthz, __path_healthz).served(node, Credential::Open).probe(),
        Route::get("/readyz", readyz, __path_readyz).served(node, Credential::Open).probe(),
        Route::get("/", start_page, __path_start_page).served(node, Credential::Open),
        Route::get("/metrics", metrics, __path_metrics).served(node, Credential::Admin),
        Route::get("/docs", docs, __path_docs).served(node, Credential::Admin),
        Route::get("/api/health", health, __path_health).served(node, Credential::Admin),
        Route::get("/api/openapi.json", openapi_json, __path_openapi_json)
            .served(node, Credential::Admin),
    ]
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
        (status = 503, description = "Not ready: `reasons` says why", body = crate::output::problem::ProblemBody)))]
pub(crate) async fn readyz(State(app): State<App>, ctx: Ctx) -> Reply {
    let handles = ctx.handles().map_err(|starting| {
        let reasons = vec![starting.to_string()];
        Problem::from(starting).facts(|facts| facts.reasons = reasons)
    })?;
    let reasons = ctx.in_time(handles.cluster.not_ready()).await;
    let reasons = reasons.unwrap_or_else(|| vec!["the node does not answer in time".to_owned()]);
    if reasons.is_empty() {
        let mut warnings: Vec<String> = handles.tenants.quarantined().iter().map(warning).collect();
        warnings.extend(handles.cluster.warnings());
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
    ([(header::CONTENT_TYPE, "application/json")], app.documents.openapi())
}

/// The operations of this API as a page.
#[utoipa::path(get, path = "/docs", operation_id = "get_docs", tag = "Operations",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(crate) async fn docs(State(app): State<App>) -> impl IntoResponse {
    (PAGE_HEADERS, Html(app.documents.page()))
}

/// The start page.
#[utoipa::path(get, path = "/", operation_id = "get_start_page", tag = "Operations",
    responses((status = 200, description = "A page", content_type = "text/html", body = String)))]
pub(crate) async fn start_page() -> impl IntoResponse {
    (PAGE_HEADERS, Html(pages::START))
}

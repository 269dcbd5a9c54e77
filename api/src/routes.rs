//! The table of routes: what the router serves, and what the OpenAPI document is checked against.

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};
use http::Method;
use shiioo_actors::ports::error::CallError;

use crate::app::App;
use crate::forward::{Layer, OwnedBy};
use crate::problem::{Code, Problem};
use crate::{
    cluster, edge, forward, handed_over, hooks, jobs, join_tokens, locks, operations, runs,
    tenant_scope, tenants, workflows,
};

/// Routes, and the list of them.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    router: Router<App>,
    table: Vec<(Method, &'static str)>,
}

impl Routes {
    /// Routes on a tenant's own resources: its owner lets every request in first.
    fn tenant_scoped() -> Self {
        Self::default()
            .merge(locks::tenant_routes())
            .merge(workflows::routes())
            .merge(runs::routes())
            .merge(jobs::routes())
    }

    /// Routes that the node answers which leads the cluster.
    fn of_cluster() -> Self {
        Self::default()
            .merge(tenants::routes())
            .merge(cluster::routes())
            .merge(join_tokens::routes())
            .merge(locks::cluster_routes())
    }

    /// Routes that any node answers by itself.
    fn of_node() -> Self {
        Self::default().merge(operations::routes()).merge(cluster::routes_of_node())
    }

    /// Answers GET, and HEAD with it.
    pub(crate) fn get<H: Handler<T, App>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.on(Method::GET, path, get(handler))
    }

    pub(crate) fn post<H: Handler<T, App>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.on(Method::POST, path, post(handler))
    }

    pub(crate) fn put<H: Handler<T, App>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.on(Method::PUT, path, put(handler))
    }

    pub(crate) fn delete<H: Handler<T, App>, T: 'static>(
        self,
        path: &'static str,
        handler: H,
    ) -> Self {
        self.on(Method::DELETE, path, delete(handler))
    }

    fn on(mut self, method: Method, path: &'static str, handler: MethodRouter<App>) -> Self {
        self.router = self.router.route(path, handler);
        self.table.push((method, path));
        self
    }

    fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        self.table.extend(other.table);
        self
    }
}

/// Method and template of every route.
pub(crate) fn table() -> Vec<(Method, &'static str)> {
    Routes::of_node()
        .merge(Routes::of_cluster())
        .merge(cluster::routes_once())
        .merge(tenants::routes_of_tenant())
        .merge(Routes::tenant_scoped())
        .table
}

/// The router for clients: a request goes to the node that owns what it is about.
pub(crate) fn router(app: App, test_hooks: bool) -> Router {
    let hooks = if test_hooks { hooks::routes().router } else { Router::new() };
    let owned = owned(&app, |router, owned_by| {
        let layer = Layer { app: app.clone(), ways: app.clone(), owned_by };
        router.route_layer(from_fn_with_state(layer, forward::to_owner::<App>))
    });
    finished(Routes::of_node().router.merge(owned).merge(hooks))
        .layer(from_fn_with_state(app.clone(), edge::edge))
        .with_state(app)
}

/// The router for connections above the bound: probes are answered, everything else is told that
/// the node is busy.
pub(crate) fn busy_router(app: App) -> Router {
    Routes::default()
        .merge(operations::probes())
        .router
        .fallback(async || Problem::from(CallError::NodeBusy))
        .layer(from_fn_with_state(app.clone(), edge::edge))
        .with_state(app)
}

/// The router for requests that other nodes hand over: they are answered here or not at all.
pub(crate) fn inner_router(app: App) -> Router {
    let owned = owned(&app, |router, owned_by| {
        let layer = Layer { app: app.clone(), ways: app.clone(), owned_by };
        router.route_layer(from_fn_with_state(layer, handed_over::only_here::<App>))
    });
    finished(owned).layer(from_fn_with_state(app.clone(), edge::inner_edge)).with_state(app)
}

/// The routes that have an owner, each behind what `layered` puts in front of it.
fn owned(app: &App, layered: impl Fn(Router<App>, OwnedBy) -> Router<App>) -> Router<App> {
    let admit = from_fn_with_state(app.clone(), tenant_scope::admit);
    let tenant_scoped = Routes::tenant_scoped().router.route_layer(admit);
    layered(Routes::of_cluster().router, OwnedBy::Cluster)
        .merge(layered(cluster::routes_once().router, OwnedBy::ClusterOnce))
        .merge(layered(tenants::routes_of_tenant().router, OwnedBy::Tenant))
        .merge(layered(tenant_scoped, OwnedBy::Tenant))
}

/// Answers for what no route answers.
fn finished(router: Router<App>) -> Router<App> {
    router
        .method_not_allowed_fallback(async || {
            Problem::new(
                Code::MethodNotAllowed,
                "this path takes other methods: the Allow header lists them",
            )
        })
        .fallback(async || Problem::not_found("nothing is at this path"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(routes: Routes) -> Vec<String> {
        let mut shown: Vec<_> =
            routes.table.into_iter().map(|(method, path)| format!("{method} {path}")).collect();
        shown.sort();
        shown
    }

    #[test]
    fn what_every_node_answers_by_itself_is_about_the_node() {
        let of_node = [
            "GET /",
            "GET /api/cluster/groups",
            "GET /api/cluster/health",
            "GET /api/cluster/leader",
            "GET /api/health",
            "GET /api/openapi.json",
            "GET /docs",
            "GET /healthz",
            "GET /metrics",
            "GET /readyz",
        ];
        assert_eq!(shown(Routes::of_node()), of_node);
        assert_eq!(shown(cluster::routes_once()), ["POST /api/cluster/leader/step-down"]);
    }

    #[test]
    fn a_tenant_owns_what_is_under_its_path_but_its_record() {
        let of_tenant =
            ["GET /api/tenants/{tenant_id}/storage-stats", "GET /api/tenants/{tenant_id}/usage"];
        assert_eq!(shown(tenants::routes_of_tenant()), of_tenant);
        let record =
            ["activate", "suspend"].map(|act| format!("POST /api/tenants/{{tenant_id}}/{act}"));
        for route in shown(Routes::of_cluster()) {
            let is_under = route.contains("/api/tenants/{tenant_id}/");
            assert!(!is_under || record.contains(&route), "{route}");
        }
    }
}

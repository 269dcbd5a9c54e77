//! The table of routes: what the router serves, and what the OpenAPI document is checked against.

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};
use http::Method;

use crate::app::App;
use crate::problem::{Code, Problem};
use crate::{
    cluster, edge, hooks, jobs, locks, operations, runs, tenant_scope, tenants, workflows,
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

    /// Routes of management, of the cluster and of the node.
    fn others() -> Self {
        Self::default()
            .merge(operations::routes())
            .merge(tenants::routes())
            .merge(cluster::routes())
            .merge(locks::cluster_routes())
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
    Routes::others().merge(Routes::tenant_scoped()).table
}

/// The router, ready to serve.
pub(crate) fn router(app: App, test_hooks: bool) -> Router {
    let hooks = if test_hooks { hooks::routes().router } else { Router::new() };
    let admit = from_fn_with_state(app.clone(), tenant_scope::admit);
    Routes::others()
        .router
        .merge(Routes::tenant_scoped().router.route_layer(admit))
        .merge(hooks)
        .method_not_allowed_fallback(async || {
            Problem::new(
                Code::MethodNotAllowed,
                "this path takes other methods: the Allow header lists them",
            )
        })
        .fallback(async || Problem::not_found("nothing is at this path"))
        .layer(from_fn_with_state(app.clone(), edge::edge))
        .with_state(app)
}

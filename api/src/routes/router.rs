//! Assembles the routes: the layers that each needs by its declaration, and the two routers of a
//! node.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::MethodRouter;
use http::Method;

use crate::docs::openapi::DocumentedRoute;
use crate::forward::{ForwardLayer, inbound, outbound};
use crate::output::problem::{Code, Problem};
use crate::request::{admission, answers};
use crate::routes::builder::PlacedRoute;
use crate::routes::{
    cluster, cluster_events, events, hooks, jobs, join_tokens, locks, operations, runs, tenants,
    usage, workflows,
};
use crate::server::app::{App, RouteLayer};
use crate::server::declaration::{RouteOwner, RouteTable};
use crate::server::middleware;

/// All routes of a node, at all their paths.
#[derive(Debug, Clone)]
pub(crate) struct RouteList(Vec<PlacedRoute>);

impl RouteList {
    /// Lists the routes of a node, those for tests of supervision where they are wanted.
    pub(crate) fn new(test_hooks: bool) -> Self {
        let routes = [
            operations::routes(),
            tenants::routes(),
            usage::routes(),
            cluster::routes(),
            cluster_events::routes(),
            join_tokens::routes(),
            locks::routes(),
            workflows::routes(),
            runs::routes(),
            events::routes(),
            jobs::routes(),
            if test_hooks { hooks::routes() } else { Vec::new() },
        ];
        Self(routes.into_iter().flatten().flat_map(|route| route.placed()).collect())
    }

    /// Makes the table by which the layers find the route that matched.
    pub(crate) fn table(&self) -> RouteTable {
        RouteTable::new(self.0.iter().map(|route| Arc::clone(&route.declared)))
    }

    /// Lists the entries of the OpenAPI document.
    pub(crate) fn documented(&self) -> Vec<DocumentedRoute> {
        self.0.iter().filter_map(|route| route.documented).collect()
    }

    /// Builds the router for clients: a request goes to the node that owns what it is about.
    pub(crate) fn router(&self, app: &App) -> Router {
        let routed = self.0.iter().map(|route| {
            let handler = admitted(app, route);
            match forward_layer(app, route) {
                Some(layer) => {
                    let layer = from_fn_with_state(layer, outbound::to_owner::<App>);
                    (route, handler.route_layer(layer))
                }
                None => (route, handler),
            }
        });
        finished(collect(routed))
            .layer(from_fn_with_state(app.clone(), middleware::ingress))
            .with_state(app.clone())
    }

    /// Builds the router for requests that other nodes hand over: they are answered here or not at
    /// all.
    pub(crate) fn inbound_router(&self, app: &App) -> Router {
        let routed = self.0.iter().filter_map(|route| {
            let layer = forward_layer(app, route)?;
            let layer = from_fn_with_state(layer, inbound::only_here::<App>);
            Some((route, admitted(app, route).route_layer(layer)))
        });
        finished(collect(routed))
            .layer(from_fn_with_state(app.clone(), middleware::inbound))
            .with_state(app.clone())
    }
}

fn collect<'a>(routed: impl Iterator<Item = (&'a PlacedRoute, MethodRouter<App>)>) -> Router<App> {
    routed
        .fold(Router::new(), |router, (route, handler)| router.route(route.declared.path, handler))
}

/// Gives the handler of a route, behind the bound of its answers if it is a read, and behind the
/// admission by its tenant if the route is metered.
fn admitted(app: &App, route: &PlacedRoute) -> MethodRouter<App> {
    let mut handler = route.handler.clone();
    let layer = RouteLayer { app: app.clone(), declared: Arc::clone(&route.declared) };
    if route.declared.method == Method::GET {
        handler = handler.route_layer(from_fn_with_state(layer.clone(), answers::bounded));
    }
    if route.declared.is_metered {
        handler = handler.route_layer(from_fn_with_state(layer, admission::admit));
    }
    handler
}

/// Makes the state of the forwarding layer around a route that has an owner.
fn forward_layer(app: &App, route: &PlacedRoute) -> Option<ForwardLayer<App>> {
    let declared = Arc::clone(&route.declared);
    let has_owner = declared.owner != RouteOwner::ThisNode;
    has_owner.then(|| ForwardLayer { app: app.clone(), routes: app.clone(), declared })
}

/// Adds the answers to requests that no route answers.
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
#[path = "router_tests.rs"]
mod tests;

//! Builds one route: a handler, its entry in the OpenAPI document, and its declaration.
//!
//! Invariant: a [`Route`] cannot be made without an owner and a credential. [`Route::get`] and its
//! like give a [`Draft`], and only `served` gives the route.

use std::sync::Arc;

use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use http::Method;

use crate::docs::openapi::{DocumentedRoute, Operation, OperationSource};
use crate::server::app::App;
use crate::server::declaration::{Credential, Declaration, RouteOwner, TenantIn, WaitOf};

/// The part of a tenant's paths that names the tenant. The rest is the same at a short path.
const TENANT_PREFIX: &str = "/api/tenants/{tenant_id}";

/// A route that says nothing of itself yet.
#[derive(Debug)]
pub(crate) struct Draft {
    method: Method,
    path: &'static str,
    handler: MethodRouter<App>,
    /// Absent for routes that are in no document.
    operation: Option<OperationSource>,
    variant: Option<&'static str>,
}

/// A route, whole.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// The handler, for this route's method alone.
    pub(crate) handler: MethodRouter<App>,
    declared: Declaration,
    operation: Option<OperationSource>,
    variant: Option<&'static str>,
    short_path: Option<&'static str>,
}

/// A route, and what it declares, at one of its paths.
#[derive(Debug, Clone)]
pub(crate) struct PlacedRoute {
    /// The handler, for this route's method alone.
    pub(crate) handler: MethodRouter<App>,
    /// What the route declares at this path.
    pub(crate) declared: Arc<Declaration>,
    /// The entry in the OpenAPI document; absent for routes that are in no document.
    pub(crate) documented: Option<DocumentedRoute>,
}

impl Route {
    /// Drafts a route that answers GET, and HEAD with it.
    pub(crate) fn get<H, T, O>(path: &'static str, handler: H, operation: O) -> Draft
    where
        H: Handler<T, App>,
        T: 'static,
        O: Operation,
    {
        Draft::new(Method::GET, path, routing::get(handler), operation)
    }

    /// Drafts a route that answers POST.
    pub(crate) fn post<H, T, O>(path: &'static str, handler: H, operation: O) -> Draft
    where
        H: Handler<T, App>,
        T: 'static,
        O: Operation,
    {
        Draft::new(Method::POST, path, routing::post(handler), operation)
    }

    /// Drafts a route that answers PUT.
    pub(crate) fn put<H, T, O>(path: &'static str, handler: H, operation: O) -> Draft
    where
        H: Handler<T, App>,
        T: 'static,
        O: Operation,
    {
        Draft::new(Method::PUT, path, routing::put(handler), operation)
    }

    /// Drafts a route that answers DELETE.
    pub(crate) fn delete<H, T, O>(path: &'static str, handler: H, operation: O) -> Draft
    where
        H: Handler<T, App>,
        T: 'static,
        O: Operation,
    {
        Draft::new(Method::DELETE, path, routing::delete(handler), operation)
    }

    /// Drafts a route that answers POST and is in no document.
    pub(crate) fn undocumented_post<H, T>(path: &'static str, handler: H) -> Draft
    where
        H: Handler<T, App>,
        T: 'static,
    {
        let handler = routing::post(handler);
        Draft { method: Method::POST, path, handler, operation: None, variant: None }
    }

    /// Declares a long poll: `wait_of` reads how long a request waits on purpose. It has that time
    /// beside the usual, and takes one of the places that such requests share.
    pub(crate) fn long_poll(mut self, wait_of: WaitOf) -> Self {
        self.declared.wait_of = Some(wait_of);
        self
    }

    /// Declares that the tenant admits the request, counting it against the per-minute quota,
    /// before its handler runs.
    pub(crate) fn metered(mut self) -> Self {
        self.declared.is_metered = true;
        self
    }

    /// Declares a list: it answers with a page, which has room reserved while it is made.
    pub(crate) fn page(mut self) -> Self {
        self.declared.is_page = true;
        self
    }

    /// Declares a probe: it is answered on a busy node too, and a 5xx is an answer, not a fault.
    pub(crate) fn probe(mut self) -> Self {
        self.declared.is_probe = true;
        self
    }

    /// Answers at a second path as well, where `X-Tenant-Id` names the tenant.
    pub(crate) fn short(mut self, path: &'static str) -> Self {
        self.short_path = Some(path);
        self
    }

    /// Places the route at each of its paths.
    pub(crate) fn placed(self) -> impl Iterator<Item = PlacedRoute> {
        let short = self.short_path.map(|path| {
            let declared =
                Declaration { path, tenant_in: TenantIn::Header, ..self.declared.clone() };
            self.at(declared, Some("short"))
        });
        let long = self.at(self.declared.clone(), self.variant);
        std::iter::once(long).chain(short)
    }

    fn at(&self, declared: Declaration, variant: Option<&'static str>) -> PlacedRoute {
        let documented = self.operation.map(|operation| DocumentedRoute {
            path: declared.path,
            variant,
            has_tenant_header: declared.tenant_in == TenantIn::Header,
            operation,
        });
        PlacedRoute { handler: self.handler.clone(), declared: Arc::new(declared), documented }
    }
}

impl Draft {
    fn new(
        method: Method,
        path: &'static str,
        handler: MethodRouter<App>,
        operation: impl Operation,
    ) -> Self {
        let operation = Some(OperationSource::of(operation));
        Self { method, path, handler, operation, variant: None }
    }

    /// Tells the operation in the document from the same one at another path: its id ends so.
    pub(crate) fn variant(mut self, suffix: &'static str) -> Self {
        self.variant = Some(suffix);
        self
    }

    /// Declares who serves the route, and the credential that it asks for.
    pub(crate) fn served(self, owner: RouteOwner, credential: Credential) -> Route {
        let Self { method, path, handler, operation, variant } = self;
        let declared = Declaration {
            method,
            path,
            resource: path.strip_prefix(TENANT_PREFIX).unwrap_or(path),
            owner,
            credential,
            tenant_in: TenantIn::Path,
            wait_of: None,
            is_metered: false,
            is_page: false,
            is_probe: false,
        };
        Route { handler, declared, operation, variant, short_path: None }
    }
}

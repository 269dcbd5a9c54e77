//! What a route declares: its owner, its credential, and whether its requests wait on purpose.
//!
//! Invariant: nothing else decides by a path. Middleware, credentials, forwarding, metrics and the
//! OpenAPI document ask the declaration of the route that matched, so a new route cannot be
//! forgotten in a second list.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::MatchedPath;
use http::request::Parts;
use http::{Extensions, HeaderName, Method};
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::handles::Owner;
use tokio::time::Duration;

use crate::input::extract::path_param;
use crate::output::problem::{Code, Problem};

/// Names the tenant at short paths.
pub(crate) const X_TENANT_ID: HeaderName = HeaderName::from_static("x-tenant-id");

/// The node that serves a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteOwner {
    /// The node that the client asked, from its own view.
    ThisNode,
    /// The leader of the system group.
    SystemGroup,
    /// The leader of the system group; a request whose outcome is unknown is not tried again.
    SystemGroupOnce,
    /// The leader of the group of the tenant that the request names.
    TenantGroup,
}

/// The least credential that a route asks for, where the cluster has an admin token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential {
    /// None at all.
    Open,
    /// The admin token for now. It keeps the routes of tenants apart until tenants have credentials.
    Tenant,
    /// The admin token.
    Admin,
}

/// The place in a request that names its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TenantIn {
    /// The parameter `tenant_id` of the path.
    Path,
    /// The header `X-Tenant-Id`.
    Header,
}

/// Reads how long a request waits on purpose, from its head and its body. A value that cannot be
/// read counts as no wait: the handler refuses it.
pub(crate) type WaitOf = fn(&Parts, &[u8]) -> Duration;

/// The declaration of one route.
#[derive(Debug, Clone)]
pub(crate) struct Declaration {
    pub(crate) method: Method,
    /// The path template, parameters in braces.
    pub(crate) path: &'static str,
    /// The operation in the scope of an idempotency key: the same at a long and a short path.
    pub(crate) resource: &'static str,
    pub(crate) owner: RouteOwner,
    pub(crate) credential: Credential,
    pub(crate) tenant_in: TenantIn,
    /// Present on long polls.
    pub(crate) wait_of: Option<WaitOf>,
    /// Whether requests count against the tenant's per-minute quota.
    pub(crate) is_metered: bool,
    /// Whether it answers with a page of a list.
    pub(crate) is_page: bool,
    /// Whether supervisors ask it: it is answered on a busy node too, and a 5xx is no fault.
    pub(crate) is_probe: bool,
}

impl Declaration {
    /// Finds the owner of what the request is about; `None` is the node itself.
    pub(crate) fn owner_of(&self, parts: &Parts) -> Result<Option<Owner>, Problem> {
        match self.owner {
            RouteOwner::ThisNode => Ok(None),
            RouteOwner::SystemGroup | RouteOwner::SystemGroupOnce => Ok(Some(Owner::Cluster)),
            RouteOwner::TenantGroup => Ok(Some(Owner::Tenant(self.tenant_of(parts)?))),
        }
    }

    /// Reads the tenant that the request names.
    pub(crate) fn tenant_of(&self, parts: &Parts) -> Result<TenantId, Problem> {
        match self.tenant_in {
            TenantIn::Path => path_param(parts),
            TenantIn::Header => tenant_in_header(parts),
        }
    }

    /// Reads how long the request waits on purpose, beside the time that it may take.
    pub(crate) fn wait_of(&self, parts: &Parts, body: &[u8]) -> Duration {
        self.wait_of.map_or(Duration::ZERO, |wait_of| wait_of(parts, body))
    }
}

fn tenant_in_header(parts: &Parts) -> Result<TenantId, Problem> {
    let header = parts.headers.get(X_TENANT_ID).ok_or_else(|| {
        Problem::new(
            Code::TenantRequired,
            "this path needs a tenant: send X-Tenant-Id: <tenant id>, or use /api/tenants/<tenant id>/...",
        )
        .field("X-Tenant-Id")
    })?;
    header
        .to_str()
        .ok()
        .and_then(|id| id.parse().ok())
        .ok_or_else(|| Problem::not_found("X-Tenant-Id: no tenant has this id"))
}

/// The declarations of all routes, by path template.
#[derive(Debug, Default)]
pub(crate) struct RouteTable(HashMap<&'static str, Vec<Arc<Declaration>>>);

impl RouteTable {
    /// Builds the table.
    pub(crate) fn new(declarations: impl IntoIterator<Item = Arc<Declaration>>) -> Self {
        let mut table: HashMap<_, Vec<_>> = HashMap::new();
        for declaration in declarations {
            table.entry(declaration.path).or_default().push(declaration);
        }
        Self(table)
    }

    /// Finds the declaration of the route that matched a request.
    pub(crate) fn matched(&self, extensions: &Extensions, method: &Method) -> Option<&Declaration> {
        // A route for GET answers HEAD as well.
        let answers = |declared: &&Arc<Declaration>| {
            declared.method == *method
                || (*method == Method::HEAD && declared.method == Method::GET)
        };
        self.at(extensions).iter().find(answers).map(Arc::as_ref)
    }

    /// Finds the template of the path that matched: its number is bounded, so it can be a label.
    pub(crate) fn template(&self, extensions: &Extensions) -> Option<&'static str> {
        self.at(extensions).first().map(|declared| declared.path)
    }

    /// Finds the credential that a request needs. A request that no route answers needs the admin
    /// token, unless it has the wrong method at a path whose routes are all open.
    pub(crate) fn credential(&self, extensions: &Extensions, method: &Method) -> Credential {
        if let Some(declared) = self.matched(extensions, method) {
            return declared.credential;
        }
        let at_path = self.at(extensions);
        let is_open = |declared: &Arc<Declaration>| declared.credential == Credential::Open;
        match at_path.is_empty() || !at_path.iter().all(is_open) {
            true => Credential::Admin,
            false => Credential::Open,
        }
    }

    fn at(&self, extensions: &Extensions) -> &[Arc<Declaration>] {
        let template = extensions.get::<MatchedPath>().map_or("", MatchedPath::as_str);
        self.0.get(template).map_or(&[], Vec::as_slice)
    }
}

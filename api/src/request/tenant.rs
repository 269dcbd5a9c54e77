//! The tenant that a request was admitted to.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::request::Parts;
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::handles::{LockSpace, TenantHandle};

use crate::output::problem::Problem;

/// The tenant that has admitted a request.
#[derive(Clone)]
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) handle: Arc<TenantHandle>,
}

impl<S: Sync> FromRequestParts<S> for Tenant {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // `admit` put it there. Only the handler of a route that is not metered meets an error.
        parts.extensions.get::<Self>().cloned().ok_or_else(Problem::internal)
    }
}

/// The key space of a lock: the tenant's where there is one, else the cluster's.
pub(crate) struct KeySpace(Option<Tenant>);

impl KeySpace {
    /// Names the owner of the key space: a tenant's id or `cluster`.
    pub(crate) fn name(&self) -> String {
        self.0.as_ref().map_or_else(|| "cluster".to_owned(), |tenant| tenant.id.to_string())
    }

    /// Borrows the key space in the form that the handle takes.
    pub(crate) fn as_lock_space(&self) -> LockSpace<'_> {
        match &self.0 {
            Some(tenant) => LockSpace::Tenant(&tenant.handle),
            None => LockSpace::Cluster,
        }
    }
}

impl<S: Sync> FromRequestParts<S> for KeySpace {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(Self(parts.extensions.get::<Tenant>().cloned()))
    }
}

//! Tenants: their records in group 0, and the way to one of them.

use crate::error::CallError;
use crate::handles::{Call, Created, TenantHandle};
use crate::ids::TenantId;
use crate::ports::StoreStats;
use crate::tenant_record::{Quotas, Settings, TenantChange, TenantStatus};
use crate::views::{Page, PageRequest, RateLimit, TenantView, Usage};

/// Handle to the tenants.
#[derive(Debug, Clone)]
pub struct Tenants {}

/// What a new tenant is made of.
#[derive(Debug, Clone)]
pub struct NewTenant {
    /// For people, 1-200 characters.
    pub name: String,
    /// For people.
    pub description: String,
    /// Limits.
    pub quotas: Quotas,
    /// Choices.
    pub settings: Settings,
    /// Region named in the field: refused when no node is there.
    pub region: Option<String>,
    /// Region named in the metadata only: a wish.
    pub wished_region: Option<String>,
}

/// A request that was let in, with the state of the rate limit after it.
#[derive(Debug)]
pub struct Admitted {
    /// The tenant.
    pub tenant: TenantHandle,
    /// State of the per-minute quota; `None` where it is unlimited.
    pub rate: Option<RateLimit>,
}

/// A request that was not let in.
#[derive(Debug)]
pub struct NotAdmitted {
    /// Why.
    pub error: CallError,
    /// State of the per-minute quota, where it is known.
    pub rate: Option<RateLimit>,
}

impl Tenants {
    /// Creates a tenant. Returns when both groups have it.
    pub async fn create(&self, _: &Call, _: NewTenant) -> Result<Created<TenantView>, CallError> {
        todo!()
    }
    /// One tenant.
    pub async fn get(&self, _: &Call, _: TenantId) -> Result<TenantView, CallError> {
        todo!()
    }
    /// Tenants by creation.
    pub async fn list(
        &self,
        _: &Call,
        _status: Option<TenantStatus>,
        _: PageRequest,
    ) -> Result<Page<TenantView>, CallError> {
        todo!()
    }
    /// Changes a tenant.
    pub async fn update(
        &self,
        _: &Call,
        _: TenantId,
        _: TenantChange,
        _if_version: Option<u64>,
    ) -> Result<TenantView, CallError> {
        todo!()
    }
    /// Deletes a tenant.
    pub async fn delete(
        &self,
        _: &Call,
        _: TenantId,
        _if_version: Option<u64>,
    ) -> Result<(), CallError> {
        todo!()
    }
    /// Quotas and what is used of them. Not rate limited.
    pub async fn usage(&self, _: &Call, _: TenantId) -> Result<Vec<Usage>, CallError> {
        todo!()
    }
    /// Sizes of the tenant's real files. Not rate limited.
    pub async fn storage_stats(&self, _: &Call, _: TenantId) -> Result<StoreStats, CallError> {
        todo!()
    }
    /// Lets a request on the tenant's own resources in, counting it, or refuses it.
    pub async fn admit(&self, _: &Call, _: TenantId) -> Result<Admitted, NotAdmitted> {
        todo!()
    }
}

//! Commands about tenants: what group 0 decides, and how a tenant's own group is told.

use serde::{Deserialize, Serialize};

use crate::command::Idempotency;
use crate::domain::ids::TenantId;
use crate::domain::region::Region;
use crate::domain::tenant::{TenantChange, TenantRecord};

/// A new tenant.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct CreateTenant {
    /// Its new id.
    pub tenant: TenantId,
    /// Its first state.
    pub record: TenantRecord,
    /// Whether an unknown `record.region` is refused (it was named in the field) or replaced
    /// by `fallback_region`.
    pub strict_region: bool,
    /// Region to use where the wished one has no node.
    pub fallback_region: Region,
    /// Remembers the call.
    pub idempotency: Option<Idempotency>,
}

/// A change to a tenant.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdateTenant {
    /// Which.
    pub tenant: TenantId,
    /// What.
    pub change: TenantChange,
    /// The version the client saw (`If-Match`).
    pub if_version: Option<u64>,
}

/// Deletes a tenant, leaving a tombstone.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct DeleteTenant {
    /// Which.
    pub tenant: TenantId,
    /// The version the client saw (`If-Match`).
    pub if_version: Option<u64>,
}

/// The tenant's group holds this version of the record.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ConfirmTenant {
    /// Which.
    pub tenant: TenantId,
    /// Version confirmed.
    pub version: u64,
}

/// What group 0 decided about the tenant; creates the tenant's state when there is none.
/// Idempotent: an older `(epoch, version)` than the one held does nothing.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct SetTenant {
    /// Version of the record.
    pub version: u64,
    /// The record; `None` deletes the tenant and leaves the epoch as tombstone.
    pub record: Option<TenantRecord>,
}

/// A tenant was created, changed or found under its idempotency key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantKnown {
    /// Which.
    pub tenant: TenantId,
    /// Version of its record in group 0.
    pub version: u64,
    /// Whether the idempotency key was known.
    pub replayed: bool,
}

/// A tenant was created or changed. The record is here, for what group 0 says of the tenant when
/// the answer is written may be something else already.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantWritten {
    /// Which.
    pub tenant: TenantId,
    /// Version of its record in group 0.
    pub version: u64,
    /// What it became with this command.
    pub record: Box<TenantRecord>,
}

//! The tenant of requests that name none, by its name.

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Tenants;
use crate::command::{CreateTenant, Idempotency, TenantCreated, TenantKnown, TenantWritten};
use crate::domain::ids::TenantId;
use crate::domain::region::Region;
use crate::domain::tenant::{Quotas, Settings, TenantRecord, TenantStatus};
use crate::domain::time::Timestamp;
use crate::ports::error::CallError;
use crate::services::mailbox::answer;
use crate::state::system::SystemState;

impl Tenants {
    /// Finds the oldest tenant of a name. Where this node knows of none it is made, with default quotas and
    /// settings: once, however many nodes look for it at the same time.
    ///
    /// # Errors
    /// When nobody leads the cluster, or no answer came by `deadline`. It may be tried again.
    pub async fn named(&self, name: &str, deadline: Instant) -> Result<TenantId, CallError> {
        let wanted = name.to_owned();
        let find = move |state: &SystemState| {
            let mut tenants = state.tenants_by_creation(None);
            tenants.find(|(_, _, record)| record.name == wanted).map(|(id, _, _)| id)
        };
        if let Some(found) = self.0.control.read(deadline, find).await? {
            return Ok(found);
        }
        let command = CreateTenant {
            tenant: TenantId::from_uuid(self.0.seams.uuid()),
            record: TenantRecord {
                name: name.to_owned(),
                description: String::new(),
                status: TenantStatus::Active,
                quotas: Quotas::default(),
                settings: Settings::default(),
                region: Region::default(),
                created_at: Timestamp::default(),
                updated_at: Timestamp::default(),
            },
            strict_region: false,
            fallback_region: self.0.region.clone(),
            idempotency: Some(only_once(name)),
        };
        match answer(self.0.control.send(deadline, command.into()).await?)? {
            TenantCreated::Now(TenantWritten { tenant, .. }) => Ok(tenant),
            // Another node has made it, and this one will soon know; or it was deleted within a day.
            TenantCreated::Before(TenantKnown { .. }) => {
                Err(CallError::Starting { what: "the default tenant" })
            }
        }
    }
}

/// Makes the idempotency key of the tenant. No client's key comes to the same: theirs begin with another scope.
fn only_once(name: &str) -> Idempotency {
    let hash = Sha256::new().chain_update(b"default tenant\n").chain_update(name).finalize();
    let (mut key, mut body) = ([0; 16], [0; 16]);
    key.copy_from_slice(&hash[..16]);
    body.copy_from_slice(&hash[16..]);
    Idempotency { key, body }
}

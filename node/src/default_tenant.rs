//! The tenant of requests at short paths that name none: found, or made, once the cluster can be asked.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::handles::Handles;
use tokio::time::{Instant, sleep};

use crate::config::DefaultTenant;

/// Longest time for one attempt.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);
/// Pause between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Sets `found` to the tenant, once it is known.
pub(crate) async fn find(handles: Handles, wanted: DefaultTenant, found: Arc<OnceLock<TenantId>>) {
    let name = match wanted {
        DefaultTenant::Id(id) => {
            let _ = found.set(id);
            return;
        }
        DefaultTenant::Name(name) => name,
    };
    // A node that is behind does not know of tenants that were made meanwhile.
    while !handles.cluster.not_ready().await.is_empty() {
        sleep(AGAIN_AFTER).await;
    }
    loop {
        match handles.tenants.named(&name, Instant::now() + ATTEMPT_MAX).await {
            Ok(tenant) => {
                tracing::info!(%tenant, name, "the tenant of requests that name none");
                let _ = found.set(tenant);
                return;
            }
            Err(error) => tracing::debug!(%error, name, "the default tenant is not known yet"),
        }
        sleep(AGAIN_AFTER).await;
    }
}

//! The log that belongs to a node: whether it is there, and under which id.
//!
//! A node that starts without what it has acknowledged would vote and answer as if that had never
//! happened: a missing log is never taken for a new one. The identity names the log by its id, which
//! each of its segments repeats.

use std::sync::Arc;

use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::StoreError;
use shiioo_storage::disk::{Disk, store_error};
use shiioo_storage::has_log;
use uuid::Uuid;

use crate::identity::{Identity, IdentityError};
use crate::known_members;
use crate::seams::NodeSeams;

/// Tells why a node has no usable log.
#[derive(Debug, thiserror::Error)]
pub enum OwnLogError {
    /// The data cannot be read.
    #[error("the data cannot be used: {0}")]
    Store(#[from] StoreError),
    /// There is no log, and there was one.
    #[error(
        "this member has lost its log: remove its directory and join anew; what it had \
         acknowledged, the other members have"
    )]
    Lost,
    /// The same, on a node that was alone.
    #[error(
        "this node has lost its log, and no other node has a copy: put the whole directory back from \
         one made while the node was stopped, or give an empty directory with --data-dir"
    )]
    OnlyCopyLost,
}

/// Paths below the data directory that are written only after the log.
const NEEDS_LOG: [&str; 2] = ["system.redb", "tenants"];

/// Refuses a data directory without the log that it had.
pub(crate) async fn check(seams: &NodeSeams, identity: &Identity) -> Result<(), OwnLogError> {
    let (disk, is_named) = (Arc::clone(&seams.disk), identity.log_id.is_some());
    let is_lost = seams.executor.run(move || is_lost(&*disk, is_named)).await;
    if !is_lost.map_err(|error| store_error("look for the log", error))? {
        return Ok(());
    }
    // As far as the node knows. Who has left the cluster is not in there.
    let is_alone = known_members::others(identity).is_empty();
    Err(if is_alone { OwnLogError::OnlyCopyLost } else { OwnLogError::Lost })
}

fn is_lost(disk: &dyn Disk, is_named: bool) -> std::io::Result<bool> {
    if has_log(disk)? || mutants::is(Mutant::TrustMissingLog) {
        return Ok(false);
    }
    for path in NEEDS_LOG {
        if disk.exists(path)? {
            return Ok(true);
        }
    }
    Ok(is_named)
}

/// Writes the log's id into the identity, durably.
pub(crate) async fn record_log_id(
    seams: &NodeSeams,
    mut identity: Identity,
    log: Uuid,
) -> Result<Identity, IdentityError> {
    if identity.log_id != Some(log) {
        identity.log_id = Some(log);
        let (disk, kept) = (seams.disk.clone(), identity.clone());
        seams.executor.run(move || kept.store(&*disk)).await?;
    }
    Ok(identity)
}

//! The log that belongs to a node: whether it is there, and under which id.
//!
//! A node that starts without what it has acknowledged would vote and answer as if nothing had been:
//! a log that is missing is never taken for one that is still to be begun. The identity names the log
//! by its id, which stands in every segment of it.

use shiioo_actors::domain::ids::StateMachineId;
use shiioo_actors::mutants::{self, Mutant};
use shiioo_actors::ports::{StoreError, Stores as _};
use shiioo_actors::state::system::SystemState;
use shiioo_actors::state::{RowBuffer, StateMachine as _};
use shiioo_storage::disk::{Disk, store_error};
use shiioo_storage::{FileStores, has_log};
use uuid::Uuid;

use crate::config::Config;
use crate::identity::{Identity, IdentityError};
use crate::rooms::RoomsError;
use crate::seams::NodeSeams;

/// What is written below the data directory only once there is a log.
const NEEDS_LOG: [&str; 2] = ["system.redb", "tenants"];

/// Refuses a directory without the log that it had.
pub(crate) async fn check(
    config: &Config,
    seams: &NodeSeams,
    identity: &Identity,
) -> Result<(), RoomsError> {
    let (disk, is_named) = (seams.disk.clone(), identity.log_id.is_some());
    let is_lost = seams.executor.run(move || is_lost(&*disk, is_named)).await;
    if !is_lost.map_err(|error| store_error("look for the log", error))? {
        return Ok(());
    }
    Err(if is_alone(config, seams, identity).await {
        RoomsError::OnlyLogLost
    } else {
        RoomsError::LogLost
    })
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

/// Whether the node was its cluster's only member, as far as its files tell. It decides about words
/// only.
async fn is_alone(config: &Config, seams: &NodeSeams, identity: &Identity) -> bool {
    match members(config, seams).await {
        Ok(Some(members)) => members <= 1,
        Ok(None) | Err(_) => identity.peers.is_empty(),
    }
}

async fn members(config: &Config, seams: &NodeSeams) -> Result<Option<usize>, StoreError> {
    let (disk, executor) = (seams.disk.clone(), seams.executor.clone());
    let stores = FileStores::open(disk, executor, &config.region).await?;
    if !stores.exists(StateMachineId::System)? {
        return Ok(None);
    }
    let rows = RowBuffer::new(Some(stores.open(StateMachineId::System).await?));
    Ok(Some(SystemState::load(&rows)?.members().count()))
}

/// Has the identity name the log, durably.
pub(crate) async fn name(
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

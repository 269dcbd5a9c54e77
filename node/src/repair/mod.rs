//! Repair of a lone node: drops what cannot be read, and says what that was (decision 24).
//!
//! Damage heals from other replicas. A lone node has none, so it does not start, and a person decides:
//! to put the directory back from a copy, or to go on without what is lost. No program can know what the
//! unreadable bytes were, and so nothing is dropped without being asked for, named, and kept aside.
//!
//! # What is done about which damage
//!
//! | damaged, missing, or of another node | with `--repair` |
//! |---|---|
//! | the log | it is written anew from what can be read (`storage/src/log/rewrite.rs`) |
//! | `system.redb` | made anew from the log, where the log goes back to the first entry; else nothing is repaired |
//! | a tenant's `events.jsonl` | cut where the damage begins; the runs forget the events behind that |
//! | a tenant's `index.redb`, or files of a tenant that the disk cannot read | nothing: the tenant stays out of service, and the node starts |
//!
//! # What is written, in this order
//!
//! Each step is durable before the next begins, and all of them can be done again.
//!
//! 1. *The report* as the marker `identity/repair.json`. While it is there the directory does not start:
//!    a log that is half written looks like one that is whole and short.
//! 2. *What is damaged* is moved to the folder `repaired-<time>/`. It is what the log is made of.
//! 3. *The log*, and the end of event logs.
//! 4. *Another cluster*, where entries may be lost: the steps of a forced recovery. What the node has
//!    promised in entries that are lost it may promise again: raft ids, fencing tokens, certificates. In
//!    another cluster nothing of that collides (decision 21).
//! 5. *The report*, a file beside the others, and then the marker goes.
//!
//! # Why only a lone node
//!
//! A member whose log lost entries would vote and acknowledge as if it had never had them. With others it
//! goes on as another member instead, and files are sent by them (decisions 19 and 23).

mod report;
mod survey;
mod tenants;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use shiioo_actors::domain::ids::StateMachineId;
use shiioo_actors::ports::StoreError;
use shiioo_storage::disk::{Disk, read_small, store_error, write_durably};
use shiioo_storage::{LogIdentity, Repaired, set_log_aside, set_system_aside};

use crate::identity::{IDENTITY_DIR, Identity, IdentityError, REPAIR_FILE};
use crate::known_members;
use crate::node::{StartError, data_dir};
use crate::recovery::{self, RecoverError};
use crate::seams::NodeSeams;
pub(crate) use report::Report;
use survey::Survey;

/// Tells why nothing was repaired, or not to the end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    /// There are others.
    #[error(
        "--repair is for a node that is alone, and this one knows {0} other members: what is damaged here \
         heals from them; start it without --repair. If they are lost for good, go on without them \
         first: shiioo recover --force"
    )]
    NotAlone(usize),
    /// Nothing tells what the control plane knew.
    #[error(
        "{file} is damaged at byte {offset}: {what}. It cannot be repaired: the log does not have every entry \
         that was in it, so nothing else here says which tenants there are; put system.redb back from a copy"
    )]
    SystemLost {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// The marker cannot be read.
    #[error(
        "{REPAIR_FILE}, which says how far a repair has come, is damaged ({0}): put the data directory back \
         from a copy"
    )]
    MarkerDamaged(String),
    /// A node uses the directory.
    #[error(transparent)]
    InUse(#[from] StartError),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The node could not go on as another cluster.
    #[error(transparent)]
    Recover(#[from] RecoverError),
    /// The data cannot be read or written.
    #[error("the data cannot be used: {0}")]
    Store(#[from] StoreError),
}

/// Repairs a data directory that no node uses. Returns the report, which is on disk then; `None` where
/// nothing was damaged, or there is nothing yet.
pub(crate) async fn repair(dir: &Path, seams: &NodeSeams) -> Result<Option<Report>, RepairError> {
    let disk = &*seams.disk;
    let _lock = data_dir::hold(dir, disk)?;
    let Some(identity) = Identity::load(disk)? else { return Ok(None) };
    let Some(log_id) = identity.log_id else { return Ok(None) };
    let others = known_members::others(&identity).len();
    if others > 0 {
        return Err(RepairError::NotAlone(others));
    }
    let begun = load_marker(disk)?;
    let is_begun = begun.is_some();
    let survey = Survey::of(seams, &identity, log_id, begun).await?;
    if survey.report.is_empty() {
        return Ok(None);
    }
    let mut report = survey.report.clone();
    if !is_begun {
        write_durably(disk, REPAIR_FILE, &report.to_json())?;
    }
    let folder = report.folder();
    tenants::cut_events(seams, &identity, &report, &folder).await?;
    if survey.is_log_rewritten {
        rewrite_log(seams, &identity, &survey, &folder).await?;
        if report.may_lack_entries() {
            let clusters = recovery::go_on_as_another(seams, identity, log_id).await?;
            report.clusters = Some(clusters);
        }
    }
    write_durably(disk, &report.file(), &report.to_json())?;
    let remove = || -> std::io::Result<()> {
        disk.remove_file(REPAIR_FILE)?;
        disk.sync_dir(IDENTITY_DIR)
    };
    remove().map_err(|error| store_error(format!("remove {REPAIR_FILE}"), error))?;
    Ok(Some(report))
}

/// Tells what `--repair` would drop of the log and the control plane, in one line; `None` where it would
/// not help. Changes nothing.
pub(crate) async fn way_out(dir: &Path, seams: &NodeSeams) -> Option<String> {
    let disk = &*seams.disk;
    let _lock = data_dir::hold(dir, disk).ok()?;
    let identity = Identity::load(disk).ok()??;
    if !known_members::others(&identity).is_empty() {
        return None;
    }
    let survey = Survey::of_log(seams, &identity, identity.log_id?).await.ok()?;
    (!survey.report.is_empty()).then(|| survey.report.way_out())
}

async fn rewrite_log(
    seams: &NodeSeams,
    identity: &Identity,
    survey: &Survey,
    folder: &str,
) -> Result<(), StoreError> {
    let disk = &*seams.disk;
    let aside = |error| store_error(format!("move what is damaged to {folder}"), error);
    // One that is only older than the log knew goes on from where it is.
    if !survey.files.contains_key(&StateMachineId::System) {
        set_system_aside(disk, folder).map_err(aside)?;
    }
    // The survey holds the files open that the log is made of.
    set_log_aside(disk, folder).map_err(aside)?;
    let repaired = Repaired {
        identity: LogIdentity {
            expected: None,
            fresh: survey.log_id,
            region: identity.region.clone(),
        },
        raft_id: identity.raft_id,
        groups: &survey.groups,
        files: survey.files.clone(),
    };
    survey.log.write_repaired(Arc::clone(&seams.disk), seams.executor.clone(), repaired).await
}

fn load_marker(disk: &dyn Disk) -> Result<Option<Report>, RepairError> {
    let Some(bytes) = read_small(disk, REPAIR_FILE)? else { return Ok(None) };
    let report = serde_json::from_slice(&bytes);
    report.map(Some).map_err(|error| RepairError::MarkerDamaged(error.to_string()))
}

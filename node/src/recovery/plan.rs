//! What a forced recovery is to do, on disk while it is under way.
//!
//! Invariants:
//! - it is durable before anything else is changed, and removed after everything else is durable;
//! - it holds all that is chosen by chance, and where the logs ended: with it the same is done again.

use std::io;

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::{GroupId, Position, RaftId};
use shiioo_actors::domain::time::Timestamp;
use shiioo_storage::StoppedGroup;
use shiioo_storage::disk::{Disk, read_small, store_error, write_durably};
use shiioo_transport::pki::{Authority, MemberName};
use uuid::Uuid;

use crate::identity::{Former, IDENTITY_DIR, Identity, IdentityError, RECOVERY_FILE};
use crate::seams::NodeSeams;

/// Layout of the file.
const FORMAT_VERSION: u32 = 1;

/// Holds what a recovery is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Plan {
    format_version: u32,
    /// When it was begun.
    pub(super) at: Timestamp,
    /// Id of the cluster that comes of it.
    pub(super) cluster_id: Uuid,
    authority: String,
    authority_key: String,
    certificate: String,
    /// The groups that have a replica here.
    pub(super) groups: Vec<PlannedGroup>,
    crc32: u32,
}

/// Says of a group where its log ended, and in which term it goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlannedGroup {
    pub(super) group: GroupId,
    /// Its last entry before the recovery.
    pub(super) last: Position,
    /// The term of what the recovery appends: above every one that was known.
    pub(super) term: u64,
    /// The last entry that was known to be committed.
    pub(super) committed: Option<Position>,
    /// Where the replica's log ended when this node left the group last, where the replica that came back does
    /// not go so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) had_before: Option<Position>,
    pub(super) voters: Vec<RaftId>,
    pub(super) learners: Vec<RaftId>,
}

impl Plan {
    /// Makes the plan of a recovery that begins now.
    pub(super) fn make(
        seams: &NodeSeams,
        identity: &Identity,
        groups: Vec<StoppedGroup>,
    ) -> Result<Self, IdentityError> {
        let cluster = seams.seams.uuid();
        let entropy = &*seams.seams.entropy;
        let authority = Authority::create(entropy, cluster)?;
        let name = MemberName { cluster, ..identity.name() };
        let certificate = authority.issue(entropy, identity.key.public(), name)?;
        let plan = Self {
            format_version: FORMAT_VERSION,
            at: seams.seams.clock.now(),
            cluster_id: cluster,
            authority: hex::encode(authority.cert_der()),
            authority_key: hex::encode(authority.key_der()),
            certificate: hex::encode(certificate),
            groups: groups.into_iter().map(PlannedGroup::from).collect(),
            crc32: 0,
        };
        Ok(Self { crc32: plan.checksum(), ..plan })
    }

    /// Reads the plan of a recovery that is under way; `None` where none is.
    pub(super) fn load(disk: &dyn Disk) -> Result<Option<Self>, IdentityError> {
        let Some(bytes) = read_small(disk, RECOVERY_FILE)? else { return Ok(None) };
        let plan: Self = serde_json::from_slice(&bytes).map_err(damaged)?;
        if plan.format_version != FORMAT_VERSION || plan.checksum() != plan.crc32 {
            return Err(damaged("the version or the checksum is wrong"));
        }
        Ok(Some(plan))
    }

    /// Writes the plan durably.
    pub(super) fn store(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let bytes = serde_json::to_vec_pretty(self).map_err(damaged)?;
        Ok(write_durably(disk, RECOVERY_FILE, &bytes)?)
    }

    /// Removes the plan durably: the recovery has happened.
    pub(super) fn remove(disk: &dyn Disk) -> Result<(), IdentityError> {
        let remove = || -> io::Result<()> {
            disk.remove_file(RECOVERY_FILE)?;
            disk.sync_dir(IDENTITY_DIR)
        };
        Ok(remove().map_err(|error| store_error(format!("remove {RECOVERY_FILE}"), error))?)
    }

    /// Returns what is planned for a group that has a replica here.
    pub(super) fn group(&self, group: GroupId) -> Option<&PlannedGroup> {
        self.groups.iter().find(|planned| planned.group == group)
    }

    /// Returns the identity that the node has afterwards, also of one that has it already.
    pub(super) fn identity(&self, identity: Identity) -> Result<Identity, IdentityError> {
        if identity.cluster_id == self.cluster_id {
            return Ok(identity);
        }
        let former = Former {
            certificate: identity.certificate.clone(),
            authority: identity.authority.clone(),
        };
        Ok(Identity {
            cluster_id: self.cluster_id,
            certificate: unhex(&self.certificate)?,
            authority: self.authority()?,
            // Group 0 has it from the log.
            authority_key: None,
            peers: Vec::new(),
            former: Some(former),
            ..identity
        })
    }

    pub(super) fn authority(&self) -> Result<Vec<u8>, IdentityError> {
        unhex(&self.authority)
    }

    pub(super) fn authority_key(&self) -> Result<Vec<u8>, IdentityError> {
        unhex(&self.authority_key)
    }

    fn checksum(&self) -> u32 {
        let unsealed = Self { crc32: 0, ..self.clone() };
        // Every part of it can be written as JSON.
        crc32fast::hash(&serde_json::to_vec(&unsealed).unwrap_or_default())
    }
}

impl From<StoppedGroup> for PlannedGroup {
    fn from(stopped: StoppedGroup) -> Self {
        let StoppedGroup { group, last, term, committed, left, voters, learners } = stopped;
        let had_before = left.filter(|left| *left > last);
        let (voters, learners) = (voters.into_iter().collect(), learners.into_iter().collect());
        Self { group, last, term: term + 1, committed, had_before, voters, learners }
    }
}

fn damaged(why: impl std::fmt::Display) -> IdentityError {
    IdentityError::PlanDamaged(why.to_string())
}

fn unhex(text: &str) -> Result<Vec<u8>, IdentityError> {
    hex::decode(text).map_err(damaged)
}

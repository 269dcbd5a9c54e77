//! The identity of a node: made once at the first start of a data directory, and the same ever after.
//!
//! A node that founds a cluster is a member at once. A node that joins is a *candidate* first: it
//! keeps an id and a key, so that it can ask again after a crash and is given the same place.
//!
//! Invariants:
//! - The identity is durable before anything else is written. So a data directory that holds data
//!   and no identity has lost it, and is refused: under a new name the node would present another
//!   node's replica as its own.
//! - A damaged identity is refused and never replaced.
//! - The authority's private key stands here only until the cluster has it.
//! - A member that has lost its log goes on under another identity, and keeps its own until the other is
//!   admitted and everything of its own is out of the way (`replacement`).
//! - A directory that is being recovered by force, or repaired, has no identity to start with until that is
//!   done.

mod file;
#[cfg(test)]
mod tests;

use std::io;

use shiioo_actors::cluster::join::PeerRow;
use shiioo_actors::domain::ids::{NodeId, RaftId};
use shiioo_actors::domain::region::Region;
use shiioo_actors::ports::StoreError;
use shiioo_actors::ports::seams::Seams;
use shiioo_storage::disk::{Disk, read_small, store_error};
use shiioo_transport::pki::{Authority, MemberName, NodeKey, PkiError};
use uuid::Uuid;

use file::{CandidateFile, FORMAT_VERSION, IdentityFile};

/// Path of the identity, relative to the data directory.
pub const IDENTITY_FILE: &str = "identity/node.json";
/// Path of what a candidate keeps, relative to the data directory.
const CANDIDATE_FILE: &str = "identity/candidate.json";
/// Path of the identity under which a member that has lost its log goes on, until it does, relative to the
/// data directory.
const NEXT_FILE: &str = "identity/next.json";
/// Path of what a forced recovery is to do, while it is under way, relative to the data directory.
pub(crate) const RECOVERY_FILE: &str = "identity/recovery.json";
/// Path of what a repair has found, while it is under way, relative to the data directory.
pub(crate) const REPAIR_FILE: &str = "identity/repair.json";
pub(crate) const IDENTITY_DIR: &str = "identity";
/// Raft id of the node that founds a cluster.
const FOUNDER_RAFT_ID: RaftId = RaftId(1);
/// Paths below the data directory that are written only after the identity.
const NEEDS_IDENTITY: [&str; 3] = ["system.redb", "log", "tenants"];

/// Holds a member's ids, key and certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Id of the node.
    pub node_id: NodeId,
    /// Cluster that the node belongs to.
    pub cluster_id: Uuid,
    /// Id of the node in Raft groups.
    pub raft_id: RaftId,
    /// Region of the node. It never changes: the tenants' files of a region are found by it.
    pub region: Region,
    /// Private key of the node.
    pub key: NodeKey,
    /// Certificate of the node, DER.
    pub certificate: Vec<u8>,
    /// Certificate of the cluster's authority, DER.
    pub authority: Vec<u8>,
    /// Private key of the authority: only on the node that founds, until the cluster has it.
    pub authority_key: Option<NodeKey>,
    /// Members that the node was told of when it joined. It asks these until it knows more.
    pub peers: Vec<PeerRow>,
    /// Id of the node's log; `None` before the log has been begun, or was given an id.
    pub log_id: Option<Uuid>,
    /// What the node was before its cluster was recovered by force, the last time.
    pub former: Option<Former>,
}

/// Holds what a node was in the cluster that its own was recovered from: with it the node tells
/// members of that cluster what has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    /// Certificate of the node there, DER.
    pub certificate: Vec<u8>,
    /// Certificate of the authority there, DER.
    pub authority: Vec<u8>,
}

/// Holds what a node keeps that is still to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Id of the node.
    pub node_id: NodeId,
    /// Region of the node.
    pub region: Region,
    /// Private key of the node.
    pub key: NodeKey,
}

/// Tells whether a node that starts is a member already.
#[derive(Debug)]
pub enum LoadedIdentity {
    /// A member of a cluster.
    Member(Box<Identity>),
    /// A node that has to join first.
    Candidate(Candidate),
}

/// Tells why a node has no usable identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is damaged.
    #[error(
        "{IDENTITY_FILE} is damaged ({0}): put it back from a copy; without it the data of this \
         directory belongs to no node"
    )]
    Damaged(String),
    /// The candidate's file is damaged. No cluster knows the candidate yet.
    #[error(
        "{CANDIDATE_FILE} is damaged ({0}): remove it, and this node asks under another id to be let \
         in"
    )]
    CandidateDamaged(String),
    /// The file is of a later version.
    #[error(
        "{IDENTITY_FILE} has format version {0}, and this version of shiioo knows up to \
         {FORMAT_VERSION}: start the version that wrote it, or a newer one"
    )]
    TooNew(u32),
    /// There is data and no identity.
    #[error(
        "{IDENTITY_FILE} is missing, but {0} is there: put it back from a copy, or give an empty \
         directory with --data-dir"
    )]
    Lost(&'static str),
    /// The node was started for another region.
    #[error(
        "this node belongs to region {is:?} and cannot be started in region {wanted:?}: start it \
         with --region {is}, or give a node of the other region a directory of its own"
    )]
    OtherRegion {
        /// Region that the node belongs to.
        is: Region,
        /// Region that it was started in.
        wanted: Region,
    },
    /// What a forced recovery was to do cannot be read.
    #[error(
        "{RECOVERY_FILE} is damaged ({0}): put the data directory back from a copy, or recover on \
         another member that is left"
    )]
    PlanDamaged(String),
    /// A forced recovery was interrupted.
    #[error(
        "a recovery by force was begun here and has not ended ({RECOVERY_FILE} is there): run `shiioo \
         recover --force` on this directory again, which ends it"
    )]
    HalfRecovered,
    /// A repair was interrupted.
    #[error(
        "a repair was begun here and has not ended ({REPAIR_FILE} is there): start again with --repair, \
         which ends it"
    )]
    HalfRepaired,
    /// A certificate cannot be made or read.
    #[error("the node's certificate: {0}")]
    Pki(#[from] PkiError),
    /// The file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Identity {
    /// Reads the identity of a data directory. At its first start founds a cluster of one, or makes a
    /// candidate when the node `joins`; returns when that is durable.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load_or_create(
        disk: &dyn Disk,
        seams: &Seams,
        region: &Region,
        joins: bool,
    ) -> Result<LoadedIdentity, IdentityError> {
        // A repair first: it may have a recovery to end, too.
        for (path, unfinished) in [
            (REPAIR_FILE, IdentityError::HalfRepaired),
            (RECOVERY_FILE, IdentityError::HalfRecovered),
        ] {
            let look = disk.exists(path);
            if look.map_err(|error| store_error(format!("look for {path}"), error))? {
                return Err(unfinished);
            }
        }
        if let Some(found) = Self::load(disk)? {
            check_region(&found.region, region)?;
            return Ok(LoadedIdentity::Member(Box::new(found)));
        }
        for path in NEEDS_IDENTITY {
            let found = disk.exists(path);
            if found.map_err(|error| store_error(format!("look for {path}"), error))? {
                return Err(IdentityError::Lost(path));
            }
        }
        // The folder's own entry is synced here, once: `store` syncs only what is in the folder.
        let make_dir = || -> io::Result<()> {
            disk.create_dir_all(IDENTITY_DIR)?;
            disk.sync_dir("")
        };
        make_dir().map_err(|error| store_error(format!("make {IDENTITY_DIR}"), error))?;
        if joins {
            return Candidate::load_or_create(disk, seams, region).map(LoadedIdentity::Candidate);
        }
        let identity = Self::found(seams, region)?;
        identity.store(disk)?;
        Ok(LoadedIdentity::Member(Box::new(identity)))
    }

    /// Reads the identity of a member; `None` where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is damaged.
    pub(crate) fn load(disk: &dyn Disk) -> Result<Option<Self>, IdentityError> {
        read_small(disk, IDENTITY_FILE)?.map(|bytes| Self::decode(&bytes)).transpose()
    }

    /// Makes the identity of the first node of a new cluster.
    fn found(seams: &Seams, region: &Region) -> Result<Self, IdentityError> {
        let (node_id, cluster_id) = (NodeId::from_uuid(seams.uuid()), seams.uuid());
        let key = NodeKey::generate(&*seams.entropy);
        let authority = Authority::create(&*seams.entropy, cluster_id)?;
        let name = MemberName { raft_id: FOUNDER_RAFT_ID, node: node_id, cluster: cluster_id };
        let certificate = authority.issue(&*seams.entropy, key.public(), name)?;
        Ok(Self {
            node_id,
            cluster_id,
            raft_id: FOUNDER_RAFT_ID,
            region: region.clone(),
            key,
            certificate,
            authority: authority.cert_der().to_vec(),
            authority_key: Some(NodeKey::from_der(authority.key_der())?),
            peers: Vec::new(),
            log_id: None,
            former: None,
        })
    }

    /// Reads the identity under which a member goes on that has lost its log, where it was let in
    /// already. One that is damaged is none: the node asks again, and is given the same place.
    pub(crate) fn load_next(disk: &dyn Disk) -> Result<Option<Self>, IdentityError> {
        let next = read_small(disk, NEXT_FILE)?.map(|bytes| Self::decode(&bytes)).transpose();
        Ok(next.unwrap_or_else(|error| {
            tracing::warn!(%error, "{NEXT_FILE} cannot be used");
            None
        }))
    }

    /// Writes the identity durably beside the one that it is to take the place of.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn store_as_next(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        IdentityFile::from(self).write(disk, NEXT_FILE)
    }

    /// Writes the identity durably into a folder that the node does not use any more.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn store_aside(&self, disk: &dyn Disk, folder: &str) -> Result<(), IdentityError> {
        IdentityFile::from(self).write(disk, &format!("{folder}/node.json"))
    }

    /// Writes the identity durably, and removes what the node kept until it had it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        IdentityFile::from(self).write(disk, IDENTITY_FILE)?;
        // Only now: between the two the directory has both, and the identity wins. The removals need
        // not be durable.
        remove(disk, CANDIDATE_FILE)?;
        remove(disk, NEXT_FILE)
    }

    /// Returns the name in the node's certificate.
    pub const fn name(&self) -> MemberName {
        MemberName { raft_id: self.raft_id, node: self.node_id, cluster: self.cluster_id }
    }
}

impl Candidate {
    pub(crate) fn load_or_create(
        disk: &dyn Disk,
        seams: &Seams,
        region: &Region,
    ) -> Result<Self, IdentityError> {
        if let Some(bytes) = read_small(disk, CANDIDATE_FILE)? {
            let candidate = Self::decode(&bytes)?;
            check_region(&candidate.region, region)?;
            return Ok(candidate);
        }
        let candidate = Self {
            node_id: NodeId::from_uuid(seams.uuid()),
            region: region.clone(),
            key: NodeKey::generate(&*seams.entropy),
        };
        CandidateFile::from(&candidate).write(disk)?;
        Ok(candidate)
    }
}

fn remove(disk: &dyn Disk, path: &str) -> Result<(), IdentityError> {
    match disk.remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(store_error(format!("remove {path}"), error).into())
        }
        _ => Ok(()),
    }
}

fn check_region(is: &Region, wanted: &Region) -> Result<(), IdentityError> {
    if is == wanted {
        return Ok(());
    }
    Err(IdentityError::OtherRegion { is: is.clone(), wanted: wanted.clone() })
}

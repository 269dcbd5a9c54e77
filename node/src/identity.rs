//! Who a node is: made once at the first start of a data directory and the same for ever after.
//!
//! Invariants:
//! - The identity is durable before anything else is written, so that a data directory which holds
//!   data without one has lost it: that is refused, for a node under a new name would present
//!   another's replica as its own.
//! - A damaged identity is refused and never replaced.

use std::io;

use serde::{Deserialize, Serialize};
use shiioo_actors::ids::NodeId;
use shiioo_actors::ports::StoreError;
use shiioo_actors::seams::Seams;
use shiioo_storage::disk::{Disk, read_small, store_error, write_durably};
use uuid::Uuid;

/// Where the identity is, relative to the data directory.
pub const IDENTITY_FILE: &str = "identity/node.json";
const IDENTITY_DIR: &str = "identity";
/// The layout that this version writes, and the only one there has been.
const FORMAT_VERSION: u32 = 1;
/// The Raft id of the node that founds a cluster.
const FOUNDER_RAFT_ID: u64 = 1;
/// What a node writes below its data directory only once it has an identity.
const NEEDS_IDENTITY: [&str; 3] = ["system.redb", "log", "tenants"];

/// A node's ids, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node.
    pub node_id: NodeId,
    /// The cluster it belongs to.
    pub cluster_id: Uuid,
    /// Its number in Raft groups.
    pub raft_id: u64,
    /// Its region. Where the tenants of a node are depends on it, so it stays.
    pub region: String,
}

/// Why a node does not know who it is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file holds what was never written.
    #[error(
        "{IDENTITY_FILE} is damaged ({0}): put it back from a copy; without it the data of this \
         directory belongs to no node"
    )]
    Damaged(String),
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
        /// The region it belongs to.
        is: String,
        /// The region asked for.
        wanted: String,
    },
    /// It cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Identity {
    /// Reads the identity of a data directory. Where it is the first start, founds a cluster of
    /// one and returns once that is durable.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load_or_create(
        disk: &dyn Disk,
        seams: &Seams,
        region: &str,
    ) -> Result<Self, IdentityError> {
        if let Some(bytes) = read_small(disk, IDENTITY_FILE)? {
            let found = Self::decode(&bytes)?;
            if found.region != region {
                return Err(IdentityError::OtherRegion {
                    is: found.region,
                    wanted: region.to_owned(),
                });
            }
            return Ok(found);
        }
        if let Some(found) = NEEDS_IDENTITY.into_iter().find(|path| disk.exists(path)) {
            return Err(IdentityError::Lost(found));
        }
        let identity = Self {
            node_id: NodeId::from_uuid(seams.uuid()),
            cluster_id: seams.uuid(),
            raft_id: FOUNDER_RAFT_ID,
            region: region.to_owned(),
        };
        let make_dir = || -> io::Result<()> {
            disk.create_dir_all(IDENTITY_DIR)?;
            disk.sync_dir("")
        };
        make_dir().map_err(|error| store_error(format!("make {IDENTITY_DIR}"), error))?;
        write_durably(disk, IDENTITY_FILE, &identity.encode()?)?;
        Ok(identity)
    }

    fn encode(&self) -> Result<Vec<u8>, IdentityError> {
        let file = IdentityFile {
            format_version: FORMAT_VERSION,
            node_id: self.node_id.to_string(),
            cluster_id: self.cluster_id,
            raft_id: self.raft_id,
            region: self.region.clone(),
            crc32: self.checksum(),
        };
        let mut bytes = serde_json::to_vec_pretty(&file)
            .map_err(|error| store_error(format!("write {IDENTITY_FILE}"), error.into()))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let damaged = |error: serde_json::Error| IdentityError::Damaged(error.to_string());
        // The version first: what else a later one holds is not ours to judge.
        let Version { format_version } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format_version > FORMAT_VERSION {
            return Err(IdentityError::TooNew(format_version));
        }
        let file: IdentityFile = serde_json::from_slice(bytes).map_err(damaged)?;
        let node_id = file
            .node_id
            .parse()
            .map_err(|_| IdentityError::Damaged("node_id is not a node id".into()))?;
        let IdentityFile { cluster_id, raft_id, region, crc32, .. } = file;
        let identity = Self { node_id, cluster_id, raft_id, region };
        if crc32 != identity.checksum() {
            return Err(IdentityError::Damaged("the checksum is wrong".into()));
        }
        Ok(identity)
    }

    /// Over the ids as they are written, so that a flipped bit that leaves valid JSON is noticed.
    fn checksum(&self) -> u32 {
        let Self { node_id, cluster_id, raft_id, region } = self;
        let text = format!("{FORMAT_VERSION} {node_id} {cluster_id} {raft_id} {region}");
        crc32fast::hash(text.as_bytes())
    }
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format_version: u32,
    node_id: String,
    cluster_id: Uuid,
    raft_id: u64,
    region: String,
    crc32: u32,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use shiioo_storage::disk::{OpenMode, SimDisk};

    use super::*;
    use crate::seams::{OsEntropy, SystemClock};

    fn seams() -> Seams {
        let entropy = Arc::new(OsEntropy::new().unwrap());
        Seams { clock: Arc::new(SystemClock), entropy }
    }

    #[test]
    fn an_identity_is_made_once_and_survives_a_power_cut_at_any_moment() {
        for ops in 0..20 {
            let disk = SimDisk::new(ops);
            disk.cut_power_after(ops);
            let made = Identity::load_or_create(&*disk.mount(), &seams(), "default");
            if !disk.take_ended() {
                disk.cut_power();
            }
            let found = Identity::load_or_create(&*disk.mount(), &seams(), "default").unwrap();
            if let Ok(made) = made {
                assert_eq!(found, made, "cut after {ops}");
            }
            let again = Identity::load_or_create(&*disk.mount(), &seams(), "default").unwrap();
            assert_eq!(found, again);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed_or_does_not_matter() {
        let disk = SimDisk::new(1);
        let made = Identity::load_or_create(&*disk.mount(), &seams(), "default").unwrap();
        let len = made.encode().unwrap().len() as u64;
        for offset in 0..len {
            for bit in 0..8 {
                disk.flip_bit(IDENTITY_FILE, offset, bit);
                // A flip in the white space or in the case of a hexadecimal digit says the same.
                if let Ok(found) = Identity::load_or_create(&*disk.mount(), &seams(), "default") {
                    assert_eq!(found, made, "byte {offset}, bit {bit}");
                }
                disk.flip_bit(IDENTITY_FILE, offset, bit);
            }
        }
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for (text, expected) in [
            ("", "damaged"),
            ("{\"format_version\":1}", "damaged"),
            ("{\"format_version\":2,\"who\":1}", "format version 2"),
        ] {
            let disk = SimDisk::new(1).mount();
            disk.create_dir_all(IDENTITY_DIR).unwrap();
            write_durably(&*disk, IDENTITY_FILE, text.as_bytes()).unwrap();
            let error =
                Identity::load_or_create(&*disk, &seams(), "default").unwrap_err().to_string();
            assert!(error.contains(IDENTITY_FILE) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_node_stays_in_its_region() {
        let disk = SimDisk::new(1).mount();
        Identity::load_or_create(&*disk, &seams(), "eu").unwrap();
        let error = Identity::load_or_create(&*disk, &seams(), "us").unwrap_err().to_string();
        assert!(error.contains("--region eu"), "{error}");
    }

    #[test]
    fn data_without_an_identity_is_refused() {
        let disk = SimDisk::new(1).mount();
        disk.open("system.redb", OpenMode::CreateNew).unwrap();
        let error = Identity::load_or_create(&*disk, &seams(), "default").unwrap_err().to_string();
        assert!(error.contains("system.redb"), "{error}");
        assert!(!disk.exists(IDENTITY_FILE));
    }
}

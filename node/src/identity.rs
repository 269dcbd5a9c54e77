//! Who a node is: made once at the first start of a data directory and the same for ever after.
//!
//! A node that founds a cluster is a member at once. One that joins has an id and a key first, which
//! it keeps, so that it can ask again after a crash and is given the same place.
//!
//! Invariants:
//! - The identity is durable before anything else is written, so that a data directory which holds
//!   data without one has lost it: that is refused, for a node under a new name would present
//!   another's replica as its own.
//! - A damaged identity is refused and never replaced.
//! - The authority's private key stands here only until the cluster has it.

use std::io;

use serde::{Deserialize, Serialize};
use shiioo_actors::cluster::join::PeerRow;
use shiioo_actors::domain::ids::NodeId;
use shiioo_actors::ports::StoreError;
use shiioo_actors::ports::seams::Seams;
use shiioo_storage::disk::{Disk, read_small, store_error, write_durably};
use shiioo_transport::pki::{Authority, MemberName, NodeKey, PkiError};
use uuid::Uuid;

/// Where the identity is, relative to the data directory.
pub const IDENTITY_FILE: &str = "identity/node.json";
/// Where a node that wants to join keeps what it has, relative to the data directory.
const CANDIDATE_FILE: &str = "identity/candidate.json";
const IDENTITY_DIR: &str = "identity";
/// The layout that this version writes. Version 1 names no log, and a candidate in it has no checksum.
const FORMAT_VERSION: u32 = 2;
const FORMAT_NAMELESS: u32 = 1;
/// The Raft id of the node that founds a cluster.
const FOUNDER_RAFT_ID: u64 = 1;
/// What a node writes below its data directory only once it has an identity.
const NEEDS_IDENTITY: [&str; 3] = ["system.redb", "log", "tenants"];

/// A member's ids, its key, and where it is.
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
    /// Its private key.
    pub key: NodeKey,
    /// Its certificate, DER.
    pub certificate: Vec<u8>,
    /// Certificate of the cluster's authority, DER.
    pub authority: Vec<u8>,
    /// The authority's private key, until the cluster has it: only on the node that founds.
    pub authority_key: Option<NodeKey>,
    /// The members that it heard of when it joined: whom to ask before it knows more.
    pub peers: Vec<PeerRow>,
    /// The id of its log; `None` before the log has been begun, or was given an id.
    pub log_id: Option<Uuid>,
}

/// A node that is to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node_id: NodeId,
    /// Its region.
    pub region: String,
    /// Its private key.
    pub key: NodeKey,
}

/// Who a node is when it starts.
#[derive(Debug)]
pub enum Who {
    /// A member of a cluster.
    Member(Box<Identity>),
    /// One that has to join first.
    Candidate(Candidate),
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
    /// What a node that wants to join keeps is damaged: nobody knows it yet.
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
        /// The region it belongs to.
        is: String,
        /// The region asked for.
        wanted: String,
    },
    /// A certificate cannot be made or read.
    #[error("the node's certificate: {0}")]
    Pki(#[from] PkiError),
    /// It cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Identity {
    /// Reads the identity of a data directory. Where it is the first start, founds a cluster of
    /// one, or makes a candidate for another; returns once that is durable.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub fn load_or_create(
        disk: &dyn Disk,
        seams: &Seams,
        region: &str,
        joins: bool,
    ) -> Result<Who, IdentityError> {
        if let Some(bytes) = read_small(disk, IDENTITY_FILE)? {
            let found = Self::decode(&bytes)?;
            check_region(&found.region, region)?;
            return Ok(Who::Member(Box::new(found)));
        }
        for path in NEEDS_IDENTITY {
            let found = disk.exists(path);
            if found.map_err(|error| store_error(format!("look for {path}"), error))? {
                return Err(IdentityError::Lost(path));
            }
        }
        let make_dir = || -> io::Result<()> {
            disk.create_dir_all(IDENTITY_DIR)?;
            disk.sync_dir("")
        };
        make_dir().map_err(|error| store_error(format!("make {IDENTITY_DIR}"), error))?;
        if joins {
            return Candidate::load_or_create(disk, seams, region).map(Who::Candidate);
        }
        let identity = Self::found(seams, region)?;
        identity.store(disk)?;
        Ok(Who::Member(Box::new(identity)))
    }

    /// A cluster of one.
    fn found(seams: &Seams, region: &str) -> Result<Self, IdentityError> {
        let (node_id, cluster_id) = (NodeId::from_uuid(seams.uuid()), seams.uuid());
        let key = NodeKey::generate(&*seams.entropy);
        let authority = Authority::create(&*seams.entropy, cluster_id)?;
        let name = MemberName { raft_id: FOUNDER_RAFT_ID, node: node_id, cluster: cluster_id };
        let certificate = authority.issue(&*seams.entropy, key.public(), name)?;
        Ok(Self {
            node_id,
            cluster_id,
            raft_id: FOUNDER_RAFT_ID,
            region: region.to_owned(),
            key,
            certificate,
            authority: authority.cert_der().to_vec(),
            authority_key: Some(NodeKey::from_der(authority.key_der())?),
            peers: Vec::new(),
            log_id: None,
        })
    }

    /// Writes the identity; it is durable then. Its time as a candidate is over.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        let file = IdentityFile {
            format_version: FORMAT_VERSION,
            node_id: self.node_id.to_string(),
            cluster_id: self.cluster_id,
            raft_id: self.raft_id,
            region: self.region.clone(),
            key: hex::encode(self.key.der()),
            certificate: hex::encode(&self.certificate),
            authority: hex::encode(&self.authority),
            authority_key: self.authority_key.as_ref().map(|key| hex::encode(key.der())),
            peers: self.peers.clone(),
            log_id: self.log_id,
            crc32: 0,
        };
        write_json(disk, IDENTITY_FILE, &IdentityFile { crc32: file.checksum(), ..file })?;
        match disk.remove_file(CANDIDATE_FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(store_error(format!("remove {CANDIDATE_FILE}"), error).into())
            }
            _ => Ok(()),
        }
    }

    /// The name in its certificate.
    pub const fn name(&self) -> MemberName {
        MemberName { raft_id: self.raft_id, node: self.node_id, cluster: self.cluster_id }
    }

    fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let file: IdentityFile = read_json(bytes)?;
        if file.crc32 != file.checksum() {
            return Err(IdentityError::Damaged("the checksum is wrong".into()));
        }
        let authority_key = file.authority_key.as_deref().map(node_key).transpose()?;
        Ok(Self {
            node_id: node_id(&file.node_id)?,
            cluster_id: file.cluster_id,
            raft_id: file.raft_id,
            region: file.region,
            key: node_key(&file.key)?,
            certificate: unhex(&file.certificate)?,
            authority: unhex(&file.authority)?,
            authority_key,
            peers: file.peers,
            log_id: file.log_id,
        })
    }
}

impl Candidate {
    fn load_or_create(disk: &dyn Disk, seams: &Seams, region: &str) -> Result<Self, IdentityError> {
        if let Some(bytes) = read_small(disk, CANDIDATE_FILE)? {
            let file: CandidateFile = read_json(&bytes)?;
            if file.format_version > FORMAT_NAMELESS && file.crc32 != Some(file.checksum()) {
                return Err(IdentityError::CandidateDamaged("the checksum is wrong".into()));
            }
            check_region(&file.region, region)?;
            let (node_id, key) = (node_id(&file.node_id)?, node_key(&file.key)?);
            return Ok(Self { node_id, region: file.region, key });
        }
        let candidate = Self {
            node_id: NodeId::from_uuid(seams.uuid()),
            region: region.to_owned(),
            key: NodeKey::generate(&*seams.entropy),
        };
        let file = CandidateFile {
            format_version: FORMAT_VERSION,
            node_id: candidate.node_id.to_string(),
            region: candidate.region.clone(),
            key: hex::encode(candidate.key.der()),
            crc32: None,
        };
        let crc32 = Some(file.checksum());
        write_json(disk, CANDIDATE_FILE, &CandidateFile { crc32, ..file })?;
        Ok(candidate)
    }
}

fn check_region(is: &str, wanted: &str) -> Result<(), IdentityError> {
    if is == wanted {
        return Ok(());
    }
    Err(IdentityError::OtherRegion { is: is.to_owned(), wanted: wanted.to_owned() })
}

fn damaged(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Damaged(error.to_string())
}

fn node_id(text: &str) -> Result<NodeId, IdentityError> {
    text.parse().map_err(damaged)
}

fn unhex(text: &str) -> Result<Vec<u8>, IdentityError> {
    hex::decode(text).map_err(damaged)
}

fn node_key(text: &str) -> Result<NodeKey, IdentityError> {
    NodeKey::from_der(&unhex(text)?).map_err(damaged)
}

fn read_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, IdentityError> {
    // The version first: what else a later one holds is not ours to judge.
    let Version { format_version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format_version > FORMAT_VERSION {
        return Err(IdentityError::TooNew(format_version));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

fn write_json<T: Serialize>(disk: &dyn Disk, path: &str, file: &T) -> Result<(), IdentityError> {
    let mut bytes = serde_json::to_vec_pretty(file)
        .map_err(|error| store_error(format!("write {path}"), error.into()))?;
    bytes.push(b'\n');
    Ok(write_durably(disk, path, &bytes)?)
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

#[derive(Serialize, Deserialize)]
struct CandidateFile {
    format_version: u32,
    node_id: String,
    region: String,
    key: String,
    /// From version 2 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
}

impl CandidateFile {
    fn checksum(&self) -> u32 {
        let Self { format_version, node_id, region, key, crc32: _ } = self;
        crc32fast::hash(format!("{format_version} {node_id} {region} {key}").as_bytes())
    }
}

#[derive(Serialize, Deserialize)]
struct IdentityFile {
    format_version: u32,
    node_id: String,
    cluster_id: Uuid,
    raft_id: u64,
    region: String,
    key: String,
    certificate: String,
    authority: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority_key: Option<String>,
    peers: Vec<PeerRow>,
    /// From version 2 on, once the log has been begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_id: Option<Uuid>,
    crc32: u32,
}

impl IdentityFile {
    /// Over everything as it is written, so that a flipped bit that leaves valid JSON is noticed.
    fn checksum(&self) -> u32 {
        let Self {
            format_version,
            node_id,
            cluster_id,
            raft_id,
            region,
            key,
            certificate,
            authority,
            authority_key,
            peers,
            log_id,
            crc32: _,
        } = self;
        let mut text = format!(
            "{format_version} {node_id} {cluster_id} {raft_id} {region} {key} {certificate} \
             {authority} {authority_key:?} {peers:?}"
        );
        if let Some(log_id) = log_id {
            // Version 1 had none, and its checksum must still be right.
            text.push_str(&format!(" {log_id}"));
        }
        crc32fast::hash(text.as_bytes())
    }
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

    fn member(disk: &dyn Disk) -> Result<Identity, IdentityError> {
        match Identity::load_or_create(disk, &seams(), "default", false)? {
            Who::Member(identity) => Ok(*identity),
            Who::Candidate(candidate) => panic!("{candidate:?}"),
        }
    }

    fn candidate(disk: &dyn Disk) -> Result<Candidate, IdentityError> {
        match Identity::load_or_create(disk, &seams(), "default", true)? {
            Who::Candidate(candidate) => Ok(candidate),
            Who::Member(identity) => panic!("{identity:?}"),
        }
    }

    #[test]
    fn an_identity_is_made_once_and_survives_a_power_cut_at_any_moment() {
        for ops in 0..20 {
            let disk = SimDisk::new(ops);
            disk.cut_power_after(ops);
            let made = member(&*disk.mount());
            if !disk.take_ended() {
                disk.cut_power();
            }
            let found = member(&*disk.mount()).unwrap();
            if let Ok(made) = made {
                assert_eq!(found, made, "cut after {ops}");
            }
            assert_eq!(found, member(&*disk.mount()).unwrap());
        }
    }

    #[test]
    fn a_candidate_is_the_same_until_it_is_a_member() {
        let disk = SimDisk::new(1);
        let first = candidate(&*disk.mount()).unwrap();
        disk.cut_power();
        assert_eq!(candidate(&*disk.mount()).unwrap(), first);
        let elsewhere = Identity::found(&seams(), "default").unwrap();
        let identity = Identity { node_id: first.node_id, key: first.key, ..elsewhere };
        identity.store(&*disk.mount()).unwrap();
        disk.cut_power();
        // Whether it is told to join or not: it belongs to a cluster now.
        assert_eq!(member(&*disk.mount()).unwrap(), identity);
        let again = Identity::load_or_create(&*disk.mount(), &seams(), "default", true).unwrap();
        assert!(matches!(again, Who::Member(found) if *found == identity));
        assert!(!disk.mount().exists(CANDIDATE_FILE).unwrap());
    }

    #[test]
    fn every_flipped_bit_is_noticed_or_does_not_matter() {
        let disk = SimDisk::new(1);
        let made = member(&*disk.mount()).unwrap();
        let len = read_small(&*disk.mount(), IDENTITY_FILE).unwrap().unwrap().len() as u64;
        // One bit of each byte: all of them would take a while and show no more.
        for offset in 0..len {
            let bit = u8::try_from(offset % 8).unwrap();
            disk.flip_bit(IDENTITY_FILE, offset, bit);
            // A flip in the white space or in the case of a hexadecimal digit says the same.
            if let Ok(found) = member(&*disk.mount()) {
                assert_eq!(found, made, "byte {offset}, bit {bit}");
            }
            disk.flip_bit(IDENTITY_FILE, offset, bit);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_candidate_is_noticed_or_does_not_matter() {
        let disk = SimDisk::new(1);
        let made = candidate(&*disk.mount()).unwrap();
        let len = read_small(&*disk.mount(), CANDIDATE_FILE).unwrap().unwrap().len() as u64;
        for offset in 0..len {
            let bit = u8::try_from(offset % 8).unwrap();
            disk.flip_bit(CANDIDATE_FILE, offset, bit);
            if let Ok(found) = candidate(&*disk.mount()) {
                assert_eq!(found, made, "byte {offset}, bit {bit}");
            }
            disk.flip_bit(CANDIDATE_FILE, offset, bit);
        }
    }

    /// Files of the first version: the identity names no log, the candidate has no checksum.
    #[test]
    fn the_first_version_is_read() {
        let disk = SimDisk::new(1);
        let made = candidate(&*disk.mount()).unwrap();
        let old = CandidateFile {
            format_version: FORMAT_NAMELESS,
            node_id: made.node_id.to_string(),
            region: made.region.clone(),
            key: hex::encode(made.key.der()),
            crc32: None,
        };
        write_json(&*disk.mount(), CANDIDATE_FILE, &old).unwrap();
        assert_eq!(candidate(&*disk.mount()).unwrap(), made);

        let disk = SimDisk::new(1);
        let made = member(&*disk.mount()).unwrap();
        let bytes = read_small(&*disk.mount(), IDENTITY_FILE).unwrap().unwrap();
        let now: IdentityFile = serde_json::from_slice(&bytes).unwrap();
        let old = IdentityFile { format_version: FORMAT_NAMELESS, ..now };
        let old = IdentityFile { crc32: old.checksum(), ..old };
        write_json(&*disk.mount(), IDENTITY_FILE, &old).unwrap();
        assert_eq!(member(&*disk.mount()).unwrap(), made);
    }

    #[test]
    fn an_identity_remembers_its_log() {
        let disk = SimDisk::new(1);
        let made = member(&*disk.mount()).unwrap();
        let named = Identity { log_id: Some(Uuid::from_u128(9)), ..made };
        named.store(&*disk.mount()).unwrap();
        disk.cut_power();
        assert_eq!(member(&*disk.mount()).unwrap(), named);
    }

    #[test]
    fn what_is_no_identity_is_refused() {
        for (text, expected) in [
            ("", "damaged"),
            ("{\"format_version\":1}", "damaged"),
            ("{\"format_version\":3,\"who\":1}", "format version 3"),
        ] {
            let disk = SimDisk::new(1).mount();
            disk.create_dir_all(IDENTITY_DIR).unwrap();
            write_durably(&*disk, IDENTITY_FILE, text.as_bytes()).unwrap();
            let error = member(&*disk).unwrap_err().to_string();
            assert!(error.contains(IDENTITY_FILE) && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_node_stays_in_its_region() {
        let disk = SimDisk::new(1).mount();
        Identity::load_or_create(&*disk, &seams(), "eu", false).unwrap();
        let error = Identity::load_or_create(&*disk, &seams(), "us", false).unwrap_err();
        assert!(error.to_string().contains("--region eu"), "{error}");
    }

    #[test]
    fn data_without_an_identity_is_refused() {
        let disk = SimDisk::new(1).mount();
        disk.open("system.redb", OpenMode::CreateNew).unwrap();
        let error = member(&*disk).unwrap_err().to_string();
        assert!(error.contains("system.redb"), "{error}");
        assert!(!disk.exists(IDENTITY_FILE).unwrap());
    }
}

//! The files of an identity: JSON with a checksum.

use serde::{Deserialize, Serialize};
use shiioo_actors::cluster::join::PeerRow;
use shiioo_actors::domain::ids::{NodeId, RaftId};
use shiioo_actors::domain::region::Region;
use shiioo_storage::disk::{Disk, store_error, write_durably};
use shiioo_transport::pki::NodeKey;
use uuid::Uuid;

use super::{CANDIDATE_FILE, Candidate, Former, Identity, IdentityError};

/// Layout that this version writes. 3: what the node was before a forced recovery.
pub(super) const FORMAT_VERSION: u32 = 3;
/// First layout: the identity names no log, and the candidate has no checksum.
pub(super) const FORMAT_NAMELESS: u32 = 1;

/// Holds an [`Identity`] as it is written.
#[derive(Serialize, Deserialize)]
pub(super) struct IdentityFile {
    pub(super) format_version: u32,
    pub(super) node_id: String,
    pub(super) cluster_id: Uuid,
    pub(super) raft_id: RaftId,
    pub(super) region: Region,
    pub(super) key: String,
    pub(super) certificate: String,
    pub(super) authority: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) authority_key: Option<String>,
    pub(super) peers: Vec<PeerRow>,
    /// From version 2 on, once the log has been begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) log_id: Option<Uuid>,
    /// From version 3 on, after a forced recovery.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) former: Option<FormerFile>,
    pub(super) crc32: u32,
}

/// Holds a [`Former`] as it is written.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FormerFile {
    pub(super) certificate: String,
    pub(super) authority: String,
}

/// Holds a [`Candidate`] as it is written.
#[derive(Serialize, Deserialize)]
pub(super) struct CandidateFile {
    pub(super) format_version: u32,
    pub(super) node_id: String,
    pub(super) region: Region,
    pub(super) key: String,
    /// From version 2 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) crc32: Option<u32>,
}

#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

impl From<&Identity> for IdentityFile {
    fn from(identity: &Identity) -> Self {
        let file = Self {
            format_version: FORMAT_VERSION,
            node_id: identity.node_id.to_string(),
            cluster_id: identity.cluster_id,
            raft_id: identity.raft_id,
            region: identity.region.clone(),
            key: hex::encode(identity.key.der()),
            certificate: hex::encode(&identity.certificate),
            authority: hex::encode(&identity.authority),
            authority_key: identity.authority_key.as_ref().map(|key| hex::encode(key.der())),
            peers: identity.peers.clone(),
            log_id: identity.log_id,
            former: identity.former.as_ref().map(|former| FormerFile {
                certificate: hex::encode(&former.certificate),
                authority: hex::encode(&former.authority),
            }),
            crc32: 0,
        };
        Self { crc32: file.checksum(), ..file }
    }
}

impl IdentityFile {
    /// Writes the file durably.
    pub(super) fn write(&self, disk: &dyn Disk, path: &str) -> Result<(), IdentityError> {
        write_json(disk, path, self)
    }

    /// Computes the checksum over all fields as they are written, so that a flipped bit that leaves
    /// valid JSON is noticed.
    pub(super) fn checksum(&self) -> u32 {
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
            former,
            crc32: _,
        } = self;
        let mut text = format!(
            "{format_version} {node_id} {cluster_id} {raft_id} {region} {key} {certificate} \
             {authority} {authority_key:?} {peers:?}"
        );
        if let Some(log_id) = log_id {
            // Version 1 had no log id, and its checksums must stay right.
            text.push_str(&format!(" {log_id}"));
        }
        if let Some(FormerFile { certificate, authority }) = former {
            text.push_str(&format!(" {certificate} {authority}"));
        }
        crc32fast::hash(text.as_bytes())
    }
}

impl Identity {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let file: IdentityFile = read_json(bytes)?;
        if file.crc32 != file.checksum() {
            return Err(IdentityError::Damaged("the checksum is wrong".into()));
        }
        let authority_key = file.authority_key.as_deref().map(node_key).transpose()?;
        let former = file.former.map(|former| {
            let (certificate, authority) = (unhex(&former.certificate)?, unhex(&former.authority)?);
            Ok::<_, IdentityError>(Former { certificate, authority })
        });
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
            former: former.transpose()?,
        })
    }
}

impl From<&Candidate> for CandidateFile {
    fn from(candidate: &Candidate) -> Self {
        let file = Self {
            format_version: FORMAT_VERSION,
            node_id: candidate.node_id.to_string(),
            region: candidate.region.clone(),
            key: hex::encode(candidate.key.der()),
            crc32: None,
        };
        Self { crc32: Some(file.checksum()), ..file }
    }
}

impl CandidateFile {
    /// Writes the file durably.
    pub(super) fn write(&self, disk: &dyn Disk) -> Result<(), IdentityError> {
        write_json(disk, CANDIDATE_FILE, self)
    }

    fn checksum(&self) -> u32 {
        let Self { format_version, node_id, region, key, crc32: _ } = self;
        crc32fast::hash(format!("{format_version} {node_id} {region} {key}").as_bytes())
    }
}

impl Candidate {
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, IdentityError> {
        let file: CandidateFile = read_json(bytes)?;
        if file.format_version > FORMAT_NAMELESS && file.crc32 != Some(file.checksum()) {
            return Err(IdentityError::CandidateDamaged("the checksum is wrong".into()));
        }
        let (node_id, key) = (node_id(&file.node_id)?, node_key(&file.key)?);
        Ok(Self { node_id, region: file.region, key })
    }
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
    // The version first: the fields of a later version are unknown to this one.
    let Version { format_version } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format_version > FORMAT_VERSION {
        return Err(IdentityError::TooNew(format_version));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Writes a file durably, as JSON with one field a line.
pub(super) fn write_json<T: Serialize>(
    disk: &dyn Disk,
    path: &str,
    file: &T,
) -> Result<(), IdentityError> {
    let mut bytes = serde_json::to_vec_pretty(file)
        .map_err(|error| store_error(format!("write {path}"), error.into()))?;
    bytes.push(b'\n');
    Ok(write_durably(disk, path, &bytes)?)
}

//! Names in certificates.
//!
//! A member is `m<raft id>.<node's UUID>.<cluster's UUID>.shiioo.internal`, an authority
//! `authority.<cluster's UUID>.shiioo.internal`. A name has one spelling: a text that parses is
//! formatted back to the same text.

use std::fmt;
use std::str::FromStr;

use shiioo_actors::domain::ids::{NodeId, RaftId};
use uuid::Uuid;

/// Domain of all names: `.internal` is reserved for names that no public resolver knows.
const DOMAIN: &str = "shiioo.internal";
/// First label of an authority's name.
const AUTHORITY_LABEL: &str = "authority";

/// Names a member of a cluster in its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberName {
    /// Id of the node in Raft groups.
    pub raft_id: RaftId,
    /// Id of the node.
    pub node: NodeId,
    /// Cluster of the member.
    pub cluster: Uuid,
}

/// Rejects a text that is no name of a member or an authority.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a cluster's member or authority")]
pub struct NameError(String);

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { raft_id, node, cluster } = self;
        write!(f, "m{raft_id}.{}.{cluster}.{DOMAIN}", node.uuid())
    }
}

impl FromStr for MemberName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (member, rest) = text.strip_prefix('m')?.split_once('.')?;
            let (node, rest) = rest.split_once('.')?;
            let cluster = rest.strip_suffix(DOMAIN)?.strip_suffix('.')?;
            Some(Self {
                raft_id: RaftId(member.parse().ok()?),
                node: NodeId::from_uuid(Uuid::try_parse(node).ok()?),
                cluster: Uuid::try_parse(cluster).ok()?,
            })
        };
        parse().filter(|name| name.to_string() == text).ok_or_else(|| NameError(text.to_owned()))
    }
}

/// Returns the domain of the names of all members of a cluster.
pub(super) fn cluster_domain(cluster: Uuid) -> String {
    format!("{cluster}.{DOMAIN}")
}

/// Returns the name in the certificate of a cluster's authority.
pub(super) fn authority_name(cluster: Uuid) -> String {
    format!("{AUTHORITY_LABEL}.{}", cluster_domain(cluster))
}

/// Parses the name of an authority and returns its cluster.
pub(super) fn cluster_of_authority(text: &str) -> Result<Uuid, NameError> {
    text.split('.')
        .nth(1)
        .and_then(|label| Uuid::try_parse(label).ok())
        .filter(|cluster| authority_name(*cluster) == text)
        .ok_or_else(|| NameError(text.to_owned()))
}

//! Names in certificates.
//!
//! A member is `m<raft id>.<node's UUID>.<cluster's UUID>.shiioo.internal`, an authority
//! `authority.<cluster's UUID>.shiioo.internal`. One spelling a name: what parses is written back
//! as it was read.

use std::fmt;
use std::str::FromStr;

use shiioo_actors::domain::ids::NodeId;
use uuid::Uuid;

/// The domain of all names: `.internal` is reserved for names that no public resolver knows.
const DOMAIN: &str = "shiioo.internal";
/// The first label of an authority's name.
const AUTHORITY_LABEL: &str = "authority";

/// Who a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberName {
    /// Its id in Raft groups.
    pub raft_id: u64,
    /// Its node id.
    pub node: NodeId,
    /// The cluster it is a member of.
    pub cluster: Uuid,
}

/// A text that is no name of ours.
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
                raft_id: member.parse().ok()?,
                node: NodeId::from_uuid(Uuid::try_parse(node).ok()?),
                cluster: Uuid::try_parse(cluster).ok()?,
            })
        };
        parse().filter(|name| name.to_string() == text).ok_or_else(|| NameError(text.to_owned()))
    }
}

/// The domain in which all members of a cluster have their names.
pub(super) fn cluster_domain(cluster: Uuid) -> String {
    format!("{cluster}.{DOMAIN}")
}

/// The name in the certificate of a cluster's authority.
pub(super) fn authority_name(cluster: Uuid) -> String {
    format!("{AUTHORITY_LABEL}.{}", cluster_domain(cluster))
}

/// The cluster whose authority has this name.
pub(super) fn cluster_of_authority(text: &str) -> Result<Uuid, NameError> {
    text.split('.')
        .nth(1)
        .and_then(|label| Uuid::try_parse(label).ok())
        .filter(|cluster| authority_name(*cluster) == text)
        .ok_or_else(|| NameError(text.to_owned()))
}

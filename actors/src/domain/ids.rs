//! Identifiers. Each is a type of its own, so that the inside of the program never has to check
//! again what the edge has parsed.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not the identifier it was given as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {0}")]
pub struct ParseIdError(&'static str);

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps a UUID that the entropy seam made.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID inside.
            pub const fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            /// Only the form that `Display` writes: prefix and lower-case hyphenated UUID. One
            /// spelling a resource, so that a path is never an alias of another.
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let id = text
                    .strip_prefix($prefix)
                    .and_then(|uuid| Uuid::try_parse(uuid).ok())
                    .map(Self)
                    .ok_or(ParseIdError($what))?;
                if id.to_string() == text { Ok(id) } else { Err(ParseIdError($what)) }
            }
        }
    };
}

uuid_id!(
    /// A tenant. Never derived from its name: names do not become paths.
    TenantId, "", "tenant id"
);
uuid_id!(
    /// A run of a workflow.
    RunId, "", "run id"
);
uuid_id!(
    /// A job: a named workflow kept with its run.
    JobId, "", "job id"
);
uuid_id!(
    /// A node, written `node-<uuid>`. Nodes registered over HTTP carry one as well.
    NodeId, "node-", "node id"
);

uuid_id!(
    /// A token that admits nodes.
    TokenId, "", "join token id"
);

/// A replication group. Group 0 is the system group; the others hold tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The group of the control plane: tenants, nodes, locks, placement.
    pub const SYSTEM: Self = Self(0);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A member in Raft groups: what openraft calls a node id. Given once, and never to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct RaftId(pub u64);

impl fmt::Display for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for RaftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What openraft's suite of tests makes its nodes of.
impl From<u64> for RaftId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

/// Makes the raft ids of a test.
#[cfg(test)]
pub(crate) fn raft_ids<T: FromIterator<RaftId>>(numbers: &[u64]) -> T {
    numbers.iter().copied().map(RaftId).collect()
}

/// How many times a tenant has been given to a group; a command with an older one is refused.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Epoch(pub u64);

/// Where an entry stands in a group's log. The pair is unique: Raft gives a term one leader.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Position {
    /// Raft term of the leader that appended the entry.
    pub term: u64,
    /// Index in the log of its group, from 1 (0 holds the first membership).
    pub index: u64,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.term, self.index)
    }
}

/// What applies a share of a group's log and makes it durable on its own: one tenant, or the
/// control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StateMachineId {
    /// The control plane, in group 0.
    System,
    /// One tenant, in its tenant group.
    Tenant(TenantId),
}

impl fmt::Display for StateMachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => f.write_str("system"),
            Self::Tenant(id) => id.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_is_an_id() {
        let text = "550e8400-e29b-41d4-a716-446655440000";
        assert_eq!(text.parse::<TenantId>().unwrap().to_string(), text);
        assert_eq!(
            format!("node-{text}").parse::<NodeId>().unwrap().to_string(),
            format!("node-{text}")
        );
        for bad in ["", "..", "550E8400-E29B-41D4-A716-446655440000", "{550e8400}", "node-x"] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }
}

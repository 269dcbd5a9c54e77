//! A node serves nothing from a disk that lacks what the node has acknowledged: it says what it lacks
//! and ends.

use std::fmt;

use outside::ensure;

use super::Checked;

/// What a disk lacks, or holds otherwise than it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// The replicated log.
    Log,
    /// The entries after one, of which the leader has seen later ones acknowledged.
    Entries {
        /// Index of the last entry of the system group that is there.
        held: u64,
        /// Index of the last one that was acknowledged to the leader.
        acknowledged: u64,
    },
    /// A byte of a file.
    Byte {
        /// The file.
        path: String,
        /// Where in it.
        offset: u64,
    },
}

/// Compares what the disk of a node lacks with whether the node serves, in a life that began after
/// the loss.
///
/// # Errors
/// When it serves.
pub fn refused(node: &str, lack: &Lack, serves: bool) -> Checked {
    ensure!(!serves, "{node} serves, and {lack}");
    Ok(())
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Log => write!(f, "its log was taken away"),
            Self::Entries { held, acknowledged } => write!(
                f,
                "its disk is an older copy up to entry {held}, and it had acknowledged entry \
                 {acknowledged} to the leader that it follows"
            ),
            Self::Byte { path, offset } => {
                write!(f, "byte {offset} of {path} is not what was written")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_serves_from_a_disk_that_lacks_something_is_noticed() {
        let byte = Lack::Byte { path: "log/1".into(), offset: 7 };
        for lack in [Lack::Log, Lack::Entries { held: 3, acknowledged: 5 }, byte] {
            assert_eq!(refused("n2", &lack, false), Ok(()));
            assert!(refused("n2", &lack, true).is_err(), "{lack:?}");
        }
    }
}

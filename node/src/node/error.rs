//! The errors of a node's start and run.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::identity::IdentityError;
use crate::joining::JoiningError;
use crate::sockets::BindError;
use crate::wiring::ServicesError;

/// Tells why a node stopped by itself: it could not go on without breaking a promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NodeFailure(pub String);

/// Tells why a node did not start: what, why, and what to do, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another node uses the data directory.
    #[error(
        "the data directory {dir} is in use by {holder}: stop it, or give this node a directory of \
         its own with --data-dir", dir = .dir.display()
    )]
    DataDirLocked {
        /// The data directory.
        dir: PathBuf,
        /// The other node, as far as its `node.json` says.
        holder: String,
    },
    /// The data directory cannot be used.
    #[error(
        "cannot use the data directory {dir}: {source}; it has to be a directory that this user \
         can write to", dir = .dir.display()
    )]
    DataDir {
        /// The data directory.
        dir: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The identity cannot be used.
    #[error("in the data directory {dir}: {source}", dir = .dir.display())]
    Identity {
        /// The data directory.
        dir: PathBuf,
        /// The cause.
        source: IdentityError,
    },
    /// The node could not join its cluster.
    #[error("cannot join: {0}")]
    Joining(#[from] JoiningError),
    /// The services did not start over the data.
    #[error("cannot start on the data directory {dir}: {source}", dir = .dir.display())]
    Services {
        /// The data directory.
        dir: PathBuf,
        /// The cause.
        source: ServicesError,
    },
    /// An address cannot be listened at.
    #[error(transparent)]
    Bind(#[from] BindError),
}

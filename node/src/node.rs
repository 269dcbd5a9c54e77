//! One node: everything it holds, from start to stop.
//!
//! Start goes in one order, and each step relies on the ones before: the lock (nobody else is in
//! this data directory), the identity (durable before any data), the sockets (what is taken is
//! known before anything is replayed), the rooms, and last `node.json`, which says that the node
//! is ready. Stop goes the other way round; the lock is the last to go.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use shiioo_actors::seams::TcpListen;
use shiioo_storage::disk::{Disk, DiskLock, read_small, store_error, write_durably};
use shiioo_transport::udp::AsyncUdpSocket;

use crate::config::{Config, ConfigError};
use crate::identity::{Identity, IdentityError};
use crate::rooms::{Rooms, RoomsError};
use crate::seams::NodeSeams;

/// Says where the running node is, relative to the data directory.
const READY_FILE: &str = "node.json";
/// Held while the node runs, relative to the data directory.
const LOCK_FILE: &str = "node.lock";

/// A running node.
pub struct Node {
    config: Config,
    seams: NodeSeams,
    identity: Identity,
    api_addr: SocketAddr,
    node_addr: SocketAddr,
    /// Held for the node's own protocol, so that the address in `node.json` is this node's.
    node_socket: Arc<dyn AsyncUdpSocket>,
    rooms: Rooms,
    lock: DiskLock,
}

/// The sockets a node listens at.
struct Sockets {
    api: Box<dyn TcpListen>,
    node: Arc<dyn AsyncUdpSocket>,
}

/// Why a node stopped by itself: it could not go on without breaking a promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NodeFailure(pub String);

/// Why a node did not start: what, why, and what to do, in one line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration contradicts itself.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another node is at work in the data directory.
    #[error(
        "the data directory {dir} is in use by {holder}: stop it, or give this node a directory of \
         its own with --data-dir", dir = .dir.display()
    )]
    DataDirLocked {
        /// The data directory.
        dir: PathBuf,
        /// Who has it, as far as its `node.json` says.
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
        /// What went wrong.
        source: io::Error,
    },
    /// The node does not know who it is.
    #[error("in the data directory {dir}: {source}", dir = .dir.display())]
    Identity {
        /// The data directory.
        dir: PathBuf,
        /// What went wrong.
        source: IdentityError,
    },
    /// The rooms did not open over the data.
    #[error("cannot start on the data directory {dir}: {source}", dir = .dir.display())]
    Rooms {
        /// The data directory.
        dir: PathBuf,
        /// What went wrong.
        source: RoomsError,
    },
    /// An address cannot be listened at.
    #[error("cannot listen at {addr} ({flag}): {}", why_not(.source, .flag))]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn why_not(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has this port; stop it, or choose another address with {flag} (port 0 \
             takes any free one)"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address; choose one of its own with {flag}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("this user may not; choose a port from 1024 on with {flag}")
        }
        _ => format!("{error}; choose another address with {flag}"),
    }
}

impl Node {
    /// Starts a node and returns once it is ready. Dropping the future abandons the start.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left running or locked.
    pub async fn start(config: Config, seams: NodeSeams) -> Result<Self, StartError> {
        config.check()?;
        let (lock, identity) = claim(&config, &seams).await?;
        let sockets = Sockets::bind(&config, &seams).await?;
        let failed_address = |addr, flag| move |source| StartError::Bind { addr, flag, source };
        let api_addr =
            sockets.api.local_addr().map_err(failed_address(config.api_addr, "--api-addr"))?;
        let node_addr =
            sockets.node.local_addr().map_err(failed_address(config.node_addr, "--node-addr"))?;
        let Sockets { api, node: node_socket } = sockets;
        let addresses = (api_addr.to_string(), node_addr.to_string());
        let rooms = Rooms::open(&config, &seams, &identity, api, addresses).await;
        let rooms = rooms.map_err(|source| {
            let dir = config.data_dir.clone();
            StartError::Rooms { dir, source }
        })?;
        let node = Self { config, seams, identity, api_addr, node_addr, node_socket, rooms, lock };
        node.announce().await?;
        Ok(node)
    }

    /// Stops: takes no more requests, and lets go of the sockets and at last the data directory.
    pub async fn stop(self) {
        let Self { seams, node_socket, rooms, lock, .. } = self;
        rooms.close().await;
        drop(node_socket);
        let disk = Arc::clone(&seams.disk);
        let removed = seams.executor.run(move || disk.remove_file(READY_FILE)).await;
        if let Err(error) = removed {
            // It misleads people only: the next start replaces it.
            tracing::warn!(%error, "cannot remove {READY_FILE}");
        }
        drop(lock);
    }

    /// Waits until the node has failed: it must be stopped then, and the reason shown. Never
    /// returns on a node that works.
    pub async fn failed(&self) -> NodeFailure {
        NodeFailure(self.rooms.failed().await)
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where its API listens.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// Where it talks with other nodes.
    pub fn node_addr(&self) -> SocketAddr {
        self.node_addr
    }

    /// What it was told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    async fn announce(&self) -> Result<(), StartError> {
        let ready = Ready {
            node_id: self.identity.node_id.to_string(),
            api_addr: self.api_addr.to_string(),
            node_addr: self.node_addr.to_string(),
            pid: self.seams.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let disk = Arc::clone(&self.seams.disk);
        let written = self.seams.executor.run(move || {
            let bytes = serde_json::to_vec(&ready)
                .map_err(|error| store_error(format!("write {READY_FILE}"), error.into()))?;
            write_durably(&*disk, READY_FILE, &bytes)
        });
        let dir = self.config.data_dir.clone();
        written.await.map_err(|error| StartError::DataDir { dir, source: io::Error::other(error) })
    }
}

/// Takes the data directory for this node and learns who the node is.
async fn claim(config: &Config, seams: &NodeSeams) -> Result<(DiskLock, Identity), StartError> {
    let dir = config.data_dir.clone();
    let disk = Arc::clone(&seams.disk);
    let ids = seams.seams.clone();
    let region = config.region.clone();
    let claim = move || {
        let lock = match disk.lock(LOCK_FILE) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(StartError::DataDirLocked { dir, holder: holder(&*disk) });
            }
            Err(source) => return Err(StartError::DataDir { dir, source }),
        };
        // One that was killed left its addresses, which are not this node's.
        match disk.remove_file(READY_FILE) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StartError::DataDir { dir, source: error });
            }
            _ => {}
        }
        let identity = Identity::load_or_create(&*disk, &ids, &region)
            .map_err(|source| StartError::Identity { dir, source })?;
        Ok((lock, identity))
    };
    seams.executor.run(claim).await
}

/// Who holds the data directory, for people.
fn holder(disk: &dyn Disk) -> String {
    let ready = read_small(disk, READY_FILE).ok().flatten();
    match ready.and_then(|bytes| serde_json::from_slice::<Ready>(&bytes).ok()) {
        Some(Ready { pid, api_addr, .. }) => {
            format!("a running node (process {pid}, API at {api_addr})")
        }
        None => "a running node".to_owned(),
    }
}

impl Sockets {
    async fn bind(config: &Config, seams: &NodeSeams) -> Result<Self, StartError> {
        let bound = seams.tcp.bind(config.api_addr).await;
        let api = bound.map_err(|source| StartError::Bind {
            addr: config.api_addr,
            flag: "--api-addr",
            source,
        })?;
        let node = seams.udp.bind(config.node_addr).map_err(|source| StartError::Bind {
            addr: config.node_addr,
            flag: "--node-addr",
            source,
        })?;
        Ok(Self { api, node })
    }
}

/// `node.json`.
#[derive(Serialize, Deserialize)]
struct Ready {
    node_id: String,
    api_addr: String,
    node_addr: String,
    pid: u32,
    version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anywhere(data_dir: &std::path::Path) -> (Config, NodeSeams) {
        let free: SocketAddr = ([127, 0, 0, 1], 0).into();
        let config = Config {
            api_addr: free,
            node_addr: free,
            data_dir: data_dir.to_owned(),
            ..Config::default()
        };
        (config, NodeSeams::real(data_dir).unwrap())
    }

    async fn refused(config: Config, seams: NodeSeams) -> String {
        let error = Node::start(config, seams).await.err().unwrap().to_string();
        assert!(!error.contains('\n'), "{error}");
        error
    }

    #[tokio::test]
    async fn a_node_keeps_its_identity_and_says_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (config, seams) = anywhere(dir.path());
        let node = Node::start(config.clone(), seams.clone()).await.unwrap();
        let bytes = read_small(&*seams.disk, READY_FILE).unwrap().unwrap();
        let ready: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let expected = serde_json::json!({
            "node_id": node.identity().node_id.to_string(),
            "api_addr": node.api_addr().to_string(),
            "node_addr": node.node_addr().to_string(),
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        assert_eq!(ready, expected);

        let identity = node.identity().clone();
        node.stop().await;
        assert!(!seams.disk.exists(READY_FILE));
        let node = Node::start(config, seams).await.unwrap();
        assert_eq!(*node.identity(), identity);
        node.stop().await;
    }

    #[tokio::test]
    async fn a_data_directory_has_one_node() {
        let dir = tempfile::tempdir().unwrap();
        let (config, seams) = anywhere(dir.path());
        let first = Node::start(config.clone(), seams.clone()).await.unwrap();
        let error = refused(config.clone(), seams.clone()).await;
        let named = format!("process {}, API at {}", std::process::id(), first.api_addr());
        assert!(error.contains(&named) && error.contains("--data-dir"), "{error}");
        assert!(seams.disk.exists(READY_FILE), "the loser leaves the winner's file alone");
        first.stop().await;
        Node::start(config, seams).await.unwrap().stop().await;
    }

    #[tokio::test]
    async fn a_taken_port_is_named_with_its_flag() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (config, seams) = anywhere(here.path());
        let first = Node::start(config, seams).await.unwrap();
        let (config, seams) = anywhere(there.path());

        let taken = Config { api_addr: first.api_addr(), ..config.clone() };
        let error = refused(taken, seams.clone()).await;
        assert!(error.contains(&first.api_addr().to_string()), "{error}");
        assert!(error.contains("another program") && error.contains("--api-addr"), "{error}");
        let taken = Config { node_addr: first.node_addr(), ..config.clone() };
        let error = refused(taken, seams.clone()).await;
        assert!(error.contains("--node-addr"), "{error}");

        Node::start(config, seams).await.unwrap().stop().await;
        first.stop().await;
    }
}

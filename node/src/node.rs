//! One node: everything it holds, from start to stop.
//!
//! Start goes in one order, and each step relies on the ones before: the lock (nobody else is in
//! this data directory), the sockets (what is taken is known before anything is replayed), the
//! identity (durable before any data; a node that joins gets the rest of it from the cluster), the
//! rooms, and last `node.json`, which says that the node is ready. Stop goes the other way round;
//! the lock is the last to go.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::NodeId;
use shiioo_actors::domain::membership::Member;
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::ports::seams::TcpListen;
use shiioo_actors::ports::{BoxFuture, GroupStatus, StoreError};
use shiioo_storage::disk::{Disk, DiskLock, read_small, store_error, write_durably};
use shiioo_transport::udp::AsyncUdpSocket;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::{Config, ConfigError};
use crate::identity::{Identity, IdentityError, Who};
use crate::joining::{self, JoiningError};
use crate::rooms::{Rooms, RoomsError};
use crate::seams::NodeSeams;

/// Says where the running node is, relative to the data directory.
const READY_FILE: &str = "node.json";
/// Ports that are tried where the wished one is taken and may be another.
const PORTS_MAX: u16 = 64;
/// Wait before `node.json` is written again, after there was no room for it.
const ANNOUNCE_RETRY: Duration = Duration::from_secs(1);
/// A limit of file descriptors below this is worth a warning: it is what a process has at least by
/// default nearly everywhere.
const DESCRIPTORS_FEW: u64 = 1024;
/// Wait before it is looked again whether the node is ready.
const READY_POLL: Duration = Duration::from_millis(20);
/// A node that is not ready says so this often.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Held while the node runs, relative to the data directory.
const LOCK_FILE: &str = "node.lock";

/// A running node.
pub struct Node {
    config: Config,
    seams: NodeSeams,
    identity: Identity,
    api_addr: SocketAddr,
    node_addr: SocketAddr,
    rooms: Rooms,
    lock: DiskLock,
    /// Writes `node.json` when there is room for it, where there was none at the start.
    announcing: Option<AbortHandle>,
}

/// The sockets a node listens at.
pub(crate) struct Sockets {
    /// Of the API.
    pub(crate) api: Box<dyn TcpListen>,
    /// Of the connections between nodes.
    pub(crate) node: Arc<dyn AsyncUdpSocket>,
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
    /// The node could not join the cluster it was told of.
    #[error("cannot join: {0}")]
    Joining(#[from] JoiningError),
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
        let lock = claim(&config, &seams).await?;
        let sockets = Sockets::bind(&config, &seams).await?;
        tell_descriptors(seams.descriptors);
        let failed_address = |addr, flag| move |source| StartError::Bind { addr, flag, source };
        let api_addr =
            sockets.api.local_addr().map_err(failed_address(config.api_addr, "--api-addr"))?;
        let node_addr =
            sockets.node.local_addr().map_err(failed_address(config.node_addr, "--node-addr"))?;
        let mut member = profile(&config, api_addr, node_addr);
        let identity = match identify(&config, &seams, &member.node_addr).await? {
            Who::Member(identity) => *identity,
            Who::Candidate(candidate) => {
                member.node = candidate.node_id;
                joining::join(&config, &seams, &candidate, member.clone()).await?
            }
        };
        (member.node, member.raft_id) = (identity.node_id, identity.raft_id);
        let opened = Rooms::open(&config, &seams, identity, member, sockets).await;
        let (rooms, identity) = opened.map_err(|source| {
            let dir = config.data_dir.clone();
            StartError::Rooms { dir, source }
        })?;
        let announcing = None;
        let mut node =
            Self { config, seams, identity, api_addr, node_addr, rooms, lock, announcing };
        node.announce().await?;
        Ok(node)
    }

    /// Stops: takes no more requests, and lets go of the sockets and at last the data directory.
    pub async fn stop(self) {
        let Self { seams, rooms, lock, announcing, .. } = self;
        if let Some(announcing) = announcing {
            announcing.abort();
        }
        rooms.close().await;
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

    /// Waits until the node is ready: until it votes, or stands by on purpose, wherever it is meant
    /// to. Tells the log what it waits for.
    pub async fn ready(&self) {
        let mut tell_next = Instant::now() + TELL_EVERY;
        loop {
            let reasons = self.rooms.not_ready().await;
            if reasons.is_empty() {
                return;
            }
            if Instant::now() >= tell_next {
                tell_next = Instant::now() + TELL_EVERY;
                tracing::warn!(why = reasons.join("; "), "not ready yet");
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Whether an admin token is asked for: the cluster's, however this node was started.
    pub fn has_admin_token(&self) -> bool {
        self.rooms.has_admin_token()
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

    /// What this node knows of the Raft groups that it is in.
    pub fn groups(&self) -> Vec<GroupStatus> {
        self.rooms.groups()
    }

    /// What it was told.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Says where the node is, for people and for the commands. Where there is no room for it the
    /// node works all the same, and it is said later.
    async fn announce(&mut self) -> Result<(), StartError> {
        let ready = Ready {
            node_id: self.identity.node_id.to_string(),
            api_addr: self.api_addr.to_string(),
            node_addr: self.node_addr.to_string(),
            pid: self.seams.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let failed = |error: StoreError| StartError::DataDir {
            dir: self.config.data_dir.clone(),
            source: io::Error::other(error),
        };
        let bytes = serde_json::to_vec(&ready)
            .map_err(|error| failed(store_error(format!("write {READY_FILE}"), error.into())))?;
        let (disk, executor) = (Arc::clone(&self.seams.disk), self.seams.executor.clone());
        let write = move || {
            let (disk, executor, bytes) = (Arc::clone(&disk), executor.clone(), bytes.clone());
            let write = async move {
                executor.run(move || write_durably(&*disk, READY_FILE, &bytes)).await
            };
            Box::pin(write) as BoxFuture<'static, _>
        };
        match write().await {
            Err(StoreError::Full) => {
                tracing::warn!("the disk is full: {READY_FILE} is written when there is room");
                self.announcing = Some(tokio::spawn(retry_while_full(write)).abort_handle());
                Ok(())
            }
            written => written.map_err(failed),
        }
    }
}

/// Writes until there is room.
async fn retry_while_full(write: impl Fn() -> BoxFuture<'static, Result<(), StoreError>> + Send) {
    loop {
        tokio::time::sleep(ANNOUNCE_RETRY).await;
        match write().await {
            Err(StoreError::Full) => {}
            Err(error) => return tracing::warn!(%error, "cannot write {READY_FILE}"),
            Ok(()) => return,
        }
    }
}

/// Says how many of each thing may be open, and warns where that is few.
fn tell_descriptors(limit: u64) {
    let DescriptorBudget { api_connections, step_calls, open_stores, .. } =
        DescriptorBudget::of_limit(limit);
    if limit < DESCRIPTORS_FEW {
        tracing::warn!(
            limit,
            api_connections,
            step_calls,
            open_stores,
            "few file descriptors: raise the hard limit (ulimit -Hn) for more of each"
        );
    } else {
        tracing::info!(limit, api_connections, step_calls, open_stores, "file descriptors");
    }
}

/// Takes the data directory for this node.
async fn claim(config: &Config, seams: &NodeSeams) -> Result<DiskLock, StartError> {
    let dir = config.data_dir.clone();
    let disk = Arc::clone(&seams.disk);
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
                Err(StartError::DataDir { dir, source: error })
            }
            _ => Ok(lock),
        }
    };
    seams.executor.run(claim).await
}

/// Learns who the node is.
async fn identify(config: &Config, seams: &NodeSeams, own_addr: &str) -> Result<Who, StartError> {
    let dir = config.data_dir.clone();
    let (disk, ids) = (Arc::clone(&seams.disk), seams.seams.clone());
    let (region, joins) = (config.region.clone(), !joining::others(config, own_addr).is_empty());
    let identify = move || Identity::load_or_create(&*disk, &ids, &region, joins);
    let identified = seams.executor.run(identify).await;
    identified.map_err(|source| StartError::Identity { dir, source })
}

/// What the node tells of itself; its ids are not known yet.
fn profile(config: &Config, api_addr: SocketAddr, node_addr: SocketAddr) -> Member {
    Member {
        node: NodeId::from_uuid(Uuid::nil()),
        raft_id: 0,
        api_addr: format!("http://{api_addr}"),
        node_addr: config.advertise_addr.clone().unwrap_or_else(|| node_addr.to_string()),
        region: config.region.clone(),
        labels: config.labels.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
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
        let (mut tries, flag) =
            (Ports::from(config.api_addr, config.yields.api_addr), "--api-addr");
        let api = loop {
            let addr = tries.next();
            match seams.tcp.bind(addr).await {
                Ok(bound) => break bound,
                Err(error) if tries.may_move(&error) => {}
                Err(source) => return Err(StartError::Bind { addr, flag, source }),
            }
        };
        let mut tries = Ports::from(config.node_addr, config.yields.node_addr);
        let node = loop {
            let addr = tries.next();
            match seams.udp.bind(addr) {
                Ok(bound) => break bound,
                Err(error) if tries.may_move(&error) => {}
                Err(source) => {
                    return Err(StartError::Bind { addr, flag: "--node-addr", source });
                }
            }
        };
        Ok(Self { api, node })
    }
}

/// The ports to try: one, or as many as [`PORTS_MAX`] where it may be another than the one wished
/// for.
struct Ports {
    addr: SocketAddr,
    left: u16,
}

impl Ports {
    fn from(addr: SocketAddr, may_move: bool) -> Self {
        Self { addr, left: if may_move { PORTS_MAX } else { 1 } }
    }

    fn next(&mut self) -> SocketAddr {
        let addr = self.addr;
        self.left = self.left.saturating_sub(1);
        self.addr.set_port(addr.port().saturating_add(1));
        addr
    }

    fn may_move(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::AddrInUse && self.left > 0
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
        assert!(!seams.disk.exists(READY_FILE).unwrap());
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
        assert!(seams.disk.exists(READY_FILE).unwrap(), "the loser leaves the winner's file alone");
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

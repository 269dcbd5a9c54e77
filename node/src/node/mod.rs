//! One node, from start to stop.
//!
//! # Start order
//!
//! [`Node::start`] is the list; each step relies on those before it:
//!
//! 1. *Check the configuration*: what is refused leaves no trace on disk.
//! 2. *Lock the data directory* ([`data_dir`]): from here on no other process uses it.
//! 3. *Bind the sockets*: a taken port is noticed before anything is replayed, and the member record
//!    needs the real ports.
//! 4. *Load or make the identity*: durable before any other data. A node that is to join has a
//!    candidate's identity only.
//! 5. *Join*, as a candidate: the cluster gives it certificate and raft id. The identity is durable
//!    when this returns.
//! 6. *Start the services* ([`wiring`](crate::wiring)): log, groups, actors, API.
//! 7. *Write `node.json`*: tells people and commands where the node is.
//!
//! Dropping the future at any point abandons the start: the lock goes with it.
//!
//! # What is synced when
//!
//! | file | synced |
//! |---|---|
//! | `identity/candidate.json` | before the first request to join |
//! | `identity/node.json` | before any other data; again with the id of the log, before the first entry is acknowledged; again without the authority's key, once the cluster has it |
//! | `node.json` | when it is written; it is no more than information, and is removed at the stop |
//! | log and tenants' files | by their own rules (`shiioo_storage`) |
//!
//! # One identity, two processes
//!
//! The lock keeps two processes from one directory on one machine. A *copy* of the directory has a
//! lock of its own: two processes then have one identity and one key. The certificate cannot tell
//! them apart; the cluster does. Each process draws a number at its start and tells it to the members;
//! of two with one identity the one that started earlier stops, and one that lacks what the member
//! has acknowledged is refused, whichever it is (`actors/src/services/heartbeat`, decision 14).
//!
//! # Stop order
//!
//! The other way round: services, `node.json`, and at last the lock.

pub(crate) mod data_dir;
mod error;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shiioo_actors::domain::ids::{NodeId, RaftId};
use shiioo_actors::domain::membership::Member;
use shiioo_actors::ports::GroupStatus;
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_storage::disk::DiskLock;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::config::Config;
use crate::identity::{Identity, LoadedIdentity};
use crate::joining;
use crate::seams::NodeSeams;
use crate::sockets::Sockets;
use crate::wiring::Services;
use data_dir::Ready;
pub use error::{NodeFailure, StartError};

/// Limit of file descriptors below which a warning is logged: nearly every system gives a process at
/// least so many by default.
const DESCRIPTORS_FEW: u64 = 1024;
/// Pause between two looks at whether the node is ready.
const READY_POLL: Duration = Duration::from_millis(20);
/// Interval in which a node that is not ready logs why.
const NOT_READY_LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Runs one node.
pub struct Node {
    config: Config,
    seams: NodeSeams,
    identity: Identity,
    api_addr: SocketAddr,
    node_addr: SocketAddr,
    services: Services,
    lock: DiskLock,
    /// Writes `node.json` later, if there was no room for it at the start.
    announcing: Option<AbortHandle>,
}

impl Node {
    /// Starts a node. Dropping the future abandons the start. See the module for the order.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left running or locked.
    pub async fn start(config: Config, seams: NodeSeams) -> Result<Self, StartError> {
        config.check()?;
        let lock = data_dir::lock(&config.data_dir, &seams).await?;
        let sockets = Sockets::bind(&config, &seams).await?;
        let (api_addr, node_addr) = (sockets.api_addr, sockets.node_addr);
        log_descriptor_budget(seams.descriptors);
        let mut member = member_record(&config, api_addr, node_addr);
        let identity = match load_identity(&config, &seams, &member.node_addr).await? {
            LoadedIdentity::Member(identity) => *identity,
            LoadedIdentity::Candidate(candidate) => {
                member.node = candidate.node_id;
                joining::join(&config, &seams, &candidate, member.clone()).await?
            }
        };
        (member.node, member.raft_id) = (identity.node_id, identity.raft_id);
        let (services, identity) = Services::start(&config, &seams, identity, member, sockets)
            .await
            .map_err(|source| StartError::Services { dir: config.data_dir.clone(), source })?;
        let ready = Ready {
            node_id: identity.node_id.to_string(),
            api_addr: api_addr.to_string(),
            node_addr: node_addr.to_string(),
            pid: seams.pid,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let announcing = data_dir::announce(&config.data_dir, &seams, &ready).await?;
        Ok(Self { config, seams, identity, api_addr, node_addr, services, lock, announcing })
    }

    /// Stops the services, closes the sockets, and unlocks the data directory last.
    pub async fn stop(self) {
        let Self { seams, services, lock, announcing, .. } = self;
        // Before `node.json` is removed, or the task would write it again.
        if let Some(announcing) = announcing {
            announcing.abort();
        }
        services.stop().await;
        data_dir::retract(&seams).await;
        drop(lock);
    }

    /// Waits until the node has failed: it has to be stopped then, and the reason shown. Never
    /// returns on a node that works.
    pub async fn failed(&self) -> NodeFailure {
        NodeFailure(self.services.failed().await)
    }

    /// Waits until the node votes, or stands by on purpose, in every group that it belongs to. Logs
    /// now and then what it waits for.
    pub async fn ready(&self) {
        let mut log_next = Instant::now() + NOT_READY_LOG_INTERVAL;
        loop {
            let reasons = self.services.not_ready().await;
            if reasons.is_empty() {
                return;
            }
            if Instant::now() >= log_next {
                log_next = Instant::now() + NOT_READY_LOG_INTERVAL;
                tracing::warn!(why = reasons.join("; "), "not ready yet");
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }

    /// Returns whether the API asks for an admin token: the cluster's, however this node was started.
    pub fn has_admin_token(&self) -> bool {
        self.services.has_admin_token()
    }

    /// Returns the identity of this node.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the address of the API.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// Returns the address of the connections between nodes.
    pub fn node_addr(&self) -> SocketAddr {
        self.node_addr
    }

    /// Returns the state of the Raft groups on this node.
    pub fn groups(&self) -> Vec<GroupStatus> {
        self.services.groups()
    }

    /// Counts how often the files of all tenants have been looked through for damage.
    pub fn scrubs(&self) -> u64 {
        self.services.scrubs()
    }

    /// Counts the comparisons of a tenant's replicas, and those in which the replicas differed.
    pub fn comparisons(&self) -> (u64, u64) {
        self.services.comparisons()
    }

    /// Returns the configuration of this node.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Logs how many of each thing may be open, and warns when that is few.
fn log_descriptor_budget(limit: u64) {
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

/// Loads the identity, or makes it at the first start.
async fn load_identity(
    config: &Config,
    seams: &NodeSeams,
    own_addr: &str,
) -> Result<LoadedIdentity, StartError> {
    let dir = config.data_dir.clone();
    let (disk, ids) = (Arc::clone(&seams.disk), seams.seams.clone());
    // A node that is told to join itself founds the cluster: so all nodes can have the same flags.
    let joins = !joining::join_addresses(config, own_addr).is_empty();
    let region = config.region.clone();
    let load = move || Identity::load_or_create(&*disk, &ids, &region, joins);
    seams.executor.run(load).await.map_err(|source| StartError::Identity { dir, source })
}

/// Makes the record that the cluster keeps of this node. Its ids are not known yet.
fn member_record(config: &Config, api_addr: SocketAddr, node_addr: SocketAddr) -> Member {
    Member {
        node: NodeId::from_uuid(Uuid::nil()),
        raft_id: RaftId::default(),
        api_addr: format!("http://{api_addr}"),
        node_addr: config.advertise_addr.clone().unwrap_or_else(|| node_addr.to_string()),
        region: config.region.clone(),
        labels: config.labels.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

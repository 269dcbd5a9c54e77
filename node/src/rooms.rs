//! Wires the rooms of a node together: log, groups, files, actors, API.
//!
//! The order matters. The registry is there before the first group, because groups hand entries
//! over as soon as they run; the system group runs before the actors, because they follow its
//! leadership. The API answers from the beginning, `starting` until the actors run, so that a long
//! recovery can be told from a dead node.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shiioo_actors::command::Member;
use shiioo_actors::ids::GroupId;
use shiioo_actors::node::{self, NodeActors, NodePorts, NodeProfile};
use shiioo_actors::ports::{GroupStatus, Ledger, StoreError};
use shiioo_actors::seams::TcpListen;
use shiioo_actors::tenants::Registry;
use shiioo_api::{Api, ApiConfig};
use shiioo_storage::{FileStores, Groups, GroupsConfig};
use shiioo_transport::http_client::HttpSteps;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::config::{Config, Secret};
use crate::identity::Identity;
use crate::seams::NodeSeams;

/// How long running requests get to end when the node stops, before the rest stops under them.
const API_DRAIN: Duration = Duration::from_secs(3);

/// A node's rooms, running.
pub(crate) struct Rooms {
    groups: Arc<Groups>,
    actors: NodeActors,
    api: JoinHandle<()>,
    stop_api: oneshot::Sender<()>,
}

/// Why the rooms did not open.
#[derive(Debug, thiserror::Error)]
pub enum RoomsError {
    /// The data cannot be read.
    #[error("the data cannot be used: {0}")]
    Store(#[from] StoreError),
    /// TLS for outgoing calls cannot be set up.
    #[error("TLS for `http` steps cannot be set up: {0}")]
    Tls(String),
    /// The actors did not start.
    #[error(transparent)]
    Actors(#[from] node::StartError),
}

impl Rooms {
    /// Opens the rooms of the node that `identity` names, with its API at `listener`.
    pub(crate) async fn open(
        config: &Config,
        seams: &NodeSeams,
        identity: &Identity,
        listener: Box<dyn TcpListen>,
        addresses: (String, String),
    ) -> Result<Self, RoomsError> {
        let groups: Arc<OnceLock<Arc<Groups>>> = Arc::default();
        let gauged = Arc::clone(&groups);
        let api = Arc::new(Api::new(
            seams.seams.clone(),
            ApiConfig {
                version: env!("CARGO_PKG_VERSION"),
                request_timeout: config.request_timeout,
                admin_token: config.admin_token.as_ref().map(Secret::reveal).map(str::to_owned),
                test_hooks: config.test_hooks,
                extra_metrics: vec![Box::new(move |text| {
                    if let Some(groups) = gauged.get() {
                        write_group_metrics(&groups.groups(), text);
                    }
                })],
            },
        ));
        let (stop_api, stopped) = oneshot::channel::<()>();
        let serving = Arc::clone(&api);
        let serving = tokio::spawn(async move {
            // A dropped sender says the same as a message.
            serving.serve(listener, async { drop(stopped.await) }).await;
        });
        let registry = Arc::new(Registry::default());
        let groups =
            GroupsConfig { raft_id: identity.raft_id, election_timeout: config.election_timeout };
        let disk = Arc::clone(&seams.disk);
        let groups = Groups::start(groups, disk, seams.executor, registry.clone()).await?;
        match Self::start_actors(config, seams, identity, &groups, registry, addresses).await {
            Ok(actors) => {
                api.open(actors.handles.clone());
                Ok(Self { groups, actors, api: serving, stop_api })
            }
            Err(error) => {
                groups.shutdown().await;
                Err(error)
            }
        }
    }

    async fn start_actors(
        config: &Config,
        seams: &NodeSeams,
        identity: &Identity,
        groups: &Arc<Groups>,
        registry: Arc<Registry>,
        (api_addr, node_addr): (String, String),
    ) -> Result<NodeActors, RoomsError> {
        groups.open_group(GroupId::SYSTEM, vec![identity.raft_id]).await?;
        let stores =
            FileStores::open(Arc::clone(&seams.disk), seams.executor, &config.region).await?;
        let (tcp, clock) = (Arc::clone(&seams.tcp), Arc::clone(&seams.seams.clock));
        let http = HttpSteps::new(tcp, clock, config.deny_private_targets)
            .map_err(|error| RoomsError::Tls(error.to_string()))?;
        let profile = NodeProfile {
            member: Member {
                node: identity.node_id,
                raft_id: identity.raft_id,
                api_addr: format!("http://{api_addr}"),
                node_addr,
                region: config.region.clone(),
                labels: config.labels.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            unhealthy_after: config.unhealthy_after,
        };
        let ports = NodePorts {
            ledger: groups.clone(),
            stores,
            http: Arc::new(http),
            seams: seams.seams.clone(),
            registry,
        };
        Ok(node::start(profile, ports).await?)
    }

    /// Waits until the node can go on no longer; tells why.
    pub(crate) async fn failed(&self) -> String {
        tokio::select! {
            reason = self.groups.failed() => reason,
            reason = self.actors.failed() => reason,
        }
    }

    /// Takes no more requests, lets those that run end, writes down what waits, and stops.
    pub(crate) async fn close(self) {
        let Self { groups, actors, mut api, stop_api } = self;
        let _ = stop_api.send(());
        if tokio::time::timeout(API_DRAIN, &mut api).await.is_err() {
            tracing::warn!("requests were still running when the node stopped");
            api.abort();
        }
        actors.stop().await;
        groups.shutdown().await;
    }
}

/// Gauges of the groups on this node, in the text format of Prometheus.
fn write_group_metrics(groups: &[GroupStatus], text: &mut String) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# TYPE shiioo_group_term gauge");
    for group in groups {
        let _ = writeln!(text, "shiioo_group_term{{group=\"{}\"}} {}", group.group, group.term);
    }
    let _ = writeln!(text, "# TYPE shiioo_group_applied_index gauge");
    for group in groups {
        for replica in &group.replicas {
            let (group, raft_id, applied) = (group.group, replica.raft_id, replica.applied);
            let labels = format!("group=\"{group}\",member=\"{raft_id}\"");
            let _ = writeln!(text, "shiioo_group_applied_index{{{labels}}} {applied}");
        }
    }
}

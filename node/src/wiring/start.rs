//! Starts each service with the settings that it needs.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shiioo_actors::domain::ids::{GroupId, RaftId, TenantId};
use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::node::{self, NodeActors, NodePorts, NodeProfile, StepPorts};
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::ports::seams::TcpListen;
use shiioo_actors::ports::{AttemptJournal, LogStatus as _, Membership as _, Peers, StoreError};
use shiioo_actors::services::tenants::Registry;
use shiioo_api::{Api, ApiConfig};
use shiioo_storage::{FileStores, Groups, GroupsConfig, LogIdentity, StoresConfig, UnderWayFile};
use shiioo_transport::http::HttpSteps;
use shiioo_transport::quic::{self, FormerIdentity, Quic, QuicConfig, TlsIdentity};
use shiioo_transport::udp::AsyncUdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::founding::Issuer;
use super::{ServicesError, metrics};
use crate::client_threads::ClientThreads;
use crate::config::Config;
use crate::dispatch::RpcDispatcher;
use crate::identity::Identity;
use crate::joining;
use crate::known_members;
use crate::seams::NodeSeams;

/// A node that starts waits for so long for a quorum of its cluster after it was told that the cluster
/// was recovered by force.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(5);
/// Heartbeats in the time after which a node registered over HTTP counts as unhealthy: all but one of
/// these may be lost.
const HEARTBEATS_PER_TIMEOUT: u32 = 3;

/// Starts QUIC. It calls members and answers nobody yet.
pub(super) fn quic(
    config: &Config,
    seams: &NodeSeams,
    identity: &Identity,
    own_addr: &str,
    socket: Arc<dyn AsyncUdpSocket>,
) -> Result<Arc<Quic>, quic::StartError> {
    let quic = QuicConfig {
        identity: TlsIdentity {
            ca_cert: identity.authority.clone(),
            cert: identity.certificate.clone(),
            key: identity.key.der().to_vec(),
            former: identity.former.as_ref().map(|former| FormerIdentity {
                ca_cert: former.authority.clone(),
                cert: former.certificate.clone(),
            }),
        },
        name: identity.name(),
        plain_packets: seams.plain_packets,
        hints: joining::join_addresses(config, own_addr).into_iter().map(str::to_owned).collect(),
    };
    let quic = Quic::start(quic, socket, seams.seams.clone(), Arc::clone(&seams.tcp))?;
    // Until the control plane has read the members from the log.
    quic.set_members(known_members::others(identity), RaftId(0));
    Ok(quic)
}

/// Makes the API. It answers `starting` until it is opened.
pub(super) fn api(
    config: &Config,
    seams: &NodeSeams,
    groups: &Arc<OnceLock<Arc<Groups>>>,
    registry: &Arc<Registry>,
    admin_token: watch::Receiver<Option<SecretHash>>,
    default_tenant: Option<Arc<OnceLock<TenantId>>>,
) -> Api {
    let (groups, registry) = (Arc::clone(groups), Arc::clone(registry));
    Api::new(
        seams.seams.clone(),
        ApiConfig {
            version: env!("CARGO_PKG_VERSION"),
            request_timeout: config.request_timeout,
            heartbeat_interval: config
                .heartbeat_interval
                .min(config.unhealthy_after / HEARTBEATS_PER_TIMEOUT),
            admin_token,
            api_hosts: config.own_api_hosts(),
            default_tenant,
            test_hooks: config.test_hooks,
            descriptors: DescriptorBudget::of_limit(seams.descriptors),
            extra_metrics: vec![Box::new(move |text| {
                if let Some(groups) = groups.get() {
                    metrics::write_groups(&groups.groups(), text);
                    metrics::write_tenants(&registry, &registry.quarantined(&**groups), text);
                }
            })],
        },
    )
}

/// Runs the API's listener.
pub(super) struct ApiServer {
    pub(super) api: Arc<Api>,
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl ApiServer {
    pub(super) fn start(api: Api, socket: Box<dyn TcpListen>, threads: &ClientThreads) -> Self {
        let api = Arc::new(api);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = Arc::clone(&api);
        let task = threads.spawn(async move {
            // A dropped sender says the same as a message.
            serving.serve(socket, async { drop(stopped.await) }).await;
        });
        Self { api, task, stop }
    }

    /// Takes no more requests, and waits for those in progress, within a bound.
    pub(super) async fn stop(mut self, drain: Duration) {
        let _ = self.stop.send(());
        if tokio::time::timeout(drain, &mut self.task).await.is_err() {
            tracing::warn!("requests were still running when the node stopped");
            self.task.abort();
        }
    }
}

/// Opens the log and starts the groups, none of which is open yet.
pub(super) async fn groups(
    config: &Config,
    seams: &NodeSeams,
    identity: &Identity,
    registry: &Arc<Registry>,
    quic: &Arc<Quic>,
) -> Result<Arc<Groups>, StoreError> {
    let log = LogIdentity {
        expected: identity.log_id,
        fresh: seams.seams.uuid(),
        region: config.region.clone(),
    };
    let groups =
        GroupsConfig { log, raft_id: identity.raft_id, election_timeout: config.election_timeout };
    let (disk, peers) = (Arc::clone(&seams.disk), Arc::clone(quic) as Arc<dyn Peers>);
    let (executor, registry) = (seams.executor.clone(), Arc::clone(registry));
    Groups::start(groups, disk, executor, registry, peers).await
}

/// Holds what the actors are started over.
pub(super) struct ActorPorts<'r> {
    pub(super) groups: &'r Arc<Groups>,
    pub(super) registry: Arc<Registry>,
    pub(super) quic: &'r Arc<Quic>,
    pub(super) dispatcher: Arc<RpcDispatcher>,
    pub(super) under_way: Arc<UnderWayFile>,
    pub(super) admin_token: watch::Sender<Option<SecretHash>>,
}

/// Opens the system group, answers other nodes, and starts the actors.
pub(super) async fn actors(
    config: &Config,
    seams: &NodeSeams,
    profile: NodeProfile,
    ports: ActorPorts<'_>,
) -> Result<NodeActors, ServicesError> {
    let ActorPorts { groups, registry, quic, dispatcher, under_way, admin_token } = ports;
    let workers = seams.executor.workers().map_err(ServicesError::Threads)?;
    let steps = StepPorts { workers, under_way: under_way as Arc<dyn AttemptJournal> };
    // Only the founder of the cluster is its first voter; other nodes learn who votes from the log.
    let first_voter = profile.founding.is_some().then_some(profile.member.raft_id);
    groups.open_group(GroupId::SYSTEM, first_voter.into_iter().collect()).await?;
    let (disk, executor) = (Arc::clone(&seams.disk), seams.executor.clone());
    let descriptors = DescriptorBudget::of_limit(seams.descriptors);
    let stores = StoresConfig { log: Some(groups.log_id()), open_stores: descriptors.open_stores };
    let stores = FileStores::open_with(disk, executor, &config.region, stores).await?;
    let (tcp, clock) = (Arc::clone(&seams.tcp), Arc::clone(&seams.seams.clock));
    let http = HttpSteps::new(tcp, clock, config.deny_private_targets, &descriptors)
        .map_err(|error| ServicesError::Tls(error.to_string()))?;
    let ports = NodePorts {
        log: Arc::clone(groups) as _,
        stores,
        http: Arc::new(http),
        seams: seams.seams.clone(),
        registry,
        peers: Arc::clone(quic) as Arc<dyn Peers>,
        issuer: Arc::new(Issuer(seams.seams.clone())),
        descriptors,
        steps,
        admin_token,
    };
    quic.serve(Arc::clone(&dispatcher) as _, Arc::clone(&dispatcher) as _);
    // A node that waits for its cluster would not notice a failure of its own log. Biased: a start
    // that is complete counts, whatever has failed since; the failure is reported next.
    tokio::select! {
        biased;
        started = node::start(profile, ports, |actors, handles| dispatcher.open(actors, handles)) => {
            Ok(started?)
        }
        why = groups.failed() => Err(ServicesError::Failed(why)),
        why = left_behind(quic) => Err(ServicesError::Failed(why)),
        () = quic.removed() => Err(node::StartError::Removed.into()),
    }
}

/// Resolves when the cluster that this node waits for has been recovered by force without it.
async fn left_behind(quic: &Quic) -> String {
    let why = quic.recovered_elsewhere().await;
    // Whoever did that may have been wrong: where enough of the others are there, they take this
    // node in meanwhile, and it goes on with them.
    tokio::time::sleep(LEFT_BEHIND_AFTER).await;
    why
}

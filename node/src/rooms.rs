//! Wires the rooms of a node together: log, groups, files, actors, API.
//!
//! The order matters. The registry is there before the first group, because groups hand entries
//! over as soon as they run; the system group runs before the actors, because they follow its
//! leadership; other nodes are answered before the actors have started, because a node that has
//! just joined is looked after before it is taken in. The API answers from the beginning,
//! `starting` until the actors run, so that a long recovery can be told from a dead node; a node that
//! has been a member answers from its own disk while it waits for the others.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shiioo_actors::cluster::join::JoinSecret;
use shiioo_actors::domain::ids::{GroupId, NodeId};
use shiioo_actors::domain::membership::{Authority, Member};
use shiioo_actors::domain::secret::{SecretBytes, SecretHash};
use shiioo_actors::node::{self, Founding, NodeActors, NodePorts, NodeProfile, StepPorts};
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::ports::seams::Seams;
use shiioo_actors::ports::{
    AttemptJournal, CertificateIssuer, GroupStatus, Peers, ReplicatedLog, StoreError,
};
use shiioo_actors::services::tenants::{Quarantined, Registry};
use shiioo_api::{Api, ApiConfig};
use shiioo_storage::{FileStores, Groups, GroupsConfig, LogIdentity, StoresConfig, UnderWayFile};
use shiioo_transport::http_client::HttpSteps;
use shiioo_transport::pki::{self, MemberName};
use shiioo_transport::quic::{self, Quic, QuicConfig, TlsIdentity};
use shiioo_transport::udp::AsyncUdpSocket;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::door::Door;
use crate::identity::{Identity, IdentityError};
use crate::node::Sockets;
use crate::seams::NodeSeams;
use crate::{joining, own_log};

/// How long running requests get to end when the node stops, before the rest stops under them.
const API_DRAIN: Duration = Duration::from_secs(2);

/// Heartbeats that a node registered over HTTP sends at least before it counts as unhealthy.
const HEARTBEATS_IN_PATIENCE: u32 = 3;

/// A node's rooms, running.
pub(crate) struct Rooms {
    seams: NodeSeams,
    under_way: Arc<UnderWayFile>,
    groups: Arc<Groups>,
    actors: NodeActors,
    quic: Arc<Quic>,
    api: JoinHandle<()>,
    stop_api: oneshot::Sender<()>,
    admin_token: watch::Receiver<Option<SecretHash>>,
}

/// Why the rooms did not open.
#[derive(Debug, thiserror::Error)]
pub enum RoomsError {
    /// The data cannot be read.
    #[error("the data cannot be used: {0}")]
    Store(#[from] StoreError),
    /// There are no threads for the steps.
    #[error("threads for steps cannot be started: {0}")]
    Threads(#[source] std::io::Error),
    /// TLS for outgoing calls cannot be set up.
    #[error("TLS for `http` steps cannot be set up: {0}")]
    Tls(String),
    /// There is no log, and there was one.
    #[error(
        "this member has lost its log: remove its directory and join anew; what it had \
         acknowledged, the other members have"
    )]
    LogLost,
    /// The same, on a node that was alone.
    #[error(
        "this node has lost its log, and no other node has a copy: put the whole directory back from \
         one made while the node was stopped, or give an empty directory with --data-dir"
    )]
    OnlyLogLost,
    /// The way to other nodes cannot be opened.
    #[error("the connections between nodes cannot be set up: {0}")]
    Quic(#[from] quic::StartError),
    /// The join secret cannot be one.
    #[error("--join-token: {0}")]
    Token(String),
    /// The identity cannot be written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A group or the log failed before the start was over.
    #[error("{0}")]
    Failed(String),
    /// The actors did not start.
    #[error(transparent)]
    Actors(#[from] node::StartError),
}

impl Rooms {
    /// Opens the rooms of the node that `identity` names. Gives back the identity, which a cluster
    /// that has just been founded changes.
    pub(crate) async fn open(
        config: &Config,
        seams: &NodeSeams,
        identity: Identity,
        member: Member,
        sockets: Sockets,
    ) -> Result<(Self, Identity), RoomsError> {
        own_log::check(config, seams, &identity).await?;
        let founding = founding(config, &identity)?;
        let quic = open_quic(config, seams, &identity, &member.node_addr, sockets.node)?;
        let groups: Arc<OnceLock<Arc<Groups>>> = Arc::default();
        let own = config.admin_token.as_ref();
        let own = own.map(|token| SecretHash::of_admin_token(token.reveal().as_bytes()));
        let admin_token = watch::Sender::new(own);
        let registry = Arc::new(Registry::default());
        let asked = admin_token.subscribe();
        let api = open_api(config, seams, Arc::clone(&groups), Arc::clone(&registry), asked);
        let api = Arc::new(api);
        let (stop_api, stopped) = oneshot::channel::<()>();
        let serving = Arc::clone(&api);
        let serving = tokio::spawn(async move {
            // A dropped sender says the same as a message.
            serving.serve(sockets.api, async { drop(stopped.await) }).await;
        });
        let log = LogIdentity {
            expected: identity.log_id,
            fresh: seams.seams.uuid(),
            region: config.region.clone(),
        };
        let groups_config = GroupsConfig {
            log,
            raft_id: identity.raft_id,
            election_timeout: config.election_timeout,
        };
        let (disk, peers) = (Arc::clone(&seams.disk), Arc::clone(&quic) as Arc<dyn Peers>);
        let executor = seams.executor.clone();
        let started = Groups::start(groups_config, disk, executor, registry.clone(), peers).await?;
        // Before the first group is opened, and so before anything is acknowledged: from then on the
        // log is missed where it is not there.
        let identity = own_log::name(seams, identity, started.log_id()).await?;
        let _ = groups.set(Arc::clone(&started));
        let groups = started;
        let profile = NodeProfile {
            member,
            unhealthy_after: config.unhealthy_after,
            election_timeout: config.election_timeout,
            founding,
            admin_token: own,
        };
        let watched = admin_token.subscribe();
        let door = Door::new(Arc::clone(&groups), Arc::clone(&api));
        let disk = Arc::clone(&seams.disk);
        let under_way = seams.executor.run(move || UnderWayFile::open(&*disk)).await;
        let under_way = Arc::new(under_way);
        let started = match seams.executor.workers() {
            Ok(workers) => {
                let under_way = Arc::clone(&under_way) as Arc<dyn AttemptJournal>;
                let steps = StepPorts { workers, under_way };
                let parts =
                    Parts { groups: &groups, registry, quic: &quic, door, steps, admin_token };
                Self::start_actors(config, seams, profile, parts).await
            }
            Err(error) => Err(RoomsError::Threads(error)),
        };
        match started {
            Ok(actors) => {
                api.open(actors.handles.clone());
                let identity = founded(seams, identity).await?;
                let seams = seams.clone();
                let rooms = Self {
                    seams,
                    under_way,
                    groups,
                    actors,
                    quic,
                    api: serving,
                    stop_api,
                    admin_token: watched,
                };
                Ok((rooms, identity))
            }
            Err(error) => {
                groups.shutdown().await;
                quic.close().await;
                Err(error)
            }
        }
    }

    async fn start_actors(
        config: &Config,
        seams: &NodeSeams,
        profile: NodeProfile,
        parts: Parts<'_>,
    ) -> Result<NodeActors, RoomsError> {
        let Parts { groups, registry, quic, door, steps, admin_token } = parts;
        // Only who founds the cluster is its first voter; the others are told who votes.
        let first_voter = profile.founding.is_some().then_some(profile.member.raft_id);
        groups.open_group(GroupId::SYSTEM, first_voter.into_iter().collect()).await?;
        let (disk, executor) = (Arc::clone(&seams.disk), seams.executor.clone());
        let descriptors = DescriptorBudget::of_limit(seams.descriptors);
        let stores =
            StoresConfig { log: Some(groups.log_id()), open_stores: descriptors.open_stores };
        let stores = FileStores::open_with(disk, executor, &config.region, stores).await?;
        let (tcp, clock) = (Arc::clone(&seams.tcp), Arc::clone(&seams.seams.clock));
        let http = HttpSteps::new(tcp, clock, config.deny_private_targets, &descriptors)
            .map_err(|error| RoomsError::Tls(error.to_string()))?;
        let ports = NodePorts {
            log: groups.clone(),
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
        quic.serve(door.clone(), door.clone());
        // A node that waits for its cluster would not notice that its own log has failed.
        tokio::select! {
            biased;
            started = node::start(profile, ports, |actors, handles| door.open(actors, handles)) => Ok(started?),
            why = groups.failed() => Err(RoomsError::Failed(why)),
        }
    }

    /// What is known here of the groups.
    pub(crate) fn groups(&self) -> Vec<GroupStatus> {
        self.groups.groups()
    }

    /// Whether an admin token is asked for.
    pub(crate) fn has_admin_token(&self) -> bool {
        self.admin_token.borrow().is_some()
    }

    /// Why the node is not ready; empty when it is.
    pub(crate) async fn not_ready(&self) -> Vec<String> {
        self.actors.handles.cluster.not_ready().await
    }

    /// Waits until the node can go on no longer; tells why.
    pub(crate) async fn failed(&self) -> String {
        tokio::select! {
            reason = self.groups.failed() => reason,
            reason = self.actors.failed() => reason,
        }
    }

    /// Lets others lead, takes no more requests, lets those that run end, writes down what waits,
    /// and stops.
    pub(crate) async fn close(self) {
        let Self { seams, under_way, groups, actors, quic, mut api, stop_api, admin_token: _ } =
            self;
        actors.hand_over().await;
        let _ = stop_api.send(());
        if tokio::time::timeout(API_DRAIN, &mut api).await.is_err() {
            tracing::warn!("requests were still running when the node stopped");
            api.abort();
        }
        actors.stop().await;
        // What was under way has been stopped; nobody ended the process.
        seams.executor.run(move || under_way.close()).await;
        groups.shutdown().await;
        quic.close().await;
    }
}

/// What has been opened before the actors start.
struct Parts<'r> {
    groups: &'r Arc<Groups>,
    registry: Arc<Registry>,
    quic: &'r Arc<Quic>,
    door: Arc<Door>,
    steps: StepPorts,
    admin_token: watch::Sender<Option<SecretHash>>,
}

fn open_quic(
    config: &Config,
    seams: &NodeSeams,
    identity: &Identity,
    own_addr: &str,
    socket: Arc<dyn AsyncUdpSocket>,
) -> Result<Arc<Quic>, RoomsError> {
    let quic = QuicConfig {
        identity: TlsIdentity {
            ca_cert: identity.authority.clone(),
            cert: identity.certificate.clone(),
            key: identity.key.der().to_vec(),
        },
        name: identity.name(),
        plain_packets: seams.plain_packets,
        hints: joining::others(config, own_addr).into_iter().map(str::to_owned).collect(),
    };
    let quic = Quic::start(quic, socket, seams.seams.clone(), Arc::clone(&seams.tcp))?;
    // Until the control plane knows better.
    let others = identity.peers.iter().filter(|peer| peer.raft_id != identity.raft_id);
    quic.set_members(others.cloned().map(Into::into).collect());
    Ok(quic)
}

fn open_api(
    config: &Config,
    seams: &NodeSeams,
    groups: Arc<OnceLock<Arc<Groups>>>,
    registry: Arc<Registry>,
    admin_token: watch::Receiver<Option<SecretHash>>,
) -> Api {
    Api::new(
        seams.seams.clone(),
        ApiConfig {
            version: env!("CARGO_PKG_VERSION"),
            request_timeout: config.request_timeout,
            // Two may be lost before a node counts as unhealthy.
            heartbeat_interval: config
                .heartbeat_interval
                .min(config.unhealthy_after / HEARTBEATS_IN_PATIENCE),
            admin_token,
            api_hosts: config.own_api_hosts(),
            test_hooks: config.test_hooks,
            descriptors: DescriptorBudget::of_limit(seams.descriptors),
            extra_metrics: vec![Box::new(move |text| {
                if let Some(groups) = groups.get() {
                    write_group_metrics(&groups.groups(), text);
                    write_quarantine_metrics(&registry.quarantined(&**groups), text);
                }
            })],
        },
    )
}

/// What the node founds its cluster with, as long as the cluster has not confirmed that it has it.
fn founding(config: &Config, identity: &Identity) -> Result<Option<Founding>, RoomsError> {
    let Some(key) = &identity.authority_key else { return Ok(None) };
    let secret = config.join_token.as_ref().map(|token| token.reveal().parse::<JoinSecret>());
    let secret = secret.transpose().map_err(|error| RoomsError::Token(error.to_string()))?;
    if secret.as_ref().is_some_and(|secret| secret.authority.is_some()) {
        let why = "this token was made by another cluster; choose a secret of your own, or --join";
        return Err(RoomsError::Token(why.to_owned()));
    }
    Ok(Some(Founding {
        authority: Authority {
            cluster: identity.cluster_id,
            certificate: identity.authority.clone(),
            key: SecretBytes::new(key.der().to_vec()),
        },
        public_key: identity.key.public(),
        secret_hash: secret.map(|secret| secret.hash()),
    }))
}

/// Forgets the authority's key: the cluster has it now.
async fn founded(seams: &NodeSeams, mut identity: Identity) -> Result<Identity, RoomsError> {
    if identity.authority_key.take().is_some() {
        let (disk, kept) = (Arc::clone(&seams.disk), identity.clone());
        seams.executor.run(move || kept.store(&*disk)).await?;
    }
    Ok(identity)
}

/// Signs certificates with the cluster's authority.
struct Issuer(Seams);

impl CertificateIssuer for Issuer {
    fn issue(
        &self,
        authority: &Authority,
        public_key: [u8; 32],
        raft_id: u64,
        node: NodeId,
    ) -> Result<Vec<u8>, String> {
        let name = MemberName { raft_id, node, cluster: authority.cluster };
        pki::Authority::load(&authority.certificate, authority.key.reveal())
            .and_then(|authority| authority.issue(&*self.0.entropy, public_key, name))
            .map_err(|error| error.to_string())
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

/// Tenants are not named: their number is not bounded. `/readyz` names them.
fn write_quarantine_metrics(quarantined: &[Quarantined], text: &mut String) {
    let kept: u64 = quarantined.iter().map(|tenant| tenant.log_bytes_kept).sum();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "# TYPE shiioo_tenants_quarantined gauge");
    let _ = writeln!(text, "shiioo_tenants_quarantined {}", quarantined.len());
    let _ = writeln!(text, "# TYPE shiioo_quarantined_log_bytes gauge");
    let _ = writeln!(text, "shiioo_quarantined_log_bytes {kept}");
}

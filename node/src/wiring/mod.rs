//! Wires the services of a node together: QUIC, API, log and groups, files, actors.
//!
//! # Start order
//!
//! [`Services::start`] is the list. Each step relies on those before it:
//!
//! 1. *The API listens*, and answers `starting`: so a long recovery can be told from a dead node.
//! 2. *QUIC takes its socket.* It can call members, and answers nobody yet.
//! 3. *The log is looked for*: a node that has lost its log must not vote. Where others have what was in
//!    it, the node becomes another member first ([`replacement`](crate::replacement)).
//! 4. *The log is opened and the groups are started*, with the registry in place, because groups
//!    deliver entries as soon as they run. Then the identity names the log, durably, before the
//!    first group is opened and so before anything is acknowledged: from then on a missing log is
//!    noticed.
//! 5. *The system group is opened*, before the actors, because they follow its leadership.
//! 6. *QUIC answers other nodes*, before the actors have started: a node that has just joined is
//!    called by the leader before it becomes a learner. A node that was a member also answers its
//!    clients from its own disk while it waits for the others.
//! 7. *The actors start.* This returns when the control plane has what it needs; a failure of the
//!    groups or the log ends the wait.
//! 8. *The authority's key leaves the identity*, when this node founded the cluster: the cluster has
//!    it now.
//! 9. *The members are written into the identity*, now and whenever they change: a node whose control
//!    plane's files are damaged finds in there whom to ask.
//!
//! # Stop order
//!
//! The other way round: the node says goodbye, leaderships are handed over, the API drains, the actors
//! stop, the groups flush, and QUIC closes last, so that the others hear of all this.

mod founding;
mod metrics;
mod opening;
mod start;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use shiioo_actors::domain::membership::Member;
use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::node::{NodeActors, NodeProfile, StartError as ActorsError};
use shiioo_actors::ports::{GroupStatus, LogStatus as _, StoreError};
use shiioo_actors::services::tenants::Registry;
use shiioo_storage::{Groups, UnderWayFile};
use shiioo_transport::quic::{self, Quic};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::config::Config;
use crate::default_tenant;
use crate::dispatch::RpcDispatcher;
use crate::identity::{Identity, IdentityError};
use crate::known_members;
use crate::own_log::{self, OwnLogError};
use crate::replacement::ReplacementError;
use crate::seams::NodeSeams;
use crate::sockets::Sockets;
use opening::Opened;
use start::{ActorPorts, ApiServer};

/// Longest time that requests in progress have to end when the node stops.
const API_DRAIN: Duration = Duration::from_secs(2);

/// Holds the running services of a node.
pub(crate) struct Services {
    seams: NodeSeams,
    under_way: Arc<UnderWayFile>,
    groups: Arc<Groups>,
    actors: NodeActors,
    quic: Arc<Quic>,
    api: ApiServer,
    admin_token: watch::Receiver<Option<SecretHash>>,
    /// Keep the members in the identity, and look for the default tenant.
    tasks: Vec<AbortHandle>,
}

/// Tells why the services did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServicesError {
    /// The data cannot be read.
    #[error("the data cannot be used: {0}")]
    Store(#[from] StoreError),
    /// The log is missing, or cannot be looked for.
    #[error(transparent)]
    OwnLog(#[from] OwnLogError),
    /// The log is lost or damaged, and the node did not become another member.
    #[error("{loss}. It could not go on as another member by itself: {why}")]
    NotReplaced {
        /// What is wrong with the log, and what to do.
        loss: String,
        /// Why not.
        #[source]
        why: Box<ReplacementError>,
    },
    /// There are no threads for the steps.
    #[error("threads for steps cannot be started: {0}")]
    Threads(#[source] std::io::Error),
    /// TLS for outgoing calls cannot be set up.
    #[error("TLS for `http` steps cannot be set up: {0}")]
    Tls(String),
    /// QUIC cannot be started.
    #[error("the connections between nodes cannot be set up: {0}")]
    Quic(#[from] quic::StartError),
    /// The join secret is not valid.
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
    Actors(#[from] ActorsError),
}

impl Services {
    /// Starts the services of the node that `identity` names. Returns the identity as well, which a
    /// new log and a newly founded cluster change.
    pub(crate) async fn start(
        config: &Config,
        seams: &NodeSeams,
        identity: Identity,
        member: Member,
        sockets: Sockets,
    ) -> Result<(Self, Identity), ServicesError> {
        let founding = founding::founding(config, &identity)?;
        let own_token = config.admin_token.as_ref();
        let own_token =
            own_token.map(|token| SecretHash::of_admin_token(token.reveal().as_bytes()));
        let token = watch::Sender::new(own_token);
        let admin_token = token.subscribe();
        let registry = Arc::new(Registry::default());
        // The API is there before the groups whose metrics it shows.
        let groups_later: Arc<OnceLock<Arc<Groups>>> = Arc::default();
        let wanted = config.default_tenant.clone().map(|wanted| (wanted, Arc::default()));
        let found = wanted.as_ref().map(|(_, found)| Arc::clone(found));
        let api = start::api(config, seams, &groups_later, &registry, token.subscribe(), found);
        let api = ApiServer::start(api, sockets.api, &seams.client_threads);
        let opened =
            opening::open(config, seams, &registry, sockets.node, (identity, member)).await?;
        let Opened { quic, groups, identity, member } = opened;
        let identity = own_log::record_log_id(seams, identity, groups.log_id()).await?;
        let _ = groups_later.set(Arc::clone(&groups));
        let profile = NodeProfile {
            member,
            unhealthy_after: config.unhealthy_after,
            election_timeout: config.election_timeout,
            founding,
            admin_token: own_token,
        };
        let client_threads = seams.client_threads.clone();
        let dispatcher =
            RpcDispatcher::new(Arc::clone(&groups), Arc::clone(&api.api), client_threads);
        let disk = Arc::clone(&seams.disk);
        let under_way = seams.executor.run(move || UnderWayFile::open(&*disk)).await;
        let under_way = Arc::new(under_way);
        let ports = ActorPorts {
            groups: &groups,
            registry,
            quic: &quic,
            dispatcher,
            under_way: Arc::clone(&under_way),
            admin_token: token,
        };
        let actors = match start::actors(config, seams, profile, ports).await {
            Ok(actors) => actors,
            Err(error) => {
                // Nothing is left running: the data directory may be used by another process next.
                groups.shutdown().await;
                quic.close().await;
                return Err(error);
            }
        };
        api.api.open(actors.handles.clone());
        let identity = founding::forget_authority_key(seams, identity).await?;
        let seams = seams.clone();
        // Last: from here on nobody else writes the identity.
        let remember =
            known_members::remember(seams.clone(), identity.clone(), actors.follow_members());
        let mut tasks = vec![tokio::spawn(remember).abort_handle()];
        if let Some((wanted, found)) = wanted {
            let find = default_tenant::find(actors.handles.clone(), wanted, found);
            tasks.push(tokio::spawn(find).abort_handle());
        }
        let services = Self { seams, under_way, groups, actors, quic, api, admin_token, tasks };
        Ok((services, identity))
    }

    /// Returns the state of the groups on this node.
    pub(crate) fn groups(&self) -> Vec<GroupStatus> {
        self.groups.groups()
    }

    /// Counts how often the files of all tenants have been looked through for damage.
    pub(crate) fn scrubs(&self) -> u64 {
        self.actors.handles.tenants.scrubs()
    }

    /// Counts the comparisons of a tenant's replicas, and those in which the replicas differed.
    pub(crate) fn comparisons(&self) -> (u64, u64) {
        self.actors.handles.tenants.comparisons()
    }

    /// Returns whether the API asks for an admin token.
    pub(crate) fn has_admin_token(&self) -> bool {
        self.admin_token.borrow().is_some()
    }

    /// Returns why the node is not ready; empty when it is.
    pub(crate) async fn not_ready(&self) -> Vec<String> {
        self.actors.handles.cluster.not_ready().await
    }

    /// Waits until a service fails and returns the reason. The node cannot go on then.
    pub(crate) async fn failed(&self) -> String {
        // In any order: each of them stops the node, and one reason is told.
        tokio::select! {
            reason = self.groups.failed() => reason,
            reason = self.actors.failed() => reason,
            // It was away when it was removed, and its log will not tell it.
            () = self.quic.removed() => ActorsError::Removed.to_string(),
        }
    }

    /// Stops the services in order; see the module.
    pub(crate) async fn stop(self) {
        let Self { seams, under_way, groups, actors, quic, api, admin_token: _, tasks } = self;
        // The last write of the identity may still be under way, and comes to the same as the next start's first.
        tasks.iter().for_each(AbortHandle::abort);
        // Before the API stops: the requests in progress may end at the new leaders.
        actors.take_leave().await;
        api.stop(API_DRAIN).await;
        actors.stop().await;
        // After the actors: the steps in progress have been stopped, so that the next start must not
        // count them as the cause of a death.
        seams.executor.run(move || under_way.close()).await;
        groups.shutdown().await;
        quic.close().await;
    }
}

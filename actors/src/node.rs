//! Starts a node's actors in order, and stops them the other way round.
//!
//! ```text
//! NodeSupervisor
//! ├── LockManager        ├── HeartbeatMonitor     ├── ControlPlane
//! ├── Elector            ├── Placement            └── TenantSupervisor ── Tenant, Tenant, ...
//! ```
//!
//! The node supervisor restarts nobody: the actors under it hold what the whole node depends on,
//! so the failure of one stops the node, loudly. Tenants have a supervisor of their own.

mod members;
mod registration;
mod starter;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, ActorStatus, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::cluster::routing::LeaderHints;
use crate::command::{MemberOffline, Refusal, SystemCommand};
use crate::domain::ids::NodeId;
use crate::domain::membership::{Authority, Member};
use crate::domain::secret::SecretHash;
use crate::handles::Handles;
pub use crate::node::members::MembersFollower;
use crate::node::registration::{Registrar, keep_known, register};
use crate::node::starter::{Offered, Starter};
use crate::ports::descriptors::DescriptorBudget;
use crate::ports::error::CallError;
use crate::ports::seams::Seams;
use crate::ports::{
    AttemptJournal, CertificateIssuer, HttpCaller, Peers, ReplicatedLog, Stores, WorkerPool,
};
use crate::services::control::{ControlMessage, Removed};
use crate::services::heartbeat::Heartbeats;
use crate::services::mailbox::stop_children;
use crate::services::tenants::{Registry, SupervisorMessage};
use crate::services::{JoinHandler, NodeRpcHandler};
use crate::state::system::SystemState;

/// How long a look at this node's own state may take.
const LOCAL_DEADLINE: Duration = Duration::from_secs(2);
/// How long handing all leads over may take.
const HAND_OVER: Duration = Duration::from_millis(1500);
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);
/// How long the tenants' actors may take to stop, together.
const STOP_TENANTS: Duration = Duration::from_secs(2);
/// How long another actor may take to stop.
const STOP_ACTOR: Duration = Duration::from_millis(500);

/// What a node is, for its cluster.
#[derive(Debug, Clone)]
pub struct NodeProfile {
    /// What the others see.
    pub member: Member,
    /// Silence after which a node registered over HTTP is unhealthy.
    pub unhealthy_after: Duration,
    /// After so long without a leader there is a new one.
    pub election_timeout: Duration,
    /// What this node founds its cluster with, where it does.
    pub founding: Option<Founding>,
    /// Hash of the admin token that the node was started with.
    pub admin_token: Option<SecretHash>,
}

/// What a cluster is founded with.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Who signs its members' certificates.
    pub authority: Authority,
    /// Public key of the first member.
    pub public_key: [u8; 32],
    /// Hash of the secret that admits others, if one was chosen.
    pub secret_hash: Option<SecretHash>,
}

/// What answers the calls of other nodes.
pub struct RpcHandlers {
    /// Pings.
    pub heartbeats: Heartbeats,
    /// Questions of actors.
    pub calls: NodeRpcHandler,
    /// Requests to join.
    pub join: JoinHandler,
}

/// What a node's actors need from outside.
#[derive(Clone)]
pub struct NodePorts {
    /// The replicated log, already running, handing over to `registry`.
    pub log: Arc<dyn ReplicatedLog>,
    /// The files.
    pub stores: Arc<dyn Stores>,
    /// Sends the requests of `http` steps.
    pub http: Arc<dyn HttpCaller>,
    /// Time and chance.
    pub seams: Seams,
    /// Where the log hands entries over.
    pub registry: Arc<Registry>,
    /// The way to other nodes.
    pub peers: Arc<dyn Peers>,
    /// Signs certificates.
    pub issuer: Arc<dyn CertificateIssuer>,
    /// How many of each thing may be open.
    pub descriptors: DescriptorBudget,
    /// What steps are performed with.
    pub steps: StepPorts,
    /// The admin token that is asked for: the one that the node was started with, until its
    /// cluster says which. Written by the control plane.
    pub admin_token: watch::Sender<Option<SecretHash>>,
}

/// What steps are performed with.
#[derive(Clone)]
pub struct StepPorts {
    /// Threads for what takes long.
    pub workers: Arc<dyn WorkerPool>,
    /// Remembers what was under way when the process died.
    pub under_way: Arc<dyn AttemptJournal>,
}

/// Why a node's actors did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An actor failed at its start.
    #[error("{what} did not start: {why}")]
    Actor {
        /// Which.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// An actor failed before the start was over.
    #[error("an actor that the node depends on has failed: {0}")]
    Failed(String),
    /// The node could not be made known to its cluster.
    #[error("the node cannot be registered: {0}")]
    Register(CallError),
    /// The cluster knows nothing of this node (any more).
    #[error(
        "the cluster has removed this node, and what it has on disk lets it in nowhere; to join the cluster \
         again as a new node, start it with --join and an empty data directory: move this one away, or name \
         another with --data-dir"
    )]
    Removed,
    /// The cluster has an admin token, and the node was started with another.
    #[error(
        "--admin-token: the cluster has another admin token than this node was started with; start \
         it with the cluster's own, or without one: it asks for the cluster's all the same"
    )]
    OtherAdminToken,
}

/// A node's running actors.
pub struct NodeActors {
    /// Everything the edge may call.
    pub handles: Handles,
    control: ActorRef<ControlMessage>,
    tenants: ActorRef<SupervisorMessage>,
    root: ActorRef<RootMessage>,
    node: NodeId,
    keeping: Keeping,
    members_changed: watch::Receiver<()>,
    failed: watch::Receiver<Option<String>>,
}

/// Starts a node's actors and makes the node known to its cluster. `open` is given the doors for
/// other nodes' calls as soon as somebody stands behind them: the cluster looks after a node before
/// it takes it in. It is given the handles as well where the node has been a member before, so that
/// clients can ask what it knows while it waits for the others.
///
/// # Errors
/// When an actor does not start, or the cluster does not take the node.
pub async fn start(
    profile: NodeProfile,
    ports: NodePorts,
    open: impl FnOnce(RpcHandlers, Option<Handles>) + Send,
) -> Result<NodeActors, StartError> {
    let (report, failed) = watch::channel(None);
    let node = profile.member.node;
    let root = Actor::spawn(None, NodeSupervisor, report).await;
    let (root, _) = root.map_err(|error| not_started("the node supervisor", &error))?;
    let mut starting = Starting(Some(root.clone()));
    // Whoever waits to be registered would not notice that an actor it needs has failed meanwhile.
    let (handles, control, tenants, keeping, members_changed) = tokio::select! {
        biased;
        started = start_under(&root, profile, &ports, open) => started?,
        why = failure(failed.clone()) => return Err(StartError::Failed(why)),
    };
    starting.0 = None;
    Ok(NodeActors { handles, control, tenants, root, node, keeping, members_changed, failed })
}

/// Stops the actors of a start that came to nothing, also of one that is abandoned.
struct Starting(Option<ActorRef<RootMessage>>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(root) = &self.0 {
            root.stop(None);
        }
    }
}

/// Waits until an actor has failed; tells why.
async fn failure(mut failed: watch::Receiver<Option<String>>) -> String {
    match failed.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or_default(),
        // The supervisor has stopped without a failure: the node is being stopped.
        Err(_) => std::future::pending().await,
    }
}

type Started =
    (Handles, ActorRef<ControlMessage>, ActorRef<SupervisorMessage>, Keeping, watch::Receiver<()>);

/// The task that keeps the node known; it ends with this.
struct Keeping(tokio::task::JoinHandle<()>);

impl Drop for Keeping {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts the actors in their order, each with what those before it offer, and registers the node.
async fn start_under(
    root: &ActorRef<RootMessage>,
    profile: NodeProfile,
    ports: &NodePorts,
    open: impl FnOnce(RpcHandlers, Option<Handles>) + Send,
) -> Result<Started, StartError> {
    let (tell_hints, hints) = watch::channel(LeaderHints::default());
    let (tell_members, members_changed) = watch::channel(());
    let starter = Starter::new(root, &profile, ports, hints);
    let locks = starter.locks().await?;
    let heartbeats = starter.heartbeats(tell_hints).await?;
    let (tenants, renderer) = starter.tenants(&locks).await?;
    let (control_actor, control) = starter.control(&locks, &heartbeats, tell_members).await?;
    let (elector, leadership) = starter.elector(&control, &heartbeats).await?;
    starter.placement(&control, &heartbeats, &elector, members_changed.clone()).await?;

    let doors = starter.doors(&control, &heartbeats, &elector);
    let (is_registered, registered) = watch::channel(false);
    let offered = Offered { locks, heartbeats, renderer, control: control.clone(), elector };
    let handles = starter.handles(offered, registered);
    let raft_id = profile.member.raft_id;
    // One that comes back says what its own disk knows while it waits for the others; one that
    // is new knows nothing yet.
    let look = move |state: &SystemState| {
        let is_known = state.member(raft_id).is_some() && !state.groups().is_empty();
        (is_known, state.admin_token())
    };
    let looked = control.read(Instant::now() + LOCAL_DEADLINE, look).await;
    let (is_known, known_token) = looked.unwrap_or_default();
    if known_token.zip(profile.admin_token).is_some_and(|(known, given)| known != given) {
        return Err(StartError::OtherAdminToken);
    }
    open(doors, is_known.then(|| handles.clone()));
    let registrar = Registrar { control: &control, cluster: &handles.cluster, leadership };
    let member = profile.member;
    register(&registrar, member.clone(), profile.founding, profile.admin_token).await?;
    is_registered.send_replace(true);
    let keeping = Keeping(tokio::spawn(keep_known(control, member)));
    Ok((handles, control_actor, tenants, keeping, members_changed))
}

async fn spawn<A: Actor>(
    root: &ActorRef<RootMessage>,
    what: &'static str,
    actor: A,
    arguments: A::Arguments,
) -> Result<ActorRef<A::Msg>, StartError> {
    let spawned = Actor::spawn_linked(None, actor, arguments, root.get_cell()).await;
    spawned.map(|(actor, _)| actor).map_err(|error| not_started(what, &error))
}

fn not_started(what: &'static str, error: &ractor::SpawnErr) -> StartError {
    let why = match error {
        // ractor calls it a panic. It is what the actor says.
        ractor::SpawnErr::StartupFailed(why) => why.to_string(),
        other => other.to_string(),
    };
    StartError::Actor { what, why }
}

impl NodeActors {
    /// Follows who the members are, from what they are now on.
    pub fn follow_members(&self) -> MembersFollower {
        let control = self.handles.cluster.control.clone();
        MembersFollower::new(control, self.members_changed.clone())
    }

    /// Waits until something the whole node depends on has failed; tells what.
    pub async fn failed(&self) -> String {
        failure(self.failed.clone()).await
    }

    /// Says goodbye and hands all leads over, so that the others need not notice that this node goes.
    pub async fn take_leave(&self) {
        // Before the goodbye, which it would take back.
        self.keeping.0.abort();
        // One that has failed does not stop in good order, and another process may be the member.
        if self.failed.borrow().is_none() {
            // Before the leads: whoever distributes them would give them back to a member that leads nothing
            // and is well.
            self.say_goodbye().await;
        }
        let deadline = Instant::now() + HAND_OVER;
        for (group, ended) in self.handles.cluster.elector.hand_over_all(deadline).await {
            match ended {
                Ok(()) => tracing::info!(%group, "the lead is handed over"),
                Err(CallError::Refused(Refusal::NoOtherCandidate)) => {}
                Err(error) => tracing::warn!(%group, %error, "the lead could not be handed over"),
            }
        }
    }

    async fn say_goodbye(&self) {
        let goodbye = SystemCommand::MemberOffline(MemberOffline { node: self.node });
        let deadline = Instant::now() + GOODBYE;
        if let Err(error) = self.handles.cluster.control.send(deadline, goodbye).await {
            tracing::warn!(%error, "the cluster could not be told that this node stops");
        }
    }

    /// Lets the tenants write down what they have, and stops all actors.
    pub async fn stop(self) {
        let (done, all_stopped) = oneshot::channel();
        let asked = self.tenants.send_message(SupervisorMessage::StopAll(done));
        if asked.is_ok() && tokio::time::timeout(STOP_TENANTS, all_stopped).await.is_err() {
            tracing::warn!("not all tenants stopped in time; the log has what they owe");
        }
        // One that has failed is gone.
        let is_gone = self.control.get_status() == ActorStatus::Stopped;
        if !is_gone && let Err(error) = self.control.stop_and_wait(None, Some(STOP_ACTOR)).await {
            tracing::warn!(%error, "the control plane did not stop in time");
        }
        if let Err(error) = self.root.stop_and_wait(None, Some(STOP_ACTOR)).await {
            tracing::warn!(%error, "the actors did not stop in time");
        }
    }
}

/// A message to the node supervisor: there is none, it only watches.
enum RootMessage {}

/// Watches the actors the node depends on.
struct NodeSupervisor;

impl Actor for NodeSupervisor {
    type Msg = RootMessage;
    type State = watch::Sender<Option<String>>;
    type Arguments = watch::Sender<Option<String>>;

    async fn pre_start(
        &self,
        _: ActorRef<RootMessage>,
        report: Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        Ok(report)
    }

    async fn post_stop(
        &self,
        myself: ActorRef<RootMessage>,
        _: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        stop_children(&myself.get_cell(), STOP_ACTOR).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<RootMessage>,
        event: SupervisionEvent,
        report: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            // Nothing has failed where somebody has removed the node.
            if error.is::<Removed>() {
                tracing::info!("this node has left its cluster");
            } else {
                tracing::error!(%error, "an actor that the node depends on has failed");
            }
            report.send_replace(Some(error.to_string()));
        }
        Ok(())
    }
}

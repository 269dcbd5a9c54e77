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

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::command::{Member, SystemCommand};
use crate::control::{Control, ControlActor, ControlArguments, ControlMessage, Directory};
use crate::descriptors::DescriptorBudget;
use crate::elector::{Elector, ElectorActor, ElectorArguments, ElectorSources};
use crate::error::CallError;
use crate::handles::{Cluster, Handles, Locks, Routes, Tenants};
use crate::heartbeat::{HeartbeatActor, HeartbeatArguments, Heartbeats};
use crate::ids::{GroupId, NodeId};
use crate::join::{CertificateIssuer, JoinDesk};
use crate::locks::{LockActor, LockArguments, LockManager};
use crate::node_calls::NodeCalls;
use crate::origins::Origins;
use crate::outcome::{Outcome, Refusal};
use crate::part::PartDeps;
use crate::placement::{PlacementActor, PlacementArguments};
use crate::ports::{HttpCaller, Leadership, Ledger, Peers, Stores, UnderWay, Workers};
use crate::router::{Router, RouterSources};
use crate::seams::Seams;
use crate::system::{Authority, SystemState};
use crate::tenants::{
    Registry, Renderer, StepGates, SupervisorArguments, SupervisorMessage, TenantDeps,
    TenantSupervisor,
};

/// Tenant groups of a region.
const GROUPS_PER_REGION: u32 = 8;
/// How long one attempt to make the node known to its cluster may take.
const REGISTER_ATTEMPT: Duration = Duration::from_secs(2);
/// A node that waits for its cluster says so this often.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// Wait between two attempts.
const REGISTER_RETRY: Duration = Duration::from_millis(10);
/// How long handing the lead over may take.
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
}

/// What a cluster is founded with.
#[derive(Debug, Clone)]
pub struct Founding {
    /// Who signs its members' certificates.
    pub authority: Authority,
    /// Public key of the first member.
    pub public_key: [u8; 32],
    /// Hash of the secret that admits others, if one was chosen.
    pub secret_hash: Option<[u8; 32]>,
}

/// What answers the calls of other nodes.
pub struct Doors {
    /// Pings.
    pub heartbeats: Heartbeats,
    /// Questions of actors.
    pub calls: NodeCalls,
    /// Requests to join.
    pub desk: JoinDesk,
}

/// What a node's actors need from outside.
#[derive(Clone)]
pub struct NodePorts {
    /// The replicated log, already running, handing over to `registry`.
    pub ledger: Arc<dyn Ledger>,
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
}

/// What steps are performed with.
#[derive(Clone)]
pub struct StepPorts {
    /// Threads for what takes long.
    pub workers: Arc<dyn Workers>,
    /// Remembers what was under way when the process died.
    pub under_way: Arc<dyn UnderWay>,
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
        "the cluster has removed this node; to join it again, start it with an empty data directory"
    )]
    Removed,
}

/// A node's running actors.
pub struct NodeActors {
    /// Everything the edge may call.
    pub handles: Handles,
    control: ActorRef<ControlMessage>,
    tenants: ActorRef<SupervisorMessage>,
    root: ActorRef<RootMessage>,
    node: NodeId,
    failed: watch::Receiver<Option<String>>,
}

/// Starts a node's actors and makes the node known to its cluster. `open` is given the doors for
/// other nodes' calls as soon as somebody stands behind them: the cluster looks after a node before
/// it takes it in.
///
/// # Errors
/// When an actor does not start, or the cluster does not take the node.
pub async fn start(
    profile: NodeProfile,
    ports: NodePorts,
    open: impl FnOnce(Doors) + Send,
) -> Result<NodeActors, StartError> {
    let (report, failed) = watch::channel(None);
    let root = Actor::spawn(None, NodeSupervisor, report).await;
    let (root, _) = root.map_err(|error| not_started("the node supervisor", &error))?;
    let mut starting = Starting(Some(root.clone()));
    // Whoever waits to be registered would not notice that an actor it needs has failed meanwhile.
    let (handles, control, tenants, node) = tokio::select! {
        biased;
        started = start_under(&root, profile, &ports, open) => started?,
        why = failure(failed.clone()) => return Err(StartError::Failed(why)),
    };
    starting.0 = None;
    Ok(NodeActors { handles, control, tenants, root, node, failed })
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

type Started = (Handles, ActorRef<ControlMessage>, ActorRef<SupervisorMessage>, NodeId);

async fn start_under(
    root: &ActorRef<RootMessage>,
    profile: NodeProfile,
    ports: &NodePorts,
    open: impl FnOnce(Doors) + Send,
) -> Result<Started, StartError> {
    let NodePorts { ledger, stores, http, seams, registry, peers, issuer, descriptors, steps } =
        ports.clone();
    let member = profile.member;
    let (node, region, raft_id) = (member.node, member.region.clone(), member.raft_id);
    let part = PartDeps { ledger: Arc::clone(&ledger), stores: Arc::clone(&stores) };
    let directory = Arc::new(Directory::default());

    let (says, claim) = watch::channel(None);
    let router = Router::new(RouterSources {
        ledger: Arc::clone(&ledger),
        peers: Arc::clone(&peers),
        directory: Arc::clone(&directory),
        claim: claim.clone(),
        election_timeout: profile.election_timeout,
        raft_id,
    });

    let arguments = LockArguments { ledger: Arc::clone(&ledger), seams: seams.clone() };
    let locks = LockManager::new(spawn(root, "the lock manager", LockActor, arguments).await?);
    let arguments = HeartbeatArguments {
        seams: seams.clone(),
        silent_after: profile.unhealthy_after,
        election_timeout: profile.election_timeout,
        peers: Arc::clone(&peers),
        ledger: Arc::clone(&ledger),
        claim: says,
    };
    let heartbeats = spawn(root, "the heartbeat monitor", HeartbeatActor, arguments).await?;
    let heartbeats = Heartbeats::new(heartbeats);

    let deps = TenantDeps {
        part: part.clone(),
        seams: seams.clone(),
        http,
        locks: locks.clone(),
        renderer: Renderer::new(steps.workers),
        gates: StepGates::new(descriptors.step_calls, descriptors.tenant_step_calls),
        under_way: steps.under_way,
    };
    let arguments = SupervisorArguments {
        deps: Arc::new(deps),
        registry: Arc::clone(&registry),
        directory: Arc::clone(&directory),
    };
    let tenants = spawn(root, "the tenant supervisor", TenantSupervisor, arguments).await?;
    registry.set_supervisor(tenants.clone());

    let syncs = Arc::default();
    let arguments = ControlArguments {
        deps: part,
        seams: seams.clone(),
        queue: Arc::clone(&registry.control),
        directory: Arc::clone(&directory),
        locks: locks.clone(),
        heartbeats: heartbeats.clone(),
        raft_id,
        router: router.clone(),
        peers,
        syncs: Arc::clone(&syncs),
    };
    let control_actor = spawn(root, "the control plane", ControlActor, arguments).await?;
    registry.set_control(control_actor.clone());
    let control = Control::new(
        control_actor.clone(),
        Arc::clone(&ledger),
        router.clone(),
        seams.clone(),
        syncs,
        Arc::clone(&registry.control),
    );

    let leadership = ledger.leadership(GroupId::SYSTEM).ok_or(StartError::Actor {
        what: "the elector",
        why: "the system group is not on this node".to_owned(),
    })?;
    let arguments =
        ElectorArguments { leadership: leadership.clone(), control: control.clone(), node };
    spawn(root, "the elector", ElectorActor, arguments).await?;
    let elector = Elector::new(ElectorSources {
        leadership: leadership.clone(),
        claim,
        ledger: Arc::clone(&ledger),
        heartbeats: heartbeats.clone(),
        raft_id,
        election_timeout: profile.election_timeout,
    });
    let arguments = PlacementArguments {
        ledger: Arc::clone(&ledger),
        control: control.clone(),
        heartbeats: heartbeats.clone(),
        elector: elector.clone(),
        raft_id,
        election_timeout: profile.election_timeout,
    };
    spawn(root, "placement", PlacementActor, arguments).await?;

    open(Doors {
        heartbeats: heartbeats.clone(),
        calls: NodeCalls::new(Arc::clone(&ledger), elector.clone(), Arc::clone(&seams.clock)),
        desk: JoinDesk::new(control.clone(), issuer, seams.clone()),
    });
    register(&Registrar { control: &control, leadership }, member, profile.founding).await?;
    let origins = Arc::new(Origins::new(&seams));
    let tenant_handles = Tenants::new(crate::handles::TenantsInner {
        control: control.clone(),
        directory: Arc::clone(&directory),
        registry,
        ledger: Arc::clone(&ledger),
        stores,
        seams: seams.clone(),
        region,
    });
    let handles = Handles {
        tenants: tenant_handles.clone(),
        locks: Locks {
            manager: locks,
            control: control.clone(),
            ledger: Arc::clone(&ledger),
            seams: seams.clone(),
        },
        routes: Routes { router: router.clone(), tenants: tenant_handles, origins },
        cluster: Cluster {
            control,
            directory,
            elector,
            heartbeats,
            ledger,
            router,
            seams,
            node,
            raft_id,
        },
    };
    Ok((handles, control_actor, tenants, node))
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
    StartError::Actor { what, why: error.to_string() }
}

/// What a node is made known with.
struct Registrar<'a> {
    control: &'a Control,
    /// Of the system group.
    leadership: watch::Receiver<Leadership>,
}

/// Founds the cluster where it is new, makes the node known, and places the tenant groups of its
/// region when there are none.
async fn register(
    registrar: &Registrar<'_>,
    member: Member,
    founding: Option<Founding>,
) -> Result<(), StartError> {
    let (region, raft_id) = (member.region.clone(), member.raft_id);
    if let Some(Founding { authority, public_key, secret_hash }) = founding {
        let member = member.clone();
        let found = SystemCommand::Found { authority, member, public_key, secret_hash };
        insist(registrar, found).await?;
    }
    match insist(registrar, SystemCommand::RegisterMember(member)).await {
        Ok(Outcome::Refused(_)) => return Err(StartError::Removed),
        Ok(_) => tracing::debug!("registered"),
        // A full disk keeps nobody from reading: where it is now the cluster knows from before, or
        // hears when there is room and it starts again.
        Err(StartError::Register(CallError::DiskFull)) if is_known(registrar, raft_id).await? => {
            tracing::warn!("the disk is full: this node starts without telling where it is now");
        }
        Err(error) => return Err(error),
    }
    loop {
        let wanted = region.clone();
        let look = move |state: &SystemState| {
            let groups = state.groups();
            let is_placed = groups.values().any(|placement| placement.region == wanted);
            (is_placed, groups.keys().max().copied().unwrap_or(GroupId::SYSTEM))
        };
        match registrar.control.read_linearizable(Instant::now() + REGISTER_ATTEMPT, look).await {
            Ok((true, _)) => return Ok(()),
            Ok((false, last)) => {
                let groups = (last.0 + 1..=last.0 + GROUPS_PER_REGION).map(GroupId).collect();
                let (region, members) = (region.clone(), vec![raft_id]);
                // When another region took these numbers at the same moment, the next do.
                insist(registrar, SystemCommand::PlaceGroups { region, groups, members }).await?;
            }
            Err(CallError::Stopping) => return Err(StartError::Register(CallError::Stopping)),
            Err(error) => tracing::debug!(%error, "not placed yet"),
        }
        tokio::time::sleep(REGISTER_RETRY).await;
    }
}

/// Whether the cluster knows this member from an earlier life.
async fn is_known(registrar: &Registrar<'_>, raft_id: u64) -> Result<bool, StartError> {
    let look = move |state: &SystemState| state.members().any(|(_, _, it)| it.raft_id == raft_id);
    let deadline = Instant::now() + REGISTER_ATTEMPT;
    registrar.control.read_linearizable(deadline, look).await.map_err(StartError::Register)
}

/// Proposes until there is an outcome: at its start a node waits for its cluster. The disk that is
/// full may be that of another node, which leads; then it is waited for, too.
async fn insist(registrar: &Registrar<'_>, command: SystemCommand) -> Result<Outcome, StartError> {
    let began = Instant::now();
    let mut told = Duration::ZERO;
    loop {
        let deadline = Instant::now() + REGISTER_ATTEMPT;
        match registrar.control.send(deadline, command.clone()).await {
            Ok(outcome) => return Ok(outcome),
            Err(CallError::Stopping) => return Err(StartError::Register(CallError::Stopping)),
            Err(CallError::DiskFull) if registrar.leadership.borrow().here => {
                return Err(StartError::Register(CallError::DiskFull));
            }
            Err(error) if began.elapsed() >= told + TELL_EVERY => {
                told = began.elapsed();
                tracing::warn!(%error, "still waiting for the cluster");
            }
            Err(error) => tracing::debug!(%error, "not registered yet"),
        }
        tokio::time::sleep(REGISTER_RETRY).await;
    }
}

impl NodeActors {
    /// Waits until something the whole node depends on has failed; tells what.
    pub async fn failed(&self) -> String {
        failure(self.failed.clone()).await
    }

    /// Hands the lead over, so that the others need not notice that this node goes.
    pub async fn hand_over(&self) {
        let elector = &self.handles.cluster.elector;
        if !elector.current().here {
            return;
        }
        match elector.step_down(Instant::now() + HAND_OVER).await {
            Ok(()) => tracing::info!("the lead of the cluster is handed over"),
            Err(CallError::Refused(Refusal::NoOtherCandidate)) => {}
            Err(error) => tracing::warn!(%error, "the lead could not be handed over"),
        }
    }

    /// Says goodbye, lets the tenants write down what they have, and stops all actors.
    pub async fn stop(self) {
        let goodbye = SystemCommand::MemberOffline { node: self.node };
        let deadline = Instant::now() + GOODBYE;
        let control = &self.handles.cluster.control;
        if let Err(error) = control.send(deadline, goodbye).await {
            tracing::warn!(%error, "the cluster could not be told that this node stops");
        }
        let (done, all_stopped) = oneshot::channel();
        let asked = self.tenants.send_message(SupervisorMessage::StopAll(done));
        if asked.is_ok() && tokio::time::timeout(STOP_TENANTS, all_stopped).await.is_err() {
            tracing::warn!("not all tenants stopped in time; the log has what they owe");
        }
        if let Err(error) = self.control.stop_and_wait(None, Some(STOP_ACTOR)).await {
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

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<RootMessage>,
        event: SupervisionEvent,
        report: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            tracing::error!(%error, "an actor that the node depends on has failed");
            report.send_replace(Some(error.to_string()));
        }
        Ok(())
    }
}

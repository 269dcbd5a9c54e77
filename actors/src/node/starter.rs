//! Starts each actor of a node, and makes the handles to all of them.

use std::sync::Arc;

use ractor::ActorRef;
use tokio::sync::{Semaphore, watch};

use super::{NodePorts, NodeProfile, RootMessage, RpcHandlers, StartError, spawn};
use crate::cluster::routing::{Directory, LeaderHints, Router, RouterSources};
use crate::cluster::rpc_ids::RpcIdSource;
use crate::domain::ids::GroupId;
use crate::handles::{Cluster, Handles, Locks, Routes, Tenants, TenantsInner, WATCHERS_MAX};
use crate::ports::Leadership;
use crate::replica::ReplicaDeps;
use crate::services::control::{Control, ControlActor, ControlArguments, ControlMessage};
use crate::services::elector::{Elector, ElectorActor, ElectorArguments, ElectorSources};
use crate::services::executor::{ExecutorDeps, Renderer, StepLimits};
use crate::services::heartbeat::{HeartbeatActor, HeartbeatArguments, Heartbeats};
use crate::services::locks::{LockActor, LockArguments, LockManager};
use crate::services::placement::{PlacementActor, PlacementArguments};
use crate::services::tenants::{
    SupervisorArguments, SupervisorMessage, TenantDeps, TenantSupervisor,
};
use crate::services::{JoinHandler, NodeRpcHandler};

/// What all actors of a node are started with.
pub(super) struct Starter<'a> {
    root: &'a ActorRef<RootMessage>,
    profile: &'a NodeProfile,
    ports: &'a NodePorts,
    replicas: ReplicaDeps,
    directory: Arc<Directory>,
    router: Router,
    hints: watch::Receiver<LeaderHints>,
}

/// What the started actors offer to the handles.
pub(super) struct Offered {
    pub(super) locks: LockManager,
    pub(super) heartbeats: Heartbeats,
    pub(super) renderer: Arc<Renderer>,
    pub(super) control: Control,
    pub(super) elector: Elector,
}

impl<'a> Starter<'a> {
    pub(super) fn new(
        root: &'a ActorRef<RootMessage>,
        profile: &'a NodeProfile,
        ports: &'a NodePorts,
        hints: watch::Receiver<LeaderHints>,
    ) -> Self {
        let log = &ports.log;
        let router = Router::new(RouterSources {
            log: Arc::clone(log) as _,
            status: Arc::clone(log) as _,
            peers: Arc::clone(&ports.peers),
            hints: hints.clone(),
            election_timeout: profile.election_timeout,
            raft_id: profile.member.raft_id,
        });
        let replicas = ReplicaDeps { log: Arc::clone(log) as _, stores: Arc::clone(&ports.stores) };
        Self { root, profile, ports, replicas, directory: Arc::default(), router, hints }
    }

    pub(super) async fn locks(&self) -> Result<LockManager, StartError> {
        let log = Arc::clone(&self.ports.log) as _;
        let arguments = LockArguments { log, seams: self.ports.seams.clone() };
        Ok(LockManager::new(spawn(self.root, "the lock manager", LockActor, arguments).await?))
    }

    pub(super) async fn heartbeats(
        &self,
        hints: watch::Sender<LeaderHints>,
    ) -> Result<Heartbeats, StartError> {
        let arguments = HeartbeatArguments {
            seams: self.ports.seams.clone(),
            silent_after: self.profile.unhealthy_after,
            election_timeout: self.profile.election_timeout,
            peers: Arc::clone(&self.ports.peers),
            log: Arc::clone(&self.ports.log),
            registry: Arc::clone(&self.ports.registry),
            hints,
            node: self.profile.member.node,
            node_addr: self.profile.member.node_addr.clone(),
        };
        let actor = spawn(self.root, "the heartbeat monitor", HeartbeatActor, arguments).await?;
        Ok(Heartbeats::new(actor))
    }

    pub(super) async fn tenants(
        &self,
        locks: &LockManager,
    ) -> Result<(ActorRef<SupervisorMessage>, Arc<Renderer>), StartError> {
        let NodePorts { log, seams, http, steps, descriptors, registry, .. } = self.ports;
        let renderer = Arc::new(Renderer::new(Arc::clone(&steps.workers)));
        let executor = ExecutorDeps {
            log: Arc::clone(log) as _,
            seams: seams.clone(),
            http: Arc::clone(http),
            renderer: Arc::clone(&renderer),
            step_limits: StepLimits::new(descriptors.step_calls, descriptors.tenant_step_calls),
            under_way: Arc::clone(&steps.under_way),
        };
        let (part, executor) = (self.replicas.clone(), Arc::new(executor));
        let arguments = SupervisorArguments {
            deps: Arc::new(TenantDeps { part, locks: locks.clone(), executor }),
            registry: Arc::clone(registry),
            directory: Arc::clone(&self.directory),
            router: self.router.clone(),
            raft_id: self.profile.member.raft_id,
        };
        let tenants =
            spawn(self.root, "the tenant supervisor", TenantSupervisor, arguments).await?;
        let proposals = Arc::clone(log) as _;
        let directory = Arc::clone(&self.directory);
        registry.set_supervisor(tenants.clone(), &self.replicas, &proposals, directory);
        Ok((tenants, renderer))
    }

    pub(super) async fn control(
        &self,
        locks: &LockManager,
        heartbeats: &Heartbeats,
        members_changed: watch::Sender<()>,
    ) -> Result<(ActorRef<ControlMessage>, Control), StartError> {
        let NodePorts { log, seams, registry, peers, admin_token, .. } = self.ports;
        let tenant_turns = Arc::default();
        let arguments = ControlArguments {
            deps: self.replicas.clone(),
            log: Arc::clone(log),
            seams: seams.clone(),
            queue: Arc::clone(&registry.control),
            registry: Arc::clone(registry),
            directory: Arc::clone(&self.directory),
            locks: locks.clone(),
            heartbeats: heartbeats.clone(),
            raft_id: self.profile.member.raft_id,
            router: self.router.clone(),
            peers: Arc::clone(peers),
            tenant_turns: Arc::clone(&tenant_turns),
            admin_token: admin_token.clone(),
            members_changed,
        };
        let actor = spawn(self.root, "the control plane", ControlActor, arguments).await?;
        registry.set_control(actor.clone());
        let control = Control::new(
            actor.clone(),
            Arc::clone(log) as _,
            self.router.clone(),
            seams.clone(),
            tenant_turns,
            Arc::clone(&registry.control),
        );
        Ok((actor, control))
    }

    pub(super) async fn elector(
        &self,
        control: &Control,
        heartbeats: &Heartbeats,
    ) -> Result<(Elector, watch::Receiver<Leadership>), StartError> {
        let leadership = self.ports.log.leadership(GroupId::SYSTEM).ok_or(StartError::Actor {
            what: "the elector",
            why: "the system group is not on this node".to_owned(),
        })?;
        let arguments = ElectorArguments {
            leadership: leadership.clone(),
            control: control.clone(),
            node: self.profile.member.node,
        };
        spawn(self.root, "the elector", ElectorActor, arguments).await?;
        let elector = Elector::new(ElectorSources {
            leadership: leadership.clone(),
            hints: self.hints.clone(),
            log: Arc::clone(&self.ports.log),
            control: control.clone(),
            heartbeats: heartbeats.clone(),
            raft_id: self.profile.member.raft_id,
            election_timeout: self.profile.election_timeout,
        });
        Ok((elector, leadership))
    }

    pub(super) async fn placement(
        &self,
        control: &Control,
        heartbeats: &Heartbeats,
        elector: &Elector,
        members_changed: watch::Receiver<()>,
    ) -> Result<(), StartError> {
        let arguments = PlacementArguments {
            log: Arc::clone(&self.ports.log),
            directory: Arc::clone(&self.directory),
            control: control.clone(),
            router: self.router.clone(),
            heartbeats: heartbeats.clone(),
            registry: Arc::clone(&self.ports.registry),
            elector: elector.clone(),
            raft_id: self.profile.member.raft_id,
            election_timeout: self.profile.election_timeout,
            members_changed,
        };
        spawn(self.root, "placement", PlacementActor, arguments).await.map(drop)
    }

    /// Makes what answers the calls of other nodes.
    pub(super) fn doors(
        &self,
        control: &Control,
        heartbeats: &Heartbeats,
        elector: &Elector,
    ) -> RpcHandlers {
        let NodePorts { log, seams, issuer, .. } = self.ports;
        RpcHandlers {
            heartbeats: heartbeats.clone(),
            calls: NodeRpcHandler::new(Arc::clone(log), elector.clone(), Arc::clone(&seams.clock)),
            join: JoinHandler::new(control.clone(), Arc::clone(issuer), seams.clone()),
        }
    }

    /// Makes what the edge may call.
    pub(super) fn handles(self, offered: Offered, registered: watch::Receiver<bool>) -> Handles {
        let Self { profile, ports, directory, router, .. } = self;
        let Offered { locks, heartbeats, renderer, control, elector } = offered;
        let NodePorts { log, stores, seams, registry, .. } = ports;
        let region = profile.member.region.clone();
        let tenants = Tenants::new(TenantsInner {
            control: control.clone(),
            directory: Arc::clone(&directory),
            router: router.clone(),
            registry: Arc::clone(registry),
            log: Arc::clone(log) as _,
            kept: Arc::clone(log) as _,
            stores: Arc::clone(stores),
            seams: seams.clone(),
            workers: renderer,
            region: region.clone(),
        });
        let rpc_ids = Arc::new(RpcIdSource::new(seams));
        Handles {
            tenants: tenants.clone(),
            locks: Locks {
                manager: locks,
                control: control.clone(),
                log: Arc::clone(log) as _,
                seams: seams.clone(),
            },
            routes: Routes { router: router.clone(), tenants, rpc_ids },
            cluster: Cluster {
                control,
                directory,
                elector,
                heartbeats,
                log: Arc::clone(log),
                router,
                seams: seams.clone(),
                node: profile.member.node,
                raft_id: profile.member.raft_id,
                region,
                election_timeout: profile.election_timeout,
                registered,
                watchers: Arc::new(Semaphore::new(WATCHERS_MAX)),
            },
        }
    }
}

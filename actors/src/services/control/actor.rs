//! The shell around the control plane's state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::time::Instant;

use super::healing::heal;
use super::mover::{Mover, UnderWay};
use super::target_room::TargetRoom;
use super::{Control, ControlMessage, KeyedMutex};
use crate::cluster::routing::{Directory, Router};
use crate::domain::ids::{GroupId, RaftId, StateMachineId, TenantId};
use crate::domain::secret::SecretHash;
use crate::ports::seams::Seams;
use crate::ports::{Leadership, Peer, Peers, ReplicatedLog, StoreError};
use crate::replica::{ApplyQueue, ReplicaDeps, ReplicaRunner};
use crate::services::heartbeat::Heartbeats;
use crate::services::locks::{LockManager, Space};
use crate::services::mailbox::tell_changes;
use crate::services::tenants::Registry;
use crate::state::system::{SystemEffect, SystemState, TenantMove};

/// What changes is made durable this often, at least.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Unconfirmed tenants are sent again this often.
const RECONCILE_EVERY: Duration = Duration::from_secs(2);
/// Files of tenants that were deleted are looked for this often.
const REVENANTS_EVERY: Duration = Duration::from_secs(60);
/// How long one attempt to confirm a tenant may take.
const RECONCILE_DEADLINE: Duration = Duration::from_secs(10);
/// Tenants confirmed at the same time, at most.
const RECONCILE_AT_ONCE_MAX: usize = 64;

/// The control plane's actor.
pub struct ControlActor;

/// What it starts with.
pub struct ControlArguments {
    /// Log and files.
    pub deps: ReplicaDeps,
    /// Proposes commands, and starts groups.
    pub log: Arc<dyn ReplicatedLog>,
    /// Time and chance.
    pub seams: Seams,
    /// Where the log hands entries over.
    pub queue: Arc<ApplyQueue>,
    /// Where what another replica sends arrives while the files here are damaged.
    pub registry: Arc<Registry>,
    /// What it publishes.
    pub directory: Arc<Directory>,
    /// Who keeps waiters and timers of locks.
    pub locks: LockManager,
    /// Who watches nodes.
    pub heartbeats: Heartbeats,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
    /// The way to who leads.
    pub router: Router,
    /// Who is told who the members are.
    pub peers: Arc<dyn Peers>,
    /// Shared with every handle.
    pub tenant_turns: Arc<KeyedMutex>,
    /// Who guards the API is told which admin token the cluster has.
    pub admin_token: watch::Sender<Option<SecretHash>>,
    /// Changes whenever members came, went, or changed.
    pub members_changed: watch::Sender<()>,
}

/// What it keeps.
pub struct ControlState {
    /// The other members, as they were published last.
    pub(super) published: Vec<Peer>,
    /// Members that were removed, and until when they are kept reachable.
    pub(super) removed: Vec<(Instant, Peer)>,
    pub(super) runner: ReplicaRunner<SystemState>,
    pub(super) arguments: Arc<ControlArguments>,
    leadership: watch::Receiver<Leadership>,
    /// The term in which this node leads, if it does.
    leads: Option<u64>,
    unconfirmed_before: BTreeSet<TenantId>,
    /// When the files were last looked through.
    last_look: Option<Instant>,
    moves_under_way: Arc<UnderWay>,
    myself: ActorRef<ControlMessage>,
}

impl Actor for ControlActor {
    type Msg = ControlMessage;
    type State = ControlState;
    type Arguments = ControlArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ControlMessage>,
        arguments: ControlArguments,
    ) -> Result<ControlState, ActorProcessingErr> {
        let leadership = arguments
            .log
            .leadership(GroupId::SYSTEM)
            .ok_or("the system group is not on this node")?;
        let queue = Arc::clone(&arguments.queue);
        let started = ReplicaRunner::<SystemState>::start(
            arguments.deps.clone(),
            GroupId::SYSTEM,
            StateMachineId::System,
            Arc::clone(&queue),
        )
        .await;
        let runner = match started {
            Err(damage @ StoreError::Damaged { .. }) => heal(&arguments, damage).await?,
            started => started?.0,
        };
        let mut state = ControlState {
            runner,
            arguments: Arc::new(arguments),
            leadership: leadership.clone(),
            leads: None,
            published: Vec::new(),
            removed: Vec::new(),
            unconfirmed_before: BTreeSet::new(),
            last_look: None,
            moves_under_way: Arc::default(),
            myself: myself.clone(),
        };
        state.publish_all()?;
        let drain = myself.clone();
        queue.set_wake(move || drop(drain.send_message(ControlMessage::Drain)));
        tell_changes(myself.clone(), leadership, || ControlMessage::Leadership);
        // Whoever begins to lead a group goes on with the moves out of it.
        let leads = state.arguments.log.leads_changed();
        tell_changes(myself.clone(), leads, || ControlMessage::Moves);
        myself.send_interval(FLUSH_EVERY, || ControlMessage::Flush);
        myself.send_interval(RECONCILE_EVERY, || ControlMessage::Reconcile);
        // Entries that came before the wake-up call was set.
        myself.send_message(ControlMessage::Drain)?;
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<ControlMessage>,
        message: ControlMessage,
        state: &mut ControlState,
    ) -> Result<(), ActorProcessingErr> {
        // Before every message: a caller that has seen its command applied reads the state after it.
        state.drain().await?;
        match message {
            ControlMessage::Drain => {}
            ControlMessage::Leadership => {
                if state.follow_leadership() {
                    // What was applied again after a start need not be after the next.
                    state.runner.make_durable().await?;
                }
            }
            ControlMessage::Flush => {
                state.runner.make_durable().await?;
                if !state.removed.is_empty() {
                    state.publish_members()?;
                }
            }
            ControlMessage::Reconcile => {
                state.reconcile();
                state.look_for_revenants();
                state.carry_out_moves();
            }
            ControlMessage::Moves => state.carry_out_moves(),
            ControlMessage::Read(read) => read(&state.runner.machine),
            ControlMessage::Applied(reply) => {
                let _ = reply.send(state.runner.applied().map_or(0, |applied| applied.index));
            }
            ControlMessage::Replica(request) => {
                if state.runner.serve_request(request).await? {
                    state.publish_all()?;
                }
            }
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _: ActorRef<ControlMessage>,
        state: &mut ControlState,
    ) -> Result<(), ActorProcessingErr> {
        state.drain().await?;
        state.runner.make_durable().await?;
        Ok(())
    }
}

impl ControlState {
    async fn drain(&mut self) -> Result<(), ActorProcessingErr> {
        for effect in self.runner.drain().await? {
            if effect == SystemEffect::MembersChanged {
                // Who restarts has to know whom to ask.
                self.runner.make_durable().await?;
                self.publish_members()?;
                // This node may be listed now, or be in another region.
                self.publish_own_groups();
            }
            self.perform(effect);
        }
        Ok(())
    }

    fn perform(&self, effect: SystemEffect) {
        match effect {
            SystemEffect::MembersChanged => {}
            SystemEffect::TenantChanged(tenant) => self.publish(tenant),
            SystemEffect::MoveChanged(_) => {
                let _ = self.myself.send_message(ControlMessage::Moves);
            }
            SystemEffect::GroupsPlaced => {
                self.publish_own_groups();
                self.open_groups();
            }
            SystemEffect::NodeRemoved(node) => self.arguments.heartbeats.forget(node),
            SystemEffect::Lock(notice) if self.leads.is_some() => {
                self.arguments.locks.notice(Space::CLUSTER, notice);
            }
            SystemEffect::Lock(_) => {}
            SystemEffect::AdminTokenSet => self.publish_admin_token(),
        }
    }

    /// Hands the locks to the lock manager when this node begins to lead, and takes them back.
    /// Whether it leads anew.
    fn follow_leadership(&mut self) -> bool {
        let now = *self.leadership.borrow_and_update();
        let leads = now.here.then_some(now.term);
        if leads == self.leads {
            return false;
        }
        // Entries of earlier terms may not be applied yet. From here on each change of a lock becomes a
        // notice, which the manager gets after the table: so it hears of those as well.
        self.leads = leads;
        if leads.is_some() {
            let locks = self.runner.machine.locks().list("", None);
            // The lock that follows leadership ends with leadership, not with a timer.
            let timed = locks.filter(|lock| !lock.key.is_leader());
            self.arguments.locks.lead(Space::CLUSTER, timed.cloned().collect());
        } else {
            self.arguments.locks.unlead(Space::CLUSTER);
        }
        leads.is_some()
    }

    fn control(&self) -> Control {
        let log = Arc::clone(&self.arguments.log) as _;
        let (seams, tenant_turns) =
            (self.arguments.seams.clone(), Arc::clone(&self.arguments.tenant_turns));
        let (router, queue) = (self.arguments.router.clone(), Arc::clone(&self.arguments.queue));
        Control::new(self.myself.clone(), log, router, seams, tenant_turns, queue)
    }

    /// Finishes the deletion of tenants that group 0 deleted and that have files here all the same: they came from
    /// a copy, or with a message that was under way for very long.
    fn look_for_revenants(&mut self) {
        if self.last_look.is_some_and(|last| last.elapsed() < REVENANTS_EVERY) {
            return;
        }
        self.last_look = Some(Instant::now());
        // A directory that cannot be read now is read the next time.
        let found = self.arguments.deps.stores.tenants().unwrap_or_default();
        let is_deleted = |tenant: &TenantId| {
            let entry = self.runner.machine.tenant(*tenant);
            // What is not confirmed yet, the reconciler sees to.
            entry.is_some_and(|it| it.record.is_none() && it.confirmed >= it.version)
        };
        let hosts = |group: GroupId| self.arguments.log.leadership(group).is_some();
        // It lives, or lived, in another region, and is not on its way.
        let left = |tenant: &TenantId| {
            // A forced recovery may have taken the record of a tenant whose only copy is here.
            let entry = self.runner.machine.tenant(*tenant).filter(|it| it.record.is_some())?;
            let last = self.runner.machine.tenant_move(*tenant);
            let is_moving = last.is_some_and(TenantMove::is_under_way);
            let own = self.arguments.directory.group_in_own_region(*tenant);
            own.filter(|own| !is_moving && *own != entry.group && !hosts(entry.group))
        };
        let (left, found): (Vec<_>, Vec<_>) = found
            .into_iter()
            .map(|tenant| (tenant, left(&tenant)))
            .partition(|(_, of)| of.is_some());
        for (tenant, group) in left.into_iter().take(RECONCILE_AT_ONCE_MAX) {
            let Some(group) = group else { continue };
            tracing::info!(%tenant, "a tenant that lives in another region has files here, which are removed");
            let mover = self.mover();
            tokio::spawn(async move { mover.remove_left(tenant, group).await });
        }
        let found = found.into_iter().map(|(tenant, _)| tenant).filter(is_deleted);
        for tenant in found.take(RECONCILE_AT_ONCE_MAX) {
            // A replica that is only behind is found here, too: no reason to warn.
            tracing::info!(%tenant, "a deleted tenant has files here and is deleted again");
            let control = self.control();
            tokio::spawn(async move {
                let deadline = Instant::now() + RECONCILE_DEADLINE;
                if let Err(error) = control.finish_deletion(tenant, deadline).await {
                    tracing::warn!(%tenant, %error, "a deleted tenant still has files");
                }
            });
        }
    }

    fn mover(&self) -> Mover {
        Mover {
            control: self.control(),
            registry: Arc::clone(&self.arguments.registry),
            under_way: Arc::clone(&self.moves_under_way),
            room: TargetRoom {
                log: Arc::clone(&self.arguments.log) as _,
                peers: Arc::clone(&self.arguments.peers),
                raft_id: self.arguments.raft_id,
            },
        }
    }

    /// Carries out the moves of tenants whose source this node leads.
    fn carry_out_moves(&self) {
        let log = &self.arguments.log;
        let own = self.runner.machine.moves().filter(|(_, it)| log.leads(it.from).is_some());
        for (tenant, it) in own {
            self.mover().begin(tenant, it.from);
        }
    }

    /// Sends tenants again that were unconfirmed at the last look already.
    fn reconcile(&mut self) {
        if self.leads.is_none() {
            return;
        }
        let unconfirmed: BTreeSet<TenantId> = self.runner.machine.unconfirmed().collect();
        let tenant_turns = Arc::clone(&self.arguments.tenant_turns);
        let control = self.control();
        // What the last look did not find is being sent by whoever changed it.
        let late = unconfirmed.intersection(&self.unconfirmed_before);
        // What a tenant that does not answer has been sent is in its log: no need for more of it.
        let late = late.filter(|tenant| !tenant_turns.is_under_way(**tenant));
        for tenant in late.copied().take(RECONCILE_AT_ONCE_MAX) {
            let control = control.clone();
            tokio::spawn(async move {
                let deadline = Instant::now() + RECONCILE_DEADLINE;
                if let Err(error) = control.sync_tenant(tenant, None, deadline).await {
                    tracing::warn!(%tenant, %error, "the tenant's group has not confirmed yet");
                }
            });
        }
        self.unconfirmed_before = unconfirmed;
    }
}

//! The shell around the control plane's state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::time::Instant;

use super::healing::heal;
use super::mover::{Mover, UnderWay};
use super::{Control, ControlMessage, KeyedMutex};
use crate::cluster::routing::{Directory, Router, TenantLocation};
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
/// How long a member that was removed is kept reachable.
const REMOVED_KEPT: Duration = Duration::from_secs(4);
/// Wait between two attempts to start a group.
const OPEN_GROUP_RETRY: Duration = Duration::from_secs(5);
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

/// This node was removed from its cluster.
#[derive(Debug, thiserror::Error)]
#[error(
    "this node was removed from the cluster, and what it has on disk lets it in nowhere; to join the \
     cluster again as a new node, start it with --join and an empty data directory: move this one away, or \
     name another with --data-dir"
)]
pub struct Removed;

/// What it keeps.
pub struct ControlState {
    /// The other members, as they were published last.
    published: Vec<Peer>,
    /// Members that were removed, and until when they are kept reachable.
    removed: Vec<(Instant, Peer)>,
    runner: ReplicaRunner<SystemState>,
    arguments: Arc<ControlArguments>,
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
        tokio::spawn(watch_leadership(myself.clone(), leadership));
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
        myself: ActorRef<ControlMessage>,
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
                state.reconcile(&myself);
                state.look_for_revenants(&myself);
                state.carry_out_moves(&myself);
            }
            ControlMessage::Moves => state.carry_out_moves(&myself),
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

/// Tells the actor whenever leadership changes.
async fn watch_leadership(
    actor: ActorRef<ControlMessage>,
    mut leadership: watch::Receiver<Leadership>,
) {
    while actor.send_message(ControlMessage::Leadership).is_ok() {
        if leadership.changed().await.is_err() {
            return;
        }
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

    fn publish_all(&mut self) -> Result<(), Removed> {
        self.arguments.directory.clear();
        self.publish_own_groups();
        for (tenant, _) in self.runner.machine.tenants() {
            self.publish(*tenant);
        }
        // Before the groups: a node that was removed ends here, and opens none any more.
        self.publish_members()?;
        self.open_groups();
        self.publish_admin_token();
        Ok(())
    }

    /// Until the cluster has one, the token that the node was started with stands.
    fn publish_admin_token(&self) {
        if let Some(hash) = self.runner.machine.admin_token() {
            self.arguments.admin_token.send_replace(Some(hash));
        }
    }

    /// Tells who the members are. Fails when this node is none any more. Keeps a removed member
    /// connected for `REMOVED_KEPT`, so that it learns of its removal from the log.
    fn publish_members(&mut self) -> Result<(), Removed> {
        let me = self.arguments.raft_id;
        let (others, own): (Vec<_>, Vec<_>) =
            self.runner.machine.peers().into_iter().partition(|peer| peer.raft_id != me);
        if own.is_empty() {
            // Ids are given in order: one that was given and is not listed was removed. Before
            // that, as long as the log has not come to it, this node knows who let it in.
            let was_admitted = self.runner.machine.last_raft_id() >= me;
            return if was_admitted { Err(Removed) } else { Ok(()) };
        }
        self.arguments.heartbeats.set_members(others.iter().map(|peer| peer.raft_id).collect());
        let is_listed = |peer: &Peer| others.iter().any(|other| other.raft_id == peer.raft_id);
        let now = Instant::now();
        let gone = self.published.iter().filter(|peer| !is_listed(peer)).cloned();
        self.removed.extend(gone.map(|peer| (now + REMOVED_KEPT, peer)));
        self.removed.retain(|(until, _)| *until > now);
        let kept = self.removed.iter().map(|(_, peer)| peer.clone());
        self.arguments.peers.set_members(others.iter().cloned().chain(kept).collect());
        self.published = others;
        self.arguments.members_changed.send_replace(());
        Ok(())
    }

    fn publish(&self, tenant: TenantId) {
        let entry = self.runner.machine.tenant(tenant);
        let exists = entry.filter(|entry| entry.record.is_some());
        let placed = exists.map(|entry| TenantLocation { group: entry.group, epoch: entry.epoch });
        if let Some(entry) = entry.filter(|entry| entry.record.is_none()) {
            self.arguments.directory.set_deleted(tenant, entry.group);
        }
        self.arguments.directory.set(tenant, placed);
    }

    /// Tells which groups are of this node's region.
    fn publish_own_groups(&self) {
        let machine = &self.runner.machine;
        let own = machine.members().find(|(_, _, it)| it.raft_id == self.arguments.raft_id);
        // Before this node is listed it has no tenants.
        let groups = own.map(|(_, node, _)| machine.groups_of(&node.region));
        self.arguments.directory.set_own_groups(groups.unwrap_or_default());
    }

    /// Starts the groups that are assigned to this node, and those that it has a log of: it may still
    /// vote where others are to take its place.
    fn open_groups(&self) {
        let raft_id = self.arguments.raft_id;
        for (group, placement) in self.runner.machine.groups() {
            let is_assigned = placement.replicas.contains(&raft_id);
            if !is_assigned && self.arguments.log.last_index(*group).is_none() {
                continue;
            }
            // A first voter that was moved away and back, without its log, must not begin the group
            // anew.
            let is_new = !placement.is_assigned;
            let founders = if is_new { placement.members.clone() } else { Vec::new() };
            let (group, members) = (*group, founders);
            // Weak: a node that has stopped opens nothing any more.
            let log = Arc::downgrade(&self.arguments.log);
            tokio::spawn(async move {
                while let Some(log) = log.upgrade() {
                    match log.open_group(group, members.clone()).await {
                        Ok(()) => return,
                        Err(error) => tracing::error!(%group, %error, "cannot start a group yet"),
                    }
                    drop(log);
                    tokio::time::sleep(OPEN_GROUP_RETRY).await;
                }
            });
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

    fn control(&self, myself: &ActorRef<ControlMessage>) -> Control {
        let log = Arc::clone(&self.arguments.log) as _;
        let (seams, tenant_turns) =
            (self.arguments.seams.clone(), Arc::clone(&self.arguments.tenant_turns));
        let (router, queue) = (self.arguments.router.clone(), Arc::clone(&self.arguments.queue));
        Control::new(myself.clone(), log, router, seams, tenant_turns, queue)
    }

    /// Finishes the deletion of tenants that group 0 deleted and that have files here all the same: they came from
    /// a copy, or with a message that was under way for very long.
    fn look_for_revenants(&mut self, myself: &ActorRef<ControlMessage>) {
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
            let own = self.arguments.directory.own_group_of(*tenant);
            own.filter(|own| !is_moving && *own != entry.group && !hosts(entry.group))
        };
        let (left, found): (Vec<_>, Vec<_>) = found
            .into_iter()
            .map(|tenant| (tenant, left(&tenant)))
            .partition(|(_, of)| of.is_some());
        for (tenant, group) in left.into_iter().take(RECONCILE_AT_ONCE_MAX) {
            let Some(group) = group else { continue };
            tracing::info!(%tenant, "a tenant that lives in another region has files here, which are removed");
            let mover = self.mover(myself);
            tokio::spawn(async move { mover.remove_left(tenant, group).await });
        }
        let found = found.into_iter().map(|(tenant, _)| tenant).filter(is_deleted);
        for tenant in found.take(RECONCILE_AT_ONCE_MAX) {
            // A replica that is only behind is found here, too: no reason to warn.
            tracing::info!(%tenant, "a deleted tenant has files here and is deleted again");
            let control = self.control(myself);
            tokio::spawn(async move {
                let deadline = Instant::now() + RECONCILE_DEADLINE;
                if let Err(error) = control.finish_deletion(tenant, deadline).await {
                    tracing::warn!(%tenant, %error, "a deleted tenant still has files");
                }
            });
        }
    }

    fn mover(&self, myself: &ActorRef<ControlMessage>) -> Mover {
        Mover {
            control: self.control(myself),
            registry: Arc::clone(&self.arguments.registry),
            under_way: Arc::clone(&self.moves_under_way),
        }
    }

    /// Carries out the moves of tenants whose source this node leads.
    fn carry_out_moves(&self, myself: &ActorRef<ControlMessage>) {
        let log = &self.arguments.log;
        let own = self.runner.machine.moves().filter(|(_, it)| log.leads(it.from).is_some());
        for (tenant, it) in own {
            self.mover(myself).begin(tenant, it.from);
        }
    }

    /// Sends tenants again that were unconfirmed at the last look already.
    fn reconcile(&mut self, myself: &ActorRef<ControlMessage>) {
        if self.leads.is_none() {
            return;
        }
        let unconfirmed: BTreeSet<TenantId> = self.runner.machine.unconfirmed().collect();
        let tenant_turns = Arc::clone(&self.arguments.tenant_turns);
        let control = self.control(myself);
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

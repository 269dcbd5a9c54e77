//! The shell around placement's decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::message::PlacementMessage;
use super::relieved::{Relieved, is_elsewhere};
use super::state::{ClusterView, MemberView, Memories, Step, others_can_elect};
use crate::cluster::routing::{Directory, Router};
use crate::command::{AssignReplicas, DrainMember, PlaceGroups, RemoveNode, SystemCommand};
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::voters::Voters;
use crate::ports::error::CallError;
use crate::ports::{GroupStatus, ReplicatedLog};
use crate::services::control::Control;
use crate::services::elector::Elector;
use crate::services::heartbeat::Heartbeats;
use crate::services::mailbox::tell_changes;
use crate::services::tenants::Registry;
use crate::state::system::{GroupPlacement, SystemState};

/// It looks this often, and at least twice in an election timeout: what a learner's round takes is
/// measured from look to look.
const LOOK_EVERY_MAX: Duration = Duration::from_millis(250);
/// How long one step may take before it is looked at again.
const STEP_DEADLINE: Duration = Duration::from_secs(10);

/// A leader without room on its disk hands over this often at most: the next one may have none
/// either.
const VACATE_EVERY: Duration = Duration::from_secs(10);

/// A disk is full for so long before that: by then the others have said how theirs are.
const VACATE_AFTER: Duration = Duration::from_secs(1);

/// Placement's actor.
pub struct PlacementActor;

/// What it starts with.
#[derive(Clone)]
pub struct PlacementArguments {
    /// The groups.
    pub log: Arc<dyn ReplicatedLog>,
    /// The control plane.
    pub control: Control,
    /// Who leads and who votes in each group.
    pub router: Router,
    /// How the members are.
    pub heartbeats: Heartbeats,
    /// Which tenants are damaged on this node.
    pub registry: Arc<Registry>,
    /// How many tenants each group has.
    pub directory: Arc<Directory>,
    /// Steps down where the leader is to leave.
    pub elector: Elector,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
    /// After so long without a leader there is a new one.
    pub election_timeout: Duration,
    /// Changes whenever members came or went: then it looks at once.
    pub members_changed: watch::Receiver<()>,
}

/// What it keeps.
pub struct PlacementState {
    arguments: PlacementArguments,
    memory: Arc<tokio::sync::Mutex<Memories>>,
    /// Locked while groups are let go of, which may take long.
    relieved: Arc<tokio::sync::Mutex<Relieved>>,
    is_busy: bool,
    /// Whether it was told to look while it was busy.
    looks_again: bool,
    /// Since when there is no room on the disk.
    full_since: Option<Instant>,
    /// When it last handed over for that, or wanted to.
    vacated: Option<Instant>,
}

impl Actor for PlacementActor {
    type Msg = PlacementMessage;
    type State = PlacementState;
    type Arguments = PlacementArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<PlacementMessage>,
        arguments: PlacementArguments,
    ) -> Result<PlacementState, ActorProcessingErr> {
        let leadership = arguments.log.leadership(GroupId::SYSTEM);
        let leadership = leadership.ok_or("the system group is not on this node")?;
        let look_every = LOOK_EVERY_MAX.min(arguments.election_timeout / 3);
        myself.send_interval(look_every, || PlacementMessage::Look);
        tell_changes(myself.clone(), leadership, || PlacementMessage::Look);
        tell_changes(myself, arguments.members_changed.clone(), || PlacementMessage::Look);
        Ok(PlacementState {
            arguments,
            memory: Arc::default(),
            relieved: Arc::default(),
            is_busy: false,
            looks_again: false,
            full_since: None,
            vacated: None,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<PlacementMessage>,
        message: PlacementMessage,
        state: &mut PlacementState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            PlacementMessage::Done => {
                state.is_busy = false;
                if std::mem::take(&mut state.looks_again) {
                    state.look(myself);
                }
            }
            // Something may have changed after the look that is under way.
            PlacementMessage::Look if state.is_busy => state.looks_again = true,
            PlacementMessage::Look => {
                state.let_go();
                state.look(myself);
            }
        }
        Ok(())
    }
}

impl PlacementState {
    /// Starts a look, or has the disk vacated instead. The steps are taken beside the actor: one
    /// may wait for a quorum.
    fn look(&mut self, myself: ActorRef<PlacementMessage>) {
        self.is_busy = true;
        let vacates = self.has_to_vacate(Instant::now());
        let (arguments, memory) = (self.arguments.clone(), Arc::clone(&self.memory));
        tokio::spawn(async move {
            let step = async {
                if vacates { arguments.vacate().await } else { arguments.look(&memory).await }
            };
            match timeout(STEP_DEADLINE, step).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "placement will look again"),
                Err(_) => tracing::warn!("a step of placement takes long"),
            }
            let _ = myself.send_message(PlacementMessage::Done);
        });
    }

    /// Starts a look for groups to let go of, unless one is under way. In a task of its own, which nobody
    /// cuts off: files may take long to go, and a group that was left half is worse than one that stays.
    fn let_go(&self) {
        let Ok(mut relieved) = Arc::clone(&self.relieved).try_lock_owned() else { return };
        let arguments = self.arguments.clone();
        tokio::spawn(async move {
            if let Err(error) = arguments.let_go(&mut relieved).await {
                tracing::debug!(%error, "placement will look again for groups to let go of");
            }
        });
    }

    /// Whether this leader's disk has been full for a while, and was not handed over for lately.
    fn has_to_vacate(&mut self, now: Instant) -> bool {
        if self.arguments.log.has_room() {
            self.full_since = None;
            return false;
        }
        let since = *self.full_since.get_or_insert(now);
        let is_time = self.vacated.is_none_or(|last| last + VACATE_EVERY <= now);
        let vacates = is_time && since + VACATE_AFTER <= now;
        if vacates {
            self.vacated = Some(now);
        }
        vacates
    }
}

impl PlacementArguments {
    /// Hands over the groups in which the others can elect: who can write nothing down holds up
    /// everybody who could. Where they cannot, this node goes on, for reads.
    async fn vacate(&self) -> Result<(), CallError> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let health = self.heartbeats.health(deadline).await?;
        let groups = self.led().into_iter().map(|(_, group)| group);
        let can_go = |group: &GroupStatus| others_can_elect(&group.replicas, &health, self.raft_id);
        let leaving = groups.filter(can_go).map(|group| async move {
            tracing::warn!(group = %group.group, "the disk is full: another node is to lead");
            self.elector.step_down(group.group, deadline).await
        });
        let left: Result<Vec<()>, _> = join_all(leaving).await.into_iter().collect();
        left.map(drop)
    }

    /// Lets go of the groups that were assigned to others.
    async fn let_go(&self, relieved: &mut Relieved) -> Result<(), CallError> {
        let placements = self.placements().await?;
        if !relieved.is_clean && !placements.is_empty() {
            // Files that an earlier process left behind, or an attempt that failed. Where there is a log,
            // the group is only not open yet: this node may have been assigned since what it knows of
            // group 0, and have acknowledged entries.
            let is_gone = |group: &GroupId| {
                self.log.leadership(*group).is_none() && self.log.last_index(*group).is_none()
            };
            for (group, placement) in &placements {
                if is_gone(group) && is_elsewhere(placement, self.raft_id) {
                    let still = async { is_gone(group) && self.is_elsewhere(*group).await };
                    self.log.leave_group(*group, Box::pin(still)).await?;
                }
            }
            relieved.is_clean = true;
        }
        let (here, hint) = (self.log.groups(), |group| self.router.told(group));
        let last = |group| self.log.last_index(group);
        for group in relieved.look(self.raft_id, &here, &placements, last, hint, Instant::now()) {
            tracing::info!(%group, "others have the replicas of this group now: its log and files go");
            // Before: cut off in between, the files are looked for again.
            relieved.is_clean = false;
            let mut memory = relieved.clone();
            let still = async move {
                // Group 0, the leader and the replica itself are asked once more: the answers that this
                // was found by are older than the groups that went before this one.
                let Ok(placements) = self.placements().await else { return false };
                let (here, hint) = (self.log.groups(), |group| self.router.told(group));
                let last = |group| self.log.last_index(group);
                let now = Instant::now();
                memory.look(self.raft_id, &here, &placements, last, hint, now).contains(&group)
            };
            self.log.leave_group(group, Box::pin(still)).await?;
        }
        Ok(())
    }

    async fn placements(&self) -> Result<BTreeMap<GroupId, GroupPlacement>, CallError> {
        let deadline = Instant::now() + STEP_DEADLINE;
        self.control.read(deadline, |state| state.groups().clone()).await
    }

    async fn is_elsewhere(&self, group: GroupId) -> bool {
        let placements = self.placements().await.unwrap_or_default();
        placements.get(&group).is_some_and(|placement| is_elsewhere(placement, self.raft_id))
    }

    async fn look(&self, memory: &tokio::sync::Mutex<Memories>) -> Result<(), CallError> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let led = self.led();
        if led.is_empty() {
            *memory.lock().await = Memories::default();
            return Ok(());
        }
        let (mut members, placements) = self.control.read(deadline, members).await?;
        let known = |group: &GroupId| Some((*group, self.router.known_voters(*group)?));
        let voters: BTreeMap<GroupId, Voters> = placements.keys().filter_map(known).collect();
        let leader = |group: &GroupId| Some((*group, self.router.leader(*group)?));
        let leaders: BTreeMap<GroupId, RaftId> = placements.keys().filter_map(leader).collect();
        for (id, member) in &mut members {
            // Assigned to others, and still there. Of a group that nobody is known to lead this node cannot
            // tell: a member that goes while its vote counts there takes the group's quorum along.
            member.has_groups |=
                placements.iter().any(|(group, placement)| match voters.get(group) {
                    Some(voters) => voters.replicas().contains(id),
                    None => placement.region == member.region,
                });
        }
        let health = self.heartbeats.health(deadline).await?;
        let heard = health.iter().filter(|(_, it)| it.is_heard);
        let mut damaged: BTreeMap<RaftId, BTreeSet<GroupId>> =
            heard.map(|(id, it)| (*id, it.damaged.clone())).collect();
        damaged.insert(self.raft_id, self.registry.damaged_groups());
        let (terms, led): (BTreeMap<GroupId, u64>, Vec<GroupStatus>) =
            led.into_iter().map(|(term, group)| ((group.group, term), group)).unzip();
        let copies = led.iter().map(|it| (it.group, self.log.copies(it.group))).collect();
        let view = ClusterView {
            own_id: self.raft_id,
            members: &members,
            placements: &placements,
            voters: &voters,
            leaders: &leaders,
            led: &led,
            copies: &copies,
            health: &health,
            has_room: self.log.has_room(),
            lacks_room_for_copy: self.log.lacks_room().is_some(),
            tenants: &self.directory.count_by_group(),
            // Heartbeats do not say it yet.
            damaged: &damaged,
            election_timeout: self.election_timeout,
        };
        let steps = view.next(&mut *memory.lock().await, Instant::now());
        // Side by side: a group without a quorum does not hold up the others.
        let taken = steps.into_iter().filter_map(|(group, step)| {
            terms.get(&group).map(|term| self.take(group, step, *term, deadline))
        });
        let taken: Result<Vec<()>, _> = join_all(taken).await.into_iter().collect();
        taken.map(drop)
    }

    /// The groups that this node leads, with the term of each. A status of another term than the one
    /// that is led in is left for the next look: it may say nothing about now.
    fn led(&self) -> Vec<(u64, GroupStatus)> {
        let lead = |status: &GroupStatus| {
            let now = *self.log.leadership(status.group)?.borrow();
            (now.here && now.term == status.term).then_some(now.term)
        };
        let groups = self.log.groups().into_iter();
        groups.filter_map(|status| Some((lead(&status)?, status))).collect()
    }

    /// Takes a step of the group's leader of `term`: in another term it does nothing.
    async fn take(
        &self,
        group: GroupId,
        step: Step,
        term: u64,
        deadline: Instant,
    ) -> Result<(), CallError> {
        tracing::info!(%group, ?step, "placement");
        match step {
            Step::PlaceGroups { region, groups, members } => {
                let place = SystemCommand::PlaceGroups(PlaceGroups { region, groups, members });
                self.control.bring_up(term, deadline, place).await?;
            }
            Step::AssignReplicas { group, replicas } => {
                let assign = SystemCommand::AssignReplicas(AssignReplicas { group, replicas });
                self.control.bring_up(term, deadline, assign).await?;
            }
            Step::AddLearner(id) => self.log.add_learner(group, id).await?,
            Step::SetVoters(voters) => self.log.set_voters(group, voters).await?,
            Step::RemoveLearner(id) => self.log.remove_learner(group, id).await?,
            Step::LetLead(to) => self.log.transfer(group, to).await?,
            Step::HandOver => self.elector.step_down(group, deadline).await?,
            Step::Forget(node) => {
                self.control
                    .bring_up(term, deadline, SystemCommand::RemoveNode(RemoveNode { node }))
                    .await?;
            }
            Step::Drain(node) => {
                self.control
                    .bring_up(term, deadline, SystemCommand::DrainMember(DrainMember { node }))
                    .await?;
            }
        }
        Ok(())
    }
}

type Members = (BTreeMap<RaftId, MemberView>, BTreeMap<GroupId, GroupPlacement>);

fn members(state: &SystemState) -> Members {
    let members = state.members().map(|(node, record, member)| {
        let view = MemberView {
            node,
            raft_id: member.raft_id,
            node_addr: member.node_addr.clone(),
            region: record.region.clone(),
            is_leaving: member.leaving,
            is_offline: member.offline,
            has_groups: state.has_groups(member.raft_id),
        };
        (member.raft_id, view)
    });
    (members.collect(), state.groups().clone())
}

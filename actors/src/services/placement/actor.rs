//! The shell around placement's decisions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::message::PlacementMessage;
use super::state::{MemberView, Memory, Step, View, others_can_elect};
use crate::command::{DrainMember, RemoveNode, SystemCommand};
use crate::domain::ids::GroupId;
use crate::ports::error::CallError;
use crate::ports::{Leadership, ReplicatedLog};
use crate::services::control::Control;
use crate::services::elector::Elector;
use crate::services::heartbeat::Heartbeats;
use crate::state::system::SystemState;

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
    /// How the members are.
    pub heartbeats: Heartbeats,
    /// Steps down where the leader is to leave.
    pub elector: Elector,
    /// This node's id in Raft groups.
    pub raft_id: u64,
    /// After so long without a leader there is a new one.
    pub election_timeout: Duration,
}

/// What it keeps.
pub struct PlacementState {
    arguments: PlacementArguments,
    leadership: watch::Receiver<Leadership>,
    memory: Arc<tokio::sync::Mutex<Memory>>,
    is_busy: bool,
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
        Ok(PlacementState {
            arguments,
            leadership,
            memory: Arc::default(),
            is_busy: false,
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
            PlacementMessage::Done => state.is_busy = false,
            PlacementMessage::Look if state.is_busy => {}
            PlacementMessage::Look => {
                if !state.leadership.borrow().here {
                    *state.memory.lock().await = Memory::default();
                    return Ok(());
                }
                state.is_busy = true;
                let vacates = state.has_to_vacate(Instant::now());
                let (arguments, memory) = (state.arguments.clone(), Arc::clone(&state.memory));
                tokio::spawn(async move {
                    let step = async {
                        if vacates {
                            arguments.vacate().await
                        } else {
                            arguments.look(&memory).await
                        }
                    };
                    match timeout(STEP_DEADLINE, step).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => tracing::debug!(%error, "placement will look again"),
                        Err(_) => tracing::warn!("a step of placement takes long"),
                    }
                    let _ = myself.send_message(PlacementMessage::Done);
                });
            }
        }
        Ok(())
    }
}

impl PlacementState {
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
    /// Hands over where the others can elect: who can write nothing down holds up everybody who
    /// could. Where they cannot, this node goes on, for reads.
    async fn vacate(&self) -> Result<(), CallError> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let health = self.heartbeats.health(deadline).await?;
        let groups = self.log.groups();
        let system = groups.iter().find(|status| status.group == GroupId::SYSTEM);
        if !system.is_some_and(|system| others_can_elect(&system.replicas, &health, self.raft_id)) {
            return Ok(());
        }
        tracing::warn!("the disk is full: another node is to lead");
        self.elector.step_down(deadline).await
    }

    async fn look(&self, memory: &tokio::sync::Mutex<Memory>) -> Result<(), CallError> {
        let deadline = Instant::now() + STEP_DEADLINE;
        let Some(term) = self.leads() else { return Ok(()) };
        let members = self.control.read(deadline, members).await?;
        let health = self.heartbeats.health(deadline).await?;
        let groups = self.log.groups();
        let Some(system) = groups.iter().find(|status| status.group == GroupId::SYSTEM) else {
            return Ok(());
        };
        if system.is_changing {
            // What is not committed may not come to be.
            return Ok(());
        }
        let view = View {
            leader: self.raft_id,
            members: &members,
            replicas: &system.replicas,
            health: &health,
            election_timeout: self.election_timeout,
            unfinished: system.unfinished.as_ref(),
        };
        match view.next(&mut *memory.lock().await, Instant::now()) {
            Some(step) => self.take(step, term, deadline).await,
            None => Ok(()),
        }
    }

    /// The term in which this node leads, if it does.
    fn leads(&self) -> Option<u64> {
        let now = *self.log.leadership(GroupId::SYSTEM)?.borrow();
        now.here.then_some(now.term)
    }

    /// Takes a step of the leader of `term`: in another term it does nothing.
    async fn take(&self, step: Step, term: u64, deadline: Instant) -> Result<(), CallError> {
        tracing::info!(?step, "placement");
        match step {
            Step::AddLearner(id) => self.log.add_learner(GroupId::SYSTEM, id).await?,
            Step::SetVoters(voters) => self.log.set_voters(GroupId::SYSTEM, voters).await?,
            Step::RemoveLearner(id) => self.log.remove_learner(GroupId::SYSTEM, id).await?,
            Step::HandOver => self.elector.step_down(deadline).await?,
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

fn members(state: &SystemState) -> BTreeMap<u64, MemberView> {
    let members = state.members().map(|(node, _, member)| {
        let view = MemberView {
            node,
            raft_id: member.raft_id,
            node_addr: member.node_addr.clone(),
            is_leaving: member.leaving,
            is_offline: member.offline,
            has_groups: state.has_groups(member.raft_id),
        };
        (member.raft_id, view)
    });
    members.collect()
}

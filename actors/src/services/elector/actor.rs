//! The shell around the elector's state.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::time::Instant;

use super::message::ElectorMessage;
use super::state::Announcements;
use crate::command::{LeaderElected, SystemCommand};
use crate::domain::ids::NodeId;
use crate::ports::Leadership;
use crate::services::control::Control;
use crate::services::mailbox::tell_changes;

/// How long one announcement may take.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(5);
/// Wait between two attempts to announce a term.
const ANNOUNCE_RETRY: Duration = Duration::from_millis(200);

/// The elector's actor.
pub struct ElectorActor;

/// What it starts with.
pub struct ElectorArguments {
    /// Leadership of the system group.
    pub leadership: watch::Receiver<Leadership>,
    /// The control plane.
    pub control: Control,
    /// This node.
    pub node: NodeId,
}

/// What it keeps.
pub struct ElectorState {
    arguments: ElectorArguments,
    announcements: Announcements,
}

impl Actor for ElectorActor {
    type Msg = ElectorMessage;
    type State = ElectorState;
    type Arguments = ElectorArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<ElectorMessage>,
        arguments: ElectorArguments,
    ) -> Result<ElectorState, ActorProcessingErr> {
        tell_changes(myself, arguments.leadership.clone(), || ElectorMessage::Changed);
        Ok(ElectorState { arguments, announcements: Announcements::default() })
    }

    async fn handle(
        &self,
        myself: ActorRef<ElectorMessage>,
        message: ElectorMessage,
        state: &mut ElectorState,
    ) -> Result<(), ActorProcessingErr> {
        // Looked at now, and not carried in the message: the lead may have moved since it was sent.
        let now = *state.arguments.leadership.borrow();
        let term = match message {
            ElectorMessage::Changed => state.announcements.changed(now),
            ElectorMessage::Announce { term } => state.announcements.again(term, now),
        };
        if let Some(term) = term {
            let (control, node) = (state.arguments.control.clone(), state.arguments.node);
            // In a task: a proposal may wait for a quorum, and the next term must not wait behind it.
            tokio::spawn(announce(myself, control, node, term));
        }
        Ok(())
    }
}

/// Takes the lock of a term, or has the elector look again.
async fn announce(elector: ActorRef<ElectorMessage>, control: Control, node: NodeId, term: u64) {
    let deadline = Instant::now() + ANNOUNCE_DEADLINE;
    let command = SystemCommand::LeaderElected(LeaderElected { node });
    match control.bring_up(term, deadline, command).await {
        Ok(_) => tracing::info!(term, "this node leads the cluster"),
        Err(error) => {
            tracing::debug!(term, %error, "leadership not announced yet");
            tokio::time::sleep(ANNOUNCE_RETRY).await;
            let _ = elector.send_message(ElectorMessage::Announce { term });
        }
    }
}

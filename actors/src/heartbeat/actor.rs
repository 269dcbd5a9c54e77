//! The shell around the heartbeat monitor's state.

use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use super::message::HeartbeatMessage;
use super::state::Listener;
use crate::seams::Seams;

/// The heartbeat monitor's actor.
pub struct HeartbeatActor;

/// What it starts with.
pub struct HeartbeatArguments {
    /// Time and chance.
    pub seams: Seams,
    /// How long a node may be silent.
    pub silent_after: Duration,
}

/// What it keeps.
pub struct HeartbeatState {
    seams: Seams,
    listener: Listener,
}

impl Actor for HeartbeatActor {
    type Msg = HeartbeatMessage;
    type State = HeartbeatState;
    type Arguments = HeartbeatArguments;

    async fn pre_start(
        &self,
        _: ActorRef<HeartbeatMessage>,
        arguments: HeartbeatArguments,
    ) -> Result<HeartbeatState, ActorProcessingErr> {
        let HeartbeatArguments { seams, silent_after } = arguments;
        Ok(HeartbeatState { seams, listener: Listener::new(silent_after) })
    }

    async fn handle(
        &self,
        _: ActorRef<HeartbeatMessage>,
        message: HeartbeatMessage,
        state: &mut HeartbeatState,
    ) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        match message {
            HeartbeatMessage::Beat(node) => {
                state.listener.beat(node, now, state.seams.clock.now());
            }
            HeartbeatMessage::Forget(node) => state.listener.forget(node),
            HeartbeatMessage::Heard { nodes, reply } => {
                let _ = reply.send(state.listener.heard(nodes, now));
            }
        }
        Ok(())
    }
}

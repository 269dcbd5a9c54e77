//! Answers what other nodes' actors ask.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use crate::cluster::node_rpc::{NodeRequest, NodeResponse, StepDownError, VERSION, decode};
use crate::command::{COMMAND_VERSION, Refusal};
use crate::domain::codec;
use crate::domain::ids::GroupId;
use crate::ports::error::CallError;
use crate::ports::seams::Clock;
use crate::ports::{Declined, ProposeError, ReplicatedLog};
use crate::services::elector::Elector;

/// Answers the questions of other nodes.
pub struct NodeRpcHandler {
    log: Arc<dyn ReplicatedLog>,
    elector: Elector,
    clock: Arc<dyn Clock>,
}

impl NodeRpcHandler {
    /// About the groups of this node.
    pub const fn new(log: Arc<dyn ReplicatedLog>, elector: Elector, clock: Arc<dyn Clock>) -> Self {
        Self { log, elector, clock }
    }

    /// Answers one question.
    ///
    /// # Errors
    /// When it is none that this program understands, or the time is up.
    pub async fn serve(&self, request: &[u8], deadline: Instant) -> Result<Vec<u8>, Declined> {
        let answer = match decode(request).map_err(Declined)? {
            NodeRequest::Propose { envelope, .. } if envelope.version > COMMAND_VERSION => {
                // It may have been misread: what it asks for has to wait until this node is newer.
                return Err(Declined(format!(
                    "command version {} is not known here",
                    envelope.version
                )));
            }
            NodeRequest::Propose { group, mut envelope } => {
                // The node that leads says what time it is, not whoever asks.
                envelope.at = self.clock.now();
                match timeout_at(deadline, self.log.propose(group, *envelope)).await {
                    Ok(outcome) => NodeResponse::Proposed(outcome),
                    Err(_) => {
                        NodeResponse::Proposed(Err(ProposeError::Unknown("the time is up".into())))
                    }
                }
            }
            NodeRequest::Groups => NodeResponse::Groups(self.log.groups()),
            NodeRequest::StepDown { term } => {
                NodeResponse::SteppedDown(step_down_here(&self.elector, term, deadline).await)
            }
            NodeRequest::Room => NodeResponse::Room(self.log.room_for_copies()),
        };
        Ok(codec::encode(&(VERSION, answer)))
    }
}

/// Has this node step down, if it still leads in `term`.
async fn step_down_here(
    elector: &Elector,
    term: u64,
    deadline: Instant,
) -> Result<(), StepDownError> {
    let now = elector.current();
    if !now.here || now.term != term {
        return Ok(());
    }
    match elector.step_down(GroupId::SYSTEM, deadline).await {
        Ok(()) => Ok(()),
        Err(CallError::Refused(Refusal::NoOtherCandidate)) => Err(StepDownError::NoOtherCandidate),
        Err(error) => Err(StepDownError::NotYet(error.to_string())),
    }
}

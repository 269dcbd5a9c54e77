//! What nodes' actors ask each other: proposals for a group that another node leads, and how its
//! groups are. Heartbeats and API requests have services of their own.

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::command::{Envelope, Outcome};
use crate::domain::codec;
use crate::domain::ids::{GroupId, RaftId};
use crate::ports::{GroupStatus, PeerError, Peers, ProposeError, Service};

/// The shape of questions and answers that this program speaks.
pub(crate) const VERSION: u16 = 1;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum NodeRequest {
    Propose {
        group: GroupId,
        envelope: Box<Envelope>,
    },
    Groups,
    /// Let another lead the cluster, if you lead it in this term.
    StepDown {
        term: u64,
    },
    /// How many bytes may be copied to you? A node of the version before does not know the question, and declines.
    Room,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum NodeResponse {
    Proposed(Result<Outcome, ProposeError>),
    Groups(Vec<GroupStatus>),
    SteppedDown(Result<(), StepDownError>),
    Room(u64),
}

/// Why a leader did not step down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StepDownError {
    /// Nobody else could lead.
    #[error("no other node could lead")]
    NoOtherCandidate,
    /// Nobody else leads yet.
    #[error("{0}")]
    NotYet(String),
}

/// Proposes at another node. The outer error says that the question was not answered.
pub(crate) async fn propose(
    peers: &dyn Peers,
    to: RaftId,
    group: GroupId,
    envelope: Envelope,
    deadline: Instant,
) -> Result<Result<Outcome, ProposeError>, PeerError> {
    match ask(peers, to, &NodeRequest::Propose { group, envelope: Box::new(envelope) }, deadline)
        .await?
    {
        NodeResponse::Proposed(outcome) => Ok(outcome),
        _ => Err(strange(to)),
    }
}

/// The groups of another node.
pub(crate) async fn groups(
    peers: &dyn Peers,
    of: RaftId,
    deadline: Instant,
) -> Result<Vec<GroupStatus>, PeerError> {
    match ask(peers, of, &NodeRequest::Groups, deadline).await? {
        NodeResponse::Groups(groups) => Ok(groups),
        _ => Err(strange(of)),
    }
}

/// Has the leader of `term`, wherever it is, step down.
pub(crate) async fn step_down(
    peers: &dyn Peers,
    to: RaftId,
    term: u64,
    deadline: Instant,
) -> Result<Result<(), StepDownError>, PeerError> {
    match ask(peers, to, &NodeRequest::StepDown { term }, deadline).await? {
        NodeResponse::SteppedDown(done) => Ok(done),
        _ => Err(strange(to)),
    }
}

/// Asks another node how many bytes may be copied to it.
pub(crate) async fn room(
    peers: &dyn Peers,
    of: RaftId,
    deadline: Instant,
) -> Result<u64, PeerError> {
    match ask(peers, of, &NodeRequest::Room, deadline).await? {
        NodeResponse::Room(bytes) => Ok(bytes),
        _ => Err(strange(of)),
    }
}

async fn ask(
    peers: &dyn Peers,
    to: RaftId,
    question: &NodeRequest,
    deadline: Instant,
) -> Result<NodeResponse, PeerError> {
    let request = codec::encode(&(VERSION, question));
    let answer = peers.call(to, Service::Node, request, deadline).await?;
    decode(&answer).map_err(|why| PeerError::Lost { to, why })
}

fn strange(to: RaftId) -> PeerError {
    PeerError::Lost { to, why: "an answer to another question".to_owned() }
}

pub(crate) fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    // The version first: what stands behind a later one may have another shape.
    let version: u16 = codec::decode_first(bytes).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("version {version} is not spoken here"));
    }
    let (_, body): (u16, T) = codec::decode(bytes).map_err(|error| error.to_string())?;
    Ok(body)
}

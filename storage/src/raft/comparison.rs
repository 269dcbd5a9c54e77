//! Asks other replicas of a group what they hold, and tells one that it differs: the leader's side.

use std::time::Duration;

use shiioo_actors::domain::ids::{Position, RaftId, StateMachineId};
use shiioo_actors::ports::{ProposeError, StateDigest};

use super::group::Group;
use super::wire::{Differs, DigestAt, RequestBody, Response};

/// Time for a replica to say what it held: it is woken, and hashes for half of that at most.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a replica to go out of service.
const DIFFERS_TIMEOUT: Duration = Duration::from_secs(10);

impl Group {
    /// Asks a member what its replica of a state machine held at a position.
    pub async fn digest_of(
        &self,
        member: RaftId,
        part: StateMachineId,
        at: Position,
    ) -> Result<Option<StateDigest>, ProposeError> {
        let (replica, question) = (self.network().replica(member), DigestAt { part, at });
        match replica.call(RequestBody::DigestAt(question), DIGEST_TIMEOUT).await {
            Ok(Response::Digest(digest)) => Ok(digest),
            Ok(_) => Err(ProposeError::Unknown(replica.unexpected_reply().to_string())),
            Err(error) => Err(ProposeError::Unknown(error.to_string())),
        }
    }

    /// Tells a member that what it held of a state machine is not what two others held.
    pub async fn tell_difference(
        &self,
        member: RaftId,
        part: StateMachineId,
        at: Position,
        digest: StateDigest,
    ) -> Result<(), ProposeError> {
        // A node that does not lead any more leaves it to the next leader, which compares again.
        let vote = self.leading_vote().ok_or(ProposeError::NotLeader)?;
        let (replica, notice) =
            (self.network().replica(member), Differs { vote, part, at, digest });
        match replica.call(RequestBody::Differs(notice), DIFFERS_TIMEOUT).await {
            Ok(Response::Noted) => Ok(()),
            Ok(_) => Err(ProposeError::NotLeader),
            Err(error) => Err(ProposeError::Unknown(error.to_string())),
        }
    }
}

//! Asks other members from a node on which no group runs: how their groups are, and to propose a command to
//! group 0. The node knows members, and not which of them leads.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::cluster::node_rpc;
use crate::command::{Command, Outcome, SystemCommand};
use crate::domain::ids::{GroupId, RaftId};
use crate::ports::seams::Seams;
use crate::ports::{GroupStatus, Peers};
use crate::services::mailbox::internal_envelope;

/// How long one member may take to answer.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Pause before all members are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Asks each member how its groups are. Of a group that several have, what is said in the latest term counts.
/// Who does not answer is left out.
pub async fn groups_elsewhere(
    peers: &dyn Peers,
    members: &[RaftId],
) -> BTreeMap<GroupId, GroupStatus> {
    let mut known: BTreeMap<GroupId, GroupStatus> = BTreeMap::new();
    for &member in members {
        let groups = node_rpc::groups(peers, member, Instant::now() + ASK_MAX).await;
        for status in groups.unwrap_or_default() {
            let is_newer = known.get(&status.group).is_none_or(|it| it.term < status.term);
            if is_newer {
                known.insert(status.group, status);
            }
        }
    }
    known
}

/// Asks the members, one after the other, to propose a command, until there is an outcome. The command may be
/// applied twice.
///
/// # Errors
/// When there is no outcome by `deadline`: what the member that was asked last said.
pub async fn petition(
    peers: &dyn Peers,
    members: &[RaftId],
    seams: &Seams,
    command: &SystemCommand,
    deadline: Instant,
) -> Result<Outcome, String> {
    let mut last = "no other member is known here".to_owned();
    loop {
        for &member in members {
            let envelope = internal_envelope(seams, None, Command::System(command.clone()));
            let until = deadline.min(Instant::now() + ASK_MAX);
            match node_rpc::propose(peers, member, GroupId::SYSTEM, envelope, until).await {
                Ok(Ok(outcome)) => return Ok(outcome),
                // It may be for another one to propose.
                Ok(Err(error)) => last = error.to_string(),
                Err(error) => last = error.to_string(),
            }
        }
        if Instant::now() >= deadline {
            return Err(last);
        }
        sleep(ASK_AGAIN).await;
    }
}

//! The control plane's files are damaged or gone, on a node whose log is whole.
//!
//! The problem: what the log was cut up to stood in these files and nowhere else on this node, and
//! without it the node knows neither tenants nor members. Its log and its vote are whole, so that it
//! answers its group as before: what it acknowledged it has, and it votes no second time in a term.
//!
//! The protocol: the node asks the leader of group 0 for all that it holds, again and again, and goes on
//! from that. Until then nothing else of it starts, so it proposes nothing and answers nobody but other
//! replicas. Where it is elected itself it has the other voters catch up from its log, and hands the lead
//! over to the one that lacks least.
//!
//! Invariants:
//! - what has come is taken only if it goes at least as far as the log says that the files went;
//! - the log keeps saying so until the new files are durable: a crash in between is damage again;
//! - the files are moved aside and not removed.
//!
//! Deliberately not done: it may campaign. A voter that has more than the others, and did not, could keep
//! a group without a leader for ever.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::actor::ControlArguments;
use super::message::ControlCopy;
use crate::domain::ids::{GroupId, StateMachineId};
use crate::ports::{ProposeError, StoreError};
use crate::replica::ReplicaRunner;
use crate::state::system::SystemState;

/// Pause between two requests for a copy: the group may have no leader yet.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// After how many requests in vain the log says so: every ten seconds.
const ASKS_PER_WARNING: u32 = 20;

/// Puts what the leader of group 0 holds in the place of damaged files, and goes on from there.
///
/// # Errors
/// The `damage`, on a node that has nobody to ask.
pub(super) async fn heal(
    arguments: &ControlArguments,
    damage: StoreError,
) -> Result<ReplicaRunner<SystemState>, StoreError> {
    let ControlArguments { deps, log, queue, registry, raft_id, .. } = arguments;
    let replicas = log.voters(GroupId::SYSTEM).map(|voters| voters.replicas());
    if !replicas.is_some_and(|replicas| replicas.iter().any(|other| other != raft_id)) {
        return Err(damage);
    }
    tracing::error!(
        %damage,
        "the control plane's files cannot be used: they are rebuilt from the cluster's leader"
    );
    let mut copies = registry.want_control();
    let mut asks = interval(ASK_EVERY);
    asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asked = 0_u32;
    loop {
        // What has come goes first: the request that is dropped for it is not needed any more.
        let copy = tokio::select! {
            biased;
            copy = copies.recv() => copy,
            _ = asks.tick() => {
                asked = asked.wrapping_add(1);
                if let Err(error) = ask(arguments).await && asked.is_multiple_of(ASKS_PER_WARNING) {
                    tracing::warn!(
                        %error,
                        "nobody sends the control plane yet: group 0 may have no leader, or this node may \
                         have been removed from the cluster"
                    );
                }
                continue;
            }
        };
        let Some(ControlCopy { staged, taken }) = copy else { return Err(damage) };
        let (deps, queue) = (deps.clone(), queue.clone());
        let (group, part) = (GroupId::SYSTEM, StateMachineId::System);
        match ReplicaRunner::rebuild(deps, group, part, queue, staged).await {
            Ok((runner, _)) => {
                tracing::warn!("the control plane is whole again");
                let _ = taken.send(Ok(()));
                return Ok(runner);
            }
            Err(error) => {
                tracing::warn!(%error, "what came cannot take the place of the control plane's files");
                let _ = taken.send(Err(error));
            }
        }
    }
}

/// Asks the leader for a copy, or has another lead that can be asked.
async fn ask(arguments: &ControlArguments) -> Result<(), ProposeError> {
    let ControlArguments { log, raft_id, .. } = arguments;
    if log.leads(GroupId::SYSTEM).is_none() {
        return log.ask_for_copy(GroupId::SYSTEM, StateMachineId::System).await;
    }
    let groups = log.groups().into_iter();
    let replicas = groups.filter(|it| it.group == GroupId::SYSTEM).flat_map(|it| it.replicas);
    let others = replicas.filter(|replica| replica.voter && replica.raft_id != *raft_id);
    let best = others.max_by_key(|replica| replica.applied).ok_or(ProposeError::NoLeader)?;
    log.transfer(GroupId::SYSTEM, best.raft_id).await
}

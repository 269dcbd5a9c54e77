//! The elector: publishes and steers leadership of the system group. It never votes: Raft does.
//!
//! The problem: clients, operators and other nodes ask who leads, and act upon the answer. Raft on
//! a follower goes on naming a leader that nobody hears any more, and a follower of an isolated
//! leader hears it well. The answer must become 'nobody' within two election timeouts, and a client
//! that holds the name of a leader must be able to tell it from the one before.
//!
//! The protocol, with T for the election timeout:
//! - *Publishing.* [`Elector::current`] believes Raft about this node alone, while a quorum has
//!   answered it within T/2; that is looked at anew with each question, for a process that stood
//!   still must not believe an old answer. About another node it believes that node's own word,
//!   which comes with its pings (`services/heartbeat/`): heard within T/2, and of no older term
//!   than Raft knows here (decision 9).
//! - *Announcing.* Each term that begins here is proposed as `LeaderElected`, stamped with the
//!   term. It seizes the lock `cluster/leader`, whose fencing token grows with each leader. An
//!   attempt that fails is repeated after 200 ms, while the term is led.
//! - *Handing over.* [`Elector::step_down`] picks the voter that is well, does not stop, and is least
//!   behind (`state`), has Raft transfer the lead, and returns when another leads. It does so for any
//!   group that this node leads. Clients ask for it, and placement, where the leader is to leave or its
//!   disk is full. A node that stops does so for all groups at once ([`Elector::hand_over_all`]), after
//!   it has said goodbye: else the others, who see that it leads too little, would give leads back.
//!
//! The race: the lead may be lost, or lost and regained, while an announcement is under way. Its
//! failure comes back as a message with its term, and the elector looks at the leadership of *now*:
//! a failure of another term than the one announced last says nothing. An announcement that arrives
//! late does nothing, because its envelope counts in its own term only.
//!
//! Invariants:
//! - `current` names a leader only while this node knows one that a quorum confirmed;
//! - each term this node leads is visible as the lock `cluster/leader`, with a fencing token, once
//!   the announcement is applied;
//! - nothing here changes who leads but a transfer that Raft carries out.
//!
//! Deliberately not done: no node is preferred as leader, and who leads the tenants' groups is not
//! published: the router knows (`cluster/routing/`).

mod actor;
mod message;
mod state;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

pub use actor::{ElectorActor, ElectorArguments};
pub use message::ElectorMessage;

use crate::cluster::routing::LeaderHints;
use crate::command::Refusal;
use crate::domain::ids::{GroupId, RaftId};
use crate::ports::error::CallError;
use crate::ports::{Leadership, ReplicatedLog};
use crate::services::control::Control;
use crate::services::heartbeat::Heartbeats;
use crate::state::system::SystemState;
use state::{Unfit, successor};

/// Longest wait for the control plane to say who has said goodbye.
const STOPPING_KNOWN_WITHIN: Duration = Duration::from_millis(200);

/// Handle to the elector.
#[derive(Clone)]
pub struct Elector {
    leadership: watch::Receiver<Leadership>,
    hints: watch::Receiver<LeaderHints>,
    log: Arc<dyn ReplicatedLog>,
    control: Control,
    heartbeats: Heartbeats,
    raft_id: RaftId,
    hint_valid: Duration,
}

/// What an elector's handle works with.
pub struct ElectorSources {
    /// Leadership of the system group, as Raft on this node knows it.
    pub leadership: watch::Receiver<Leadership>,
    /// What the leaders of groups say of themselves.
    pub hints: watch::Receiver<LeaderHints>,
    /// The groups.
    pub log: Arc<dyn ReplicatedLog>,
    /// Which members have said goodbye.
    pub control: Control,
    /// How the members are.
    pub heartbeats: Heartbeats,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
    /// After so long without a leader there is a new one.
    pub election_timeout: Duration,
}

impl Elector {
    /// A handle.
    pub fn new(sources: ElectorSources) -> Self {
        let ElectorSources {
            leadership,
            hints,
            log,
            control,
            heartbeats,
            raft_id,
            election_timeout,
        } = sources;
        // A leader's own lease is as long; both together stay within an election timeout and a
        // bit, and a hint may miss a ping.
        let hint_valid = election_timeout / 2;
        Self { leadership, hints, log, control, heartbeats, raft_id, hint_valid }
    }

    /// Who leads now: this node while a quorum confirms it, or another that said so a moment ago.
    /// A node that is cut off knows of none.
    pub fn current(&self) -> Leadership {
        let known = *self.leadership.borrow();
        if let Some(term) = self.log.leads(GroupId::SYSTEM) {
            return Leadership { term, leader: Some(self.raft_id), here: true };
        }
        let hints = self.hints.borrow();
        let hint = hints.get(&GroupId::SYSTEM);
        let hint =
            hint.filter(|hint| hint.term >= known.term && hint.heard.elapsed() < self.hint_valid);
        match hint {
            Some(hint) => Leadership { term: hint.term, leader: Some(hint.raft_id), here: false },
            None => Leadership { leader: None, here: false, ..known },
        }
    }

    /// Who leads, once somebody does.
    ///
    /// # Errors
    /// When nobody does by `deadline`.
    pub async fn led(&self, deadline: Instant) -> Result<Leadership, CallError> {
        let (mut leadership, mut hints) = (self.leadership.clone(), self.hints.clone());
        loop {
            // After the changes were marked as seen, by `changed` below: none falls between the look and
            // the wait. That a lease or a hint ends is no change, and only makes the answer 'nobody'.
            let now = self.current();
            if now.leader.is_some() {
                return Ok(now);
            }
            tokio::select! {
                changed = leadership.changed() => if changed.is_err() {
                    return Err(CallError::Stopping);
                },
                changed = hints.changed() => if changed.is_err() {
                    return Err(CallError::Stopping);
                },
                () = sleep_until(deadline) => return Err(CallError::NoLeader),
            }
        }
    }

    /// Hands over every lead that this node has, all at once, and those that came to it meanwhile. Gives how
    /// each of them ended.
    pub async fn hand_over_all(&self, deadline: Instant) -> Vec<(GroupId, Result<(), CallError>)> {
        let mut all = Vec::new();
        loop {
            let groups = self.log.groups().into_iter().map(|status| status.group);
            // As Raft has it: a lead that no quorum has confirmed yet is one, too.
            let is_here = |group| self.log.leadership(group).is_some_and(|lead| lead.borrow().here);
            let led = groups.filter(|group| is_here(*group));
            let hand_over = async |group| (group, self.step_down(group, deadline).await);
            let ended = join_all(led.map(hand_over)).await;
            // Where nobody takes a lead now, nobody would at once.
            let goes_on = ended.iter().any(|(_, ended)| ended.is_ok());
            all.extend(ended);
            if !goes_on {
                return all;
            }
        }
    }

    /// Hands the lead of a group over to another voter that is well and has caught up best. Returns
    /// when another leads.
    ///
    /// # Errors
    /// When this node does not lead the group, nobody else could, or nobody else did by `deadline`.
    pub async fn step_down(&self, group: GroupId, deadline: Instant) -> Result<(), CallError> {
        let health = self.heartbeats.health(deadline).await?;
        // Where it is not known soon, the group is better off with any of the others than with this node.
        let soon = deadline.min(Instant::now() + STOPPING_KNOWN_WITHIN);
        let stopping = self.control.read(soon, stopping).await.unwrap_or_default();
        let groups = self.log.groups();
        let status = groups.iter().find(|status| status.group == group);
        let replicas = status.map_or(&[][..], |status| &status.replicas);
        let damaged = health.iter().filter(|(_, it)| it.damaged.contains(&group));
        let damaged: BTreeSet<RaftId> = damaged.map(|(id, _)| *id).collect();
        let candidate =
            successor(group, replicas, &health, &Unfit { damaged, stopping }, self.raft_id);
        let to = candidate.ok_or(Refusal::NoOtherCandidate)?;
        let mut leadership = self.log.leadership(group).ok_or(CallError::NoLeader)?;
        self.log.transfer(group, to).await?;
        // Looks at the present value first: the other may lead before this waits.
        let is_other = |now: &Leadership| now.leader.is_some_and(|leader| leader != self.raft_id);
        match timeout_at(deadline, leadership.wait_for(is_other)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(CallError::Stopping),
            Err(_) => {
                Err(CallError::Unknown { why: "no other node has taken the lead yet".to_owned() })
            }
        }
    }
}

/// Finds the members that have said goodbye.
fn stopping(state: &SystemState) -> BTreeSet<RaftId> {
    let offline = state.members().filter(|(_, _, member)| member.offline);
    offline.map(|(_, _, member)| member.raft_id).collect()
}

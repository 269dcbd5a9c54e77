//! Brings commands of the node itself to whoever leads their group, wherever that is.
//!
//! Requests of clients go another way: whole, to the node that owns what they are about (see
//! [`Routes`](crate::handles::Routes)). What goes through here may be proposed twice without harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::node_rpc;
use crate::cluster::routing::{LeaderHint, LeaderHints};
use crate::command::{Envelope, Outcome};
use crate::domain::ids::{GroupId, RaftId};
use crate::domain::voters::Voters;
use crate::ports::error::CallError;
use crate::ports::{LogStatus, PeerError, Peers, Proposals, ProposeError};

/// Wait before the next attempt, at first.
const RETRY_MIN: Duration = Duration::from_millis(10);
/// Wait before the next attempt, at most.
const RETRY_MAX: Duration = Duration::from_millis(200);

/// Where a group is led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// On this node, which a quorum has confirmed.
    Here,
    /// On the node with this raft id, as far as is known here.
    There(RaftId),
    /// Nobody knows at the moment.
    Unknown,
}

/// See the module.
#[derive(Clone)]
pub struct Router {
    log: Arc<dyn Proposals>,
    status: Arc<dyn LogStatus>,
    peers: Arc<dyn Peers>,
    hints: watch::Receiver<LeaderHints>,
    hint_valid: Duration,
    raft_id: RaftId,
}

/// What a router works with.
pub struct RouterSources {
    /// The groups of this node.
    pub log: Arc<dyn Proposals>,
    /// How they are.
    pub status: Arc<dyn LogStatus>,
    /// The way to other nodes.
    pub peers: Arc<dyn Peers>,
    /// What the leaders of groups say of themselves.
    pub hints: watch::Receiver<LeaderHints>,
    /// After so long without a leader there is a new one.
    pub election_timeout: Duration,
    /// This node's id in Raft groups.
    pub raft_id: RaftId,
}

impl Router {
    /// See [`RouterSources`].
    pub fn new(sources: RouterSources) -> Self {
        let RouterSources { log, status, peers, hints, election_timeout, raft_id } = sources;
        Self { log, status, peers, hints, hint_valid: election_timeout, raft_id }
    }

    /// The way to other nodes.
    pub fn peers(&self) -> &dyn Peers {
        &*self.peers
    }

    /// Where a group is led.
    pub fn lead(&self, group: GroupId) -> Lead {
        let here = self.log.leadership(group).map(|leadership| *leadership.borrow());
        let here = here.unwrap_or_default();
        if here.here {
            return Lead::Here;
        }
        if let Some((raft_id, _)) = self.hint(group).filter(|(_, term)| *term >= here.term) {
            return Lead::There(raft_id);
        }
        match here.leader {
            Some(leader) if leader != self.raft_id => Lead::There(leader),
            _ => Lead::Unknown,
        }
    }

    /// Who said a moment ago that it leads a group, and in which term. A node that has just
    /// started, perhaps at another address, hears that before the leader finds it; a node without
    /// a replica of the group knows nothing else.
    fn hint(&self, group: GroupId) -> Option<(RaftId, u64)> {
        let hints = self.hints.borrow();
        let hint = hints.get(&group)?;
        (hint.heard.elapsed() < self.hint_valid).then_some((hint.raft_id, hint.term))
    }

    /// Raft id of who leads a group, if that is known here.
    pub fn leader(&self, group: GroupId) -> Option<RaftId> {
        match self.lead(group) {
            Lead::Here => Some(self.raft_id),
            Lead::There(raft_id) => Some(raft_id),
            Lead::Unknown => None,
        }
    }

    /// Who votes in a group: as its leader says, else as this node's own replica has it, else as
    /// the group was placed.
    pub fn voters(&self, group: GroupId, placed: &[RaftId]) -> Voters {
        let own = || self.status.voters(group).filter(|voters| !voters.sets.is_empty());
        let known = self.known_voters(group).or_else(own);
        known.unwrap_or_else(|| Voters::of(placed.iter().copied()))
    }

    /// Who votes in a group, as its leader says; `None` while none is known.
    pub fn known_voters(&self, group: GroupId) -> Option<Voters> {
        if self.log.leads(group).is_some() {
            return self.status.voters(group);
        }
        let hints = self.hints.borrow();
        let hint = hints.get(&group)?;
        (hint.heard.elapsed() < self.hint_valid).then(|| hint.voters.clone())
    }

    /// What the leader of a group said of it a moment ago, if it is another node.
    pub fn told(&self, group: GroupId) -> Option<LeaderHint> {
        let hints = self.hints.borrow();
        hints.get(&group).filter(|hint| hint.heard.elapsed() < self.hint_valid).cloned()
    }

    /// Waits until a group is led elsewhere than at `known`, as far as is known here.
    pub async fn moved(&self, group: GroupId, known: Lead) {
        let mut leadership = self.log.leadership(group);
        let mut hints = self.hints.clone();
        while self.lead(group) == known {
            let changed = async {
                match &mut leadership {
                    Some(leadership) => leadership.changed().await,
                    None => std::future::pending().await,
                }
            };
            let changed = tokio::select! {
                changed = changed => changed,
                changed = hints.changed() => changed,
                // A hint grows too old without a change of anything.
                () = sleep(self.hint_valid) => Ok(()),
            };
            if changed.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Proposes until there is an outcome. Each attempt is made anew by `make`, which looks whether
    /// what is to be said is still true: an attempt may come long after the one before it. `None`
    /// when it has nothing to say any more.
    ///
    /// # Errors
    /// When there is none by `deadline`, or the disk is full, or the tenant is quarantined, or this
    /// node stops.
    pub async fn propose<F>(
        &self,
        group: GroupId,
        deadline: Instant,
        make: impl Fn() -> F,
    ) -> Result<Option<Outcome>, CallError>
    where
        F: Future<Output = Result<Option<Envelope>, CallError>>,
    {
        let mut wait = RETRY_MIN;
        let mut last = CallError::NoLeader;
        loop {
            let lead = self.lead(group);
            let is_proposed = AtomicBool::new(false);
            let attempt = async {
                let Some(envelope) = make().await? else { return Ok(None) };
                is_proposed.store(true, Ordering::Relaxed);
                self.attempt(group, lead, envelope, deadline).await.map(Some)
            };
            let moved = async {
                self.moved(group, lead).await;
                Err(CallError::Unknown { why: "the group is led elsewhere now".to_owned() })
            };
            let attempted = tokio::select! {
                biased;
                attempted = attempt => attempted,
                moved = moved => moved,
                () = sleep_until(deadline) => {
                    // What is under way may still come to be.
                    let why = || "there was no outcome by the deadline".to_owned();
                    let is_out = is_proposed.load(Ordering::Relaxed);
                    return Err(if is_out { CallError::Unknown { why: why() } } else { last });
                }
            };
            // What an earlier attempt may have done, no later one can deny.
            let is_in_doubt = matches!(last, CallError::Unknown { .. });
            match attempted {
                Ok(outcome) => return Ok(outcome),
                Err(error) if error.ends_attempts() => {
                    return Err(if is_in_doubt { last } else { error });
                }
                Err(_) if is_in_doubt => {}
                Err(error) => last = error,
            }
            let again = Instant::now() + wait;
            tokio::select! {
                () = self.moved(group, lead) => {}
                () = sleep_until(again) => {}
                () = sleep_until(deadline) => return Err(last),
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn attempt(
        &self,
        group: GroupId,
        lead: Lead,
        envelope: Envelope,
        deadline: Instant,
    ) -> Result<Outcome, CallError> {
        let to = match lead {
            Lead::Here => return Ok(self.log.propose(group, envelope).await?),
            Lead::There(to) => to,
            Lead::Unknown => return Err(CallError::NoLeader),
        };
        match node_rpc::propose(&*self.peers, to, group, envelope, deadline).await {
            // The other node stops; this one may go on and ask the next.
            Ok(Err(ProposeError::Stopping)) => Err(CallError::NoLeader),
            Ok(outcome) => Ok(outcome?),
            Err(PeerError::Unreachable { .. } | PeerError::Declined { .. }) => {
                Err(CallError::NoLeader)
            }
            Err(error @ PeerError::Lost { .. }) => {
                Err(CallError::Unknown { why: error.to_string() })
            }
        }
    }
}

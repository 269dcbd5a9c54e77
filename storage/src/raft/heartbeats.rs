//! The heartbeats of all groups on a node: sent at the same moment, one message to each peer.
//!
//! The problem: a node has nine groups and more. A heartbeat for each group and peer, each when that
//! group's own clock says so, is a message for each, and openraft looks at its clock five times in
//! that time besides. An idle node would spend most of its work on that.
//!
//! # Protocol
//!
//! 1. One timer ([`heartbeat_timer`](super::heartbeat_timer)) triggers the heartbeats of all groups
//!    that the node leads. openraft gives each of them, for each follower, to the group's `Network`.
//! 2. The first to a peer waits for a *window*, far shorter than the pause between heartbeats. What
//!    comes for the same peer meanwhile travels with it.
//! 3. The peer has its groups answer side by side and sends the answers back together. A group that
//!    has not answered within the *patience* is left out.
//! 4. A group that was left out, and every group where the peer declines the message, as a version
//!    that does not know it would, is asked alone, as with entries.
//!
//! # What is urgent
//!
//! A read that waits for a round of heartbeats waits for no window: while one waits, the heartbeats of
//! its group travel alone, and a message that one of them is in leaves at once
//! ([`HeartbeatBatches::hurry`]). A new leader sends an entry, which is no heartbeat.
//!
//! # Invariants
//!
//! - Each group has its own answer. One that is slow, or not there, delays the others by the patience
//!   at most.
//! - A message holds up to [`HEARTBEATS_MAX`] heartbeats; what is beyond travels alone.
//! - Messages of replication never wait for a window, also those without entries, which tell the commit
//!   index: openraft has a client of its own for heartbeats.
//!
//! # What is not done
//!
//! Groups in which nothing happens go on having heartbeats; none is put to rest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use shiioo_actors::domain::ids::{GroupId, RaftId};
use shiioo_actors::ports::{Declined, PeerError, Peers, Service};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::flow_control::time_allowed;
use super::groups::Groups;
use super::network::{Network, Replica};
use super::wire::{
    self, Append, AppendReply, HEARTBEATS_MAX, HeartbeatReplies, Heartbeats, RequestBody, Response,
};

/// Heartbeats in an election timeout.
pub(super) const HEARTBEATS_PER_TIMEOUT: u32 = 5;
/// Windows in the pause between two heartbeats.
const WINDOWS_PER_PAUSE: u32 = 32;
/// Patiences, in which a group has to answer together with others, in the time of a call.
const PATIENCES_PER_CALL: u32 = 4;

/// Connects a group with the timer and with whatever sends its heartbeats.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// When a heartbeat of the group last left here, or a leader's message was last accepted.
    pub(super) last_sign: Mutex<Option<Instant>>,
    /// Rounds of heartbeats that a read waits for.
    urgent: AtomicUsize,
    /// Told each time that the timer has looked at the group.
    pub(super) triggered: Notify,
}

impl Pulse {
    /// Notes a sign of life of the group's leader, at this moment.
    pub fn sign(&self, at: Instant) {
        let mut last = self.last_sign.lock();
        *last = (*last).max(Some(at));
    }
}

/// Marks the heartbeats of a group as urgent until it is dropped.
pub(super) struct Urgent<'a>(&'a Pulse);

impl Drop for Urgent<'_> {
    fn drop(&mut self) {
        self.0.urgent.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Network {
    /// Has the heartbeats of the group wait for nothing, until what is returned is dropped.
    pub(super) fn hurry(&self) -> Urgent<'_> {
        self.pulse.urgent.fetch_add(1, Ordering::Relaxed);
        // After the line above, so that the read's own heartbeats, which openraft makes after this, are
        // not added to a message that waits. An earlier one may slip in between: it costs one window.
        self.heartbeats.hurry(self.group());
        Urgent(&self.pulse)
    }
}

impl Replica {
    /// Sends a heartbeat: with those of other groups, or alone where that is urgent or the replica
    /// did not answer it among them.
    pub(super) async fn heartbeat(
        &self,
        append: Append,
        base: Duration,
    ) -> Result<Response, PeerError> {
        let Network { pulse, heartbeats, .. } = &self.network;
        pulse.sign(Instant::now());
        let deadline = Instant::now() + base;
        if pulse.urgent.load(Ordering::Relaxed) == 0 {
            let group = self.network.group();
            match heartbeats.send(self.raft_id, group, append.clone(), deadline).await {
                Ok(Some(reply)) => return Ok(Response::Append(reply)),
                Ok(None) | Err(PeerError::Declined { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let left = deadline.saturating_duration_since(Instant::now());
        self.call(RequestBody::Append(append), left).await
    }
}

/// Tells what became of a heartbeat: `None` where its group is to be asked alone.
pub(super) type Answer = Result<Option<AppendReply>, PeerError>;

/// Holds the heartbeats that wait to be sent to each peer.
pub(crate) struct HeartbeatBatches {
    peers: Arc<dyn Peers>,
    window: Duration,
    waiting: Mutex<BTreeMap<RaftId, Batch>>,
}

/// Holds the next message to a peer.
struct Batch {
    deadline: Instant,
    beats: Vec<(GroupId, Append)>,
    /// Where each of them is answered, in the same order.
    answers: Vec<oneshot::Sender<Answer>>,
    is_urgent: Arc<Notify>,
}

impl HeartbeatBatches {
    pub fn new(peers: Arc<dyn Peers>, election_timeout: Duration) -> Arc<Self> {
        let window = election_timeout / HEARTBEATS_PER_TIMEOUT / WINDOWS_PER_PAUSE;
        Arc::new(Self { peers, window, waiting: Mutex::default() })
    }

    /// Sends a heartbeat of a group together with those of others, and gives its answer.
    pub async fn send(
        self: &Arc<Self>,
        to: RaftId,
        group: GroupId,
        append: Append,
        deadline: Instant,
    ) -> Answer {
        let Some(answer) = self.add(to, group, append, deadline) else { return Ok(None) };
        let lost = |_| PeerError::Lost { to, why: "the heartbeats were not sent".into() };
        answer.await.map_err(lost)?
    }

    /// Puts a heartbeat into the next message, where there is room.
    fn add(
        self: &Arc<Self>,
        to: RaftId,
        group: GroupId,
        append: Append,
        deadline: Instant,
    ) -> Option<oneshot::Receiver<Answer>> {
        let mut waiting = self.waiting.lock();
        let batch = waiting.entry(to).or_insert_with(|| {
            let is_urgent = Arc::new(Notify::new());
            tokio::spawn(Arc::clone(self).send_soon(to, Arc::clone(&is_urgent)));
            Batch { deadline, beats: Vec::new(), answers: Vec::new(), is_urgent }
        });
        if batch.beats.len() == HEARTBEATS_MAX {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        batch.beats.push((group, append));
        batch.answers.push(sender);
        Some(receiver)
    }

    /// Sends at once what heartbeats of a group wait with.
    pub fn hurry(&self, group: GroupId) {
        let waiting = self.waiting.lock();
        for batch in waiting.values().filter(|it| it.beats.iter().any(|(of, _)| *of == group)) {
            batch.is_urgent.notify_one();
        }
    }

    /// Sends the message to a peer when its window is over, and hands out the answers.
    async fn send_soon(self: Arc<Self>, to: RaftId, is_urgent: Arc<Notify>) {
        // Biased, so that a simulation takes the same branch each time.
        tokio::select! {
            biased;
            () = is_urgent.notified() => {}
            () = tokio::time::sleep(self.window) => {}
        }
        // Taken before it is sent: what comes from now on is for the next one.
        let Some(Batch { deadline, beats, answers, .. }) = self.waiting.lock().remove(&to) else {
            return;
        };
        match self.call(to, beats, deadline).await {
            Ok(replies) => {
                for (answer, reply) in answers.into_iter().zip(replies) {
                    // Whoever waits no more needs no answer.
                    let _ = answer.send(Ok(reply));
                }
            }
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    async fn call(
        &self,
        to: RaftId,
        beats: Vec<(GroupId, Append)>,
        deadline: Instant,
    ) -> Result<Vec<Option<AppendReply>>, PeerError> {
        let sent = beats.len();
        let request = wire::encode(&Heartbeats(beats));
        let deadline = deadline + time_allowed(Duration::ZERO, request.len());
        let call = self.peers.call(to, Service::GroupHeartbeats, request, deadline);
        // The time is bounded here, too: what a transport does with a deadline is its own matter.
        let answer = timeout_at(deadline, call)
            .await
            .map_err(|_| PeerError::Lost { to, why: "too late".into() })??;
        match wire::decode(&answer) {
            Ok(HeartbeatReplies(replies)) if replies.len() == sent => Ok(replies),
            Ok(_) => Err(PeerError::Declined { to, why: "answers to other heartbeats".into() }),
            Err(why) => Err(PeerError::Declined { to, why }),
        }
    }
}

impl Groups {
    /// Answers the heartbeats of the groups that the member `from` leads.
    pub(super) async fn serve_heartbeats(
        &self,
        from: RaftId,
        request: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, Declined> {
        let heartbeats: Heartbeats = wire::decode(request).map_err(Declined)?;
        heartbeats.check().map_err(Declined)?;
        let now = Instant::now();
        let patience = now + deadline.saturating_duration_since(now) / PATIENCES_PER_CALL;
        let replies = heartbeats.0.into_iter().map(|(group, append)| async move {
            let group = self.ready(group).ok()?;
            let request = RequestBody::Append(append);
            match timeout_at(patience, group.serve(from, Service::Raft, request)).await {
                Ok(Ok(Response::Append(reply))) => Some(reply),
                // Asked alone, the group says what is wrong.
                _ => None,
            }
        });
        Ok(wire::encode(&HeartbeatReplies(join_all(replies).await)))
    }
}

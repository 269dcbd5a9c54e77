//! The shell around the heartbeat monitor's state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::watch;
use tokio::time::Instant;

use super::http_nodes::HttpNodeLiveness;
use super::incarnations::{Hello, HelloReply, Incarnation, LatestIncarnations, OwnIncarnation};
use super::message::HeartbeatMessage;
use super::{HELLO_VERSION, wire};
use crate::cluster::routing::LeaderHints;
use crate::domain::codec;
use crate::domain::ids::{NodeId, RaftId};
use crate::domain::views::NodeStatus;
use crate::ports::seams::Seams;
use crate::ports::{Peers, ReplicatedLog, Service};
use crate::services::heartbeat::failure_detector::{FailureDetector, Heartbeat};
use crate::services::mailbox::tell_changes;
use crate::services::tenants::Registry;

/// Pings in an election timeout.
const PINGS_PER_TIMEOUT: u32 = 5;
/// Each member is told this often which process this is; until it has answered, with every ping.
const HELLO_EVERY: Duration = Duration::from_secs(1);

/// The heartbeat monitor's actor.
pub struct HeartbeatActor;

/// What it starts with.
pub struct HeartbeatArguments {
    /// Time and chance.
    pub seams: Seams,
    /// How long a node registered over HTTP may be silent.
    pub silent_after: Duration,
    /// After so long without a leader there is a new one.
    pub election_timeout: Duration,
    /// The way to the members.
    pub peers: Arc<dyn Peers>,
    /// Who leads.
    pub log: Arc<dyn ReplicatedLog>,
    /// The tenants of this node.
    pub registry: Arc<Registry>,
    /// Where it publishes what the leaders of groups say of themselves.
    pub hints: watch::Sender<LeaderHints>,
    /// This node, as the others are told of it.
    pub node: NodeId,
    /// Where it says that the others reach it.
    pub node_addr: String,
}

/// Another process has this node's identity, and it started later.
#[derive(Debug, thiserror::Error)]
#[error(
    "another process with the identity of this node ({node}) runs at {at} and started later: it is \
     the member now, and this one stops. From now on this data directory is out of date: go on \
     with the other one, and start this node with an empty directory to have it join as a new one"
)]
struct Replaced {
    node: NodeId,
    at: String,
}

/// What it keeps.
pub struct HeartbeatState {
    arguments: HeartbeatArguments,
    http_nodes: HttpNodeLiveness,
    detector: FailureDetector,
    /// Members that have a ping to answer, and whether there is news for them since.
    asked: BTreeMap<RaftId, bool>,
    /// How each member was when it was last told to the log.
    told: BTreeMap<RaftId, NodeStatus>,
    own: OwnIncarnation,
    incarnations: LatestIncarnations,
    /// When each member is to be told which process this is.
    hellos: BTreeMap<RaftId, Instant>,
}

impl Actor for HeartbeatActor {
    type Msg = HeartbeatMessage;
    type State = HeartbeatState;
    type Arguments = HeartbeatArguments;

    async fn pre_start(
        &self,
        myself: ActorRef<HeartbeatMessage>,
        arguments: HeartbeatArguments,
    ) -> Result<HeartbeatState, ActorProcessingErr> {
        let every = arguments.election_timeout / PINGS_PER_TIMEOUT;
        myself.send_interval(every, || HeartbeatMessage::Ping);
        // Whoever leads now, or does not any more, says so at once.
        tell_changes(myself, arguments.log.leads_changed(), || HeartbeatMessage::News);
        Ok(HeartbeatState {
            http_nodes: HttpNodeLiveness::new(arguments.silent_after),
            detector: FailureDetector::new(arguments.election_timeout),
            asked: BTreeMap::new(),
            told: BTreeMap::new(),
            own: OwnIncarnation::new(Incarnation {
                number: u64::try_from(arguments.seams.clock.now().0).unwrap_or(0),
                chance: arguments.seams.uuid().as_u128(),
            }),
            incarnations: LatestIncarnations::default(),
            hellos: BTreeMap::new(),
            arguments,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<HeartbeatMessage>,
        message: HeartbeatMessage,
        state: &mut HeartbeatState,
    ) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        match message {
            HeartbeatMessage::HttpHeartbeat(node) => {
                state.http_nodes.beat(node, now, state.arguments.seams.clock.now());
            }
            HeartbeatMessage::Forget(node) => state.http_nodes.forget(node),
            HeartbeatMessage::Heard { nodes, reply } => {
                let _ = reply.send(state.http_nodes.heard(nodes, now));
            }
            HeartbeatMessage::SetMembers(members) => {
                state.detector.set(&members, now);
                state.incarnations.retain(&members);
                state.hellos.retain(|id, _| members.contains(id));
                state.publish();
            }
            HeartbeatMessage::Ping => {
                state.tell_changes(now);
                state.say_hello(&myself, now);
                state.ping(&myself, state.detector.ids());
            }
            HeartbeatMessage::News => {
                // Who owes an answer hears of it when that has come.
                state.asked.values_mut().for_each(|has_news| *has_news = true);
                state.ping(&myself, state.detector.ids());
            }
            HeartbeatMessage::Pinged { from, beat, reply } => {
                state.hear(from, beat, None);
                let _ = reply.send(state.beat(now));
            }
            HeartbeatMessage::Ponged { from, pong } => {
                let has_news = state.asked.remove(&from).unwrap_or_default();
                if let Some((beat, offset_ms)) = pong {
                    state.hear(from, beat, Some(offset_ms));
                }
                if has_news {
                    state.ping(&myself, vec![from]);
                }
            }
            HeartbeatMessage::Hello { from, hello, reply } => {
                let _ = reply.send(state.incarnations.hear(from, hello, now));
            }
            HeartbeatMessage::Welcomed { by, said, welcome } => {
                // With the next ping where there was no answer, or one that calls for another.
                let is_known =
                    matches!(welcome, Some(HelloReply::Known)) && said == state.own.incarnation;
                state.hellos.insert(by, if is_known { now + HELLO_EVERY } else { now });
                if let Some(later) = welcome.and_then(|it| state.own.welcomed(said, it, now)) {
                    // The node stops with what this actor fails with.
                    let node = state.arguments.node;
                    return Err(Replaced { node, at: later.node_addr }.into());
                }
            }
            HeartbeatMessage::Health(reply) => {
                let _ = reply.send(state.detector.health(now));
            }
        }
        Ok(())
    }
}

impl HeartbeatState {
    fn beat(&self, now: Instant) -> Heartbeat {
        Heartbeat {
            at: self.arguments.seams.clock.now(),
            leads: self.arguments.log.led(),
            silent_ms: self.detector.silent_ms(now),
            has_room: self.arguments.log.has_room(),
            damaged: self.arguments.registry.damaged_groups(),
            lacks_room_for_copy: self.arguments.log.lacks_room().is_some(),
        }
    }

    fn hear(&mut self, from: RaftId, beat: Heartbeat, offset_ms: Option<u64>) {
        let at = self.arguments.seams.clock.now();
        self.detector.heard(from, beat, offset_ms, Instant::now(), at);
        self.publish();
    }

    fn publish(&self) {
        let hints = self.detector.hints();
        self.arguments.hints.send_if_modified(|known| {
            let is_other = *known != hints;
            *known = hints;
            is_other
        });
    }

    /// Tells the log who is better or worse than before.
    fn tell_changes(&mut self, now: Instant) {
        let health = self.detector.health(now);
        for (raft_id, health) in &health {
            let before = self.told.insert(*raft_id, health.status);
            if before.is_some_and(|before| before != health.status) {
                tracing::info!(
                    raft_id = raft_id.0,
                    status = health.status.name(),
                    "a member's health changed"
                );
            }
        }
        self.told.retain(|raft_id, _| health.contains_key(raft_id));
    }

    /// Tells those whose time has come which process this is.
    fn say_hello(&mut self, myself: &ActorRef<HeartbeatMessage>, now: Instant) {
        let incarnation = self.own.incarnation;
        let hello = Hello { incarnation, node_addr: self.arguments.node_addr.clone() };
        let hello = codec::encode(&(HELLO_VERSION, hello));
        let deadline = now + self.arguments.election_timeout;
        for to in self.detector.ids() {
            if self.hellos.get(&to).is_some_and(|due| *due > now) {
                continue;
            }
            // Until the answer comes, which it does or does not by the deadline.
            self.hellos.insert(to, deadline + HELLO_EVERY);
            let (peers, myself) = (Arc::clone(&self.arguments.peers), myself.clone());
            let hello = hello.clone();
            tokio::spawn(async move {
                let answer = peers.call(to, Service::Hello, hello, deadline).await.ok();
                let welcome = answer.and_then(|answer| codec::decode(&answer).ok());
                let welcome = welcome
                    .filter(|(version, _): &(u16, HelloReply)| *version == HELLO_VERSION)
                    .map(|(_, welcome)| welcome);
                let answered = HeartbeatMessage::Welcomed { by: to, said: incarnation, welcome };
                let _ = myself.send_message(answered);
            });
        }
    }

    /// Pings those of `members` who owe no answer.
    fn ping(&mut self, myself: &ActorRef<HeartbeatMessage>, members: Vec<RaftId>) {
        let now = Instant::now();
        let beat = Arc::new(self.beat(now));
        let deadline = now + self.arguments.election_timeout;
        for to in members {
            if self.asked.contains_key(&to) {
                continue;
            }
            self.asked.insert(to, false);
            let (peers, clock) =
                (Arc::clone(&self.arguments.peers), Arc::clone(&self.arguments.seams.clock));
            let (myself, beat) = (myself.clone(), Arc::clone(&beat));
            tokio::spawn(async move {
                let pong = wire::ping(&*peers, &*clock, to, &beat, deadline).await;
                let _ = myself.send_message(HeartbeatMessage::Ponged { from: to, pong });
            });
        }
    }
}

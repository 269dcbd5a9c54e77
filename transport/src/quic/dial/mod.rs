//! The dialling side: finds the connection to a member, or makes it, and sends calls and streams over it.
//!
//! - [`members`] is the table of members: who may call, who may be called.
//! - [`link`] decides, without sockets or clocks, whether a call uses the connection that is there,
//!   waits for an attempt, starts one, or fails for now.
//! - [`connect`] turns `host:port` into a connection.

pub(crate) mod connect;
mod link;
pub(super) mod members;

use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::seams::Seams;
use shiioo_actors::ports::{
    Lane, PEER_CALL_MAX, PEER_MESSAGE_BYTES_MAX, Peer, PeerError, Service, StreamService,
};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use super::exchange::Exchange;
use super::exchange::frame::{FrameError, RequestHead, VERSION};
use super::exchange::stream::PeerStream;
use crate::pki::MemberName;
use crate::sockets::lookups::Lookups;
use connect::connect;
use link::NextStep;
use members::{Member, Members};

/// Longest attempt to connect to a member, ms.
pub(super) const ATTEMPT_MS_MAX: u64 = 1_000;
/// Bytes of long answers that this node reads at a time: further ones wait at the other ends.
const ANSWERS_BYTES_MAX: usize = 256 << 20;

/// Calls members.
pub(super) struct Dialler {
    pub endpoint: Endpoint,
    pub name: MemberName,
    pub members: Arc<Members>,
    client: ClientConfig,
    seams: Seams,
    lookups: Lookups,
    /// Permits for the bytes of long answers.
    answer_bytes: Semaphore,
    /// Further addresses at which members may be found.
    hints: Vec<String>,
    /// Whether a member has said that this node was removed.
    pub removed: watch::Sender<bool>,
    /// What a member has said that was recovered by force without this one.
    pub recovered: watch::Sender<Option<String>>,
    /// Runs the attempts to connect, and so the connections: one that a client's request asked for first carries
    /// everything else as well, and must not live on the clients' threads.
    runtime: Handle,
}

impl Dialler {
    /// Called on the runtime on which connections are to live.
    pub(super) fn new(
        endpoint: Endpoint,
        client: ClientConfig,
        name: MemberName,
        seams: Seams,
        lookups: Lookups,
        hints: Vec<String>,
    ) -> Arc<Self> {
        let (members, answer_bytes) = (Arc::default(), Semaphore::new(ANSWERS_BYTES_MAX));
        let recovered = watch::Sender::new(None);
        Arc::new(Self {
            endpoint,
            name,
            members,
            client,
            seams,
            lookups,
            answer_bytes,
            hints,
            removed: watch::Sender::new(false),
            recovered,
            runtime: Handle::current(),
        })
    }

    /// Notes what a member says of a recovery that this node was no part of.
    fn note_recovery(&self, peer: &Peer, told: String) {
        self.recovered.send_if_modified(|known| {
            let why = format!("member {} at {} says that {told}", peer.raft_id, peer.addr);
            let is_new = known.as_ref() != Some(&why);
            if is_new {
                tracing::error!(%why, "the cluster was recovered by force");
                *known = Some(why);
            }
            is_new
        });
    }

    /// Sends a request to a member and waits for the answer.
    ///
    /// # Errors
    /// [`PeerError::Unreachable`] when nothing was sent, [`PeerError::Declined`] when the other end
    /// did nothing, [`PeerError::Lost`] when the outcome is unknown.
    pub(super) async fn call(
        self: &Arc<Self>,
        to: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, PeerError> {
        let deadline = deadline.min(Instant::now() + service.call_max());
        let lane = service.lane(request.len());
        let (exchange, _permit) = self.open(to, lane, deadline).await?;
        let head = RequestHead {
            service: service as u8,
            time_left_ms: time_left_ms(deadline),
            bytes: request.len(),
        };
        let head = head.encode(PEER_MESSAGE_BYTES_MAX);
        let unsent = |error: FrameError| PeerError::Unreachable { to, why: error.to_string() };
        let head = head.map_err(unsent)?;
        // From here on the request may have been served, whatever goes wrong.
        match timeout_at(deadline, exchange.ask(head, request, &self.answer_bytes)).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(declined))) => Err(PeerError::Declined { to, why: declined.0 }),
            Ok(Err(broken)) => Err(PeerError::Lost { to, why: broken.to_string() }),
            Err(_) => Err(PeerError::Lost { to, why: "no answer before the deadline".to_owned() }),
        }
    }

    /// Opens a stream to a member. Nothing is sent before its first write.
    ///
    /// # Errors
    /// When nothing was sent.
    pub(super) async fn open_stream(
        self: &Arc<Self>,
        to: RaftId,
        service: StreamService,
        deadline: Instant,
    ) -> Result<PeerStream, PeerError> {
        let deadline = deadline.min(Instant::now() + PEER_CALL_MAX);
        let (exchange, permit) = self.open(to, service.lane(), deadline).await?;
        let time_left_ms = time_left_ms(deadline);
        let head = RequestHead { service: service as u8, time_left_ms, bytes: 0 }.encode(0);
        let unsent = |error: FrameError| PeerError::Unreachable { to, why: error.to_string() };
        Ok(PeerStream::calling(to, exchange, head.map_err(unsent)?, permit))
    }

    /// Opens a QUIC stream to a member, and takes its place among those of its lane.
    pub(super) async fn open(
        self: &Arc<Self>,
        to: RaftId,
        lane: Lane,
        deadline: Instant,
    ) -> Result<(Exchange, OwnedSemaphorePermit), PeerError> {
        let member = self
            .members
            .get(to)
            .ok_or_else(|| PeerError::Unreachable { to, why: "it is no member".to_owned() })?;
        // Before a connection is looked for: callers beyond the bound must not queue up for one.
        let permit = member.call_permit(lane)?;
        let opened = timeout_at(deadline, async {
            let connection = self.connection(&member).await?;
            let opened = connection.open_bi().await;
            let (send, receive) = opened.map_err(|error| member.unreachable(error.to_string()))?;
            Ok(Exchange::new(send, receive, PEER_MESSAGE_BYTES_MAX))
        });
        let late = "no connection before the deadline";
        let exchange = opened.await.map_err(|_| member.unreachable(late))??;
        exchange.set_lane(lane);
        Ok((exchange, permit))
    }

    /// Returns the connection to a member: the one that lives, or the next that is made.
    async fn connection(self: &Arc<Self>, member: &Arc<Member>) -> Result<Connection, PeerError> {
        let mut changes = member.link.subscribe();
        loop {
            // Marked as seen before the link is asked, so that no change after the question is
            // missed.
            changes.mark_unchanged();
            let mut step = NextStep::Wait;
            // Several callers may stand here: the link is asked and changed under one lock, so that
            // exactly one of them is told to dial.
            member.link.send_if_modified(|link| {
                step = link.next_step(Instant::now(), |bound| self.seams.below(bound));
                false
            });
            match step {
                NextStep::Use(connection) => return Ok(connection),
                NextStep::Fail(why) => return Err(member.unreachable(why)),
                // In a task of its own: the attempt goes on for the other callers when this one
                // is dropped.
                NextStep::Dial => {
                    drop(self.runtime.spawn(attempt(Arc::clone(self), Arc::clone(member))));
                }
                NextStep::Wait => {}
            }
            if changes.changed().await.is_err() {
                return Err(member.unreachable("it is no member any more"));
            }
        }
    }
}

/// Makes one attempt to connect to a member and records its outcome in the link.
async fn attempt(dialler: Arc<Dialler>, member: Arc<Member>) {
    let deadline = Instant::now() + Duration::from_millis(ATTEMPT_MS_MAX);
    let result = match timeout_at(deadline, reach(&dialler, &member, deadline)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer from {}", member.peer.addr)),
    };
    let now = Instant::now();
    let mut unwanted = None;
    // The member may have been removed during the attempt: the link then returns the connection,
    // which is closed outside its lock.
    member.link.send_modify(|link| match result {
        Ok(connection) => unwanted = link.connected(connection, now),
        Err(why) => link.failed(why, now, |bound| dialler.seams.below(bound)),
    });
    unwanted.iter().for_each(members::close_as_non_member);
}

/// Connects to a member where it last called from, else at the address in the log, side by side
/// with the next hint.
async fn reach(
    dialler: &Dialler,
    member: &Member,
    deadline: Instant,
) -> Result<Connection, String> {
    if let Some(addr) = member.moved_to() {
        // Half of the time only: an earlier process of the member may have called from there, and
        // the address in the log is then the right one.
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let addr = addr.to_string();
        let there = connect_greeted(dialler, &member.peer, &addr, half);
        if let Ok(Ok(connection)) = timeout_at(half, there).await {
            return Ok(connection);
        }
    }
    let known = connect_greeted(dialler, &member.peer, &member.peer.addr, deadline);
    let Some(hint) = member.next_hint(&dialler.hints) else { return known.await };
    let hinted = connect_greeted(dialler, &member.peer, hint, deadline);
    // Side by side: one address that swallows packets would use up the time of the other. Biased,
    // so that a simulation takes the same branch each time.
    tokio::select! {
        biased;
        Ok(connection) = known => Ok(connection),
        Ok(connection) = hinted => Ok(connection),
        else => Err(format!("neither at {} nor at {hint}", member.peer.addr)),
    }
}

/// Connects and waits for the greeting, which says that the other end takes this node's calls.
async fn connect_greeted(
    dialler: &Dialler,
    peer: &Peer,
    addr: &str,
    deadline: Instant,
) -> Result<Connection, String> {
    let name = MemberName { raft_id: peer.raft_id, node: peer.node, cluster: dialler.name.cluster };
    let Dialler { endpoint, client, lookups, .. } = dialler;
    let connection = connect(endpoint, lookups, client, addr, &name.to_string(), deadline).await?;
    let mut stream = connection.accept_uni().await.map_err(|error| {
        if let Some(told) = members::told_of_recovery(&error) {
            dialler.note_recovery(peer, told);
        }
        if members::told_of_removal(&error) {
            dialler.removed.send_replace(true);
        }
        error.to_string()
    })?;
    let mut version = [0];
    stream.read_exact(&mut version).await.map_err(|error| error.to_string())?;
    match version {
        [VERSION] => Ok(connection),
        [other] => Err(format!("it speaks version {other:#04x} of the frames, not {VERSION:#04x}")),
    }
}

/// Returns the time until a deadline as it is sent: rounded up, so that a short wait is not zero.
fn time_left_ms(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX).saturating_add(1)
}

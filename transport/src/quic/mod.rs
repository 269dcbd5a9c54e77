//! QUIC between nodes: calls to other members, and the door at which members and those who want
//! to be members knock.
//!
//! - One socket a node, one connection that it dials to each member, one stream a call. Each node
//!   asks on what it dialled and answers on what others dialled, so that neither waits for the
//!   other's connection.
//! - An attempt to connect is over when the other end has *greeted*: it has judged our
//!   certificate and our membership. A request is written only after that, so that a refusal
//!   always means 'not done' and never 'lost'.
//! - Who calls is known by its certificate: raft id, node and cluster, all three, and only while
//!   it is among the members that were last set.
//! - Whatever the network brings is bounded before it is held: streams, bytes, handshakes,
//!   strangers (`door`, `settings`).

mod door;
mod link;
mod members;
mod refusals;
mod serve;
mod strangers;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{
    AsyncUdpSocket, ClientConfig, Connection, Endpoint, ServerConfig, TokioRuntime, VarInt,
};
use shiioo_actors::ports::seams::{Seams, Tcp};
use shiioo_actors::ports::{
    BoxFuture, JoinService, PEER_CALL_MAX, PEER_MESSAGE_BYTES_MAX, Peer, PeerError, PeerService,
    Peers, Service,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::dial::dial;
use crate::frame::{RequestHead, VERSION};
use crate::lookups::Lookups;
use crate::pki::{self, MemberName, PkiError};
use crate::settings::{self, Side};
pub use crate::tls::TlsIdentity;
use crate::wire::Exchange;
use link::Step;
use members::{Member, Members};

/// Longest time an attempt to connect takes, ms.
const ATTEMPT_MS_MAX: u64 = 1_000;
/// Longest time that saying goodbye takes, ms.
const CLOSE_MS_MAX: u64 = 1_000;
/// Bytes of long answers that are taken at once: more wait where they are.
const ANSWERS_BYTES_MAX: usize = 256 << 20;
/// Code of connections that are closed because their node stops.
const STOPPING: VarInt = VarInt::from_u32(3);

/// What QUIC is started with.
#[derive(Debug, Clone)]
pub struct QuicConfig {
    /// What this node proves its name with.
    pub identity: TlsIdentity,
    /// Its name, as its certificate says it.
    pub name: MemberName,
    /// Packets all of the same small size and sent one by one, as a simulated network carries
    /// them. Off in production: there packets grow to what the path carries, and leave in batches.
    pub plain_packets: bool,
    /// Further addresses, host and port, at which members may be found: those that it was told to
    /// join. Where nobody is at the address that the log has, the next of these is tried with each
    /// attempt; a member is who its certificate says, wherever it is.
    pub hints: Vec<String>,
}

/// Why QUIC cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate cannot be read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The certificate is for somebody else.
    #[error("the certificate is for {certificate}, this node is {node}")]
    WrongName {
        /// Whom the certificate names.
        certificate: MemberName,
        /// Who this node is.
        node: MemberName,
    },
    /// Certificates and key do not go together.
    #[error("the node's certificates cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The socket cannot be used.
    #[error("the socket of QUIC cannot be used: {0}")]
    Socket(#[from] io::Error),
}

/// QUIC of one node. Dropping it closes every connection.
pub struct Quic(Arc<Shared>);

/// What calls, attempts and accepted connections share.
struct Shared {
    endpoint: Endpoint,
    client: ClientConfig,
    /// Given to the endpoint when it begins to serve.
    server: Mutex<Option<ServerConfig>>,
    name: MemberName,
    seams: Seams,
    lookups: Lookups,
    members: Members,
    /// Bytes of long answers that may still be taken at once.
    answers: Semaphore,
    hints: Vec<String>,
}

impl Quic {
    /// Takes the socket. Members can be called from now on; nobody is answered before
    /// [`Self::serve`]. `tcp` resolves the names of hosts. Called within a tokio runtime.
    ///
    /// # Errors
    /// When certificates, key and name do not go together, or the socket cannot be used.
    pub fn start(
        config: QuicConfig,
        socket: Arc<dyn AsyncUdpSocket>,
        seams: Seams,
        tcp: Arc<dyn Tcp>,
    ) -> Result<Arc<Self>, StartError> {
        let QuicConfig { identity, name, plain_packets, hints } = config;
        let certificate = pki::member_name(&identity.cert)?;
        if certificate != name {
            return Err(StartError::WrongName { certificate, node: name });
        }
        let client = Arc::new(identity.client(&seams)?);
        let transport = settings::transport(Side::Dialler, plain_packets);
        let client = settings::client(client, &seams, transport);
        let server = Arc::new(identity.server(&seams)?);
        let server = settings::server(server, &seams, plain_packets);
        let endpoint = Endpoint::new_with_abstract_socket(
            settings::endpoint(&seams, &identity.key),
            None,
            socket,
            Arc::new(TokioRuntime),
        )?;
        let shared = Shared {
            endpoint,
            client,
            server: Mutex::new(Some(server)),
            name,
            seams,
            lookups: Lookups::of_node(tcp),
            members: Members::default(),
            hints,
            answers: Semaphore::new(ANSWERS_BYTES_MAX),
        };
        Ok(Arc::new(Self(Arc::new(shared))))
    }

    /// Begins to answer: members by `peers`, strangers by `join`. A second call does nothing.
    pub fn serve(&self, peers: Arc<dyn PeerService>, join: Arc<dyn JoinService>) {
        let server = self.0.server.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(server) = server {
            self.0.endpoint.set_server_config(Some(server));
            tokio::spawn(door::keep(Arc::clone(&self.0), serve::Services { peers, join }));
        }
    }

    /// Where its socket is.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.endpoint.local_addr()
    }

    /// Closes every connection and waits, within a bound, until the other ends have been told.
    pub async fn close(&self) {
        self.0.endpoint.close(STOPPING, b"the node stops");
        // Whoever has not heard of it by then will find out by itself.
        let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), self.0.endpoint.wait_idle()).await;
    }
}

impl Peers for Quic {
    fn call(
        &self,
        to: u64,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(self.0.call(to, service, request, deadline))
    }

    fn set_members(&self, members: Vec<Peer>) {
        self.0.members.set(self.0.name.raft_id, members);
    }
}

impl Shared {
    async fn call(
        self: &Arc<Self>,
        to: u64,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> Result<Vec<u8>, PeerError> {
        let deadline = deadline.min(Instant::now() + PEER_CALL_MAX);
        let member = self
            .members
            .get(to)
            .ok_or_else(|| PeerError::Unreachable { to, why: "it is no member".to_owned() })?;
        let lane = service.lane(request.len());
        let _place = member.place(lane)?;
        let opened = timeout_at(deadline, async {
            let connection = self.connection(&member).await?;
            let opened = connection.open_bi().await;
            let (send, receive) = opened.map_err(|error| member.unreachable(error.to_string()))?;
            let mut exchange = Exchange::new(send, receive, PEER_MESSAGE_BYTES_MAX);
            exchange.answer_up_to(service.answer_bytes_max());
            Ok(exchange)
        });
        let late = "no connection before the deadline";
        let exchange = opened.await.map_err(|_| member.unreachable(late))??;
        exchange.prefer(lane);
        let head = RequestHead {
            service: service as u8,
            patience_ms: patience_ms(deadline),
            bytes: request.len(),
        };
        let head = head.encode(PEER_MESSAGE_BYTES_MAX);
        let head = head.map_err(|error| member.unreachable(error.to_string()))?;
        match timeout_at(deadline, exchange.ask(head, request, &self.answers)).await {
            Ok(Ok(Ok(answer))) => Ok(answer),
            Ok(Ok(Err(declined))) => Err(PeerError::Declined { to, why: declined.0 }),
            Ok(Err(broken)) => Err(PeerError::Lost { to, why: broken.to_string() }),
            Err(_) => Err(PeerError::Lost { to, why: "no answer before the deadline".to_owned() }),
        }
    }

    /// The connection to a member: the one that lives, or the next that is made.
    async fn connection(self: &Arc<Self>, member: &Arc<Member>) -> Result<Connection, PeerError> {
        let mut changes = member.link.subscribe();
        loop {
            // Marked as seen before the link is asked, so that no change after that is missed.
            changes.mark_unchanged();
            let mut step = Step::Wait;
            member.link.send_if_modified(|link| {
                step = link.step(Instant::now(), |bound| self.seams.below(bound));
                false
            });
            match step {
                Step::Use(connection) => return Ok(connection),
                Step::Fail(why) => return Err(member.unreachable(why)),
                // In a task: the attempt goes on for the others when this caller leaves.
                Step::Dial => drop(tokio::spawn(attempt(Arc::clone(self), Arc::clone(member)))),
                Step::Wait => {}
            }
            if changes.changed().await.is_err() {
                return Err(member.unreachable("it is no member any more"));
            }
        }
    }
}

/// One attempt to connect to a member.
async fn attempt(shared: Arc<Shared>, member: Arc<Member>) {
    let deadline = Instant::now() + Duration::from_millis(ATTEMPT_MS_MAX);
    let result = match timeout_at(deadline, reached(&shared, &member, deadline)).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer from {}", member.peer.addr)),
    };
    let now = Instant::now();
    let mut unwanted = None;
    member.link.send_modify(|link| match result {
        Ok(connection) => unwanted = link.up(connection, now),
        Err(why) => link.fail(why, now, |bound| shared.seams.below(bound)),
    });
    unwanted.iter().for_each(members::turn_away);
}

/// Connects to a member where it was last heard from, or at the address it is known by.
async fn reached(
    shared: &Shared,
    member: &Member,
    deadline: Instant,
) -> Result<Connection, String> {
    if let Some(addr) = member.moved_to() {
        let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let addr = addr.to_string();
        let there = greeted(shared, &member.peer, &addr, half);
        if let Ok(Ok(connection)) = timeout_at(half, there).await {
            return Ok(connection);
        }
    }
    let known = greeted(shared, &member.peer, &member.peer.addr, deadline);
    let Some(hint) = member.next_hint(&shared.hints) else { return known.await };
    let hinted = greeted(shared, &member.peer, hint, deadline);
    // Side by side: one address that swallows packets would take the time of the other.
    tokio::select! {
        biased;
        Ok(connection) = known => Ok(connection),
        Ok(connection) = hinted => Ok(connection),
        else => Err(format!("neither at {} nor at {hint}", member.peer.addr)),
    }
}

/// Connects and waits for the greeting: after that the other end takes our calls.
async fn greeted(
    shared: &Shared,
    peer: &Peer,
    addr: &str,
    deadline: Instant,
) -> Result<Connection, String> {
    let name = MemberName { raft_id: peer.raft_id, node: peer.node, cluster: shared.name.cluster };
    let Shared { endpoint, client, lookups, .. } = shared;
    let connection = dial(endpoint, lookups, client, addr, &name.to_string(), deadline).await?;
    let mut stream = connection.accept_uni().await.map_err(|error| error.to_string())?;
    let mut version = [0];
    stream.read_exact(&mut version).await.map_err(|error| error.to_string())?;
    match version {
        [VERSION] => Ok(connection),
        [other] => Err(format!("it speaks version {other:#04x} of the frames, not {VERSION:#04x}")),
    }
}

/// What is left until a deadline, as it is sent: rounded up, so that a short wait is not none.
fn patience_ms(deadline: Instant) -> u32 {
    let left = deadline.saturating_duration_since(Instant::now());
    u32::try_from(left.as_millis()).unwrap_or(u32::MAX).saturating_add(1)
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.0.endpoint.close(STOPPING, b"the node stops");
    }
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quic").field("name", &self.0.name).finish_non_exhaustive()
    }
}

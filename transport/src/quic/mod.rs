//! QUIC between nodes: calls to other members, and the socket that members and joiners call.
//!
//! # Connections
//!
//! A node has one UDP socket. It dials one connection to each member that it calls, and answers on
//! the connections that the members dialled to it: two members are joined by up to two connections,
//! one in each direction. Neither end waits for a connection that the other has to make, and the two
//! ends never have to agree on which of two simultaneous connections survives.
//!
//! A call is one bidirectional stream: a request and its answer (`exchange`), each a head of fixed
//! length and a payload (`exchange/frame`). Where the two ends want to send bytes as they come, the
//! same heads, with empty payloads, begin a stream of bytes (`exchange/stream`). A stream that ends
//! early is reset, and the future that serves it is dropped.
//!
//! # From a packet to a call
//!
//! ```text
//! datagram ─► admission ─► handshake ─► ALPN shiioo/1 ──────► member? ─► greeting ─► calls
//!             (permits)    (2 s)        ALPN shiioo-join/1 ─► unauthenticated peer ─► join only
//! ```
//!
//! *Admission* (`accept/admission`) bounds the handshakes in progress before any memory is spent.
//! A few are begun for any source address. Beyond these an address has to prove, by a retry token,
//! that it is not forged; each proven address has a share; and a part is kept for addresses of
//! members, so that a flood of joiners does not keep members out.
//!
//! *Members* show a certificate of the cluster's authority. They are identified by all that it says:
//! raft id, node id and cluster, and they are served only while the table of members
//! (`dial/members`) has exactly these. A cluster that was recovered by force has another id and another
//! authority than before: a member of the former one is told that, and refused. A member that was removed is told so as
//! well, whenever it comes back, and ends: its log would not tell it. The accepting side then *greets*: it sends the
//! version of the frames on a stream of its own. An attempt to connect has succeeded when the greeting has arrived, and
//! a request is written only after that. So 'unreachable' always means that nothing was done, and a version that does
//! not fit is noticed before anything is asked.
//!
//! *Unauthenticated peers* show no certificate. They can send requests to join, one at a time, in
//! small windows, for ten seconds; a silent one is closed when another needs its place.
//!
//! # Lanes
//!
//! Each service belongs to a lane: control (votes, heartbeats, small entries), raft, HTTP (requests of
//! clients), bulk (snapshots). Each lane has a bound of calls to one member, so that one of them
//! cannot use up the others' streams, and a priority, so that what is queued for sending leaves in
//! that order. The window of one stream is a small part of its connection's (`settings`): bulk calls
//! that nobody reads hold back a quarter of the connection at most, and answers that no client reads
//! hold back nothing of the others' part.
//!
//! # Deadlines
//!
//! The caller's time left travels in the head of a request. The serving side drops the call when it
//! is over, or when the caller resets the stream. Every other wait has its own bound: an attempt to
//! connect 1 s, a handshake 2 s, the head of a request 5 s, silence on a connection 1.2 s, a write on
//! a stream that the other end does not read 30 s.
//!
//! # Invariants
//!
//! - A caller's identity comes from its certificate and from the table of members, never from what
//!   it sends.
//! - Whether an accepted connection belongs to a member is decided under the same lock under which
//!   members are removed: a connection is either refused or known to the table, which closes it.
//! - Whatever arrives from the network is bounded before memory is allocated for it: handshakes,
//!   connections, streams, bytes of requests of each member, bytes of long answers.
//! - Three outcomes of a call are told apart: unreachable or declined (nothing was done), answered,
//!   lost (unknown).
//!
//! # What is not done
//!
//! - No connection migration: a member that changes its address is dialled anew, where it called
//!   from.
//! - No session resumption and no early data (`tls`).
//! - No streaming of a call: its payloads are complete in memory on both sides. A stream
//!   (`exchange/stream`) is held up by flow control instead.

mod accept;
mod dial;
pub(crate) mod exchange;
pub(crate) mod settings;
#[cfg(test)]
pub(crate) mod tests;
pub(crate) mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quinn::{AsyncUdpSocket, Endpoint, ServerConfig, TokioRuntime, VarInt};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::seams::{ByteStream, Seams, Tcp};
use shiioo_actors::ports::{
    BoxFuture, JoinService, Peer, PeerError, PeerService, Peers, Service, StreamService,
};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::pki::{self, MemberName, PkiError};
use crate::sockets::lookups::Lookups;
use accept::Services;
use dial::Dialler;
pub(crate) use dial::connect::connect;
use settings::Side;
pub use tls::{FormerIdentity, TlsIdentity};

/// Longest time that closing all connections takes, ms.
const CLOSE_MS_MAX: u64 = 1_000;
/// Code of connections that are closed because their node stops.
const STOPPING: VarInt = VarInt::from_u32(3);

/// Configures QUIC of one node.
#[derive(Clone)]
pub struct QuicConfig {
    /// Certificates and key that this node proves its name with.
    pub identity: TlsIdentity,
    /// Name of this node, as its certificate has it.
    pub name: MemberName,
    /// Sends packets of the same small size, one by one, as a simulated network carries them. Off
    /// in production: there packets grow to what the path carries, and leave in batches.
    pub plain_packets: bool,
    /// Further addresses, host and port, at which members may be found: those given with `--join`.
    /// When a member is not at the address that the log has, each attempt tries the next of these
    /// as well; the certificate tells which member answers there.
    pub hints: Vec<String>,
}

/// Tells why QUIC cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A certificate cannot be read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The certificate names another node.
    #[error("the certificate is for {certificate}, this node is {node}")]
    WrongName {
        /// Member that the certificate names.
        certificate: MemberName,
        /// This node.
        node: MemberName,
    },
    /// Certificates and key do not go together.
    #[error("the node's certificates cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The socket cannot be used.
    #[error("the socket of QUIC cannot be used: {0}")]
    Socket(#[from] io::Error),
}

/// Runs QUIC of one node. Dropping it closes every connection.
pub struct Quic {
    dialler: Arc<Dialler>,
    /// Given to the endpoint by [`Self::serve`]: until then incoming connections are ignored.
    server: Mutex<Option<ServerConfig>>,
    /// The cluster that this one was recovered from.
    former: Option<Uuid>,
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
        let former = identity.former.as_ref().map(|former| pki::member_name(&former.cert));
        let former = former.transpose()?.map(|name| name.cluster);
        let certificate = pki::member_name(&identity.cert)?;
        if certificate != name {
            return Err(StartError::WrongName { certificate, node: name });
        }
        let client = Arc::new(identity.client(&seams)?);
        let transport = settings::transport(Side::Dialler, plain_packets);
        let client = settings::client(client, &seams, transport);
        let server = Arc::new(identity.server(&seams)?);
        let server = Mutex::new(Some(settings::server(server, &seams, plain_packets)));
        let endpoint = Endpoint::new_with_abstract_socket(
            settings::endpoint(&seams, &identity.key),
            None,
            socket,
            Arc::new(TokioRuntime),
        )?;
        let lookups = Lookups::of_node(tcp);
        let dialler = Dialler::new(endpoint, client, name, seams, lookups, hints);
        Ok(Arc::new(Self { dialler, server, former }))
    }

    /// Waits until a member says that it was recovered by force without this node, and returns what it
    /// says. Another quorum of the former cluster may be there all the same.
    pub async fn recovered_elsewhere(&self) -> String {
        let mut recovered = self.dialler.recovered.subscribe();
        match recovered.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            // The sender is here as long as this is.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until a member says that this node was removed from the cluster. That is certain: ids are given in
    /// order, and the member has applied a removal.
    pub async fn removed(&self) {
        let mut removed = self.dialler.removed.subscribe();
        if removed.wait_for(|removed| *removed).await.is_err() {
            // The sender is here as long as this is.
            std::future::pending().await
        }
    }

    /// Begins to answer: members by `peers`, unauthenticated peers by `join`. A second call does
    /// nothing.
    pub fn serve(&self, peers: Arc<dyn PeerService>, join: Arc<dyn JoinService>) {
        let server = self.server.lock().take();
        if let Some(server) = server {
            let Dialler { endpoint, name, members, .. } = &*self.dialler;
            endpoint.set_server_config(Some(server));
            let services = Services { peers, join };
            let (names, members) = ((*name, self.former), Arc::clone(members));
            tokio::spawn(accept::run(endpoint.clone(), names, members, services));
        }
    }

    /// Returns the address of its socket.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.dialler.endpoint.local_addr()
    }

    /// Closes every connection and waits, within a bound, until the other ends have been told.
    pub async fn close(&self) {
        let endpoint = &self.dialler.endpoint;
        endpoint.close(STOPPING, b"the node stops");
        // A peer that has not been told by then notices the silence by itself.
        let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), endpoint.wait_idle()).await;
    }
}

impl Peers for Quic {
    fn call(
        &self,
        to: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        Box::pin(self.dialler.call(to, service, request, deadline))
    }

    fn open_stream(
        &self,
        to: RaftId,
        service: StreamService,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Box<dyn ByteStream>, PeerError>> {
        Box::pin(async move {
            let stream = self.dialler.open_stream(to, service, deadline).await?;
            Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }

    fn set_members(&self, members: Vec<Peer>, last_given: RaftId) {
        self.dialler.members.set(self.dialler.name.raft_id, members, last_given);
    }
}

impl Drop for Quic {
    fn drop(&mut self) {
        self.dialler.endpoint.close(STOPPING, b"the node stops");
    }
}

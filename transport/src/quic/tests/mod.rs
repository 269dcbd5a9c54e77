//! Nodes over the loopback: real sockets, real certificates, services that do as they are told.

mod admission;
mod calls;
mod former;
mod streams;

use std::sync::atomic::{AtomicU64, Ordering};

use quinn::{ClientConfig, Connection};
use shiioo_actors::domain::ids::{NodeId, RaftId};
use shiioo_actors::ports::{
    Declined, Lane, PEER_CALL_MAX, PEER_HTTP_STREAMS_MAX, PEER_MESSAGE_BYTES_MAX,
    UnauthenticatedPeer,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc, watch};
use uuid::Uuid;

use super::exchange::Exchange;
use super::exchange::frame::RequestHead;
use super::*;
use crate::pki::{Authority, NodeKey};
use crate::sockets::tcp::RealTcp;
use crate::sockets::udp::{RealUdp, Udp as _};
use crate::testing::{Seeded, seams};

/// Longest time in which what a test waits for comes, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// More than fits into the windows of a connection, bytes.
const MUCH_BYTES: usize = 100 << 20;

/// Pieces of it.
static PIECE: [u8; 64 << 10] = [7; 64 << 10];

/// A cluster's authority, and its nodes so far.
pub(crate) struct Cluster {
    pub(crate) authority: Authority,
    seeds: AtomicU64,
}

/// One node with its services.
pub(crate) struct Node {
    pub(crate) quic: Arc<Quic>,
    name: MemberName,
    identity: TlsIdentity,
    service: Arc<Obedient>,
    pub(crate) join: Arc<Joins>,
}

/// Answers as the request says; see [`Obedient::serve`].
struct Obedient {
    /// Who called what, as it came.
    calls: mpsc::UnboundedSender<(u64, Service, Vec<u8>)>,
    called: Mutex<mpsc::UnboundedReceiver<(u64, Service, Vec<u8>)>>,
    /// Calls that are being served.
    under_way: watch::Sender<usize>,
    /// Lets those that wait go on.
    go: watch::Sender<bool>,
}

struct AttemptJournal<'a>(&'a watch::Sender<usize>);

impl Drop for AttemptJournal<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

impl PeerService for Obedient {
    /// `no`: declines. `wait`: answers when it is let go. `long`: answers as much as may be, `longer`:
    /// more. `left`: says how many seconds the caller waits.
    /// Anything else is answered with itself.
    fn serve(
        &self,
        from: RaftId,
        service: Service,
        request: Vec<u8>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Vec<u8>, Declined>> {
        Box::pin(async move {
            self.under_way.send_modify(|count| *count += 1);
            let _under_way = AttemptJournal(&self.under_way);
            if request.len() < 100 {
                self.calls.send((from.0, service, request.clone())).unwrap();
            }
            match request.as_slice() {
                b"no" => Err(Declined("not today".to_owned())),
                b"left" => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    Ok(left.as_secs().to_string().into_bytes())
                }
                b"wait" => {
                    self.go.subscribe().wait_for(|go| *go).await.unwrap();
                    Ok(request)
                }
                b"long" => Ok(vec![7; PEER_MESSAGE_BYTES_MAX]),
                b"longer" => Ok(vec![7; PEER_MESSAGE_BYTES_MAX + 1]),
                _ => Ok(request),
            }
        })
    }

    /// `much`: sends [`MUCH_BYTES`]. `wait`: says nothing until it is let go. `nothing`: ends without
    /// a word. Anything else comes back. Reads until the other end has sent all.
    fn serve_stream(
        &self,
        _from: RaftId,
        _service: StreamService,
        mut stream: Box<dyn ByteStream>,
        _deadline: Instant,
    ) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.under_way.send_modify(|count| *count += 1);
            let _under_way = AttemptJournal(&self.under_way);
            let mut request = Vec::new();
            stream.read_to_end(&mut request).await.unwrap();
            match request.as_slice() {
                b"nothing" => return,
                b"wait" => drop(self.go.subscribe().wait_for(|go| *go).await.unwrap()),
                b"much" => {
                    for _ in 0..MUCH_BYTES / PIECE.len() {
                        stream.write_all(&PIECE).await.unwrap();
                    }
                }
                _ => stream.write_all(&request).await.unwrap(),
            }
            stream.shutdown().await.unwrap();
        })
    }
}

impl Obedient {
    fn new() -> Arc<Self> {
        let (calls, called) = mpsc::unbounded_channel();
        Arc::new(Self {
            calls,
            called: Mutex::new(called),
            under_way: watch::Sender::new(0),
            go: watch::Sender::new(false),
        })
    }

    async fn until_under_way(&self, count: usize) {
        let mut under_way = self.under_way.subscribe();
        soon(under_way.wait_for(|now| *now == count)).await.unwrap();
    }

    fn calls_so_far(&self) -> Vec<(u64, Service, Vec<u8>)> {
        let mut called = self.called.lock();
        std::iter::from_fn(|| called.try_recv().ok()).collect()
    }
}

/// Records the peers that asked; answers with the request turned round, or declines `no`.
#[derive(Default)]
pub(crate) struct Joins(pub(crate) Mutex<Vec<UnauthenticatedPeer>>);

impl JoinService for Joins {
    fn join(
        &self,
        stranger: UnauthenticatedPeer,
        mut request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, Declined>> {
        Box::pin(async move {
            self.0.lock().push(stranger);
            if request == b"no" {
                return Err(Declined("no token".to_owned()));
            }
            request.reverse();
            Ok(request)
        })
    }
}

impl Cluster {
    pub(crate) fn new(number: u128) -> Self {
        let entropy = Seeded::new(u64::try_from(number).unwrap());
        let authority = Authority::create(&entropy, Uuid::from_u128(number)).unwrap();
        Self { authority, seeds: AtomicU64::new(1_000) }
    }

    fn seed(&self) -> u64 {
        self.seeds.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn identity(&self, raft_id: u64) -> (MemberName, TlsIdentity) {
        let entropy = Seeded::new(self.seed());
        let key = NodeKey::generate(&entropy);
        let node = NodeId::from_uuid(Uuid::from_u128(u128::from(raft_id) << 8));
        let name = MemberName { raft_id: RaftId(raft_id), node, cluster: self.authority.cluster() };
        let identity = TlsIdentity {
            ca_cert: self.authority.cert_der().to_vec(),
            cert: self.authority.issue(&entropy, key.public(), name).unwrap(),
            key: key.der().to_vec(),
            former: None,
        };
        (name, identity)
    }

    pub(crate) fn node(&self, raft_id: u64) -> Node {
        let (name, identity) = self.identity(raft_id);
        self.start(name, identity, ([127, 0, 0, 1], 0).into())
    }

    pub(crate) fn start(&self, name: MemberName, identity: TlsIdentity, addr: SocketAddr) -> Node {
        self.start_on(name, identity, RealUdp.bind(addr).unwrap())
    }

    fn start_on(
        &self,
        name: MemberName,
        identity: TlsIdentity,
        socket: Arc<dyn AsyncUdpSocket>,
    ) -> Node {
        self.start_hinted(name, identity, socket, Vec::new())
    }

    /// A node that is told where others may be.
    fn start_hinted(
        &self,
        name: MemberName,
        identity: TlsIdentity,
        socket: Arc<dyn AsyncUdpSocket>,
        hints: Vec<String>,
    ) -> Node {
        let config = QuicConfig { identity: identity.clone(), name, plain_packets: false, hints };
        let tcp = Arc::new(RealTcp);
        let quic = Quic::start(config, socket, seams(self.seed()), tcp).unwrap();
        let (service, join) = (Obedient::new(), Arc::new(Joins::default()));
        quic.serve(Arc::clone(&service) as Arc<dyn PeerService>, Arc::clone(&join) as _);
        Node { quic, name, identity, service, join }
    }

    /// Nodes 1 and 2, who know each other.
    fn pair(&self) -> (Node, Node) {
        let (one, two) = (self.node(1), self.node(2));
        one.knows(&[&two]);
        two.knows(&[&one]);
        (one, two)
    }

    /// Nodes 1 and 2, connected both ways, for tests of what comes after: an attempt to connect has a
    /// second, and a call only one attempt, which is little on a busy machine.
    async fn connected_pair(&self) -> (Node, Node) {
        let (one, two) = self.pair();
        one.call_until_answered(2).await;
        two.call_until_answered(1).await;
        // What the services have noted of these calls concerns no test.
        drop((one.service.calls_so_far(), two.service.calls_so_far()));
        (one, two)
    }
}

impl Node {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.quic.local_addr().unwrap()
    }

    fn peer(&self) -> Peer {
        let MemberName { raft_id, node, .. } = self.name;
        Peer { raft_id, node, addr: self.addr().to_string() }
    }

    fn knows(&self, others: &[&Self]) {
        self.quic.set_members(others.iter().map(|node| node.peer()).collect(), RaftId(0));
    }

    async fn call(&self, to: u64, request: &[u8]) -> Result<Vec<u8>, PeerError> {
        self.call_for(to, Service::Node, request, PATIENCE).await
    }

    async fn call_for(
        &self,
        to: u64,
        service: Service,
        request: &[u8],
        patience: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        self.quic.call(RaftId(to), service, request.to_vec(), Instant::now() + patience).await
    }

    /// Makes a call that the other node has, and does not answer yet.
    async fn waiting_call(&self, other: &Self) -> BoxFuture<'_, Result<Vec<u8>, PeerError>> {
        let mut call = Box::pin(self.call(other.name.raft_id.0, b"wait"));
        tokio::select! {
            biased;
            _ = &mut call => unreachable!("it waits"),
            () = other.service.until_under_way(1) => {}
        }
        call
    }

    /// Calls until one call is answered: after a failed attempt the next ones wait a little.
    async fn call_until_answered(&self, to: u64) {
        soon(async {
            while self.call_for(to, Service::Ping, b"?", Duration::from_secs(2)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("what is waited for comes in time")
}

fn unreachable(result: &Result<Vec<u8>, PeerError>, words: &str) -> bool {
    matches!(result, Err(PeerError::Unreachable { why, .. }) if why.contains(words))
}

fn lost(result: &Result<Vec<u8>, PeerError>) -> bool {
    matches!(result, Err(PeerError::Lost { .. }))
}

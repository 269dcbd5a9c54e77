//! Which peers are let in, and what the others can do.

use std::task::{Context, Poll};
use std::{io::IoSliceMut, pin::Pin};

use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;

use super::*;
use crate::sockets::udp::{RecvMeta, Transmit, UdpPoller};

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let (cluster, other) = (Cluster::new(20), Cluster::new(20));
    other.seed();
    let one = cluster.node(1);
    let (name, foreign) = other.identity(2);
    // It knows which authority it would have to pretend to be of.
    let identity = TlsIdentity { ca_cert: cluster.authority.cert_der().to_vec(), ..foreign };
    let authority = Authority::create(&Seeded::new(77), name.cluster).unwrap();
    let key = NodeKey::from_der(&identity.key).unwrap();
    let cert = authority.issue(&Seeded::new(78), key.public(), name).unwrap();
    let forger = cluster.start(name, TlsIdentity { cert, ..identity }, LOOPBACK.into());
    forger.knows(&[&one]);
    one.knows(&[&forger]);
    assert!(unreachable(&forger.call(1, b"hello").await, "certificate"));
    assert!(unreachable(&one.call(2, b"hello").await, ""), "nor is it called");
    assert_eq!(one.service.calls_so_far(), []);
}

#[tokio::test]
async fn a_peer_that_is_no_member_is_closed() {
    let cluster = Cluster::new(21);
    let (one, two) = cluster.pair();
    two.knows(&[]);
    assert!(unreachable(&one.call(2, b"hello").await, "not a member"));
    let same_number = Peer { node: NodeId::from_uuid(Uuid::from_u128(99)), ..one.peer() };
    two.quic.set_members(vec![same_number], RaftId(0));
    assert!(unreachable(&one.call(2, b"hello").await, "not a member"));
    two.knows(&[&one]);
    one.call_until_answered(2).await;
}

#[tokio::test]
async fn the_connections_of_a_member_that_is_removed_are_closed() {
    let (one, two) = Cluster::new(22).connected_pair().await;
    let call = one.waiting_call(&two).await;
    two.knows(&[]);
    assert!(lost(&call.await), "it was under way");
    two.service.until_under_way(0).await;
    assert!(unreachable(&one.call(2, b"hello").await, "not a member"));
    assert!(unreachable(&two.call(1, b"hello").await, "no member"));
}

#[tokio::test]
async fn a_member_at_another_address_is_called_there() {
    let cluster = Cluster::new(23);
    let (one, two) = cluster.connected_pair().await;
    let moved = cluster.start(two.name, two.identity.clone(), LOOPBACK.into());
    moved.knows(&[&one]);
    one.knows(&[&moved]);
    one.call_until_answered(2).await;
    assert!(!moved.service.calls_so_far().is_empty());
    two.call(1, b"still a member").await.unwrap();
}

#[tokio::test]
async fn members_that_all_moved_are_found_where_one_of_them_is_told_to_look() {
    let cluster = Cluster::new(1);
    let (three, nobody) = (cluster.node(3), RealUdp.bind(LOOPBACK.into()).unwrap());
    let nobody = nobody.local_addr().unwrap().to_string();
    let (name, identity) = cluster.identity(2);
    let two = cluster.start(name, identity, LOOPBACK.into());
    // Somebody else's address, one where nobody is, and the right one.
    let hints = [three.addr().to_string(), nobody.clone(), two.addr().to_string()].into();
    let (name, identity) = cluster.identity(1);
    let one = cluster.start_hinted(name, identity, RealUdp.bind(LOOPBACK.into()).unwrap(), hints);
    // Both know each other where they were.
    one.quic.set_members(vec![Peer { addr: nobody.clone(), ..two.peer() }], RaftId(0));
    two.quic.set_members(vec![Peer { addr: nobody, ..one.peer() }], RaftId(0));
    one.call_until_answered(2).await;
    // Who was found has learned from that where the other is.
    two.call_until_answered(1).await;
    assert_eq!(three.service.calls_so_far(), [], "a hint is not believed for itself");
}

#[tokio::test]
async fn a_process_that_is_gone_leaves_its_member_where_the_other_is() {
    let cluster = Cluster::new(1);
    let one = cluster.node(1);
    let (name, identity) = cluster.identity(2);
    let stays = cluster.start(name, identity.clone(), LOOPBACK.into());
    let goes = cluster.start(name, identity, LOOPBACK.into());
    let nobody = RealUdp.bind(LOOPBACK.into()).unwrap().local_addr().unwrap().to_string();
    one.quic.set_members(vec![Peer { addr: nobody, ..stays.peer() }], RaftId(0));
    stays.knows(&[&one]);
    goes.knows(&[&one]);
    stays.call_until_answered(1).await;
    goes.call_until_answered(1).await;
    goes.quic.close().await;
    one.call_until_answered(2).await;
    assert!(!stays.service.calls_so_far().is_empty());
}

#[tokio::test]
async fn a_stop_is_told_to_those_who_wait() {
    let (one, two) = Cluster::new(24).connected_pair().await;
    let call = one.waiting_call(&two).await;
    two.quic.close().await;
    let told = call.await;
    assert!(matches!(&told, Err(PeerError::Lost { why, .. }) if why.contains("stops")), "{told:?}");
    assert!(unreachable(&two.call(1, b"hello").await, ""), "it makes no calls either");
}

/// Its successor answers for a connection it knows nothing of, so that nobody waits for silence.
#[tokio::test]
async fn a_member_that_fell_without_a_word_is_found_out_by_its_successor() {
    /// On a busy machine the silence may be noticed first, but not each time.
    const FALLS_MAX: usize = 3;
    for _ in 0..FALLS_MAX {
        let why = why_the_fallen_is_lost().await;
        if why.contains("reset") {
            return;
        }
        assert!(why.contains("timed out"), "{why}");
    }
    panic!("its silence was noticed each time, and its successor said nothing");
}

async fn why_the_fallen_is_lost() -> String {
    let cluster = Cluster::new(25);
    let one = cluster.node(1);
    let (name, identity) = cluster.identity(2);
    let socket = Unfaithful::bind(false);
    let two = cluster.start_on(name, identity.clone(), Arc::clone(&socket) as _);
    one.knows(&[&two]);
    two.knows(&[&one]);
    one.call_until_answered(2).await;
    let addr = two.addr();
    let call = one.waiting_call(&two).await;
    socket.fall();
    let successor = cluster.start(name, identity, addr);
    successor.knows(&[&one]);
    let fallen = call.await;
    let Err(PeerError::Lost { why, .. }) = fallen else { panic!("{fallen:?}") };
    one.call_until_answered(2).await;
    drop(two);
    why
}

#[tokio::test]
async fn a_member_has_to_show_a_certificate() {
    let cluster = Cluster::new(26);
    let one = cluster.node(1);
    let nobody = dial_bare(&one, b"shiioo/1").await;
    assert!(soon(nobody.closed()).await.to_string().contains("no certificate"));
    let error = dial_bare_to(&one, b"another/1").await.unwrap_err();
    assert!(error.contains("protocol"), "{error}");
}

#[tokio::test]
async fn an_unauthenticated_peer_can_only_join_and_only_in_few_words() {
    let one = Cluster::new(27).node(1);
    let peer = dial_bare(&one, b"shiioo-join/1").await;
    let room = Semaphore::new(1_024);
    for (service, bytes, words) in [
        (Service::Node as u8, 4, "only join"),
        (0, exchange::frame::JOIN_MESSAGE_BYTES_MAX + 1, "longer than"),
    ] {
        let (send, receive) = peer.open_bi().await.unwrap();
        let head = RequestHead { service, time_left_ms: 5_000, bytes };
        let head = head.encode(PEER_MESSAGE_BYTES_MAX).unwrap();
        let asked = Exchange::new(send, receive, 1_024).ask(head, vec![0; bytes], &room);
        let Declined(why) = soon(asked).await.unwrap().unwrap_err();
        assert!(why.contains(words), "{why}");
    }
    assert_eq!(one.service.calls_so_far(), []);
    assert!(one.join.0.lock().is_empty());
}

#[tokio::test]
async fn silent_unauthenticated_peers_make_room_and_members_do_not_notice() {
    let (one, two) = Cluster::new(28).connected_pair().await;
    let mut peers = Vec::new();
    for _ in 0..accept::UNAUTHENTICATED_MAX {
        peers.push(dial_bare(&two, b"shiioo-join/1").await);
    }
    let late = dial_bare(&two, b"shiioo-join/1").await;
    // Which of them was accepted first, only the accepting side knows. On a busy machine others may have
    // fallen silent for too long.
    let is_sent_away = |peer: &&Connection| {
        peer.close_reason().is_some_and(|why| why.to_string().contains("asked for nothing"))
    };
    soon(async {
        while !peers.iter().any(|peer| is_sent_away(&peer)) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(peers.iter().filter(is_sent_away).count(), 1);
    assert_eq!(late.close_reason(), None);
    let (send, receive) = late.open_bi().await.unwrap();
    let room = Semaphore::new(1_024);
    let head = RequestHead { service: 0, time_left_ms: 5_000, bytes: 3 };
    let head = head.encode(PEER_MESSAGE_BYTES_MAX).unwrap();
    let asked = Exchange::new(send, receive, 1_024).ask(head, b"abc".to_vec(), &room);
    assert_eq!(soon(asked).await.unwrap().unwrap(), b"cba");
    one.call(2, b"hello").await.unwrap();
}

#[tokio::test]
async fn garbage_and_half_open_handshakes_cost_little_and_members_are_answered() {
    const GARBAGE: usize = 5_000;
    const HALF_OPEN: usize = 3_000;
    let (one, two) = Cluster::new(29).pair();
    let garbage = RealUdp.bind(LOOPBACK.into()).unwrap();
    let noise = Seeded::new(5);
    for length in (1..=1_200).cycle().take(GARBAGE) {
        let mut contents = vec![0; length];
        shiioo_actors::ports::seams::Entropy::fill(&noise, &mut contents);
        // A socket that is full loses them, as a network would.
        drop(garbage.try_send(&datagram(two.addr(), &contents)));
    }
    let deaf = bare_endpoint(Unfaithful::bind(true));
    let config = bare_config(b"shiioo/1");
    let mut attempts = JoinSet::new();
    for _ in 0..HALF_OPEN {
        let connecting = deaf.connect_with(config.clone(), two.addr(), "anybody.internal").unwrap();
        attempts.spawn(connecting);
        if attempts.len() % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    soon(async {
        while two.quic.dialler.endpoint.stats().accepted_handshakes
            < accept::admission::UNPROVEN_HANDSHAKES_MAX as u64
        {
            tokio::task::yield_now().await;
        }
    })
    .await;
    one.call_until_answered(2).await;
    let held = two.quic.dialler.endpoint.open_connections();
    assert!(held <= accept::admission::UNPROVEN_HANDSHAKES_MAX + 2, "{held} connections are held");
    two.call_until_answered(1).await;
}

const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

fn datagram(destination: SocketAddr, contents: &[u8]) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size: None, src_ip: None }
}

/// Two that draw the same connection ids could not be told apart.
fn fresh_seed() -> u64 {
    static SEEDS: AtomicU64 = AtomicU64::new(1 << 32);
    SEEDS.fetch_add(1, Ordering::Relaxed)
}

/// Dials as a peer that has no certificate.
async fn dial_bare(node: &Node, protocol: &[u8]) -> Connection {
    dial_bare_to(node, protocol).await.unwrap()
}

async fn dial_bare_to(node: &Node, protocol: &[u8]) -> Result<Connection, String> {
    let endpoint = bare_endpoint(RealUdp.bind(LOOPBACK.into()).unwrap());
    let config = bare_config(protocol);
    let connecting = endpoint.connect_with(config, node.addr(), "anybody.internal").unwrap();
    soon(connecting).await.map_err(|error| error.to_string())
}

fn bare_endpoint(socket: Arc<dyn AsyncUdpSocket>) -> Endpoint {
    let config = settings::endpoint(&seams(fresh_seed()), b"nobody");
    Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime)).unwrap()
}

fn bare_config(protocol: &[u8]) -> ClientConfig {
    let mut crypto = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous))
        .with_no_client_auth();
    crypto.alpn_protocols = vec![protocol.to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(crypto).unwrap();
    let transport = settings::transport(Side::Joiner, false);
    settings::client(Arc::new(crypto), &seams(fresh_seed()), transport)
}

/// Believes every certificate.
#[derive(Debug)]
struct Credulous;

impl rustls::client::danger::ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }
}

/// A socket that may hear nothing, and that may fall: its port is then free, and whoever holds it
/// neither sends nor hears any more.
#[derive(Debug)]
struct Unfaithful {
    inner: Mutex<Option<Arc<dyn AsyncUdpSocket>>>,
    addr: SocketAddr,
    receive_segments: usize,
    deaf: bool,
}

impl Unfaithful {
    fn bind(deaf: bool) -> Arc<Self> {
        let inner = RealUdp.bind(LOOPBACK.into()).unwrap();
        let addr = inner.local_addr().unwrap();
        let receive_segments = inner.max_receive_segments();
        Arc::new(Self { inner: Mutex::new(Some(inner)), addr, receive_segments, deaf })
    }

    fn fall(&self) {
        self.inner.lock().take();
    }
}

impl AsyncUdpSocket for Unfaithful {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if let Some(inner) = &*self.inner.lock() {
            // What cannot leave at once is lost.
            drop(inner.try_send(transmit));
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        match &*self.inner.lock() {
            Some(inner) if !self.deaf => inner.poll_recv(context, buffers, meta),
            _ => Poll::Pending,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }

    /// The inner socket hands over what came in a batch as one: room for that has to be made.
    fn max_receive_segments(&self) -> usize {
        self.receive_segments
    }
}

#[derive(Debug)]
struct Writable;

impl UdpPoller for Writable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn who_was_removed_is_told_and_who_is_not_known_yet_is_not() {
    let cluster = Cluster::new(1);
    let (one, two, three) = (cluster.node(1), cluster.node(2), cluster.node(3));
    // Two was given an id and is listed no more; of three this member has not heard yet.
    one.quic.set_members(Vec::new(), RaftId(2));
    for other in [&two, &three] {
        other.knows(&[&one]);
        assert!(other.call(1, b"hello").await.is_err());
    }
    soon(two.quic.removed()).await;
    assert!(timeout(Duration::from_millis(1), three.quic.removed()).await.is_err());
    assert_eq!(one.service.calls_so_far(), []);
}

//! How QUIC is spoken: windows, timers, keys. The same for members and for those who join.
//!
//! - What a stranger may make this node hold is small: a connection begins with a stranger's
//!   windows, and is given a member's when its certificate has been judged.
//! - What one stream may hold up is a small part of its connection's window: bulk calls, all
//!   together, leave most of it to the other lanes.
//! - Every random number that the library lets us give comes from the entropy seam.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout, ServerConfig,
    TimeSource, TransportConfig, ValidationTokenConfig, VarInt,
};
use quinn_proto::InvalidCid;
use ring::{hkdf, hmac};
use shiioo_actors::ports::seams::{Clock, Entropy, Seams};

/// Silence after which a connection is given up, ms. A leader that is heard and hears nobody is
/// followed until then: with an election on top it must stay below two seconds.
const IDLE_MS_MAX: u32 = 1_200;
/// A packet is sent at least this often, so that the other end knows we live, ms.
const KEEP_ALIVE_MS: u64 = 300;
/// What a round trip is taken for before one was measured, ms: a lost first packet is sent again
/// after three of them, which is in time for an attempt to connect.
const INITIAL_RTT_MS: u64 = 50;
/// Size of a packet that passes everywhere, bytes.
const PLAIN_PACKET_BYTES: u16 = 1_200;
/// What one stream may have in the receiver's memory unread, bytes.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for all streams of a member's connection.
pub(crate) const MEMBER_WINDOW_BYTES: u32 = 64 << 20;
/// The same for a connection whose other end is no member, or not yet known to be one.
const STRANGER_WINDOW_BYTES: u32 = 128 << 10;
/// What may be written and not yet acknowledged on a connection, bytes.
const SEND_WINDOW_BYTES: u64 = 64 << 20;
/// Calls of a member that are served at a time.
pub(crate) const MEMBER_STREAMS_MAX: u32 = 4_096;
/// The same before the other end is known to be a member.
const STRANGER_STREAMS_MAX: u32 = 4;
/// Connections that wait to be looked at.
const INCOMING_MAX: usize = 1_024;
/// What is kept of one of them, bytes.
const INCOMING_BYTES_MAX: u64 = 64 << 10;
/// What is kept of all of them, bytes.
const INCOMING_TOTAL_BYTES_MAX: u64 = 8 << 20;
/// Random part of a connection id, bytes.
const CID_NONCE_BYTES: usize = 8;
/// The part that proves a connection id is ours, bytes.
const CID_PROOF_BYTES: usize = 4;

/// Whose connections a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// This node dials a member.
    Dialler,
    /// This node is dialled, by whomever.
    Server,
    /// This node dials to join.
    Joiner,
}

/// Settings of all connections of one side. `plain` packets are all of the same small size and
/// sent one by one, as a simulated network can carry them.
pub(crate) fn transport(side: Side, plain: bool) -> Arc<TransportConfig> {
    let (window, streams, greetings) = match side {
        Side::Dialler => (MEMBER_WINDOW_BYTES, 0, 1),
        Side::Server => (STRANGER_WINDOW_BYTES, STRANGER_STREAMS_MAX, 0),
        Side::Joiner => (STRANGER_WINDOW_BYTES, 0, 0),
    };
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS_MAX))))
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        .initial_rtt(Duration::from_millis(INITIAL_RTT_MS))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(window))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(greetings))
        .datagram_receive_buffer_size(None);
    if plain {
        transport
            .mtu_discovery_config(None)
            .initial_mtu(PLAIN_PACKET_BYTES)
            .enable_segmentation_offload(false);
    }
    Arc::new(transport)
}

/// Settings of an endpoint. `secret` is the same each time the node starts: what it tells a peer
/// about a connection that it has forgotten is then believed, and the peer connects anew at once.
pub(crate) fn endpoint(seams: &Seams, secret: &[u8]) -> EndpointConfig {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let key = |purpose: &str| {
        let derived = hmac::sign(&secret, purpose.as_bytes());
        hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref())
    };
    let mut config = EndpointConfig::new(Arc::new(key("shiioo stateless reset")));
    let entropy = Arc::clone(&seams.entropy);
    let proof = key("shiioo connection id");
    config.cid_generator(move || {
        Box::new(OwnIds { entropy: Arc::clone(&entropy), proof: proof.clone() })
    });
    config.rng_seed(Some(random(seams)));
    config
}

/// Settings of the dialled side.
pub(crate) fn server(
    crypto: Arc<dyn quinn::crypto::ServerConfig>,
    seams: &Seams,
    plain: bool,
) -> ServerConfig {
    let tokens = hkdf::Salt::new(hkdf::HKDF_SHA256, b"shiioo retry").extract(&random::<32>(seams));
    let mut new_tokens = ValidationTokenConfig::default();
    new_tokens.sent(0);
    let mut config = ServerConfig::new(crypto, Arc::new(tokens));
    config
        .transport_config(transport(Side::Server, plain))
        .time_source(Arc::new(WallTime(Arc::clone(&seams.clock))))
        .validation_token_config(new_tokens)
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    config
}

/// Settings of the dialling side.
pub(crate) fn client(
    crypto: Arc<dyn quinn::crypto::ClientConfig>,
    seams: &Seams,
    transport: Arc<TransportConfig>,
) -> ClientConfig {
    let seams = seams.clone();
    let mut config = ClientConfig::new(crypto);
    config
        .transport_config(transport)
        .token_store(Arc::new(quinn::NoneTokenStore))
        .initial_dst_cid_provider(Arc::new(move || {
            ConnectionId::new(&random::<{ CID_NONCE_BYTES + CID_PROOF_BYTES }>(&seams))
        }));
    config
}

fn random<const N: usize>(seams: &Seams) -> [u8; N] {
    let mut bytes = [0; N];
    seams.entropy.fill(&mut bytes);
    bytes
}

/// Connection ids that can be told from garbage: a random number and its proof.
struct OwnIds {
    entropy: Arc<dyn Entropy>,
    proof: hmac::Key,
}

impl OwnIds {
    fn prove(&self, nonce: &[u8]) -> [u8; CID_PROOF_BYTES] {
        let mut proof = [0; CID_PROOF_BYTES];
        proof.copy_from_slice(&hmac::sign(&self.proof, nonce).as_ref()[..CID_PROOF_BYTES]);
        proof
    }
}

impl ConnectionIdGenerator for OwnIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CID_NONCE_BYTES + CID_PROOF_BYTES];
        let (nonce, proof) = id.split_at_mut(CID_NONCE_BYTES);
        self.entropy.fill(nonce);
        proof.copy_from_slice(&self.prove(nonce));
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match id.split_at_checked(CID_NONCE_BYTES) {
            Some((nonce, proof)) if proof == self.prove(nonce) => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_NONCE_BYTES + CID_PROOF_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

struct WallTime(Arc<dyn Clock>);

impl TimeSource for WallTime {
    fn now(&self) -> SystemTime {
        // A clock that stands before 1970 only makes tokens old; they live for seconds.
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0.now().0).unwrap_or(0))
    }
}

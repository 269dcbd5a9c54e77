//! Configures quinn: windows, timers, keys, connection ids.
//!
//! - An unauthenticated peer can make this node hold little memory: each accepted connection begins
//!   with small windows, and is given a member's windows after its certificate has been checked.
//! - A stream's window is a small part of its connection's window: all bulk calls together leave
//!   most of it to the other lanes, and so do all answers to clients together.
//! - Every random number that quinn takes from its user comes from the entropy seam.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quinn::{
    AckFrequencyConfig, ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig,
    IdleTimeout, ServerConfig, TimeSource, TransportConfig, ValidationTokenConfig, VarInt,
};
use quinn_proto::InvalidCid;
use ring::{hkdf, hmac};
use shiioo_actors::ports::PEER_HTTP_STREAMS_MAX;
use shiioo_actors::ports::seams::{Clock, Entropy, Seams};

/// Silence after which a connection counts as dead, ms. Followers keep following a leader that they
/// hear but that does not hear them until then: with an election on top this stays below two
/// seconds.
const IDLE_MS_MAX: u32 = 1_200;
/// Longest pause between two packets of an idle connection, ms.
const KEEP_ALIVE_MS: u64 = 300;
/// Assumed round trip before one was measured, ms: a lost first packet is sent again after three
/// of these, which is in time for an attempt to connect.
const INITIAL_RTT_MS: u64 = 50;
/// Size of a packet that passes everywhere, bytes.
const PLAIN_PACKET_BYTES: u16 = 1_200;
/// Unread bytes of one stream in the memory of the end that was dialled at most. It reads requests
/// without pause.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same for the end that has dialled. A client may read its answer as slowly as it likes.
const ANSWER_WINDOW_BYTES: u32 = 64 << 10;
/// Unread bytes of all streams of a member's connection at most.
pub(crate) const MEMBER_WINDOW_BYTES: u32 = 64 << 20;
/// The same for the end that has dialled: when the answer to each client is left unread, as much as
/// ever remains for the other lanes.
const DIALLER_WINDOW_BYTES: u32 =
    MEMBER_WINDOW_BYTES + ANSWER_WINDOW_BYTES * PEER_HTTP_STREAMS_MAX as u32;
/// The same for a connection whose other end is not, or not yet, known to be a member.
const UNAUTHENTICATED_WINDOW_BYTES: u32 = 128 << 10;
/// How long the other end may keep an acknowledgement back, milliseconds: the last packet of a burst is
/// taken for lost after so much more than a round trip. The usual 25 ms are several of our commits.
const ACK_DELAY_MS_MAX: u64 = 5;
/// Bytes of a connection that are written and not yet acknowledged, at most.
const SEND_WINDOW_BYTES: u64 = 64 << 20;
/// Streams of a member that are open at a time: one a call.
pub(crate) const MEMBER_STREAMS_MAX: u32 = 4_096;
/// The same before the other end is known to be a member.
const UNAUTHENTICATED_STREAMS_MAX: u32 = 4;
/// Connections that wait to be accepted, at most.
const INCOMING_MAX: usize = 1_024;
/// Bytes buffered for one of these.
const INCOMING_BYTES_MAX: u64 = 64 << 10;
/// Bytes buffered for all of these.
const INCOMING_TOTAL_BYTES_MAX: u64 = 8 << 20;
/// Random part of a connection id, bytes.
const CID_NONCE_BYTES: usize = 8;
/// Part of a connection id that proves that this node made it, bytes.
const CID_PROOF_BYTES: usize = 4;

/// Names the end of a connection that a configuration is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// This node dials a member.
    Dialler,
    /// This node is dialled, by a member or by an unauthenticated peer.
    Server,
    /// This node dials to join.
    Joiner,
}

/// Configures the connections of one side. With `plain` all packets have the same small size and
/// leave one by one, as a simulated network carries them.
pub(crate) fn transport(side: Side, plain: bool) -> Arc<TransportConfig> {
    let (window, stream_window, streams, greetings) = match side {
        Side::Dialler => (DIALLER_WINDOW_BYTES, ANSWER_WINDOW_BYTES, 0, 1),
        Side::Server => {
            (UNAUTHENTICATED_WINDOW_BYTES, STREAM_WINDOW_BYTES, UNAUTHENTICATED_STREAMS_MAX, 0)
        }
        Side::Joiner => (UNAUTHENTICATED_WINDOW_BYTES, STREAM_WINDOW_BYTES, 0, 0),
    };
    let mut acks = AckFrequencyConfig::default();
    acks.max_ack_delay(Some(Duration::from_millis(ACK_DELAY_MS_MAX)));
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS_MAX))))
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        .initial_rtt(Duration::from_millis(INITIAL_RTT_MS))
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(window))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(greetings))
        .ack_frequency_config(Some(acks))
        .datagram_receive_buffer_size(None);
    if plain {
        transport
            .mtu_discovery_config(None)
            .initial_mtu(PLAIN_PACKET_BYTES)
            .enable_segmentation_offload(false);
    }
    Arc::new(transport)
}

/// Configures an endpoint. `secret` is the same at each start of the node, so that the stateless
/// resets it sends for connections of its predecessor are believed: peers connect anew at once
/// instead of waiting for [`IDLE_MS_MAX`].
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

/// Configures the accepting side.
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

/// Configures the dialling side.
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

/// Makes connection ids of a random number and its MAC, so that garbage is recognised without
/// state.
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
        // A clock before 1970 only makes retry tokens old; they live for seconds.
        UNIX_EPOCH + Duration::from_millis(u64::try_from(self.0.now().0).unwrap_or(0))
    }
}

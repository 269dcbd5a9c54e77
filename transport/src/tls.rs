//! Who is at the other end: TLS 1.3 over the cluster's certificates.
//!
//! - Two protocols: one for members, who show a certificate, and one for those who join, who need
//!   none. What a connection may do hangs on the protocol that was agreed, judged after the
//!   handshake by whoever accepted it.
//! - No tickets, no resumption, no early data: every handshake is a whole one, so that a member
//!   who has left cannot come back by an old one.

use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use shiioo_actors::ports::seams::{Clock, Seams};

use crate::pki::{self, MemberName};

/// What members speak.
const PEER_PROTOCOL: &[u8] = b"shiioo/1";
/// What is spoken with those who join.
const JOIN_PROTOCOL: &[u8] = b"shiioo-join/1";
/// Label under which both ends of a connection derive what binds a proof to it (RFC 8446, 7.5).
const BINDING_LABEL: &[u8] = b"EXPORTER-shiioo-join-binding";

/// What a node proves its name with, and judges others by. All in DER.
#[derive(Clone)]
pub struct TlsIdentity {
    /// Certificate of the cluster's authority.
    pub ca_cert: Vec<u8>,
    /// Certificate of this node, issued by the authority.
    pub cert: Vec<u8>,
    /// Private key of this node, PKCS#8.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for TlsIdentity {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// What was agreed about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// The other end says it is a member.
    Peer,
    /// The other end wants to join.
    Join,
}

impl TlsIdentity {
    /// The dialled side: shows the authority's certificate as well, for those who join.
    pub(crate) fn server(&self, seams: &Seams) -> Result<QuicServerConfig, rustls::Error> {
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()?),
            Arc::clone(&provider),
        )
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        let mut config = ServerConfig::builder_with_details(provider, wall_time(seams))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain(), self.key())?;
        config.alpn_protocols = vec![PEER_PROTOCOL.to_vec(), JOIN_PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        QuicServerConfig::try_from(config)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    /// The dialling side, for members.
    pub(crate) fn client(&self, seams: &Seams) -> Result<QuicClientConfig, rustls::Error> {
        let config = ClientConfig::builder_with_details(provider(), wall_time(seams))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain(), self.key())?;
        finish_client(config, PEER_PROTOCOL)
    }

    fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(self.ca_cert.as_slice()))?;
        Ok(roots)
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        [&self.cert, &self.ca_cert].map(|der| CertificateDer::from(der.clone())).to_vec()
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// The dialling side of a node that has no certificate yet.
pub(crate) fn joiner(
    seams: &Seams,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<QuicClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_details(provider(), wall_time(seams))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    finish_client(config, JOIN_PROTOCOL)
}

fn finish_client(
    mut config: ClientConfig,
    protocol: &[u8],
) -> Result<QuicClientConfig, rustls::Error> {
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map_err(|error| rustls::Error::General(error.to_string()))
}

/// The cryptography of all connections.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The protocol that was agreed, when the handshake is over.
pub(crate) fn protocol(connection: &quinn::Connection) -> Option<Protocol> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    match data.protocol.as_deref()? {
        PEER_PROTOCOL => Some(Protocol::Peer),
        JOIN_PROTOCOL => Some(Protocol::Join),
        _ => None,
    }
}

/// Whom the other end's certificate names; the handshake has verified who issued it.
pub(crate) fn peer_name(connection: &quinn::Connection) -> Option<MemberName> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    pki::member_name(chain.first()?).ok()
}

/// A secret that only the two ends of this connection know.
pub(crate) fn binding(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let mut binding = [0; 32];
    connection.export_keying_material(&mut binding, BINDING_LABEL, b"").ok()?;
    Some(binding)
}

fn wall_time(seams: &Seams) -> Arc<dyn TimeProvider> {
    Arc::new(WallTime(Arc::clone(&seams.clock)))
}

#[derive(Debug)]
struct WallTime(Arc<dyn Clock>);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        let ms = u64::try_from(self.0.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}

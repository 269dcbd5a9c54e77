//! TLS 1.3 over the cluster's certificates: identifies the other end of a connection.
//!
//! - There are two ALPN protocols: members show a certificate, joiners need none. `accept` decides
//!   by the negotiated protocol, after the handshake, what a connection may do.
//! - There are no tickets, no resumption and no early data: every handshake is complete, so that a
//!   removed member cannot come back by a session from before its removal.

use std::sync::Arc;

use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use shiioo_actors::ports::seams::Seams;

use crate::pki::{self, MemberName, PkiError};

/// Protocol between members.
const PEER_PROTOCOL: &[u8] = b"shiioo/1";
/// Protocol with joiners.
const JOIN_PROTOCOL: &[u8] = b"shiioo-join/1";
/// Label of the exported key that binds a proof to its connection (RFC 8446, section 7.5).
const BINDING_LABEL: &[u8] = b"EXPORTER-shiioo-join-binding";

/// Holds what a node proves its name with and checks other members by. All in DER.
#[derive(Clone)]
pub struct TlsIdentity {
    /// Certificate of the cluster's authority.
    pub ca_cert: Vec<u8>,
    /// Certificate of this node, issued by the authority.
    pub cert: Vec<u8>,
    /// Private key of this node, PKCS#8.
    pub key: Vec<u8>,
    /// What the node was before its cluster was recovered by force.
    pub former: Option<FormerIdentity>,
}

/// Holds what a node was in the cluster that its own was recovered from. It serves to tell members of
/// that cluster what has happened, and for nothing else.
#[derive(Clone)]
pub struct FormerIdentity {
    /// Certificate of the former cluster's authority.
    pub ca_cert: Vec<u8>,
    /// Certificate of this node there, for the same key as now.
    pub cert: Vec<u8>,
}

/// Names the negotiated protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// The other end claims to be a member.
    Peer,
    /// The other end wants to join.
    Join,
}

impl TlsIdentity {
    /// Configures the accepting side. It also shows the authority's certificate, for joiners.
    ///
    /// Members of the former cluster are let through the handshake as well: only so can they be told,
    /// and believe, what has become of it. `accept` refuses them by their names, which the former
    /// authority can sign for its own cluster only.
    pub(crate) fn server(&self, seams: &Seams) -> Result<QuicServerConfig, rustls::Error> {
        let provider = provider();
        let mut roots = self.roots()?;
        if let Some(former) = &self.former {
            roots.add(CertificateDer::from(former.ca_cert.as_slice()))?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(|error| rustls::Error::General(error.to_string()))?;
        let certificates = Arc::new(self.by_name(&provider)?);
        let mut config = ServerConfig::builder_with_details(provider, pki::wall_time(&seams.clock))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(certificates);
        config.alpn_protocols = vec![PEER_PROTOCOL.to_vec(), JOIN_PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        QuicServerConfig::try_from(config)
            .map_err(|error| rustls::Error::General(error.to_string()))
    }

    /// Configures the dialling side of a member.
    pub(crate) fn client(&self, seams: &Seams) -> Result<QuicClientConfig, rustls::Error> {
        let config = ClientConfig::builder_with_details(provider(), pki::wall_time(&seams.clock))
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
        chain(&self.cert, &self.ca_cert)
    }

    /// Returns the certificates of this node, to be shown by the name that is asked for.
    fn by_name(&self, provider: &CryptoProvider) -> Result<ByName, rustls::Error> {
        let certified = |chain| CertifiedKey::from_der(chain, self.key(), provider).map(Arc::new);
        let own = certified(self.chain())?;
        let Some(FormerIdentity { ca_cert, cert }) = &self.former else {
            return Ok(ByName { own, former: None });
        };
        let unreadable = |error: PkiError| rustls::Error::General(error.to_string());
        let name = pki::member_name(cert).map_err(unreadable)?.to_string();
        Ok(ByName { own, former: Some((name, certified(chain(cert, ca_cert))?)) })
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// Shows the former certificate to who asks for the former name, and the present one to all others.
#[derive(Debug)]
struct ByName {
    own: Arc<CertifiedKey>,
    former: Option<(String, Arc<CertifiedKey>)>,
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let former = self.former.iter().find(|(name, _)| hello.server_name() == Some(name));
        Some(Arc::clone(former.map_or(&self.own, |(_, former)| former)))
    }
}

fn chain(cert: &[u8], ca_cert: &[u8]) -> Vec<CertificateDer<'static>> {
    [cert, ca_cert].map(|der| CertificateDer::from(der.to_vec())).to_vec()
}

/// Configures the dialling side of a node that has no certificate yet.
pub(crate) fn joiner(
    seams: &Seams,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<QuicClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_details(provider(), pki::wall_time(&seams.clock))
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

/// Returns the cryptography of all connections.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Returns the negotiated protocol, once the handshake is over.
pub(crate) fn protocol(connection: &quinn::Connection) -> Option<Protocol> {
    let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
    match data.protocol.as_deref()? {
        PEER_PROTOCOL => Some(Protocol::Peer),
        JOIN_PROTOCOL => Some(Protocol::Join),
        _ => None,
    }
}

/// Returns the member that the other end's certificate names; the handshake has verified its issuer.
pub(crate) fn peer_name(connection: &quinn::Connection) -> Option<MemberName> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    pki::member_name(chain.first()?).ok()
}

/// Derives a secret that only the two ends of this connection know.
pub(crate) fn binding(connection: &quinn::Connection) -> Option<[u8; 32]> {
    let mut binding = [0; 32];
    connection.export_keying_material(&mut binding, BINDING_LABEL, b"").ok()?;
    Some(binding)
}

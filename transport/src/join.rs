//! The joiner's side: one request to a member of a cluster, by a node that has no certificate yet.
//!
//! - Before anything is said the other end has proven that the cluster's authority vouches for it:
//!   the authority whose fingerprint the joiner was given, where it was given one.
//! - What the joiner proves of itself it proves over [`JoinBinding::binding`], which only the two
//!   ends of this connection know: shown on another connection it proves nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint, TokioRuntime, VarInt};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use shiioo_actors::ports::Declined;
use shiioo_actors::ports::seams::{Seams, Tcp};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::dial::dial;
use crate::frame::RequestHead;
use crate::lookups::Lookups;
use crate::settings::{self, Side};
use crate::udp::Udp;
use crate::wire::Exchange;
use crate::{pki, tls};

/// Longest request of a joiner and longest answer to it, bytes.
pub const JOIN_MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Number in the head of a joiner's request: no service of members has it.
pub(crate) const JOIN_SERVICE: u8 = 0;
/// Name that is asked for where the other end's is not known. It is not compared with anything.
const ANY_MEMBER: &str = "join.shiioo.internal";
/// Longest time that saying goodbye takes, ms.
const CLOSE_MS_MAX: u64 = 1_000;
/// Bytes of the secret that an endpoint of one connection has its keys from.
const SECRET_BYTES: usize = 32;

/// What the joiner knows of the cluster's authority beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaExpectation {
    /// SHA-256 of its certificate.
    Fingerprint([u8; 32]),
    /// Nothing: whoever answers is believed.
    Any,
}

/// What the joiner may bind its proof to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinBinding {
    /// A secret of this connection: the other end has the same in its
    /// [`UnauthenticatedPeer`](shiioo_actors::ports::Stranger).
    pub binding: [u8; 32],
    /// Fingerprint of the authority that vouches for the other end.
    pub authority: [u8; 32],
}

/// What a member answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAnswer {
    /// Certificate of the cluster's authority, DER.
    pub ca_cert: Vec<u8>,
    /// The answer.
    pub reply: Vec<u8>,
    /// The address that answered.
    pub remote: SocketAddr,
}

/// Why a joiner has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Nothing was asked.
    #[error("the cluster cannot be reached: {why}")]
    Unreachable {
        /// What failed.
        why: String,
    },
    /// Another authority than the expected one vouches for who is there. Nothing was asked.
    #[error("another cluster is there: its authority has another fingerprint than expected")]
    WrongAuthority {
        /// Fingerprint that was expected.
        expected: [u8; 32],
        /// Fingerprint of who is there.
        found: [u8; 32],
    },
    /// The member declined before it did anything.
    #[error("the cluster declined: {0}")]
    Declined(String),
    /// The request was sent and the answer did not come: it may have been done or not.
    #[error("the cluster was asked and did not answer: {why}")]
    Lost {
        /// What failed.
        why: String,
    },
}

/// How a joiner reaches the world.
#[derive(Debug, Clone, Copy)]
pub struct JoinWays<'a> {
    /// Where its socket comes from.
    pub udp: &'a dyn Udp,
    /// Where its socket is bound; port 0 takes any free one.
    pub bind: SocketAddr,
    /// Resolves names of hosts.
    pub tcp: &'a Arc<dyn Tcp>,
    /// Time and chance.
    pub seams: &'a Seams,
    /// As in [`QuicConfig`](crate::quic::QuicConfig).
    pub plain_packets: bool,
}

/// Asks the member at `addr`, a `host:port`. `request` is made when the other end has proven who
/// it is.
///
/// # Errors
/// When there is no answer by `deadline`, or the answer is a refusal.
pub async fn ask(
    ways: JoinWays<'_>,
    addr: &str,
    expect: CaExpectation,
    request: impl FnOnce(&JoinBinding) -> Vec<u8> + Send,
    deadline: Instant,
) -> Result<JoinAnswer, JoinError> {
    let verifier =
        Arc::new(AuthorityVerifier { expect, provider: tls::provider(), found: Mutex::new(None) });
    let (endpoint, client) = prepare(&ways, Arc::clone(&verifier)).map_err(unreachable)?;
    let lookups = Lookups::of_node(Arc::clone(ways.tcp));
    let dialled = dial(&endpoint, &lookups, &client, addr, ANY_MEMBER, deadline).await;
    let answer = match (dialled, verifier.found(), expect) {
        (Ok(connection), Some(ca_cert), _) => {
            exchange(connection, ca_cert, request, deadline).await
        }
        (Err(_), Some(ca_cert), CaExpectation::Fingerprint(expected))
            if pki::fingerprint(&ca_cert) != expected =>
        {
            Err(JoinError::WrongAuthority { expected, found: pki::fingerprint(&ca_cert) })
        }
        (Err(why), _, _) => Err(unreachable(why)),
        (Ok(_), None, _) => Err(unreachable("no authority was shown")),
    };
    endpoint.close(VarInt::from_u32(0), b"");
    // Whoever has not heard of it by then will find out by itself.
    let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), endpoint.wait_idle()).await;
    answer
}

fn prepare(
    ways: &JoinWays<'_>,
    verifier: Arc<AuthorityVerifier>,
) -> Result<(Endpoint, ClientConfig), String> {
    let seams = ways.seams;
    let crypto = tls::joiner(seams, verifier).map_err(|error| error.to_string())?;
    let transport = settings::transport(Side::Joiner, ways.plain_packets);
    let client = settings::client(Arc::new(crypto), seams, transport);
    let mut secret = [0; SECRET_BYTES];
    seams.entropy.fill(&mut secret);
    let endpoint = ways.udp.bind(ways.bind).and_then(|socket| {
        let config = settings::endpoint(seams, &secret);
        Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))
    });
    Ok((endpoint.map_err(|error| format!("no socket: {error}"))?, client))
}

async fn exchange(
    connection: Connection,
    ca_cert: Vec<u8>,
    request: impl FnOnce(&JoinBinding) -> Vec<u8> + Send,
    deadline: Instant,
) -> Result<JoinAnswer, JoinError> {
    let binding = tls::binding(&connection).ok_or_else(|| unreachable("no binding"))?;
    let opened = timeout_at(deadline, connection.open_bi()).await;
    let opened = opened.map_err(|_| unreachable("no answer before the deadline"))?;
    let (send, receive) = opened.map_err(|error| unreachable(error.to_string()))?;
    let binding = JoinBinding { binding, authority: pki::fingerprint(&ca_cert) };
    let request = request(&binding);
    let left = deadline.saturating_duration_since(Instant::now());
    let patience_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let head = RequestHead { service: JOIN_SERVICE, patience_ms, bytes: request.len() };
    let head =
        head.encode(JOIN_MESSAGE_BYTES_MAX).map_err(|error| unreachable(error.to_string()))?;
    let exchange = Exchange::new(send, receive, JOIN_MESSAGE_BYTES_MAX);
    let remote = connection.remote_address();
    // Answers to strangers are short: none of them needs room.
    let room = Semaphore::new(JOIN_MESSAGE_BYTES_MAX);
    match timeout_at(deadline, exchange.ask(head, request, &room)).await {
        Ok(Ok(Ok(reply))) => Ok(JoinAnswer { ca_cert, reply, remote }),
        Ok(Ok(Err(Declined(why)))) => Err(JoinError::Declined(why)),
        Ok(Err(broken)) => Err(JoinError::Lost { why: broken.to_string() }),
        Err(_) => Err(JoinError::Lost { why: "no answer before the deadline".to_owned() }),
    }
}

fn unreachable(why: impl Into<String>) -> JoinError {
    JoinError::Unreachable { why: why.into() }
}

/// Believes any member of the cluster whose authority is the expected one.
#[derive(Debug)]
struct AuthorityVerifier {
    expect: CaExpectation,
    provider: Arc<CryptoProvider>,
    /// The authority's certificate that was shown last.
    found: Mutex<Option<Vec<u8>>>,
}

impl AuthorityVerifier {
    fn found(&self) -> Option<Vec<u8>> {
        // Whoever panicked had either put it there or not.
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, ca_cert: &[u8]) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(ca_cert.to_vec());
    }
}

impl ServerCertVerifier for AuthorityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let [authority] = intermediates else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        self.note(authority);
        if let CaExpectation::Fingerprint(expected) = self.expect
            && pki::fingerprint(authority) != expected
        {
            return Err(CertificateError::UnknownIssuer.into());
        }
        let foreign = || rustls::Error::from(CertificateError::NotValidForName);
        let member = pki::member_name(end_entity).map_err(|_| foreign())?;
        if pki::authority_cluster(authority).map_err(|_| foreign())? != member.cluster {
            return Err(foreign());
        }
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        )
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
        let name = ServerName::try_from(member.to_string()).map_err(|_| foreign())?;
        verifier.verify_server_cert(end_entity, &[], &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("QUIC knows TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

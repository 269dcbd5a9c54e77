//! The joiner's side: one request to a member of a cluster, by a node that has no certificate yet.
//!
//! # One request
//!
//! [`ask`] binds a socket of its own, connects to a member with the join protocol, has the handshake
//! verify the other end, makes the request, sends it on one stream, and closes the socket. What the
//! request and the answer say is no matter of this crate: `shiioo_actors::cluster::join` encodes them.
//!
//! # Who proves what to whom
//!
//! 1. *The member proves itself first.* In the handshake it shows its certificate and that of its
//!    authority. The joiner verifies that the one issued the other and that both are of the same
//!    cluster, and, when its join token has the authority's fingerprint, that this is the authority.
//!    Until then the joiner has said nothing, and `request` has not been called.
//! 2. *Both ends derive the same secret* of this connection from its TLS keys
//!    ([`JoinBinding::binding`]). Proofs are made over it: one that is recorded and shown on another
//!    connection, as by a member in the middle, proves nothing.
//! 3. *The joiner proves* that it knows the token, by a MAC over the binding in its request.
//! 4. *The member proves* that it knows the token as well, by a MAC in its answer. So a joiner whose
//!    token has no fingerprint ([`CaExpectation::Any`]) notices another cluster before it keeps
//!    anything of the answer.
//!
//! # Invariants
//!
//! - [`JoinError::Unreachable`] and [`JoinError::WrongAuthority`]: nothing was asked.
//!   [`JoinError::Declined`]: asked, and nothing was done. [`JoinError::Lost`]: the outcome is unknown;
//!   asking again with the same node id and key gives the same place.
//! - The socket is closed when `ask` returns, whatever it returns.
//!
//! # What is not done
//!
//! A joiner asks one address; trying others and trying again is the caller's business.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
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

use crate::pki;
use crate::quic::connect;
use crate::quic::exchange::Exchange;
use crate::quic::exchange::frame::{JOIN_MESSAGE_BYTES_MAX, JOIN_SERVICE, RequestHead};
use crate::quic::settings::{self, Side};
use crate::quic::tls;
use crate::sockets::lookups::Lookups;
use crate::sockets::udp::Udp;

/// Server name in the handshake, where the member's own name is not known yet. Compared with nothing.
const ANY_MEMBER: &str = "join.shiioo.internal";
/// Longest time that closing the connection takes, ms.
const CLOSE_MS_MAX: u64 = 1_000;
/// Length of the secret that the endpoint derives its keys from, bytes.
const SECRET_BYTES: usize = 32;

/// Tells what the joiner knows of the cluster's authority beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaExpectation {
    /// SHA-256 of its certificate.
    Fingerprint([u8; 32]),
    /// Nothing: any authority is believed.
    Any,
}

/// Identifies the connection, for the joiner's proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinBinding {
    /// Secret of this connection. The other end has the same in its
    /// [`UnauthenticatedPeer`](shiioo_actors::ports::UnauthenticatedPeer).
    pub binding: [u8; 32],
    /// Fingerprint of the authority that issued the other end's certificate.
    pub authority: [u8; 32],
}

/// Holds the answer of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAnswer {
    /// Certificate of the cluster's authority, DER.
    pub ca_cert: Vec<u8>,
    /// The answer.
    pub reply: Vec<u8>,
    /// The address that answered.
    pub remote: SocketAddr,
}

/// Tells why a joiner has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// No member was reached. Nothing was asked.
    #[error("the cluster cannot be reached: {why}")]
    Unreachable {
        /// What failed.
        why: String,
    },
    /// A member of another authority than the expected one is there. Nothing was asked.
    #[error("another cluster is there: its authority has another fingerprint than expected")]
    WrongAuthority {
        /// Fingerprint that was expected.
        expected: [u8; 32],
        /// Fingerprint that was shown.
        found: [u8; 32],
    },
    /// The member declined before the request had any effect.
    #[error("the cluster declined: {0}")]
    Declined(String),
    /// The request was sent and no answer came: the outcome is unknown.
    #[error("the cluster was asked and did not answer: {why}")]
    Lost {
        /// What failed.
        why: String,
    },
}

/// Holds the seams that a joiner uses.
#[derive(Debug, Clone, Copy)]
pub struct JoinSeams<'a> {
    /// Opens the socket.
    pub udp: &'a dyn Udp,
    /// Address of the socket; port 0 takes any free one.
    pub bind: SocketAddr,
    /// Resolves names of hosts.
    pub tcp: &'a Arc<dyn Tcp>,
    /// Wall time and random numbers.
    pub seams: &'a Seams,
    /// As in [`QuicConfig`](crate::quic::QuicConfig).
    pub plain_packets: bool,
}

/// Sends a request to the member at `addr`, a `host:port`. Calls `request` after the other end has
/// proven its name.
///
/// # Errors
/// When there is no answer by `deadline`, or the answer is a refusal.
pub async fn ask(
    seams: JoinSeams<'_>,
    addr: &str,
    expect: CaExpectation,
    request: impl FnOnce(&JoinBinding) -> Vec<u8> + Send,
    deadline: Instant,
) -> Result<JoinAnswer, JoinError> {
    let verifier =
        Arc::new(AuthorityVerifier { expect, provider: tls::provider(), found: Mutex::new(None) });
    let (endpoint, client) = prepare(&seams, Arc::clone(&verifier)).map_err(unreachable)?;
    let lookups = Lookups::of_node(Arc::clone(seams.tcp));
    let connected = connect(&endpoint, &lookups, &client, addr, ANY_MEMBER, deadline).await;
    let answer = match (connected, verifier.found(), expect) {
        (Ok(connection), Some(ca_cert), _) => {
            exchange(connection, ca_cert, request, deadline).await
        }
        // The verifier refused that certificate: rustls would only say 'unknown issuer'.
        (Err(_), Some(ca_cert), CaExpectation::Fingerprint(expected))
            if pki::fingerprint(&ca_cert) != expected =>
        {
            Err(JoinError::WrongAuthority { expected, found: pki::fingerprint(&ca_cert) })
        }
        (Err(why), _, _) => Err(unreachable(why)),
        (Ok(_), None, _) => Err(unreachable("no authority was shown")),
    };
    endpoint.close(VarInt::from_u32(0), b"");
    // A member that has not been told by then notices the silence by itself.
    let _ = timeout(Duration::from_millis(CLOSE_MS_MAX), endpoint.wait_idle()).await;
    answer
}

fn prepare(
    joiner: &JoinSeams<'_>,
    verifier: Arc<AuthorityVerifier>,
) -> Result<(Endpoint, ClientConfig), String> {
    let seams = joiner.seams;
    let crypto = tls::joiner(seams, verifier).map_err(|error| error.to_string())?;
    let transport = settings::transport(Side::Joiner, joiner.plain_packets);
    let client = settings::client(Arc::new(crypto), seams, transport);
    let mut secret = [0; SECRET_BYTES];
    seams.entropy.fill(&mut secret);
    let endpoint = joiner.udp.bind(joiner.bind).and_then(|socket| {
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
    let time_left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    let head = RequestHead { service: JOIN_SERVICE, time_left_ms, bytes: request.len() };
    let head =
        head.encode(JOIN_MESSAGE_BYTES_MAX).map_err(|error| unreachable(error.to_string()))?;
    let exchange = Exchange::new(send, receive, JOIN_MESSAGE_BYTES_MAX);
    let remote = connection.remote_address();
    // Answers to joiners are short: permits for their bytes are never short.
    let answer_bytes = Semaphore::new(JOIN_MESSAGE_BYTES_MAX);
    match timeout_at(deadline, exchange.ask(head, request, &answer_bytes)).await {
        Ok(Ok(Ok(reply))) => Ok(JoinAnswer { ca_cert, reply, remote }),
        Ok(Ok(Err(Declined(why)))) => Err(JoinError::Declined(why)),
        Ok(Err(broken)) => Err(JoinError::Lost { why: broken.to_string() }),
        Err(_) => Err(JoinError::Lost { why: "no answer before the deadline".to_owned() }),
    }
}

fn unreachable(why: impl Into<String>) -> JoinError {
    JoinError::Unreachable { why: why.into() }
}

/// Believes any member of the cluster whose authority is the expected one, and remembers the
/// authority that was shown.
#[derive(Debug)]
struct AuthorityVerifier {
    expect: CaExpectation,
    provider: Arc<CryptoProvider>,
    /// Certificate of the authority that was shown last.
    found: Mutex<Option<Vec<u8>>>,
}

impl AuthorityVerifier {
    fn found(&self) -> Option<Vec<u8>> {
        self.found.lock().clone()
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
        // Before anything is judged, so that the caller can name the authority that was refused.
        *self.found.lock() = Some(authority.to_vec());
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
        Err(rustls::Error::General("QUIC uses TLS 1.3 only".to_owned()))
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

#[cfg(test)]
mod tests;

//! The client that sends the requests of `http` steps: HTTP/1.1 over the TCP seam, TLS where the
//! URL says `https`.
//!
//! - Only `http` and `https`; redirects are followed within a scheme, a few times.
//! - Everything an answer may be is bounded: head, body, redirects, addresses tried.
//! - Time is bounded by the caller, who drops the future: the socket closes with it.
//! - With `deny_private_targets` the address that is about to be connected to is judged, for the
//!   first request and after every redirect.
//! - Texts of errors name hosts at most, never a path, a query or a header's value: the secrets of
//!   a step may be in there.
//!
//! Architecture invariant: sockets, names and wall time come through the seams; TLS draws its
//! randomness as ring does, which is where the simulation gets hold of it.

mod address;
mod connection;
mod outgoing;
mod pool;
mod target;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::response::Parts;
use rustls::client::Resumption;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore};
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::ports::descriptors::{DescriptorBudget, is_exhausted};
use shiioo_actors::ports::seams::{ByteStream, Clock, Tcp};
use shiioo_actors::ports::{BoxFuture, HttpCallError, HttpCaller, HttpRequest, HttpResponse};
use tokio_rustls::TlsConnector;

use connection::{Connection, ExchangeError};
use outgoing::Outgoing;
use pool::Pool;
use target::{Origin, Scheme};

use crate::lookups::{Asker, Lookups};
use crate::shares::Shares;

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;
/// Addresses of a host that are tried, in the order in which the resolver gave them.
const ADDRESSES_TRIED_MAX: usize = 4;
/// How long one address may take to accept before the next is tried.
const CONNECT_MS_MAX: u64 = 10_000;
/// Pause before a connection is tried again that found no free descriptor, ms.
const DESCRIPTOR_RETRY_MS: u64 = 100;

/// Sends the requests of `http` steps.
#[derive(Debug)]
pub struct HttpSteps {
    tcp: Arc<dyn Tcp>,
    lookups: Lookups,
    /// Calls under way: each may have a connection open.
    calls: Shares,
    tls: Arc<ClientConfig>,
    pool: Pool,
    deny_private_targets: bool,
}

impl HttpSteps {
    /// A client that trusts the public certificate authorities and has no connection yet. `clock`
    /// tells whether a certificate is valid today. With `deny_private_targets` it connects to
    /// public addresses only. Calls, idle connections and lookups are bounded by `budget`.
    ///
    /// # Errors
    /// When the TLS library cannot be set up with its own defaults.
    pub fn new(
        tcp: Arc<dyn Tcp>,
        clock: Arc<dyn Clock>,
        deny_private_targets: bool,
        budget: &DescriptorBudget,
    ) -> Result<Self, rustls::Error> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        Self::with_roots(tcp, clock, deny_private_targets, budget, roots)
    }

    fn with_roots(
        tcp: Arc<dyn Tcp>,
        clock: Arc<dyn Clock>,
        deny_private_targets: bool,
        budget: &DescriptorBudget,
        roots: RootCertStore,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_details(provider, Arc::new(WallTime(clock)))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Connections are kept instead; a resumed session would make a replay depend on more.
        tls.resumption = Resumption::disabled();
        Ok(Self {
            lookups: Lookups::new(Arc::clone(&tcp), budget.lookups),
            calls: Shares::new(budget.step_calls, budget.tenant_step_calls),
            pool: Pool::new(budget.idle_step_connections),
            tcp,
            tls: Arc::new(tls),
            deny_private_targets,
        })
    }

    async fn follow(&self, request: HttpRequest) -> Result<HttpResponse, HttpCallError> {
        let tenant = request.tenant;
        let mut outgoing = Outgoing::new(request).map_err(HttpCallError::Unsendable)?;
        let _place = self.calls.place(tenant).await;
        for _ in 0..=REDIRECTS_MAX {
            let (head, body) = self.send(tenant, &outgoing).await?;
            match outgoing.redirected(head.status, &head.headers) {
                Ok(Some(next)) => outgoing = next,
                Ok(None) => return Ok(response(&head, body)),
                Err(reason) => return Err(HttpCallError::Unsendable(reason)),
            }
        }
        Err(HttpCallError::Unsendable(format!("redirected more than {REDIRECTS_MAX} times")))
    }

    /// Sends one request, over an idle connection where there is one.
    async fn send(
        &self,
        tenant: TenantId,
        outgoing: &Outgoing,
    ) -> Result<(Parts, Vec<u8>), HttpCallError> {
        let origin = &outgoing.target.origin;
        if let Some(connection) = self.pool.take(origin) {
            match self.exchange(connection, outgoing).await {
                // Nothing was sent, so that sending it again cannot do it twice.
                Err(ExchangeError::NotSent) => {}
                // The service closes what was idle for too long, and the request met that. Should
                // it have been processed after all, doing it again makes no difference (RFC 9110,
                // section 9.2.2).
                Err(ExchangeError::Unanswered(_)) if outgoing.is_idempotent() => {}
                Err(error) => return Err(broken(origin, &error.reason())),
                Ok(answer) => return Ok(answer),
            }
        }
        let connection = self.connect(tenant, origin).await?;
        let answer = self.exchange(connection, outgoing).await;
        answer.map_err(|error| broken(origin, &error.reason()))
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        outgoing: &Outgoing,
    ) -> Result<(Parts, Vec<u8>), ExchangeError> {
        let answer = connection.exchange(outgoing.to_request()).await?;
        self.pool.put(outgoing.target.origin.clone(), connection);
        Ok(answer)
    }

    async fn connect(
        &self,
        tenant: TenantId,
        origin: &Origin,
    ) -> Result<Connection, HttpCallError> {
        let stream = self.connect_tcp(tenant, origin).await?;
        let stream: Box<dyn ByteStream> = match origin.scheme {
            Scheme::Http => stream,
            Scheme::Https => {
                let name = ServerName::try_from(origin.host.clone()).map_err(|_| {
                    HttpCallError::Unsendable("the URL's host is no name for TLS".into())
                })?;
                let connector = TlsConnector::from(Arc::clone(&self.tls));
                let secured = connector.connect(name, stream).await;
                Box::new(secured.map_err(|error| broken(origin, &format!("TLS: {error}")))?)
            }
        };
        Connection::open(stream).await.map_err(|reason| broken(origin, &reason))
    }

    async fn connect_tcp(
        &self,
        tenant: TenantId,
        origin: &Origin,
    ) -> Result<Box<dyn ByteStream>, HttpCallError> {
        let mut failure = "the name has no address".to_owned();
        let addresses = self.addresses(tenant, origin).await?;
        for address in addresses.into_iter().take(ADDRESSES_TRIED_MAX) {
            let patience = Duration::from_millis(CONNECT_MS_MAX);
            match tokio::time::timeout(patience, self.open(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failure = format!("cannot connect: {error}"),
                Err(_) => failure = format!("cannot connect: no answer in {CONNECT_MS_MAX} ms"),
            }
        }
        Err(broken(origin, &failure))
    }

    /// Connects. That this process has no descriptor left is not the service's fault, and passes:
    /// then it is tried again.
    async fn open(&self, address: SocketAddr) -> io::Result<Box<dyn ByteStream>> {
        loop {
            match self.tcp.connect(address).await {
                Err(error) if is_exhausted(&error) => {
                    tokio::time::sleep(Duration::from_millis(DESCRIPTOR_RETRY_MS)).await;
                }
                connected => return connected,
            }
        }
    }

    /// The addresses that may be connected to.
    async fn addresses(
        &self,
        tenant: TenantId,
        origin: &Origin,
    ) -> Result<Vec<SocketAddr>, HttpCallError> {
        let asker = Asker::Tenant(tenant);
        let found = self.lookups.resolve(asker, &origin.host, origin.port).await;
        let mut addresses =
            found.map_err(|error| broken(origin, &format!("cannot resolve the name: {error}")))?;
        let mut denied = None;
        if self.deny_private_targets {
            addresses.retain(|address| match address::private_kind(address.ip()) {
                None => true,
                Some(kind) => {
                    denied = Some(kind);
                    false
                }
            });
        }
        match denied {
            Some(kind) if addresses.is_empty() => Err(HttpCallError::Unsendable(format!(
                "{} has a {kind} address, and this node calls public addresses only \
                 (--deny-private-targets)",
                origin.host
            ))),
            _ => Ok(addresses),
        }
    }
}

impl HttpCaller for HttpSteps {
    fn call(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpResponse, HttpCallError>> {
        Box::pin(self.follow(request))
    }
}

fn broken(origin: &Origin, reason: &str) -> HttpCallError {
    HttpCallError::Failed(format!("{}:{}: {reason}", origin.host, origin.port))
}

fn response(head: &Parts, body: Vec<u8>) -> HttpResponse {
    let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    HttpResponse {
        status: head.status.as_u16(),
        headers: head.headers.iter().map(header).collect(),
        body,
    }
}

/// The clock seam, as TLS asks for it.
struct WallTime(Arc<dyn Clock>);

impl TimeProvider for WallTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since_epoch = u64::try_from(self.0.now().0).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_millis(since_epoch)))
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

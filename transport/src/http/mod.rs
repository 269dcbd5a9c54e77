//! The client that sends the requests of `http` steps: HTTP/1.1 over the TCP seam, TLS for `https`.
//!
//! Tenants write the URLs, and the services that they call write the redirects and the answers: all
//! of them are hostile input.
//!
//! # The order of checks (defence against server-side request forgery)
//!
//! 1. *The URL is parsed once* (`target`), by a strict parser: anything that two parsers may read
//!    differently is refused, such as user names, a backslash or a control character before the
//!    path, and a host that is not ASCII. The parsed host, port and path are all that is used from
//!    here on; the text of the URL is not read again.
//! 2. *The headers are checked* (`outgoing`): a step cannot set the framing of a request, because
//!    connections are shared between requests.
//! 3. *A permit for the call* is taken, from the tenant's share of file descriptors.
//! 4. *An idle connection* is used when there is one to the same scheme, host and port. Its address
//!    was checked when it was opened, by the same client with the same settings.
//! 5. Otherwise *the name is resolved*, in the tenant's share of lookups, and *every address is
//!    checked* (`address`), with `--deny-private-targets`. The check is made on the addresses that
//!    are then connected to, with no second lookup in between: a name server that answers
//!    differently the second time gains nothing.
//! 6. *TLS* verifies the certificate for the host of the URL, by the clock seam.
//! 7. *A redirect* begins again at 1, with the `Location` resolved against the URL. It stays within
//!    its scheme, and it loses credentials when host or port change.
//!
//! # What may be sent twice
//!
//! A request whose bytes were not sent at all is sent again on a fresh connection. A request that was
//! sent over a kept connection and met its closing, before a byte of an answer came, is sent again
//! only when its method is idempotent. Any other failure is the step's result: retries are the
//! workflow's.
//!
//! # Bounds
//!
//! Head and body of an answer, headers, redirects, addresses tried, calls of a tenant and of the node,
//! idle connections, lookups. The whole time is bounded by the caller, who drops the future: no task
//! runs behind a call, so that its socket closes with it.
//!
//! # Invariants
//!
//! - Texts of errors name hosts at most, never a path, a query or a header's value: the secrets of a
//!   step may be in there.
//! - Architecture invariant: sockets, names and wall time come through the seams; TLS draws its random
//!   numbers as ring does, where the simulation replaces them.
//!
//! Decision 16 says why the connection pool and the parser are this crate's own.

mod address;
mod connect;
mod connection;
mod outgoing;
mod pool;
mod target;

use std::sync::Arc;

use http::response::Parts;
use rustls::client::Resumption;
use rustls::{ClientConfig, RootCertStore};
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::ports::seams::{Clock, Tcp};
use shiioo_actors::ports::{BoxFuture, HttpCallError, HttpCaller, HttpRequest, HttpResponse};

use crate::pki;
use crate::sockets::lookups::Lookups;
use crate::sockets::shares::TenantShares;
use connect::Connector;
use connection::{Connection, ExchangeError};
use outgoing::Outgoing;
use pool::Pool;
use target::Origin;

/// Redirects followed for one request.
const REDIRECTS_MAX: usize = 5;

/// Sends the requests of `http` steps.
pub struct HttpSteps {
    connector: Connector,
    /// Permits for calls: each call may have a connection open.
    calls: TenantShares,
    pool: Pool,
}

impl HttpSteps {
    /// Makes a client that trusts the public certificate authorities. `clock` tells whether a
    /// certificate is valid today. With `deny_private_targets` the client connects to public
    /// addresses only. `budget` bounds calls, idle connections and lookups.
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
        let mut tls = ClientConfig::builder_with_details(provider, pki::wall_time(&clock))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        // Connections are kept instead; with resumed sessions a replayed simulation would depend on
        // more.
        tls.resumption = Resumption::disabled();
        Ok(Self {
            calls: TenantShares::new(budget.step_calls, budget.tenant_step_calls),
            pool: Pool::new(budget.idle_step_connections),
            connector: Connector {
                lookups: Lookups::new(Arc::clone(&tcp), budget.lookups),
                tcp,
                tls: Arc::new(tls),
                deny_private_targets,
            },
        })
    }

    /// Sends a request and follows its redirects.
    async fn follow(&self, request: HttpRequest) -> Result<HttpResponse, HttpCallError> {
        let tenant = request.tenant;
        let mut outgoing = Outgoing::new(request).map_err(HttpCallError::Unsendable)?;
        // Held until the last answer is complete: with it goes the call's connection, or that comes
        // to rest in the pool, which has a bound of its own.
        let _permit = self.calls.acquire(tenant).await;
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

    /// Sends one request, over an idle connection when there is one.
    async fn send(
        &self,
        tenant: TenantId,
        outgoing: &Outgoing,
    ) -> Result<(Parts, Vec<u8>), HttpCallError> {
        let origin = &outgoing.target.origin;
        if let Some(connection) = self.pool.take(origin) {
            match self.exchange(connection, outgoing).await {
                // Nothing was sent, so that sending it again cannot have its effect twice.
                Err(ExchangeError::NotSent) => {}
                // Most likely the service closed the connection, idle for too long, while the
                // request was on its way. Should it have been processed after all, a second one
                // makes no difference (RFC 9110, section 9.2.2).
                Err(ExchangeError::Unanswered(_)) if outgoing.is_idempotent() => {}
                Err(error) => return Err(failed(origin, &error.reason())),
                Ok(answer) => return Ok(answer),
            }
        }
        let connection = self.connector.connect(tenant, origin).await?;
        let answer = self.exchange(connection, outgoing).await;
        answer.map_err(|error| failed(origin, &error.reason()))
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        outgoing: &Outgoing,
    ) -> Result<(Parts, Vec<u8>), ExchangeError> {
        let answer = connection.exchange(outgoing.to_request()).await?;
        // Only after a complete exchange: a connection that is dropped half-way never gets here.
        self.pool.put(outgoing.target.origin.clone(), connection);
        Ok(answer)
    }
}

impl HttpCaller for HttpSteps {
    fn call(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpResponse, HttpCallError>> {
        Box::pin(self.follow(request))
    }
}

fn failed(origin: &Origin, reason: &str) -> HttpCallError {
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

#[cfg(test)]
mod tests;

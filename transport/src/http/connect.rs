//! Makes connections: resolves the host, checks its addresses, connects, secures.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::ports::HttpCallError;
use shiioo_actors::ports::descriptors::is_exhausted;
use shiioo_actors::ports::seams::{ByteStream, Tcp};
use tokio_rustls::TlsConnector;

use super::address;
use super::connection::Connection;
use super::failed;
use super::target::{Origin, Scheme};
use crate::sockets::lookups::{Asker, Lookups};

/// Addresses of a host that are tried, in the order in which the resolver gave them.
const ADDRESSES_TRIED_MAX: usize = 4;
/// Longest wait for one address before the next is tried, ms.
const CONNECT_MS_MAX: u64 = 10_000;
/// Pause before another attempt, after one that found no free descriptor, ms.
const DESCRIPTOR_RETRY_MS: u64 = 100;

/// Opens connections to origins.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) tcp: Arc<dyn Tcp>,
    pub(super) lookups: Lookups,
    pub(super) tls: Arc<ClientConfig>,
    pub(super) deny_private_targets: bool,
}

impl Connector {
    /// Opens a connection to an origin, in the tenant's share of lookups.
    ///
    /// # Errors
    /// When the origin has no address that may be connected to, or none of them answers.
    pub(super) async fn connect(
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
                Box::new(secured.map_err(|error| failed(origin, &format!("TLS: {error}")))?)
            }
        };
        Connection::open(stream).await.map_err(|reason| failed(origin, &reason))
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
        Err(failed(origin, &failure))
    }

    /// Connects to one address. Tries again while this process has no free descriptor: that passes,
    /// and the service is not at fault.
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

    /// Resolves the host to the addresses that may be connected to.
    async fn addresses(
        &self,
        tenant: TenantId,
        origin: &Origin,
    ) -> Result<Vec<SocketAddr>, HttpCallError> {
        let asker = Asker::Tenant(tenant);
        let found = self.lookups.resolve(asker, &origin.host, origin.port).await;
        let mut addresses =
            found.map_err(|error| failed(origin, &format!("cannot resolve the name: {error}")))?;
        // Addresses are judged after the lookup and connected to without another one: see the module's
        // order of checks.
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

//! The sockets that a node listens at.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use shiioo_actors::ports::seams::TcpListen;
use shiioo_transport::udp::AsyncUdpSocket;

use crate::config::Config;
use crate::seams::NodeSeams;

/// Ports that are tried where the wished one is taken and another may be used.
const PORTS_MAX: u16 = 64;
const API_FLAG: &str = "--api-addr";
const NODE_FLAG: &str = "--node-addr";

/// Holds the sockets of a node and their addresses.
pub(crate) struct Sockets {
    pub(crate) api: Box<dyn TcpListen>,
    pub(crate) api_addr: SocketAddr,
    pub(crate) node: Arc<dyn AsyncUdpSocket>,
    pub(crate) node_addr: SocketAddr,
}

/// Tells why an address cannot be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {addr} ({flag}): {}", remedy(.source, .flag))]
pub struct BindError {
    /// The address.
    addr: SocketAddr,
    /// The flag that sets the address.
    flag: &'static str,
    source: io::Error,
}

/// Says what is wrong and what to do.
fn remedy(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another program has this port; stop it, or choose another address with {flag} (port 0 \
             takes any free one)"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no such address; choose one of its own with {flag}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("this user may not; choose a port from 1024 on with {flag}")
        }
        _ => format!("{error}; choose another address with {flag}"),
    }
}

impl Sockets {
    /// Opens both sockets. Each moves to the next free port where the configuration lets it.
    pub(crate) async fn bind(config: &Config, seams: &NodeSeams) -> Result<Self, BindError> {
        let mut ports = Ports::from(config.api_addr, config.auto_assign.api_addr, API_FLAG);
        let api = loop {
            let addr = ports.next();
            // A socket is heard of by the threads that it was bound on: these are to accept its connections.
            let tcp = Arc::clone(&seams.tcp);
            match seams.client_threads.run(async move { tcp.bind(addr).await }).await {
                Ok(bound) => break bound,
                Err(error) => ports.check_retry(addr, error)?,
            }
        };
        let mut ports = Ports::from(config.node_addr, config.auto_assign.node_addr, NODE_FLAG);
        let node = loop {
            let addr = ports.next();
            match seams.udp.bind(addr) {
                Ok(bound) => break bound,
                Err(error) => ports.check_retry(addr, error)?,
            }
        };
        // The addresses as they are bound: a port of 0 has become a real one.
        let unknown = |addr, flag| move |source| BindError { addr, flag, source };
        let api_addr = api.local_addr().map_err(unknown(config.api_addr, API_FLAG))?;
        let node_addr = node.local_addr().map_err(unknown(config.node_addr, NODE_FLAG))?;
        Ok(Self { api, api_addr, node, node_addr })
    }
}

/// Yields the ports to try: one, or [`PORTS_MAX`] where another than the wished one may be used.
struct Ports {
    addr: SocketAddr,
    left: u16,
    flag: &'static str,
}

impl Ports {
    fn from(addr: SocketAddr, may_move: bool, flag: &'static str) -> Self {
        Self { addr, left: if may_move { PORTS_MAX } else { 1 }, flag }
    }

    fn next(&mut self) -> SocketAddr {
        let addr = self.addr;
        self.left = self.left.saturating_sub(1);
        self.addr.set_port(addr.port().saturating_add(1));
        addr
    }

    /// Returns the error unless the port was taken and another may be tried.
    fn check_retry(&self, addr: SocketAddr, source: io::Error) -> Result<(), BindError> {
        if source.kind() == io::ErrorKind::AddrInUse && self.left > 0 {
            return Ok(());
        }
        Err(BindError { addr, flag: self.flag, source })
    }
}

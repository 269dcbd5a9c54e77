//! UDP, the lowest layer under the QUIC between nodes.
//!
//! The trait speaks quinn's socket type because quinn is the only user: a simulation replaces exactly
//! the socket below quinn.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use quinn::udp::{RecvMeta, Transmit};
pub use quinn::{AsyncUdpSocket, UdpPoller};
use quinn::{Runtime as _, TokioRuntime};

/// Opens UDP sockets.
pub trait Udp: Send + Sync + fmt::Debug {
    /// Opens a socket at `addr`; port 0 takes any free one. Called within a tokio runtime.
    ///
    /// # Errors
    /// When the operating system refuses, as with a port that is taken.
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;
}

/// The operating system's UDP.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealUdp;

impl Udp for RealUdp {
    // This is the seam itself.
    #[allow(clippy::disallowed_methods)]
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = std::net::UdpSocket::bind(addr)?;
        // quinn's wrapper registers the socket with tokio, which demands that it never blocks.
        socket.set_nonblocking(true)?;
        TokioRuntime.wrap_udp_socket(socket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_held_until_it_is_dropped() {
        let first = RealUdp.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let addr = first.local_addr().unwrap();
        assert_ne!(addr.port(), 0);
        assert_eq!(RealUdp.bind(addr).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert_eq!(RealUdp.bind(addr).unwrap().local_addr().unwrap(), addr);
    }
}

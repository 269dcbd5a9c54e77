//! UDP, the lowest layer under the QUIC between nodes.
//!
//! The trait speaks quinn's socket type because quinn is the only user: a simulation replaces exactly
//! the socket below quinn.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

pub use quinn::udp::{RecvMeta, Transmit};
use quinn::udp::{UdpSockRef, UdpSocketState};
pub use quinn::{AsyncUdpSocket, UdpPoller};
use quinn::{Runtime as _, TokioRuntime};

/// Bytes that the system is asked to buffer of a socket, each way. An entry of a megabyte comes in one
/// burst: with the usual 208 KiB Linux dropped one packet in thirty while a node was busy, and each cost a
/// round of waiting for an acknowledgement that never came. Linux gives less where `net.core.rmem_max` is lower.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

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
        let options = UdpSocketState::new(UdpSockRef::from(&socket))?;
        // Linux gives what it may give. A system that refuses leaves the socket as it was, which works too.
        let received = options.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES);
        let sent = options.set_send_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES);
        if let Err(error) = received.and(sent) {
            tracing::debug!(%error, "the system keeps the usual buffers of the UDP socket");
        }
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

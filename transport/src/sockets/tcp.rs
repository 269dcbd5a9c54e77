//! TCP of production: tokio's sockets behind [`shiioo_actors::ports::seams::Tcp`].
//!
//! Nagle's algorithm is off on every connection: requests and answers are written whole, so that
//! waiting for more to send would only add delay.
//!
//! The system resolves names by blocking a thread, whether or not a caller still waits for the
//! answer. [`lookups`](super::lookups) bounds the number of such threads; every caller resolves
//! through it.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};

use shiioo_actors::ports::BoxFuture;
use shiioo_actors::ports::seams::{ByteStream, Tcp, TcpListen};
use tokio::net::{TcpListener, TcpStream};

/// The operating system's TCP and name resolution.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealTcp;

impl Tcp for RealTcp {
    // This is the seam itself.
    #[allow(clippy::disallowed_methods)]
    fn bind(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(addr).await?;
            Ok(Box::new(RealListener(listener)) as Box<dyn TcpListen>)
        })
    }

    // This is the seam itself.
    #[allow(clippy::disallowed_methods)]
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if let Ok(ip) = host.parse::<IpAddr>() {
                return Ok(vec![SocketAddr::new(ip, port)]);
            }
            let host = host.to_owned();
            let lookup = move || (host, port).to_socket_addrs().map(Iterator::collect);
            tokio::task::spawn_blocking(lookup).await?
        })
    }

    // This is the seam itself.
    #[allow(clippy::disallowed_methods)]
    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move { without_delay(TcpStream::connect(addr).await?) })
    }
}

struct RealListener(TcpListener);

impl TcpListen for RealListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = self.0.accept().await?;
            Ok((without_delay(stream)?, peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Turns Nagle's algorithm off.
fn without_delay(stream: TcpStream) -> io::Result<Box<dyn ByteStream>> {
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways() {
        let tcp = RealTcp;
        let listener = tcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addr = tcp.resolve("127.0.0.1", port).await.unwrap()[0];
        let (dialled, accepted) = tokio::join!(tcp.connect(addr), listener.accept());
        let (mut here, (mut there, _)) = (dialled.unwrap(), accepted.unwrap());

        here.write_all(b"ping").await.unwrap();
        let mut bytes = [0; 4];
        there.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
        there.write_all(b"pong").await.unwrap();
        here.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"pong");
    }

    #[tokio::test]
    async fn a_taken_port_is_refused() {
        let tcp = RealTcp;
        let first = tcp.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let addr = first.local_addr().unwrap();
        let refusal = tcp.bind(addr).await.err().unwrap();
        assert_eq!(refusal.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn names_and_addresses_are_resolved() {
        let tcp = RealTcp;
        let found = tcp.resolve("localhost", 80).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(|addr| addr.ip().is_loopback()), "{found:?}");
        assert_eq!(tcp.resolve("::1", 80).await.unwrap(), ["[::1]:80".parse().unwrap()]);
    }
}

//! TCP over turmoil's network, every byte of the node's own side in the trace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use shiioo_actors::ports::BoxFuture;
use shiioo_actors::seams::{ByteStream, Tcp, TcpListen};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use crate::trace;

/// The TCP of one host.
#[derive(Debug, Clone)]
pub struct SimTcp {
    host: Arc<str>,
    /// The names that exist: turmoil would give any other name an address.
    names: Arc<[String]>,
}

impl SimTcp {
    /// The TCP of `host`, where `names` can be looked up.
    pub fn new(host: &str, names: &[String]) -> Self {
        Self { host: host.into(), names: names.into() }
    }

    fn traced(&self, stream: TcpStream, peer: SocketAddr) -> Box<dyn ByteStream> {
        Box::new(Traced { host: Arc::clone(&self.host), stream, peer })
    }
}

impl Tcp for SimTcp {
    fn bind(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(addr).await?;
            Ok(Box::new(Listener { tcp: self.clone(), listener }) as Box<dyn TcpListen>)
        })
    }

    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if let Ok(ip) = host.parse::<IpAddr>() {
                return Ok(vec![SocketAddr::new(ip, port)]);
            }
            if self.names.iter().any(|name| name == host) {
                return Ok(vec![SocketAddr::new(turmoil::lookup(host), port)]);
            }
            Err(io::Error::new(io::ErrorKind::NotFound, format!("no host is called {host}")))
        })
    }

    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>> {
        Box::pin(async move { Ok(self.traced(TcpStream::connect(addr).await?, addr)) })
    }
}

struct Listener {
    tcp: SimTcp,
    listener: TcpListener,
}

impl TcpListen for Listener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = self.listener.accept().await?;
            trace::event(&self.tcp.host, "tcp", format_args!("accept {peer}"), &[]);
            Ok((self.tcp.traced(stream, peer), peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct Traced {
    host: Arc<str>,
    stream: TcpStream,
    peer: SocketAddr,
}

impl AsyncRead for Traced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        trace::event(&self.host, "tcp", format_args!("from {}", self.peer), read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Traced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        trace::event(&self.host, "tcp", format_args!("to {}", self.peer), &bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

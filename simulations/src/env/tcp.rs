//! TCP over turmoil's network, every byte of the node's own side in the trace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use shiioo_actors::ports::BoxFuture;
use shiioo_actors::ports::seams::{ByteStream, Tcp, TcpListen};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use crate::env::trace;

/// The TCP of one life of a program.
#[derive(Debug, Clone)]
pub struct SimTcp {
    host: Arc<str>,
    /// The names that exist: turmoil would give any other name an address.
    names: Arc<[String]>,
    open: Arc<Mutex<Connections>>,
}

/// The connections of one life, in the order they were made.
#[derive(Debug, Default)]
struct Connections {
    made: u64,
    open: BTreeMap<u64, Shared>,
}

/// A connection, until it is closed from either side of the seam.
type Shared = Arc<Mutex<Option<TcpStream>>>;

impl SimTcp {
    /// The TCP of `host`, where `names` can be looked up.
    pub fn new(host: &str, names: &[String]) -> Self {
        Self { host: host.into(), names: names.into(), open: Arc::default() }
    }

    /// Closes every connection, the oldest first. Within a host's task the peers learn of it, as
    /// they do when a process ends; outside of the hosts they do not, as when power goes.
    ///
    /// A tear-down must begin with this: it drops tasks in an order that depends on how many
    /// tasks there have been in the whole process, and so would reach the network in that order.
    pub fn close_all(&self) {
        let open = std::mem::take(&mut held(&self.open).open);
        for (_, connection) in open {
            drop(held(&connection).take());
        }
    }

    fn keep(&self, stream: TcpStream, peer: SocketAddr) -> Box<dyn ByteStream> {
        let stream: Shared = Arc::new(Mutex::new(Some(stream)));
        let mut open = held(&self.open);
        open.made += 1;
        let number = open.made;
        open.open.insert(number, Arc::clone(&stream));
        Box::new(Traced { tcp: self.clone(), number, stream, peer })
    }
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        Box::pin(async move { Ok(self.keep(TcpStream::connect(addr).await?, addr)) })
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
            Ok((self.tcp.keep(stream, peer), peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

struct Traced {
    tcp: SimTcp,
    number: u64,
    stream: Shared,
    peer: SocketAddr,
}

impl Traced {
    /// Does something with the connection where it is still open.
    fn poll_open<T>(
        &self,
        poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match &mut *held(&self.stream) {
            Some(stream) => poll(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        held(&self.tcp.open).open.remove(&self.number);
    }
}

impl AsyncRead for Traced {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.poll_open(|stream| stream.poll_read(cx, buffer)))?;
        let read = &buffer.filled()[before..];
        trace::event(&self.tcp.host, "tcp", format_args!("from {}", self.peer), read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Traced {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(self.poll_open(|stream| stream.poll_write(cx, bytes)))?;
        trace::event(&self.tcp.host, "tcp", format_args!("to {}", self.peer), &bytes[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_open(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_open(|stream| stream.poll_shutdown(cx))
    }
}

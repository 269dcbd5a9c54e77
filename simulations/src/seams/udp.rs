//! UDP over turmoil's network, as quinn wants it.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt as _;
use shiioo_actors::ports::BoxFuture;
use shiioo_transport::udp::{AsyncUdpSocket, Udp};
use shiioo_transport::udp::{RecvMeta, Transmit, UdpPoller};
use turmoil::net::UdpSocket;

use crate::trace;

/// The UDP of one host.
#[derive(Debug, Clone)]
pub struct SimUdp {
    host: Arc<str>,
}

impl SimUdp {
    /// The UDP of `host`.
    pub fn new(host: &str) -> Self {
        Self { host: host.into() }
    }
}

impl Udp for SimUdp {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        // It waits for nothing: turmoil has it async to look like tokio's.
        let bound = UdpSocket::bind(addr).now_or_never();
        let socket = bound.ok_or_else(|| io::Error::other("turmoil's bind had to wait"))??;
        let host = Arc::clone(&self.host);
        Ok(Arc::new(Socket { host, socket: Arc::new(socket), readable: Mutex::new(None) }))
    }
}

struct Socket {
    host: Arc<str>,
    socket: Arc<UdpSocket>,
    /// Wakes whoever waits for a datagram. It holds the socket's receiving side, so it is dropped
    /// as soon as it is done.
    readable: Mutex<Option<BoxFuture<'static, io::Result<()>>>>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Transmit { destination, contents, .. } = transmit;
        trace::event(&self.host, "udp", format_args!("to {destination}"), contents);
        self.socket.try_send_to(contents, *destination).map(drop)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.socket.try_recv_from(&mut buffers[0]) {
                Ok((len, addr)) => {
                    trace::event(
                        &self.host,
                        "udp",
                        format_args!("from {addr}"),
                        &buffers[0][..len],
                    );
                    meta[0] = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            let waiting = readable.get_or_insert_with(|| {
                let socket = Arc::clone(&self.socket);
                Box::pin(async move { socket.readable().await })
            });
            let ready = ready!(waiting.as_mut().poll(cx));
            *readable = None;
            ready?;
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("host", &self.host).finish_non_exhaustive()
    }
}

/// turmoil takes every datagram at once.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

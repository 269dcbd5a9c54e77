//! UDP over turmoil's network, as quinn wants it, through air that loses packets.
//!
//! turmoil's own loss is a link that goes up and down, and a latency that is drawn anew for each
//! packet is loss in the eyes of QUIC: so latency is the link's, and what becomes of one packet is
//! decided here.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use shiioo_actors::ports::BoxFuture;
use shiioo_transport::udp::{AsyncUdpSocket, Udp};
use shiioo_transport::udp::{RecvMeta, Transmit, UdpPoller};
use tokio::time::Instant;
use turmoil::net::UdpSocket;

use crate::env::trace;

/// A packet that is overtaken is held back for so long at most, ms.
const LATE_MS_MAX: u64 = 30;

/// A packet waits so long at most before a thin link; one that would wait longer is lost.
const THIN_QUEUE_MAX: Duration = Duration::from_millis(200);

/// What becomes of the packets that a host sends, and what has become of them.
#[derive(Debug)]
pub struct Air {
    bad: Mutex<Bad>,
    lost: AtomicU64,
    doubled: AtomicU64,
    late: AtomicU64,
}

#[derive(Debug)]
struct Bad {
    odds: Odds,
    rng: SmallRng,
    /// How much is sent a second, where that is little, bytes.
    rate: Option<u64>,
    /// When what was sent so far has left over a thin link.
    free_at: Option<Instant>,
}

/// How likely each misfortune of a packet is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Odds {
    /// It never arrives.
    pub lost: f64,
    /// It arrives twice.
    pub doubled: f64,
    /// Later ones arrive before it.
    pub late: f64,
}

/// What becomes of one packet.
enum Fate {
    Arrives,
    Lost,
    Doubled,
    Late(Duration),
}

impl Air {
    /// Good air, whose chance comes from `seed`.
    pub fn new(seed: u64) -> Arc<Self> {
        let rng = SmallRng::seed_from_u64(seed);
        let bad = Bad { odds: Odds::default(), rng, rate: None, free_at: None };
        Arc::new(Self {
            bad: Mutex::new(bad),
            lost: AtomicU64::default(),
            doubled: AtomicU64::default(),
            late: AtomicU64::default(),
        })
    }

    /// Sets the odds of packets from now on.
    pub fn set(&self, odds: Odds) {
        self.bad.lock().unwrap_or_else(PoisonError::into_inner).odds = odds;
    }

    /// Sets how much the host can send a second from now on, bytes; none for as much as it likes.
    pub fn set_rate(&self, rate: Option<u64>) {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        (bad.rate, bad.free_at) = (rate, None);
    }

    /// How many packets were lost, came twice, and came late.
    pub fn counts(&self) -> [u64; 3] {
        [&self.lost, &self.doubled, &self.late].map(|count| count.load(Ordering::Relaxed))
    }

    fn decide(&self, bytes: usize) -> Fate {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(rate) = bad.rate {
            let now = Instant::now();
            let from = bad.free_at.map_or(now, |free_at| free_at.max(now));
            let waits = from - now + Duration::from_secs_f64(bytes as f64 / rate as f64);
            if waits > THIN_QUEUE_MAX {
                self.lost.fetch_add(1, Ordering::Relaxed);
                return Fate::Lost;
            }
            bad.free_at = Some(now + waits);
            return Fate::Late(waits);
        }
        let odds = bad.odds;
        if odds == Odds::default() {
            return Fate::Arrives;
        }
        let drawn = bad.rng.random::<f64>();
        let (count, fate) = if drawn < odds.lost {
            (&self.lost, Fate::Lost)
        } else if drawn < odds.lost + odds.doubled {
            (&self.doubled, Fate::Doubled)
        } else if drawn < odds.lost + odds.doubled + odds.late {
            let late_ms = bad.rng.random_range(1..=LATE_MS_MAX);
            (&self.late, Fate::Late(Duration::from_millis(late_ms)))
        } else {
            return Fate::Arrives;
        };
        count.fetch_add(1, Ordering::Relaxed);
        fate
    }
}

/// The UDP of one life of a program.
#[derive(Debug, Clone)]
pub struct SimUdp {
    host: Arc<str>,
    air: Arc<Air>,
    closed: Arc<AtomicBool>,
}

impl SimUdp {
    /// The UDP of `host`.
    pub fn new(host: &str, air: Arc<Air>) -> Self {
        Self { host: host.into(), air, closed: Arc::default() }
    }

    /// Sends nothing any more. A tear-down must begin with this: it drops connections in an order
    /// that is not the run's own, and each would say goodbye.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl Udp for SimUdp {
    fn bind(&self, addr: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        // It waits for nothing: turmoil has it async to look like tokio's.
        let bound = UdpSocket::bind(addr).now_or_never();
        let socket = bound.ok_or_else(|| io::Error::other("turmoil's bind had to wait"))??;
        let udp = self.clone();
        Ok(Arc::new(Socket { udp, socket: Arc::new(socket), readable: Mutex::new(None) }))
    }
}

struct Socket {
    udp: SimUdp,
    socket: Arc<UdpSocket>,
    /// Wakes whoever waits for a datagram. It holds the socket's receiving side, so it is dropped
    /// as soon as it is done.
    readable: Mutex<Option<BoxFuture<'static, io::Result<()>>>>,
}

impl Socket {
    fn send_late(&self, destination: SocketAddr, contents: &[u8], late: Duration) {
        let (socket, closed) = (Arc::downgrade(&self.socket), Arc::clone(&self.udp.closed));
        let contents = contents.to_vec();
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            if let Some(socket) = socket.upgrade()
                && !closed.load(Ordering::Relaxed)
            {
                // As on its way: what cannot be sent is lost.
                let _ = socket.try_send_to(&contents, destination);
            }
        });
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Transmit { destination, contents, .. } = transmit;
        if self.udp.closed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let fate = self.udp.air.decide(contents.len());
        let (times, how) = match fate {
            Fate::Arrives => (1, ""),
            Fate::Lost => (0, ", lost"),
            Fate::Doubled => (2, ", twice"),
            Fate::Late(late) => {
                self.send_late(*destination, contents, late);
                (0, ", late")
            }
        };
        trace::event(&self.udp.host, "udp", format_args!("to {destination}{how}"), contents);
        (0..times).try_for_each(|_| self.socket.try_send_to(contents, *destination).map(drop))
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
                    let received = &buffers[0][..len];
                    trace::event(&self.udp.host, "udp", format_args!("from {addr}"), received);
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
        f.debug_struct("Socket").field("host", &self.udp.host).finish_non_exhaustive()
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

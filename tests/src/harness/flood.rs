//! Datagrams that nobody asked for.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;

/// Sockets that send, each from a port of its own.
const SOCKETS: usize = 16;
/// Datagrams in a row, before others get the processor.
const BURST: usize = 64;
const PAUSE: Duration = Duration::from_millis(2);
const DATAGRAM_BYTES_MAX: usize = 1_452;
const CAPTURE_BYTES: usize = 65_536;

/// Waits for the first datagrams of a node that is told to join `at`, and answers none.
pub struct Trap(UdpSocket);

impl Trap {
    /// One on a free port.
    pub fn set() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
        Self(socket)
    }

    /// Where it is.
    pub fn addr(&self) -> SocketAddr {
        self.0.local_addr().expect("its address")
    }

    /// What comes until so many are caught, or for this long.
    pub async fn catch(self, count: usize, patience: Duration) -> Vec<Vec<u8>> {
        let catching = tokio::task::spawn_blocking(move || self.catch_here(count, patience));
        catching.await.expect("it does not panic")
    }

    fn catch_here(&self, count: usize, patience: Duration) -> Vec<Vec<u8>> {
        let (mut caught, began) = (Vec::new(), Instant::now());
        let mut buffer = vec![0; CAPTURE_BYTES];
        while caught.len() < count && began.elapsed() < patience {
            match self.0.recv(&mut buffer) {
                Ok(len) => caught.push(buffer[..len].to_vec()),
                Err(error) if is_timeout(&error) => {}
                Err(error) => panic!("cannot listen: {error}"),
            }
        }
        caught
    }
}

/// Floods `target` for a while: noise, noise that looks like QUIC, and what was `caught`, whole and
/// in part, as it is and with a byte changed. Gives how many datagrams were sent.
pub fn flood(
    target: SocketAddr,
    caught: Vec<Vec<u8>>,
    span: Duration,
    seed: u64,
) -> JoinHandle<u64> {
    // A thread of its own: it must not keep others from the runtime.
    tokio::task::spawn_blocking(move || send(target, &caught, span, seed))
}

fn send(target: SocketAddr, caught: &[Vec<u8>], span: Duration, seed: u64) -> u64 {
    let mut rng = SmallRng::seed_from_u64(seed);
    let sockets: Vec<_> =
        (0..SOCKETS).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a free port")).collect();
    let (mut sent, began) = (0, Instant::now());
    while began.elapsed() < span {
        for _ in 0..BURST {
            let datagram = datagram(caught, &mut rng);
            let socket = &sockets[rng.random_range(0..SOCKETS)];
            // A full buffer loses datagrams, as any flood does.
            sent += u64::from(socket.send_to(&datagram, target).is_ok());
        }
        std::thread::sleep(PAUSE);
    }
    sent
}

fn datagram(caught: &[Vec<u8>], rng: &mut SmallRng) -> Vec<u8> {
    let mut noise = vec![0; rng.random_range(0..DATAGRAM_BYTES_MAX)];
    rng.fill(&mut noise[..]);
    match rng.random_range(0..6) {
        0 => noise,
        // A long header of version 1, or of one that is not there, and of a valid size.
        kind @ (1 | 2) => {
            noise.resize(1_200, 0);
            noise[0] |= 0xc0;
            let version: u32 = if kind == 1 { 1 } else { 0x0a1a_2a3a };
            noise[1..5].copy_from_slice(&version.to_be_bytes());
            noise[5] = 8;
            noise
        }
        // A short header: for a connection that is not there.
        3 => {
            noise.resize(64, 0);
            noise[0] = (noise[0] & 0x3f) | 0x40;
            noise
        }
        kind => {
            let Some(mut copy) = caught.get(rng.random_range(0..caught.len().max(1))).cloned()
            else {
                return noise;
            };
            if kind == 5 {
                // Another connection id, so that it is another connection's.
                let at = rng.random_range(6..14.min(copy.len()));
                copy[at] = rng.random();
            }
            copy
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

//! Ports that a node keeps over its restarts.
//!
//! Port 0 will not do: a cluster's nodes know each other by address. The ports lie below those that
//! the kernel gives away by itself, so that nobody gets one while its node is down.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 10_000;
const END: u16 = 32_000;

/// Addresses on loopback for one node.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// For its API.
    pub api: SocketAddr,
    /// For the other nodes.
    pub node: SocketAddr,
}

impl Ports {
    /// Ports that are free, and were given to nobody else in this process.
    pub fn free() -> Self {
        Self { api: next(|addr| TcpListener::bind(addr).is_ok()), node: free_udp() }
    }

    /// Sees to it that these ports are taken, by us as long as this is held where they are not by
    /// others.
    pub fn taken(tcp: u16, udp: u16) -> impl Sized {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        (TcpListener::bind(at(tcp)), UdpSocket::bind(at(udp)))
    }
}

/// A port for UDP alone.
fn free_udp() -> SocketAddr {
    next(|addr| UdpSocket::bind(addr).is_ok())
}

fn next(is_free: impl Fn(SocketAddr) -> bool) -> SocketAddr {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let span = END - FIRST;
    // Test programs may run side by side: each begins elsewhere.
    let start = (std::process::id().wrapping_mul(61) % u32::from(span)) as u16;
    for _ in 0..span {
        let port = FIRST + (start + TAKEN.fetch_add(1, Ordering::Relaxed) % span) % span;
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if is_free(addr) {
            return addr;
        }
    }
    panic!("no free port from {FIRST} to {END}");
}

//! Time and chance, as inputs.
//!
//! Durations come from tokio's clock, which the simulator controls. Wall time and entropy come
//! through these two traits, which `node` wires. Wall time labels things and fires schedules;
//! no safety depends on it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;

use crate::domain::time::Timestamp;
use crate::ports::BoxFuture;

/// Wall time.
pub trait Clock: Send + Sync + fmt::Debug {
    /// What the wall clock says now.
    fn now(&self) -> Timestamp;
}

/// Chance: the only source of ids and jitter.
pub trait Entropy: Send + Sync + fmt::Debug {
    /// Fills `buffer` with random bytes.
    fn fill(&self, buffer: &mut [u8]);
}

/// A byte stream between two hosts.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// TCP: the listener under the HTTP API, and the connections of `http` steps.
pub trait Tcp: Send + Sync + fmt::Debug {
    /// Listens at `addr`; port 0 takes any free one.
    fn bind(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn TcpListen>>>;

    /// The addresses of a host name or of an address written as text.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;

    /// Connects.
    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn ByteStream>>>;
}

/// A listening TCP socket.
pub trait TcpListen: Send + Sync {
    /// Waits for the next connection and tells who it is.
    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn ByteStream>, SocketAddr)>>;

    /// Where it listens.
    ///
    /// # Errors
    /// When the operating system does not tell.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// What `node` wires into every actor.
#[derive(Debug, Clone)]
pub struct Seams {
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub entropy: Arc<dyn Entropy>,
}

impl Seams {
    /// A random (version 4) UUID.
    pub fn uuid(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.entropy.fill(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }

    /// A number below `bound`, near enough to uniform for jitter; 0 when `bound` is 0.
    pub fn below(&self, bound: u64) -> u64 {
        let mut bytes = [0; 8];
        self.entropy.fill(&mut bytes);
        if bound == 0 { 0 } else { u64::from_le_bytes(bytes) % bound }
    }
}

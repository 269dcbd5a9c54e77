//! Time and chance, as inputs.
//!
//! Durations come from tokio's clock, which the simulator controls. Wall time and entropy come
//! through these two traits, which `node` wires. Wall time labels things and fires schedules;
//! no safety depends on it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use uuid::Uuid;

use crate::ports::BoxFuture;

/// A moment of wall time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
pub struct Timestamp(pub i64);

/// Milliseconds in a day of UTC.
const DAY_MS: i64 = 86_400_000;

impl Timestamp {
    /// The day of UTC this moment is in, counted from 1970-01-01.
    pub const fn day(self) -> i64 {
        self.0.div_euclid(DAY_MS)
    }

    /// The first moment of the next day of UTC.
    pub const fn next_day(self) -> Self {
        Self((self.day() + 1) * DAY_MS)
    }

    /// This moment and `ms` milliseconds.
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add_unsigned(ms))
    }

    /// Milliseconds from `earlier` to this moment; 0 when it is not later.
    pub const fn ms_since(self, earlier: Self) -> u64 {
        let ms = self.0.saturating_sub(earlier.0);
        if ms > 0 { ms.unsigned_abs() } else { 0 }
    }

    /// Parses RFC 3339, any offset.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        DateTime::parse_from_rfc3339(text).ok().map(|at| Self(at.timestamp_millis()))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, milliseconds, `Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at: DateTime<Utc> = DateTime::from_timestamp_millis(self.0).unwrap_or(if self.0 < 0 {
            DateTime::<Utc>::MIN_UTC
        } else {
            DateTime::<Utc>::MAX_UTC
        });
        f.write_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_read_and_write_rfc3339() {
        let at = Timestamp::parse_rfc3339("2024-01-05T13:00:00.5+01:00").unwrap();
        assert_eq!(at.to_string(), "2024-01-05T12:00:00.500Z");
        assert_eq!(at.next_day().to_string(), "2024-01-06T00:00:00.000Z");
        assert_eq!(Timestamp(-1).day(), -1);
        assert_eq!(Timestamp(5).ms_since(Timestamp(9)), 0);
        assert!(!Timestamp(i64::MAX).to_string().is_empty());
    }
}

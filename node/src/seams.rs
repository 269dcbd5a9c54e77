//! The seams of a node: time, random numbers, sockets, files. This file has those of production; a
//! simulation brings its own.
#![allow(clippy::disallowed_methods, reason = "this file is the seam that the others go through")]

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::seams::{Clock, Entropy, Seams, Tcp};
use shiioo_storage::Executor;
use shiioo_storage::disk::{Disk, RealDisk};
use shiioo_transport::tcp::RealTcp;
use shiioo_transport::udp::{RealUdp, Udp};

use crate::client_threads::ClientThreads;

/// Holds the seams of a node.
#[derive(Debug, Clone)]
pub struct NodeSeams {
    /// Wall time and random numbers.
    pub seams: Seams,
    /// TCP: the API's listener and the connections of `http` steps.
    pub tcp: Arc<dyn Tcp>,
    /// UDP: the socket under the connections between nodes.
    pub udp: Arc<dyn Udp>,
    /// The data directory.
    pub disk: Arc<dyn Disk>,
    /// Runs blocking work.
    pub executor: Executor,
    /// Runs clients' requests.
    pub client_threads: ClientThreads,
    /// Has QUIC send packets of one small size, one by one, as a simulated network carries them.
    pub plain_packets: bool,
    /// Number of the process in `node.json`; a simulation gives each node one of its own.
    pub pid: u32,
    /// File descriptors that the process may have open.
    pub descriptors: u64,
}

impl NodeSeams {
    /// Makes the operating system's seams, with the files below `data_dir`, which is made if it is
    /// missing, and with these threads for clients' requests. Raises the process's limit of open file
    /// descriptors as far as the process may.
    ///
    /// # Errors
    /// When the directory cannot be made or the system gives no random bytes.
    pub fn real(data_dir: &Path, client_threads: ClientThreads) -> io::Result<Self> {
        Ok(Self {
            seams: Seams { clock: Arc::new(SystemClock), entropy: Arc::new(OsEntropy::new()?) },
            tcp: Arc::new(RealTcp),
            udp: Arc::new(RealUdp),
            disk: Arc::new(RealDisk::new(data_dir)?),
            executor: Executor::Threads,
            client_threads,
            plain_packets: false,
            pid: std::process::id(),
            descriptors: raise_descriptor_limit(),
        })
    }
}

/// Raises the soft limit of open file descriptors to the hard one. The soft one is 1024 nearly
/// everywhere for the sake of programs that use `select`, which this one does not. Returns the
/// limit that is in force.
fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if limit != raised
        && let Err(error) = setrlimit(Resource::Nofile, raised)
    {
        tracing::warn!(%error, "the limit of open file descriptors cannot be raised");
    }
    // `None` is no limit at all.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Reads the system's wall clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let ms = |duration: std::time::Duration| i64::try_from(duration.as_millis());
        Timestamp(match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => ms(since).unwrap_or(i64::MAX),
            Err(before) => ms(before.duration()).map_or(i64::MIN, |ms| -ms),
        })
    }
}

/// Random bytes that are fetched from the system at a time: 64 ids for one call into the kernel.
const ENTROPY_BUFFER_BYTES: usize = 1024;

/// Gives out the system's random bytes, each once.
pub struct OsEntropy(Mutex<EntropyBuffer>);

struct EntropyBuffer {
    bytes: [u8; ENTROPY_BUFFER_BYTES],
    used: usize,
}

impl OsEntropy {
    /// Fetches the first bytes.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0; ENTROPY_BUFFER_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(Mutex::new(EntropyBuffer { bytes, used: 0 })))
    }
}

impl Entropy for OsEntropy {
    fn fill(&self, buffer: &mut [u8]) {
        let mut kept = self.0.lock();
        for chunk in buffer.chunks_mut(ENTROPY_BUFFER_BYTES) {
            if kept.used + chunk.len() > ENTROPY_BUFFER_BYTES {
                // The system gave bytes at the start, and Linux never takes that back. Worse random
                // numbers would make ids and tokens that can be guessed, so that a panic is right.
                getrandom::fill(&mut kept.bytes).expect("the system gives random bytes");
                kept.used = 0;
            }
            // Raised before the bytes are given out: a panic in between cannot repeat them.
            let from = kept.used;
            kept.used += chunk.len();
            let given = &mut kept.bytes[from..from + chunk.len()];
            chunk.copy_from_slice(given);
            // Wiped, so that a later read of this memory yields no key.
            given.fill(0);
        }
    }
}

impl fmt::Debug for OsEntropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OsEntropy")
    }
}

/// Reads the program's configuration file, which is outside the data directory.
pub(crate) fn read_config_file(path: &Path) -> io::Result<String> {
    std::fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bytes_are_given_once() {
        let entropy = OsEntropy::new().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut bytes = [0; 16];
            entropy.fill(&mut bytes);
            assert!(seen.insert(bytes));
        }
        let mut long = vec![0; 3 * ENTROPY_BUFFER_BYTES + 7];
        entropy.fill(&mut long);
        let zeros = long.iter().filter(|byte| **byte == 0).count();
        assert!(zeros < long.len() / 32, "{zeros} of {}", long.len());
    }

    #[test]
    fn the_soft_limit_of_descriptors_becomes_the_hard_one() {
        let limit = raise_descriptor_limit();
        let now = getrlimit(Resource::Nofile);
        assert_eq!(now.current, now.maximum);
        assert_eq!(limit, now.maximum.unwrap_or(u64::MAX));
    }

    #[test]
    fn the_clock_tells_the_time() {
        assert!(SystemClock.now() > Timestamp::parse_rfc3339("2024-01-01T00:00:00Z").unwrap());
    }
}

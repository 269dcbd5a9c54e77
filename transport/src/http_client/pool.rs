//! Idle connections, kept for the next request to the same place.
//!
//! A mutex and not an actor: taking and returning are a few comparisons, nothing waits while it is
//! held, and a caller that is dropped mid-way cannot leave a request behind.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::target::Origin;

/// Idle connections kept for one scheme, host and port. Steps end and begin in batches, as entries
/// are applied: with fewer, most connections of a batch were closed only to be opened again.
pub(super) const IDLE_PER_ORIGIN_MAX: usize = 64;
/// How long a connection stays idle. Below the 5 s after which the most impatient of the common
/// servers close, so that a request seldom meets a connection that is just being closed.
pub(super) const IDLE_MS_MAX: u64 = 4_000;

/// The idle connections of a client.
pub(super) struct Pool {
    idle: Arc<Mutex<Idle>>,
}

struct Idle {
    /// Idle connections kept altogether.
    connections_max: usize,
    /// In the order in which they came to rest: the oldest first.
    resting: Vec<Resting>,
    /// The task that closes what has been idle for too long; only while something is.
    sweeper: Option<AbortHandle>,
}

struct Resting {
    origin: Origin,
    connection: Connection,
    until: Instant,
}

impl Pool {
    /// Keeps at most `connections_max` idle connections.
    pub(super) fn new(connections_max: usize) -> Self {
        let idle = Idle { connections_max, resting: Vec::new(), sweeper: None };
        Self { idle: Arc::new(Mutex::new(idle)) }
    }

    /// Takes the connection to `origin` that was used last, if there is one that still stands.
    pub(super) fn take(&self, origin: &Origin) -> Option<Connection> {
        loop {
            let mut connection = lock(&self.idle).take(origin)?;
            if connection.is_ready() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose exchange is over. One that cannot be used again is closed.
    pub(super) fn put(&self, origin: Origin, mut connection: Connection) {
        if !connection.is_ready() {
            return;
        }
        let mut idle = lock(&self.idle);
        // Read under the lock, so that the list stays in the order of these times.
        let until = Instant::now() + Duration::from_millis(IDLE_MS_MAX);
        idle.put(Resting { origin, connection, until });
        if idle.sweeper.is_none() {
            idle.sweeper = Some(tokio::spawn(sweep(Arc::downgrade(&self.idle))).abort_handle());
        }
    }

    /// How many idle connections could be used again now.
    #[cfg(test)]
    pub(super) fn standing(&self) -> usize {
        let mut idle = lock(&self.idle);
        idle.resting.iter_mut().filter_map(|it| it.connection.is_ready().then_some(())).count()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("idle", &lock(&self.idle).resting.len()).finish()
    }
}

impl Idle {
    fn take(&mut self, origin: &Origin) -> Option<Connection> {
        self.expire(Instant::now());
        let index = self.resting.iter().rposition(|resting| resting.origin == *origin)?;
        Some(self.resting.remove(index).connection)
    }

    fn put(&mut self, newcomer: Resting) {
        let alike = |resting: &Resting| resting.origin == newcomer.origin;
        if self.resting.iter().filter(|resting| alike(resting)).count() >= IDLE_PER_ORIGIN_MAX {
            if let Some(oldest) = self.resting.iter().position(alike) {
                self.resting.remove(oldest);
            }
        } else if self.resting.len() >= self.connections_max {
            self.resting.remove(0);
        }
        self.resting.push(newcomer);
    }

    fn expire(&mut self, now: Instant) {
        let expired = self.resting.partition_point(|resting| resting.until <= now);
        self.resting.drain(..expired);
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(sweeper) = &self.sweeper {
            sweeper.abort();
        }
    }
}

/// Closes connections as their time is up, until none is idle.
async fn sweep(idle: Weak<Mutex<Idle>>) {
    loop {
        let next = {
            let Some(idle) = idle.upgrade() else { return };
            let mut idle = lock(&idle);
            idle.expire(Instant::now());
            match idle.resting.first() {
                Some(oldest) => oldest.until,
                None => {
                    idle.sweeper = None;
                    return;
                }
            }
        };
        sleep_until(next).await;
    }
}

/// A panic elsewhere leaves the list whole: every change to it is a single step.
fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::target::Scheme;
    use super::*;

    /// An open connection to nobody, and the other end that keeps it open.
    async fn connection() -> (Connection, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1024);
        let mut connection = Connection::open(Box::new(near)).await.unwrap();
        assert!(connection.is_ready());
        (connection, far)
    }

    fn origin(port: u16) -> Origin {
        Origin { scheme: Scheme::Http, host: "a".into(), port }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_bounded_in_number_and_time() {
        let pool = Pool::new(256);
        let mut others = Vec::new();
        for port in 1..=300 {
            for _ in 0..if port == 300 { IDLE_PER_ORIGIN_MAX + 2 } else { 1 } {
                let (connection, other) = connection().await;
                pool.put(origin(port), connection);
                others.push(other);
            }
        }
        assert_eq!(pool.standing(), 256);
        assert!(pool.take(&origin(1)).is_none(), "the oldest made room");
        let of_one = std::iter::from_fn(|| pool.take(&origin(300))).count();
        assert_eq!(of_one, IDLE_PER_ORIGIN_MAX);

        tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX / 2)).await;
        let (connection, _other) = connection().await;
        pool.put(origin(300), connection);
        tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX / 2 + 1)).await;
        assert_eq!(pool.standing(), 1, "the others were closed without anyone asking");
        tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX / 2)).await;
        assert_eq!(pool.standing(), 0);
        assert!(lock(&pool.idle).sweeper.is_none());
    }

    #[tokio::test]
    async fn a_connection_that_the_other_side_closed_is_not_handed_out() {
        let pool = Pool::new(1);
        let (first, other) = connection().await;
        pool.put(origin(1), first);
        drop(other);
        assert!(pool.take(&origin(1)).is_none());
    }
}

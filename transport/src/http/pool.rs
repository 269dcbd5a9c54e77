//! Idle connections, kept for the next request to the same place.
//!
//! A mutex and not an actor: taking and returning are a few comparisons, no caller waits while it
//! holds the lock, and a caller that is dropped half-way leaves nothing behind.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::target::Origin;

/// Idle connections kept for one scheme, host and port. Steps end and begin in batches, as entries
/// are applied: with fewer, most connections of a batch were closed only to be opened again.
const IDLE_PER_ORIGIN_MAX: usize = 64;
/// Longest time that a connection stays idle, ms. Below the 5 s after which the most impatient of the
/// common servers close, so that a request seldom meets a connection that is just being closed.
const IDLE_MS_MAX: u64 = 4_000;

/// Keeps the idle connections of a client.
pub(super) struct Pool {
    idle: Arc<Mutex<Idle>>,
}

struct Idle {
    /// Idle connections kept altogether, at most.
    connections_max: usize,
    /// In the order of `until`: the oldest first.
    connections: Vec<IdleConnection>,
    /// The task that closes connections whose time is up; runs only while there are any.
    sweeper: Option<AbortHandle>,
}

struct IdleConnection {
    origin: Origin,
    connection: Connection,
    until: Instant,
}

impl Pool {
    /// Keeps at most `connections_max` idle connections.
    pub(super) fn new(connections_max: usize) -> Self {
        let idle = Idle { connections_max, connections: Vec::new(), sweeper: None };
        Self { idle: Arc::new(Mutex::new(idle)) }
    }

    /// Takes the connection to `origin` that was used last and is still open.
    pub(super) fn take(&self, origin: &Origin) -> Option<Connection> {
        loop {
            let mut connection = self.idle.lock().take(origin)?;
            if connection.is_ready() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection whose exchange is complete. Closes one that cannot be used again.
    pub(super) fn put(&self, origin: Origin, mut connection: Connection) {
        if !connection.is_ready() {
            return;
        }
        let mut idle = self.idle.lock();
        // Read under the lock, so that the list stays in the order of these times.
        let until = Instant::now() + Duration::from_millis(IDLE_MS_MAX);
        idle.put(IdleConnection { origin, connection, until });
        if idle.sweeper.is_none() {
            idle.sweeper = Some(tokio::spawn(sweep(Arc::downgrade(&self.idle))).abort_handle());
        }
    }

    /// Counts the idle connections that could be used again now.
    #[cfg(test)]
    pub(super) fn usable(&self) -> usize {
        let mut idle = self.idle.lock();
        idle.connections.iter_mut().filter_map(|it| it.connection.is_ready().then_some(())).count()
    }
}

impl Idle {
    fn take(&mut self, origin: &Origin) -> Option<Connection> {
        self.expire(Instant::now());
        let index = self.connections.iter().rposition(|idle| idle.origin == *origin)?;
        Some(self.connections.remove(index).connection)
    }

    fn put(&mut self, newcomer: IdleConnection) {
        let alike = |idle: &IdleConnection| idle.origin == newcomer.origin;
        if self.connections.iter().filter(|idle| alike(idle)).count() >= IDLE_PER_ORIGIN_MAX {
            if let Some(oldest) = self.connections.iter().position(alike) {
                self.connections.remove(oldest);
            }
        } else if self.connections.len() >= self.connections_max {
            self.connections.remove(0);
        }
        self.connections.push(newcomer);
    }

    fn expire(&mut self, now: Instant) {
        let expired = self.connections.partition_point(|idle| idle.until <= now);
        self.connections.drain(..expired);
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        if let Some(sweeper) = &self.sweeper {
            sweeper.abort();
        }
    }
}

/// Closes connections whose time is up, until none is idle. Holds the pool by a weak reference: a
/// client that is dropped closes its connections at once.
async fn sweep(idle: Weak<Mutex<Idle>>) {
    loop {
        let next = {
            let Some(idle) = idle.upgrade() else { return };
            let mut idle = idle.lock();
            idle.expire(Instant::now());
            match idle.connections.first() {
                Some(oldest) => oldest.until,
                None => {
                    // Under the same lock as the look at the list: a `put` either is seen here or
                    // starts another sweeper.
                    idle.sweeper = None;
                    return;
                }
            }
        };
        sleep_until(next).await;
    }
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
        assert_eq!(pool.usable(), 256);
        assert!(pool.take(&origin(1)).is_none(), "the oldest made room");
        let of_one = std::iter::from_fn(|| pool.take(&origin(300))).count();
        assert_eq!(of_one, IDLE_PER_ORIGIN_MAX);

        tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX / 2)).await;
        let (connection, _other) = connection().await;
        pool.put(origin(300), connection);
        tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX / 2 + 1)).await;
        assert_eq!(pool.usable(), 1, "the others were closed without anyone asking");
        tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX / 2)).await;
        assert_eq!(pool.usable(), 0);
        assert!(pool.idle.lock().sweeper.is_none());
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

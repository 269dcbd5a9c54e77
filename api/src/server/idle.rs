//! Eviction of idle connections: who holds the places, and who has to give one up.
//!
//! # Problem
//!
//! A connection whose client says nothing, sends a request or its body byte by byte, or does not
//! read its answer costs the client nothing, and the node a place. Without a rule some dozens of
//! such connections shut everybody else out for seconds.
//!
//! # Rule
//!
//! A newcomer that finds no place gets the place of the connection that has waited for its client
//! the longest. A body that dribbles in counts as waiting from the first byte that did not come.
//!
//! # Invariants
//!
//! - A connection whose request is being worked on, a long poll included, keeps its place.
//! - A connection that has waited for its client for less than [`IDLE_MIN`] keeps its place.
//! - A place has one holder: the newcomer gets the very permit of the connection that is evicted.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::{Duration, Instant};

/// How long a connection may wait for its client before it can be evicted. A healthy client sends the
/// rest of a request much sooner, and expects that a connection closes between two requests.
pub(crate) const IDLE_MIN: Duration = Duration::from_secs(1);

/// Stands in place of a time: the node works on a request.
const WORKING: u64 = 0;

/// The connections that have places. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    began: Instant,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    by_number: BTreeMap<u64, Arc<Connection>>,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    /// Since when the connection waits for its client, in milliseconds from 1; or [`WORKING`].
    idle_since: AtomicU64,
    /// Empty once it was given away.
    place: Mutex<Option<OwnedSemaphorePermit>>,
    evicted: Notify,
}

/// A connection in the table. Dropping it removes the connection from the table.
#[derive(Debug)]
pub(crate) struct Occupied {
    number: u64,
    connection: Arc<Connection>,
    connections: Connections,
}

impl Connections {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), table: Arc::default() }
    }

    /// Adds a new connection, which waits for its client.
    pub(crate) fn occupy(&self, place: OwnedSemaphorePermit) -> Occupied {
        let connection = Arc::new(Connection {
            idle_since: AtomicU64::new(self.now()),
            place: Mutex::new(Some(place)),
            evicted: Notify::new(),
        });
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.by_number.insert(number, Arc::clone(&connection));
        drop(table);
        Occupied { number, connection, connections: self.clone() }
    }

    /// Evicts the connection that has waited for its client the longest, and returns its place.
    pub(crate) fn evict(&self) -> Option<OwnedSemaphorePermit> {
        let waited_min = u64::try_from(IDLE_MIN.as_millis()).unwrap_or(u64::MAX);
        let latest = self.now().checked_sub(waited_min)?;
        let mut table = self.table();
        let waiting = table.by_number.iter().filter_map(|(number, connection)| {
            let since = connection.idle_since.load(Ordering::Acquire);
            (since != WORKING && since <= latest).then_some((since, *number))
        });
        let (_, number) = waiting.min()?;
        // Off the table, so that no connection is evicted twice.
        let connection = table.by_number.remove(&number)?;
        drop(table);
        // Told, and not waited for: the newcomer has the place at once, and for a moment both are open.
        connection.evicted.notify_one();
        connection.place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Occupied {
    /// Waits until the connection is evicted.
    pub(crate) async fn evicted(&self) {
        self.connection.evicted.notified().await;
    }

    /// Tells whether a request is being worked on. A request that came at the moment of the eviction
    /// is still answered.
    pub(crate) fn is_working(&self) -> bool {
        self.connection.idle_since.load(Ordering::Acquire) == WORKING
    }

    /// Notes that a request has come. Wraps its body, which notes when the node waits for its bytes.
    pub(crate) fn request_came(&self, body: Incoming) -> Body {
        self.connection.idle_since.store(WORKING, Ordering::Release);
        if body.is_end_stream() {
            return Body::new(body);
        }
        let (connection, connections) = (Arc::clone(&self.connection), self.connections.clone());
        Body::new(IdleAwareBody { body, connection, connections, since: WORKING })
    }

    /// Notes that the answer is written: the client is to read it, and may send another request.
    pub(crate) fn answered(&self) {
        self.connection.idle_since.store(self.connections.now(), Ordering::Release);
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.connections.table().by_number.remove(&self.number);
    }
}

/// A body that notes since when the node waits for its bytes.
struct IdleAwareBody {
    body: Incoming,
    connection: Arc<Connection>,
    connections: Connections,
    /// What it noted last. Once the answer is there, something else stands in the connection, and the
    /// rest of a body, which is read and thrown away, changes nothing.
    since: u64,
}

impl IdleAwareBody {
    fn note(&mut self, since: u64) {
        let idle_since = &self.connection.idle_since;
        if idle_since
            .compare_exchange(self.since, since, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
        {
            self.since = since;
        }
    }
}

impl HttpBody for IdleAwareBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            // From the first byte that did not come: one that dribbles gains nothing by it.
            Poll::Pending if self.since == WORKING => {
                let now = self.connections.now();
                self.note(now);
            }
            Poll::Ready(Some(Ok(_))) if !self.body.is_end_stream() => {}
            Poll::Ready(_) => self.note(WORKING),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use tokio::time::advance;

    use super::*;

    fn occupy(connections: &Connections) -> Occupied {
        let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        connections.occupy(place)
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_is_idle_the_longest_is_evicted() {
        let connections = Connections::new();
        let old = occupy(&connections);
        advance(IDLE_MIN / 2).await;
        let young = occupy(&connections);
        assert!(connections.evict().is_none(), "nobody has waited for long");
        advance(IDLE_MIN / 2).await;
        assert!(connections.evict().is_some());
        old.evicted().await;
        assert!(connections.evict().is_none(), "a place is given away once");
        advance(IDLE_MIN).await;
        young.connection.idle_since.store(WORKING, Ordering::Release);
        assert!(connections.evict().is_none(), "who is worked for keeps its place");
        young.answered();
        advance(IDLE_MIN).await;
        drop(young);
        assert!(connections.evict().is_none(), "who is gone has no place");
    }
}

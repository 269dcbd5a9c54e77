//! Connections as the listener sees them: they come in, take places, and are told to go. The rules are
//! in [`places`](crate::server::places).
//!
//! Invariant: there are at most as many connections as slots. A connection that is evicted gives its
//! slot up at once; for the moment in which it closes there is one more.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use http::Extensions;
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Duration, Instant, sleep};

use crate::server::places::{Evicted, NoPlace, Places, State};
use crate::server::pool::Whose;

/// Pause between two looks for a connection that makes way, while all slots are taken.
const SLOT_POLL: Duration = Duration::from_millis(10);
/// A task that gets its turn sooner than this after it could go on is not late.
const LATE_MIN: Duration = Duration::from_millis(1);
/// Longest wait of a request for those of its own tenant that crowd the node.
const CROWD_PAUSE_MAX: Duration = Duration::from_millis(500);

/// How many connections there may be at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections that have places.
    pub(crate) places: usize,
    /// Connections beside them, which have sent no request yet, or are told that the node is busy. More
    /// wait in the backlog of the operating system.
    pub(crate) entrance: usize,
}

/// The connections of a node. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    slots: Arc<Semaphore>,
    places: Arc<Mutex<Places<Held>>>,
}

/// What a connection that is not evicted holds.
#[derive(Debug)]
struct Held {
    /// Set when it is evicted and is to answer first; dropped when it is evicted.
    tell: watch::Sender<bool>,
    slot: OwnedSemaphorePermit,
}

/// One connection. Dropping it gives its place and its slot back.
#[derive(Debug)]
pub(crate) struct Seat {
    number: u64,
    connections: Connections,
    told: watch::Receiver<bool>,
}

impl Connections {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let slots = Arc::new(Semaphore::new(bounds.places + bounds.entrance));
        Self { slots, places: Arc::new(Mutex::new(Places::new(bounds.places))) }
    }

    /// Waits for a slot for the next connection, that of one that makes way if need be. The semaphore is
    /// never closed.
    pub(crate) async fn slot(&self) -> OwnedSemaphorePermit {
        loop {
            if let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() {
                return slot;
            }
            let made_way = self.places().make_way(Instant::now());
            if let Some(Evicted { tell: Held { slot, .. }, .. }) = made_way {
                return slot;
            }
            tokio::select! {
                Ok(slot) = Arc::clone(&self.slots).acquire_owned() => return slot,
                () = sleep(SLOT_POLL) => {}
            }
        }
    }

    /// Adds a connection, which has no place yet.
    pub(crate) fn enter(&self, slot: OwnedSemaphorePermit) -> Arc<Seat> {
        let (tell, told) = watch::channel(false);
        let number = self.places().enter(Held { tell, slot }, Instant::now());
        Arc::new(Seat { number, connections: self.clone(), told })
    }

    fn places(&self) -> MutexGuard<'_, Places<Held>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Finds the connection that a request came by: none for one that another node hands over.
    pub(crate) fn of(extensions: &Extensions) -> Option<&Arc<Self>> {
        extensions.get()
    }

    /// Takes a place for a request of `whose`.
    pub(crate) fn claim(&self, whose: Whose) -> Result<(), NoPlace> {
        let evicted = self.connections.places().claim(self.number, whose, Instant::now())?;
        if let Some(Evicted { tell: Held { tell, .. }, was_parked: true }) = evicted {
            tell.send_replace(true);
        }
        Ok(())
    }

    /// Tells how long a request waits because its tenant crowds the node: the longer the more requests of it are
    /// worked on, and the later tasks of clients get their turn. Tasks take turns without regard to tenants, so
    /// that each request of a neighbour would wait behind all of them. On a node that has processors to spare nobody
    /// waits.
    pub(crate) async fn crowd_pause(&self) -> Duration {
        let crowd = self.connections.places().crowd(self.number, Instant::now());
        let Some(requests) = crowd else { return Duration::ZERO };
        let asked = Instant::now();
        tokio::task::yield_now().await;
        let late = asked.elapsed();
        if late < LATE_MIN {
            return Duration::ZERO;
        }
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        late.saturating_mul(requests).min(CROWD_PAUSE_MAX)
    }

    /// Waits until the connection is evicted. Tells whether it is to answer first.
    pub(crate) async fn evicted(&self) -> bool {
        let mut told = self.told.clone();
        while told.changed().await.is_ok() {}
        *told.borrow()
    }

    /// Notes that a request has come. Wraps its body, which notes when the node waits for its bytes.
    pub(crate) fn request_came(self: &Arc<Self>, body: Incoming) -> Body {
        self.turn(State::Working);
        match body.is_end_stream() {
            true => Body::new(body),
            false => Body::new(WatchedBody { body, seat: Arc::clone(self), is_late: false }),
        }
    }

    /// Notes that the answer is written: the client is to read it, and may send another request.
    pub(crate) fn answered(&self) {
        self.turn(State::WaitsForClient);
    }

    fn turn(&self, to: State) {
        self.connections.places().turn(self.number, to, Instant::now());
    }

    fn turn_from(&self, from: State, to: State) {
        self.connections.places().turn_from(self.number, from, to, Instant::now());
    }
}

/// Waits on purpose for what a request waits for. Gives nothing when its connection has to give its place up
/// before.
pub(crate) async fn parked<T>(
    seat: Option<Arc<Seat>>,
    awaited: impl Future<Output = T>,
) -> Option<T> {
    let Some(seat) = seat else { return Some(awaited.await) };
    seat.turn(State::Parked);
    tokio::select! {
        // A race of what came and the eviction: it is taken.
        biased;
        awaited = awaited => {
            seat.turn(State::Working);
            Some(awaited)
        }
        _ = seat.evicted() => None,
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.connections.places().remove(self.number);
    }
}

/// A body that notes when the node waits for its bytes.
struct WatchedBody {
    body: Incoming,
    seat: Arc<Seat>,
    is_late: bool,
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let has_more = matches!(polled, Poll::Ready(Some(Ok(_)))) && !self.body.is_end_stream();
        match polled.is_pending() {
            // From the first byte that did not come: one that dribbles gains nothing by it.
            true if !self.is_late => {
                self.is_late = true;
                self.seat.turn_from(State::Working, State::WaitsForBody);
            }
            false if self.is_late && !has_more => {
                self.is_late = false;
                self.seat.turn_from(State::WaitsForBody, State::Working);
            }
            _ => {}
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
    use tokio::time::advance;

    use super::*;

    /// Connections whose requests are worked on: one of somebody, and so many of another.
    async fn at_work(count: usize) -> Vec<Arc<Seat>> {
        let connections = Connections::new(Bounds { places: 64, entrance: 1 });
        let mut seats = Vec::new();
        for whose in [Whose::Cluster].into_iter().chain(vec![Whose::Unknown; count]) {
            let seat = connections.enter(connections.slot().await);
            seat.turn(State::Working);
            seat.claim(whose).unwrap();
            seats.push(seat);
        }
        seats
    }

    /// How long a request waits on a node whose tasks get their turn so late.
    async fn pause(seat: &Seat, late: Duration) -> Duration {
        tokio::join!(biased; seat.crowd_pause(), advance(late)).0
    }

    #[tokio::test(start_paused = true)]
    async fn who_crowds_a_late_node_waits_and_nobody_else() {
        let late = Duration::from_millis(3);
        let seats = at_work(5).await;
        assert_eq!(pause(&seats[1], late).await, 5 * late);
        assert_eq!(pause(&seats[1], Duration::from_secs(1)).await, CROWD_PAUSE_MAX);
        assert_eq!(pause(&seats[1], LATE_MIN / 2).await, Duration::ZERO, "there is time to spare");
        assert_eq!(pause(&seats[0], late).await, Duration::ZERO, "it is another who crowds");
        let seats = at_work(4).await;
        assert_eq!(pause(&seats[1], late).await, Duration::ZERO, "it is not many more");
    }
}

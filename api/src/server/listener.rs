//! The HTTP/1 server: an accept loop over the listener of the seams.
//!
//! Invariants: the loop ends only when it is told to. The number of connections is bounded. When no
//! place is left, a newcomer gets that of an idle connection (`idle`); where none is idle, it gets one
//! answer: a probe's, or that the node is busy. The time of each phase of a connection is bounded:
//! headers and idling between requests (here), bodies (`forward/body`), answers (the deadline of each
//! call).

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shiioo_actors::ports::seams::{ByteStream, TcpListen};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::server::idle::{Connections, Occupied};
use crate::server::metrics::{Held, Metrics};
use crate::server::middleware::HEADERS_BYTES_MAX;

/// Longest time for the headers of a request to arrive, idling before them included.
const HEADERS_READ_MAX: Duration = Duration::from_secs(10);
/// The same for a connection above the bound, which is there for one short request.
const REFUSAL_HEADERS_READ_MAX: Duration = Duration::from_secs(1);
/// Longest life of a connection above the bound.
const REFUSAL_MAX: Duration = Duration::from_secs(5);
/// The read buffer of a connection, and hyper's own bound for headers: well above ours, so that
/// ours can answer as the API does.
const CONNECTION_BUFFER_BYTES_MAX: usize = 4 * HEADERS_BYTES_MAX;
/// Pause after the listener failed, for descriptors to become free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pause between two looks for an idle connection while all places are taken.
const EVICTION_PAUSE: Duration = Duration::from_millis(100);
/// Longest time for running requests to end once the server is stopping.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// How many connections there may be at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections that are served.
    pub(crate) connections: usize,
    /// Connections above that, which get one answer: how the node is, or that it is busy. More
    /// wait in the backlog of the operating system.
    pub(crate) refusals: usize,
}

/// The routers that answer.
#[derive(Debug, Clone)]
pub(crate) struct Routers {
    /// Requests of connections that are served.
    pub(crate) all: Router,
    /// The one request of a connection above the bound.
    pub(crate) busy: Router,
}

/// Serves until `stop` is ready, then lets running requests end.
pub(crate) async fn serve(
    listener: Box<dyn TcpListen>,
    routers: Routers,
    bounds: Bounds,
    metrics: &Metrics,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let slots = Slots::new(bounds);
    let (stopping, told_to_stop) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        // Biased: a node that stops takes no more connections, however many wait.
        let (stream, slot) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&*listener, &slots) => accepted,
        };
        while connections.try_join_next().is_some() {}
        let open = Open { slot, _counted: metrics.connected() };
        connections.spawn(converse(stream, routers.clone(), told_to_stop.clone(), open));
    }
    // The listener goes first, so that no client waits in a backlog that will not be served.
    drop(listener);
    stopping.send_replace(true);
    let drained = timeout(DRAIN_MAX, async { while connections.join_next().await.is_some() {} });
    if drained.await.is_err() {
        warn!(connections = connections.len(), "requests were still running: closing them");
        connections.shutdown().await;
    }
}

/// What a connection holds while it is open.
struct Open {
    slot: Slot,
    _counted: Held,
}

/// A connection's place.
#[derive(Debug)]
enum Slot {
    Served(Arc<Occupied>),
    Refused { _place: Option<OwnedSemaphorePermit> },
}

/// The places of connections. The semaphores are never closed.
#[derive(Debug)]
struct Slots {
    served: Arc<Semaphore>,
    refused: Arc<Semaphore>,
    connections: Connections,
}

/// A place for the next connection.
#[derive(Debug)]
enum Place {
    Served(OwnedSemaphorePermit),
    Refused(Option<OwnedSemaphorePermit>),
}

impl Slots {
    fn new(bounds: Bounds) -> Self {
        Self {
            served: Arc::new(Semaphore::new(bounds.connections)),
            refused: Arc::new(Semaphore::new(bounds.refusals)),
            connections: Connections::new(),
        }
    }

    /// Waits for a place of either kind, one that is served first. Where all are taken, a
    /// connection that falls idle is evicted.
    async fn any(&self) -> Place {
        loop {
            tokio::select! {
                biased;
                Ok(place) = Arc::clone(&self.served).acquire_owned() => return Place::Served(place),
                place = Arc::clone(&self.refused).acquire_owned() => {
                    return Place::Refused(place.ok());
                }
                () = sleep(EVICTION_PAUSE) => {}
            }
            if let Some(place) = self.connections.evict() {
                return Place::Served(place);
            }
        }
    }

    /// Turns a place into the best slot there is by now: a refused newcomer gets a place that has
    /// become free, or that of an idle connection.
    fn best(&self, place: Place) -> Slot {
        let refused = match place {
            Place::Served(place) => return self.occupied(place),
            Place::Refused(refused) => refused,
        };
        let free = Arc::clone(&self.served).try_acquire_owned().ok();
        match free.or_else(|| self.connections.evict()) {
            Some(place) => self.occupied(place),
            None => Slot::Refused { _place: refused },
        }
    }

    fn occupied(&self, place: OwnedSemaphorePermit) -> Slot {
        Slot::Served(Arc::new(self.connections.occupy(place)))
    }
}

/// Waits for room, then for a connection. Failures of the listener pass by themselves.
async fn accept(listener: &dyn TcpListen, slots: &Slots) -> (Box<dyn ByteStream>, Slot) {
    let place = slots.any().await;
    let mut told = false;
    loop {
        match listener.accept().await {
            // A race: while the accept waited, a served connection may have ended or fallen idle.
            Ok((stream, _)) => return (stream, slots.best(place)),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    warn!(%error, "cannot accept connections at the moment");
                }
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells whether a failure of the listener is that of a client that went away while it waited.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

/// Serves one connection. Closing it drops the handler of a running request.
async fn converse(
    stream: Box<dyn ByteStream>,
    routers: Routers,
    mut told_to_stop: watch::Receiver<bool>,
    open: Open,
) {
    let occupied = match &open.slot {
        Slot::Served(occupied) => Some(Arc::clone(occupied)),
        Slot::Refused { .. } => None,
    };
    let is_served = occupied.is_some();
    let (router, headers_max) = match is_served {
        true => (routers.all, HEADERS_READ_MAX),
        false => (routers.busy, REFUSAL_HEADERS_READ_MAX),
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .keep_alive(is_served)
        .header_read_timeout(headers_max)
        .max_buf_size(CONNECTION_BUFFER_BYTES_MAX)
        // `middleware` writes the date: it comes from the seams.
        .auto_date_header(false);
    let service = service_fn(|request: Request<Incoming>| {
        let (router, occupied) = (router.clone(), occupied.clone());
        async move {
            let Some(occupied) = occupied else {
                return router.oneshot(request.map(Body::new)).await;
            };
            let answer = router.oneshot(request.map(|body| occupied.request_came(body))).await;
            occupied.answered();
            answer
        }
    });
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let evicted = async {
        match &occupied {
            Some(occupied) => occupied.evicted().await,
            None => std::future::pending().await,
        }
    };
    // Biased: a connection that has ended by itself has, whatever else is true by now; and the end of
    // the server, which lets a running request end, goes before an eviction.
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = async { drop(told_to_stop.wait_for(|stopping| *stopping).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = evicted => {
            // Another connection has the place. A request that came just now is still answered.
            match occupied.as_ref().is_some_and(|occupied| occupied.is_working()) {
                true => {
                    connection.as_mut().graceful_shutdown();
                    timeout(DRAIN_MAX, connection).await.unwrap_or(Ok(()))
                }
                false => Ok(()),
            }
        }
        () = sleep(REFUSAL_MAX), if !is_served => Ok(()),
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

//! The HTTP/1 server: an accept loop over the listener of the seams.
//!
//! Invariants: the loop ends only when it is told to. The number of connections is bounded; who makes way
//! for a newcomer is decided in `places`. The time of each phase of a connection is bounded: headers and
//! idling between requests (here), bodies (`forward/body`), answers (the deadline of each call), and clients
//! that do not read them (`unread`).

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use http::{HeaderValue, Version, header};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shiioo_actors::ports::seams::{ByteStream, TcpListen};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::server::connections::{Bounds, Connections, Seat};
use crate::server::metrics::{Held, Metrics};
use crate::server::middleware::{HEADERS_BYTES_MAX, UnclearHost};
use crate::server::unread::Unread;

/// Longest time for the headers of a request to arrive, idling before them included.
const HEADERS_READ_MAX: Duration = Duration::from_secs(10);
/// The read buffer of a connection, and hyper's own bound for headers: well above ours, so that
/// ours can answer as the API does.
const CONNECTION_BUFFER_BYTES_MAX: usize = 4 * HEADERS_BYTES_MAX;
/// Pause after the listener failed, for descriptors to become free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest time for a connection that is evicted to tell its client.
const FAREWELL_MAX: Duration = Duration::from_secs(1);
/// Time in which a connection may send one more request once the server is stopping. Longer than what a busy client
/// does between two requests.
const LAST_REQUEST_AWAITED: Duration = Duration::from_millis(500);
/// Wait for a last look at the sockets: the shortest that a timer measures.
const LAST_LOOK_WITHIN: Duration = Duration::from_millis(1);
/// Connections in the backlog that are still taken once the server is stopping.
const LAST_CONNECTIONS_MAX: usize = 128;
/// Longest time for running requests to end once the server is stopping.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Serves until `stop` is ready, then lets running requests end.
pub(crate) async fn serve(
    listener: Box<dyn TcpListen>,
    router: Router,
    bounds: Bounds,
    metrics: &Metrics,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let connections = Connections::new(bounds);
    let (stopping, told_to_stop) = watch::channel(false);
    let mut conversations = JoinSet::new();
    loop {
        // Biased: a node that stops takes no more connections, however many wait.
        let (stream, seat) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&*listener, &connections) => accepted,
        };
        while conversations.try_join_next().is_some() {}
        let (router, told_to_stop) = (router.clone(), told_to_stop.clone());
        conversations.spawn(converse(stream, router, told_to_stop, seat, metrics.connected()));
    }
    stopping.send_replace(true);
    // A client whose connection waits in the backlog has sent its request already: it would be reset with it.
    for _ in 0..LAST_CONNECTIONS_MAX {
        let waiting = tokio::select! {
            biased;
            accepted = accept(&*listener, &connections) => Some(accepted),
            () = sockets_are_looked_at() => None,
        };
        let Some((stream, seat)) = waiting else { break };
        let (router, told_to_stop) = (router.clone(), told_to_stop.clone());
        conversations.spawn(converse(stream, router, told_to_stop, seat, metrics.connected()));
    }
    // The listener goes first, so that no client waits in a backlog that will not be served.
    drop(listener);
    let drained = timeout(DRAIN_MAX, async { while conversations.join_next().await.is_some() {} });
    if drained.await.is_err() {
        warn!(connections = conversations.len(), "requests were still running: closing them");
        conversations.shutdown().await;
    }
}

/// Waits until the runtime has looked at its sockets. On a busy node the last look was a while ago, and what came since, a
/// request or a connection, would be thrown away.
async fn sockets_are_looked_at() {
    // A timer goes off after a look at the sockets and not otherwise. A task that yields may go on without one, where
    // another thread is about to look.
    sleep(LAST_LOOK_WITHIN).await;
}

/// Waits for room, then for a connection. Failures of the listener pass by themselves.
async fn accept(
    listener: &dyn TcpListen,
    connections: &Connections,
) -> (Box<dyn ByteStream>, Arc<Seat>) {
    let slot = connections.slot().await;
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, connections.enter(slot)),
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

/// Tells whether a request says once by which name the node is asked, as HTTP/1.1 wants it (RFC 9112, 3.2).
fn names_one_host<B>(request: &Request<B>) -> bool {
    request.version() < Version::HTTP_11
        || request.headers().get_all(header::HOST).iter().count() == 1
}

/// Serves one connection. Closing it drops the handler of a running request.
///
/// Once the server is stopping, the next answer says that the connection ends. Whichever side closes an idle
/// connection may break a request that the other side is just sending: so a client that is about to send one
/// has a moment to do so, and to hear that the connection ends.
async fn converse(
    stream: Box<dyn ByteStream>,
    router: Router,
    told_to_stop: watch::Receiver<bool>,
    seat: Arc<Seat>,
    _counted: Held,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADERS_READ_MAX)
        .max_buf_size(CONNECTION_BUFFER_BYTES_MAX)
        // `middleware` writes the date: it comes from the seams.
        .auto_date_header(false);
    let service = service_fn(|request: Request<Incoming>| {
        let (router, seat, stopping) = (router.clone(), Arc::clone(&seat), told_to_stop.clone());
        async move {
            let mut request = request.map(|body| seat.request_came(body));
            request.extensions_mut().insert(Arc::clone(&seat));
            if !names_one_host(&request) {
                request.extensions_mut().insert(UnclearHost);
            }
            let Ok(mut answer) = router.oneshot(request).await;
            seat.answered();
            if *stopping.borrow() {
                let close = const { HeaderValue::from_static("close") };
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut stops = told_to_stop.clone();
    let mut connection = pin!(http.serve_connection(TokioIo::new(Unread::new(stream)), service));
    // Biased: a connection that has ended by itself has, whatever else is true by now; and the end of
    // the server, which lets a running request end, goes before an eviction.
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = async { drop(stops.wait_for(|stopping| *stopping).await) } => {
            match timeout(LAST_REQUEST_AWAITED, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => {
                    tokio::select! {
                        biased;
                        ended = connection.as_mut() => ended,
                        () = sockets_are_looked_at() => {
                            connection.as_mut().graceful_shutdown();
                            connection.await
                        }
                    }
                }
            }
        }
        answers_first = seat.evicted() => match answers_first {
            true => {
                connection.as_mut().graceful_shutdown();
                timeout(FAREWELL_MAX, connection).await.unwrap_or(Ok(()))
            }
            false => Ok(()),
        },
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

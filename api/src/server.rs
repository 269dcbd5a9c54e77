//! The HTTP/1 server: an accept loop over the listener of the seams.
//!
//! Invariants: the loop ends only when it is told to; the number of connections is bounded, and
//! so is the time of each phase of one: headers, idling between requests (here), bodies
//! (`payload`), answers (the deadline of each call).

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use shiioo_actors::seams::{ByteStream, TcpListen};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::edge::HEADERS_BYTES_MAX;
use crate::metrics::{Held, Metrics};

/// Open connections; more wait in the backlog of the operating system.
const CONNECTIONS_MAX: usize = 8192;
/// Longest time for the headers of a request to arrive, idling before them included.
const HEADERS_READ_MAX: Duration = Duration::from_secs(10);
/// The read buffer of a connection, and hyper's own bound for headers: well above ours, so that
/// ours can answer as the API does.
const CONNECTION_BUFFER_BYTES_MAX: usize = 4 * HEADERS_BYTES_MAX;
/// Pause after the listener failed, for descriptors to become free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest time for running requests to end once the server is stopping.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Serves until `stop` is ready, then lets running requests end.
pub(crate) async fn serve(
    listener: Box<dyn TcpListen>,
    router: Router,
    metrics: &Metrics,
    stop: impl Future<Output = ()>,
) {
    let mut stop = pin!(stop);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (stopping, told_to_stop) = watch::channel(false);
    let mut connections = JoinSet::new();
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&*listener, &slots) => accepted,
        };
        while connections.try_join_next().is_some() {}
        let open = Open { _slot: slot, _counted: metrics.connected() };
        connections.spawn(converse(stream, router.clone(), told_to_stop.clone(), open));
    }
    // Nobody waits in a backlog that will not be served.
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
    _slot: Option<OwnedSemaphorePermit>,
    _counted: Held,
}

/// Waits for room, then for a connection. Failures of the listener pass by themselves.
async fn accept(
    listener: &dyn TcpListen,
    slots: &Arc<Semaphore>,
) -> (Box<dyn ByteStream>, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let slot = slots.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, slot),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept connections at the moment");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether the failure is a client's that went away while it waited.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused
    )
}

/// Serves one connection. When the client closes it, the handler of a request that is running is
/// dropped with it.
async fn converse(
    stream: Box<dyn ByteStream>,
    router: Router,
    mut told_to_stop: watch::Receiver<bool>,
    _open: Open,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADERS_READ_MAX)
        .max_buf_size(CONNECTION_BUFFER_BYTES_MAX)
        // `edge` writes the date: it comes from the seams.
        .auto_date_header(false);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = async { drop(told_to_stop.wait_for(|stopping| *stopping).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended early");
    }
}

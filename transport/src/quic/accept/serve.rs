//! Serves requests: those of a member side by side, those of an unauthenticated peer one by one.
//!
//! - The future that serves a call is dropped when its caller has gone or its time is up.
//! - Each call is received by a task of its own that reads without pause: a caller that does not
//!   send its request holds up no other call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::{
    Declined, JoinService, PEER_CALL_MAX, PEER_MESSAGE_BYTES_MAX, PeerService, Service,
    StreamService, UnauthenticatedPeer,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::quic::exchange::frame::{JOIN_MESSAGE_BYTES_MAX, JOIN_SERVICE, RequestHead, VERSION};
use crate::quic::exchange::stream::PeerStream;
use crate::quic::exchange::{Exchange, Request};
use crate::quic::settings::{MEMBER_STREAMS_MAX, MEMBER_WINDOW_BYTES};
use crate::quic::tls;

/// Longest time from the beginning of a stream to the end of its request's head, ms.
const HEAD_MS_MAX: u64 = 5_000;
/// Bytes of requests of one connection that are held at a time.
const REQUESTS_BYTES_MAX: usize = 256 << 20;
/// Longest life of an unauthenticated peer's connection, ms.
const UNAUTHENTICATED_MS_MAX: u64 = 10_000;

/// Holds the services that answer members and unauthenticated peers.
pub(in crate::quic) struct Services {
    pub peers: Arc<dyn PeerService>,
    pub join: Arc<dyn JoinService>,
}

/// Serves a member until its connection is over.
pub(super) async fn member(from: RaftId, connection: &Connection, service: Arc<dyn PeerService>) {
    connection.set_receive_window(VarInt::from_u32(MEMBER_WINDOW_BYTES));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MEMBER_STREAMS_MAX));
    // The windows before the greeting: the member sends its requests as soon as it is greeted.
    if greet(connection).await.is_none() {
        return;
    }
    let request_bytes = Arc::new(Semaphore::new(REQUESTS_BYTES_MAX));
    while let Ok((send, receive)) = connection.accept_bi().await {
        let (request_bytes, service) = (Arc::clone(&request_bytes), Arc::clone(&service));
        tokio::spawn(call(from, send, receive, request_bytes, service));
    }
}

/// Tells the other end that its calls are taken from now on.
async fn greet(connection: &Connection) -> Option<()> {
    let mut stream = connection.open_uni().await.ok()?;
    stream.write_all(&[VERSION]).await.ok()?;
    stream.finish().ok()
}

/// Serves one call of a member.
async fn call(
    from: RaftId,
    send: SendStream,
    receive: RecvStream,
    request_bytes: Arc<Semaphore>,
    service: Arc<dyn PeerService>,
) {
    let mut exchange = Exchange::new(send, receive, PEER_MESSAGE_BYTES_MAX);
    let time_max = |service| Service::from_wire(service).map_or(PEER_CALL_MAX, Service::call_max);
    let received = received(&mut exchange, &request_bytes, time_max).await;
    let (request, deadline) = match received {
        Ok(received) => received,
        Err(Some(declined)) => return decline(exchange, declined).await,
        Err(None) => return,
    };
    if let Some(number) = StreamService::from_wire(request.head.service) {
        return stream(from, number, exchange, &request.head, deadline, service).await;
    }
    let Some(number) = Service::from_wire(request.head.service) else {
        let why = format!("service {} is not known here", request.head.service);
        return decline(exchange, Declined(why)).await;
    };
    exchange.set_lane(number.lane(request.head.bytes));
    let Request { payload, bytes_permit, .. } = request;
    let serving = service.serve(from, number, payload, deadline);
    // Biased, so that a caller that has gone is noticed before more work is done for it, and so that
    // a simulation takes the same branch each time.
    let answer = tokio::select! {
        biased;
        () = exchange.abandoned() => return,
        answer = timeout_at(deadline, serving) => answer,
    };
    drop(bytes_permit);
    if let Ok(answer) = answer {
        // The deadline holds for the answer as well: a caller that does not read is not waited for.
        let _ = timeout_at(deadline, exchange.answer(answer)).await;
    }
}

/// Serves one stream of a member.
async fn stream(
    from: RaftId,
    number: StreamService,
    exchange: Exchange,
    head: &RequestHead,
    deadline: Instant,
    service: Arc<dyn PeerService>,
) {
    if head.bytes > 0 {
        return decline(exchange, Declined("a stream has no payload in its head".into())).await;
    }
    exchange.set_lane(number.lane());
    let abandoned = exchange.abandoned();
    let stream = Box::new(PeerStream::served(exchange));
    let serving = service.serve_stream(from, number, stream, deadline);
    // The service keeps the deadline of the caller; what it writes after it has a bound of its own.
    tokio::select! {
        biased;
        () = abandoned => {}
        () = serving => {}
    }
}

/// Serves an unauthenticated peer for a while. `is_requesting` is set while a request is served.
pub(super) async fn unauthenticated(
    connection: &Connection,
    service: Arc<dyn JoinService>,
    joins: &Semaphore,
    is_requesting: &AtomicBool,
) {
    let Some(binding) = tls::binding(connection) else { return };
    let peer = UnauthenticatedPeer { addr: connection.remote_address(), binding };
    let served = async {
        while let Ok((send, receive)) = connection.accept_bi().await {
            let exchange = Exchange::new(send, receive, JOIN_MESSAGE_BYTES_MAX);
            join(exchange, peer, service.as_ref(), joins, is_requesting).await;
            is_requesting.store(false, Ordering::Release);
        }
    };
    let _ = timeout(Duration::from_millis(UNAUTHENTICATED_MS_MAX), served).await;
}

/// Serves one request to join.
async fn join(
    mut exchange: Exchange,
    peer: UnauthenticatedPeer,
    service: &dyn JoinService,
    joins: &Semaphore,
    is_requesting: &AtomicBool,
) {
    let request_bytes = Arc::new(Semaphore::new(JOIN_MESSAGE_BYTES_MAX));
    let time_max = Duration::from_millis(UNAUTHENTICATED_MS_MAX);
    let (request, deadline) = match received(&mut exchange, &request_bytes, |_| time_max).await {
        Ok((request, deadline)) if request.head.service == JOIN_SERVICE => (request, deadline),
        Ok(_) => {
            return decline(
                exchange,
                Declined("a peer without a certificate can only join".into()),
            )
            .await;
        }
        Err(Some(declined)) => return decline(exchange, declined).await,
        Err(None) => return,
    };
    // Set only when the whole request is here: a peer that sends none, or half of one, stays idle
    // and makes room for others.
    is_requesting.store(true, Ordering::Release);
    let Ok(_permit) = joins.try_acquire() else {
        return decline(exchange, Declined("too many nodes are joining, try again".into())).await;
    };
    // Biased as for a member's call. A joiner that has gone may be admitted all the same: it asks again
    // with the same key, and is given the same place.
    let answer = tokio::select! {
        biased;
        () = exchange.abandoned() => return,
        answer = timeout_at(deadline, service.join(peer, request.payload)) => answer,
    };
    if let Ok(answer) = answer {
        exchange.answer(answer).await;
    }
}

/// Receives a request and the deadline of its caller, which is at most `time_max` of the service from now.
/// `Err(None)` when the caller has gone.
async fn received(
    exchange: &mut Exchange,
    request_bytes: &Arc<Semaphore>,
    time_max: impl FnOnce(u8) -> Duration,
) -> Result<(Request, Instant), Option<Declined>> {
    let head = timeout(Duration::from_millis(HEAD_MS_MAX), exchange.request_head()).await;
    let head = head.map_err(|_| None)?;
    let head = head.map_err(|error| error.map(|error| Declined(error.to_string())))?;
    let time_left = Duration::from_millis(u64::from(head.time_left_ms)).min(time_max(head.service));
    let deadline = Instant::now() + time_left;
    let request =
        timeout_at(deadline, exchange.request(head, request_bytes)).await.map_err(|_| None)??;
    Ok((request, deadline))
}

/// Tells a caller that nothing was done, without waiting for the rest of its request.
async fn decline(mut exchange: Exchange, declined: Declined) {
    exchange.refuse_rest();
    let answered = exchange.answer(Err(declined));
    let _ = timeout(Duration::from_millis(HEAD_MS_MAX), answered).await;
}

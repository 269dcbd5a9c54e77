//! Answering: members' calls side by side, a stranger's one after the other.
//!
//! - The future that serves a call is dropped when its caller has gone or its time is up.
//! - Each call is received by a task of its own that reads without pause: what one caller does
//!   not send holds up nobody else's bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::{Connection, RecvStream, SendStream, VarInt};
use shiioo_actors::ports::{
    Declined, JoinService, PEER_CALL_MAX, PEER_MESSAGE_BYTES_MAX, PeerService, Service,
    UnauthenticatedPeer,
};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

use crate::frame::VERSION;
use crate::join::{JOIN_MESSAGE_BYTES_MAX, JOIN_SERVICE};
use crate::settings::{MEMBER_STREAMS_MAX, MEMBER_WINDOW_BYTES};
use crate::tls;
use crate::wire::{Exchange, Request};

/// Longest time in which the head of a request follows the beginning of its stream, ms.
const HEAD_MS_MAX: u64 = 5_000;
/// Bytes of requests of one member that are held at a time.
const REQUESTS_BYTES_MAX: usize = 256 << 20;
/// Longest time a stranger's connection lives, ms.
const STRANGER_MS_MAX: u64 = 10_000;

/// Who answers.
#[derive(Clone)]
pub(super) struct Services {
    pub peers: Arc<dyn PeerService>,
    pub join: Arc<dyn JoinService>,
}

/// Answers a member until its connection is over.
pub(super) async fn member(from: u64, connection: &Connection, service: Arc<dyn PeerService>) {
    connection.set_receive_window(VarInt::from_u32(MEMBER_WINDOW_BYTES));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(MEMBER_STREAMS_MAX));
    if greet(connection).await.is_none() {
        return;
    }
    let room = Arc::new(Semaphore::new(REQUESTS_BYTES_MAX));
    while let Ok((send, receive)) = connection.accept_bi().await {
        tokio::spawn(call(from, send, receive, Arc::clone(&room), Arc::clone(&service)));
    }
}

/// Tells the other end that its calls will be taken.
async fn greet(connection: &Connection) -> Option<()> {
    let mut stream = connection.open_uni().await.ok()?;
    stream.write_all(&[VERSION]).await.ok()?;
    stream.finish().ok()
}

/// One call of a member.
async fn call(
    from: u64,
    send: SendStream,
    receive: RecvStream,
    room: Arc<Semaphore>,
    service: Arc<dyn PeerService>,
) {
    let mut exchange = Exchange::new(send, receive, PEER_MESSAGE_BYTES_MAX);
    let received = received(&mut exchange, &room, PEER_CALL_MAX).await;
    let (request, deadline) = match received {
        Ok(received) => received,
        Err(Some(declined)) => return decline(exchange, declined).await,
        Err(None) => return,
    };
    let Some(number) = Service::from_wire(request.head.service) else {
        let why = format!("service {} is not known here", request.head.service);
        return decline(exchange, Declined(why)).await;
    };
    exchange.prefer(number.lane(request.head.bytes));
    exchange.answer_up_to(number.answer_bytes_max());
    let Request { payload, room, .. } = request;
    let serving = service.serve(from, number, payload, deadline);
    let answer = tokio::select! {
        biased;
        () = exchange.abandoned() => return,
        answer = timeout_at(deadline, serving) => answer,
    };
    drop(room);
    if let Ok(answer) = answer {
        // Time is up for the answer as well: a caller that does not read is not waited for.
        let _ = timeout_at(deadline, exchange.answer(answer)).await;
    }
}

/// Answers a stranger for a while. `asks` is set while a request of it is served.
pub(super) async fn stranger(
    connection: &Connection,
    service: Arc<dyn JoinService>,
    joins: &Semaphore,
    asks: &AtomicBool,
) {
    let Some(binding) = tls::binding(connection) else { return };
    let stranger = UnauthenticatedPeer { addr: connection.remote_address(), binding };
    let served = async {
        while let Ok((send, receive)) = connection.accept_bi().await {
            let exchange = Exchange::new(send, receive, JOIN_MESSAGE_BYTES_MAX);
            join(exchange, stranger, service.as_ref(), joins, asks).await;
            asks.store(false, Ordering::Release);
        }
    };
    let _ = timeout(Duration::from_millis(STRANGER_MS_MAX), served).await;
}

/// One request of a stranger.
async fn join(
    mut exchange: Exchange,
    stranger: UnauthenticatedPeer,
    service: &dyn JoinService,
    joins: &Semaphore,
    asks: &AtomicBool,
) {
    let room = Arc::new(Semaphore::new(JOIN_MESSAGE_BYTES_MAX));
    let patience = Duration::from_millis(STRANGER_MS_MAX);
    let (request, deadline) = match received(&mut exchange, &room, patience).await {
        Ok((request, deadline)) if request.head.service == JOIN_SERVICE => (request, deadline),
        Ok(_) => return decline(exchange, Declined("strangers can only join".into())).await,
        Err(Some(declined)) => return decline(exchange, declined).await,
        Err(None) => return,
    };
    // Only now: who sends nothing takes nobody's place, and makes room for others.
    asks.store(true, Ordering::Release);
    let Ok(_place) = joins.try_acquire() else {
        return decline(exchange, Declined("too many nodes are joining, try again".into())).await;
    };
    let answer = tokio::select! {
        biased;
        () = exchange.abandoned() => return,
        answer = timeout_at(deadline, service.join(stranger, request.payload)) => answer,
    };
    if let Ok(answer) = answer {
        exchange.answer(answer).await;
    }
}

/// Receives a request, and tells until when its caller waits. `Err(None)` when it has gone.
async fn received(
    exchange: &mut Exchange,
    room: &Arc<Semaphore>,
    patience_max: Duration,
) -> Result<(Request, Instant), Option<Declined>> {
    let head = timeout(Duration::from_millis(HEAD_MS_MAX), exchange.request_head()).await;
    let head = head.map_err(|_| None)?;
    let head = head.map_err(|error| error.map(|error| Declined(error.to_string())))?;
    let patience = Duration::from_millis(u64::from(head.patience_ms)).min(patience_max);
    let deadline = Instant::now() + patience;
    let request = timeout_at(deadline, exchange.request(head, room)).await.map_err(|_| None)??;
    Ok((request, deadline))
}

/// Tells a caller that nothing was done. Its bytes are not waited for.
async fn decline(mut exchange: Exchange, declined: Declined) {
    exchange.refuse_rest();
    let answered = exchange.answer(Err(declined));
    let _ = timeout(Duration::from_millis(HEAD_MS_MAX), answered).await;
}

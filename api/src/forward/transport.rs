//! Carries one request to its owner and the answer back, as HTTP/1.1 over a stream between nodes.
//!
//! This is the only file that knows how requests and answers travel between nodes: `outbound` and
//! `inbound` see requests and responses of `http`. hyper speaks at both ends. A stream carries one
//! request: the ingress node ends its direction behind the body, the owner behind the answer.
//!
//! Invariant: no task runs behind a stream. The future of the request, and later the body of its
//! answer, drive the connection themselves: dropping them resets the stream. Where the owner serves clients on
//! threads of their own, it drops them there, soon after the stream has ended (`ClientThreads` of the program).

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::BoxError;
use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{Uri, Version};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::PeerError;
use shiioo_actors::ports::seams::ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, timeout_at};

use crate::forward::headers::{self, Said};
use crate::forward::owner_routes::OwnerRoutes;
use crate::request::attempt::Attempt;
use crate::server::app::Caller;
use crate::server::middleware::HEADERS_BYTES_MAX;
use crate::server::pool::Share;

/// Longest answer that is whole before it goes to the client, bytes. Such an answer can be asked
/// for again when it breaks off, and a client that reads it slowly holds no stream between nodes. A
/// longer one streams.
const COLLECTED_BYTES_MAX: u64 = 1024 * 1024;
/// Headers of a request between nodes, at most: the hundred that a client may send, and ours.
const HEADERS_MAX: usize = 128;
/// Read buffer of one end at most, bytes: a head has to fit.
const BUFFER_BYTES_MAX: usize = 4 * HEADERS_BYTES_MAX;
/// Longest time from the beginning of a stream to the end of the request's head.
const HEAD_READ_MAX: Duration = Duration::from_secs(5);
/// Longest pause between two pieces of an answer's body.
pub(super) const ANSWER_PAUSE_MAX: Duration = Duration::from_secs(30);

type Connection = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// The result of handing a request over.
pub(super) enum Sent {
    /// The owner's answer.
    Answered(Response),
    /// The other node has done nothing: it was not reached, declined, or does not lead the group.
    NotDone,
    /// What the other node has done is unknown.
    Unknown(&'static str),
}

/// Hands a request over to the node with raft id `to`, and waits for its answer until `deadline`.
pub(super) async fn send(
    routes: &impl OwnerRoutes,
    to: RaftId,
    (parts, body): (&Parts, &Bytes),
    attempt: &Attempt,
    deadline: Instant,
    place: Share,
) -> Sent {
    let stream = match routes.open(to, deadline).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%error, "a request was not handed over");
            return Sent::NotDone;
        }
    };
    let mut response =
        match timeout_at(deadline, exchange(stream, parts, body, attempt, place)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if was_declined(&*error) => {
                tracing::debug!(to = to.0, %error, "a request was declined");
                return Sent::NotDone;
            }
            lost => {
                let error = lost.map(|answer| answer.err().map(|error| describe(&*error)));
                tracing::debug!(
                    to = to.0,
                    ?error,
                    "a request was handed over, and its answer was lost"
                );
                return Sent::Unknown("the node that owns this did not answer");
            }
        };
    if let Some(started) = headers::take_started(response.headers_mut()) {
        response.extensions_mut().insert(started);
    }
    match Said::take(response.headers_mut()) {
        Ok(None) => {}
        Ok(Some(Said::NotDone)) => return Sent::NotDone,
        Ok(Some(Said::Retry(retry))) => {
            response.extensions_mut().insert(retry);
        }
        Err(()) => {
            tracing::warn!(to = to.0, "an answer of another node cannot be read");
            return Sent::Unknown(
                "the owning node's reply could not be decoded (different version?); retry with the \
                 same Idempotency-Key",
            );
        }
    }
    headers::remove_hop_by_hop(response.headers_mut());
    Sent::Answered(response)
}

/// Sends a request, and reads the answer: whole if it is short, else to its head.
async fn exchange(
    stream: Box<dyn ByteStream>,
    parts: &Parts,
    body: &Bytes,
    attempt: &Attempt,
    place: Share,
) -> Result<Response, BoxError> {
    let is_whole = Arc::new(AtomicBool::new(body.is_empty()));
    let stream = HalfClosing { stream, is_whole: Arc::clone(&is_whole), has_begun: false };
    let body = Whole { body: Some(body.clone()).filter(|body| !body.is_empty()), is_whole };
    let mut request = http::Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.version_mut() = Version::HTTP_11;
    let target = parts.uri.path_and_query().cloned();
    *request.uri_mut() = target.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.headers_mut() = headers::travelling(&parts.headers);
    headers::write_request(request.headers_mut(), parts.extensions.get::<Caller>(), attempt);

    let (mut sender, connection) = client::conn::http1::Builder::new()
        .max_buf_size(BUFFER_BYTES_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut driver = Driver { connection: Some(Box::pin(connection)) };
    // The request is queued by the call itself: the first poll of the connection finds it.
    let answer = driver.run(sender.send_request(request)).await?;
    let (parts, incoming) = answer.into_parts();
    let place = Some(place).filter(|_| !is_endless(&incoming));
    let mut body = AnswerBody { incoming, driver, patience: None, _place: place };
    if body.size_hint().upper().is_none_or(|bytes| bytes > COLLECTED_BYTES_MAX) {
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    let mut whole = Bytes::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let Ok(data) = frame?.into_data() else { continue };
        // Most are in one piece, which needs no copy.
        whole = if whole.is_empty() { data } else { [whole, data].concat().into() };
    }
    Ok(Response::from_parts(parts, Body::from(whole)))
}

/// Tells whether an answer is one that goes on: it does not say how long it is.
pub(super) fn is_endless(body: &impl HttpBody) -> bool {
    body.size_hint().upper().is_none()
}

/// Serves the one request of a stream by `handler`, which knows no answer when it gives `None`.
pub(super) async fn serve<F>(stream: Box<dyn ByteStream>, handler: impl Fn(Request) -> F)
where
    F: Future<Output = Option<Response>>,
{
    let service = service_fn(|request: http::Request<Incoming>| {
        let answer = handler(request.map(Body::new));
        // An error ends the stream without an answer.
        async move { answer.await.ok_or("the deadline has passed") }
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        // The ingress node ends its direction behind the request, and waits on.
        .half_close(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_READ_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES_MAX)
        // The ingress node writes the date.
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        let error = describe(&error);
        tracing::debug!(error, "a request that was handed over has no answer");
    }
}

/// Tells whether an error of hyper comes from the stream, which was declined.
fn was_declined(error: &(dyn Error + 'static)) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    let inner = cause.and_then(io::Error::get_ref);
    matches!(inner.and_then(|it| it.downcast_ref()), Some(PeerError::Declined { .. }))
}

/// Describes an error of hyper with its cause: its own text names only the phase.
fn describe(error: &(dyn Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// A body that is in memory. Tells when hyper has taken it.
struct Whole {
    body: Option<Bytes>,
    is_whole: Arc<AtomicBool>,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.body.take();
        self.is_whole.store(true, Ordering::Relaxed);
        Poll::Ready(body.map(|body| Ok(Frame::data(body))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.as_ref().map_or(0, |body| body.len() as u64))
    }
}

/// A stream whose direction to the owner ends with the flush behind the whole request: the owner
/// then need not tell this end to stop, which would be a packet more.
struct HalfClosing {
    stream: Box<dyn ByteStream>,
    /// Whether hyper has the whole body.
    is_whole: Arc<AtomicBool>,
    has_begun: bool,
}

impl AsyncRead for HalfClosing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for HalfClosing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.has_begun = true;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.has_begun = true;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        // hyper has written all that it was given before it flushes.
        if self.has_begun && self.is_whole.load(Ordering::Relaxed) {
            return Pin::new(&mut self.stream).poll_shutdown(cx);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Drives hyper's side of the connection, which reads and writes only while it is polled.
struct Driver {
    /// `None` once the connection is closed.
    connection: Option<Connection>,
}

impl Driver {
    /// Waits for `wanted` while the connection is driven.
    async fn run<F: Future>(&mut self, wanted: F) -> F::Output {
        let mut wanted = pin!(wanted);
        std::future::poll_fn(|cx| {
            self.poll_once(cx);
            wanted.as_mut().poll(cx)
        })
        .await
    }

    fn poll_once(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        if let Poll::Ready(_end) = connection.as_mut().poll(cx) {
            // The exchange learns how it ended through its own future.
            self.connection = None;
        }
    }
}

/// The body of an answer, with the connection that it comes by.
struct AnswerBody {
    incoming: Incoming,
    driver: Driver,
    /// When a piece that does not come is waited for no longer.
    patience: Option<Pin<Box<Sleep>>>,
    /// The request's place among those that are handed over. An answer without an end has one among those
    /// instead (`outbound`): else these would soon have all places.
    _place: Option<Share>,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        if polled.is_pending() {
            self.driver.poll_once(cx);
            polled = Pin::new(&mut self.incoming).poll_frame(cx);
        }
        if let Poll::Ready(frame) = polled {
            self.patience = None;
            return Poll::Ready(frame.map(|piece| piece.map_err(BoxError::from)));
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(ANSWER_PAUSE_MAX)));
        ready!(patience.as_mut().poll(cx));
        Poll::Ready(Some(Err(io::Error::from(ErrorKind::TimedOut).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

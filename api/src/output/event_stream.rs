//! Server-sent events: an answer that goes on until one of both sides has enough.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use hyper::body::Frame;
use tokio::sync::mpsc;

/// A comment goes to the reader after so long without an event, so that either side notices when the
/// connection is gone.
pub(crate) const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// A comment.
pub(crate) const COMMENT: &[u8] = b":\n\n";

/// Makes an answer of server-sent events, and the end at which they are put in. Nothing is kept for a reader but
/// the piece that it takes next.
pub(crate) fn event_stream() -> (mpsc::Sender<Bytes>, Response) {
    let (events, body) = mpsc::channel(1);
    let mut response = Response::new(Body::new(EventStream(body)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, const { HeaderValue::from_static("text/event-stream") });
    headers.insert(header::CACHE_CONTROL, const { HeaderValue::from_static("no-store") });
    (events, response)
}

/// The body of an answer that goes on.
struct EventStream(mpsc::Receiver<Bytes>);

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Poll::Ready(ready!(self.0.poll_recv(cx)).map(|events| Ok(Frame::data(events))))
    }
}

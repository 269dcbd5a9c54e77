//! Server-sent events: an answer that goes on until either side has enough.
//!
//! A piece of the stream is looked for once the reader has taken the one before. So a reader that is slow
//! has one piece waiting here and one that the connection writes, and one that does not read is disconnected
//! after [`READER_PATIENCE`]. `R` is the room in memory that a piece takes: it is given back when the next
//! piece is asked for.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderValue, header};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A comment goes to the reader after so long without an event, so that either side notices when the
/// connection is gone.
pub(crate) const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// A comment.
pub(crate) const COMMENT: &[u8] = b":\n\n";
/// How long a reader may take for a piece of the stream.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// A piece of a stream, and the room that it takes.
pub(crate) type Piece<R> = (Bytes, Option<R>);

/// Gives the pieces of a stream.
pub(crate) trait Pieces<R>: Send + 'static {
    /// Waits for the next piece. `None` ends the stream.
    fn next(&mut self) -> impl Future<Output = Option<Piece<R>>> + Send;
}

/// Makes an answer of server-sent events, and the end at which they are put in.
pub(crate) fn event_stream<R: Send + 'static>() -> (mpsc::Sender<Piece<R>>, Response) {
    let (events, pieces) = mpsc::channel(1);
    let mut response = Response::new(Body::new(EventStream { pieces, held: None }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, const { HeaderValue::from_static("text/event-stream") });
    headers.insert(header::CACHE_CONTROL, const { HeaderValue::from_static("no-store") });
    (events, response)
}

/// Hands pieces on, `beginning` first, until the reader has gone or does not read, there are no more, or
/// `stopped` is ready.
pub(crate) async fn hand_on<R>(
    events: mpsc::Sender<Piece<R>>,
    beginning: &'static [u8],
    mut pieces: impl Pieces<R>,
    stopped: impl Future<Output = ()>,
) {
    let handing_on = async {
        let mut first = Some((Bytes::from_static(beginning), None));
        // Waits for the reader first: nothing is looked for that nobody takes.
        while let Ok(Ok(place)) = timeout(READER_PATIENCE, events.reserve()).await {
            let next = match first.take() {
                Some(first) => Some(first),
                None => pieces.next().await,
            };
            let Some(piece) = next else { return };
            place.send(piece);
        }
    };
    tokio::select! {
        () = handing_on => {}
        () = events.closed() => {}
        () = stopped => {}
    }
}

/// The body of an answer that goes on.
struct EventStream<R> {
    pieces: mpsc::Receiver<Piece<R>>,
    /// The room of the piece that was given last.
    held: Option<R>,
}

// Nothing in it is pinned.
impl<R> Unpin for EventStream<R> {}

impl<R> HttpBody for EventStream<R> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.held = None;
        let Some((bytes, room)) = ready!(self.pieces.poll_recv(cx)) else {
            return Poll::Ready(None);
        };
        self.held = room;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

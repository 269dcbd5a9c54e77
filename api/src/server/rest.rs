//! Reads and throws away the rest of a request whose answer is known before its body has arrived.
//!
//! A refusal is often ready while the client still sends. If the connection closed then, the client
//! would get a broken connection and never read the answer; a client that sends head and body in
//! two packets would meet this with its next request on the connection. So the rest is read and
//! thrown away, within bounds. Beyond them the answer says that the connection ends:
//!
//! - a body lent to a handler comes back when the handler drops it unread;
//! - a rest of known length is answered at once and thrown away meanwhile;
//! - of a rest of unknown length it is known only at its end whether it was short enough: it is
//!   thrown away first;
//! - a client that waits to be told to send (`Expect: 100-continue`) is told not to: its
//!   connection ends instead.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use tokio::time::{Duration, timeout};

/// Most bytes of the rest of a request that are read and thrown away.
const REST_BYTES_MAX: u64 = 2 * 1024 * 1024;
/// Longest time for a rest to arrive.
const REST_READ_MAX: Duration = Duration::from_secs(10);
/// Longest pause between two pieces of a rest of unknown length: its answer waits for it.
const REST_PAUSE_MAX: Duration = Duration::from_secs(2);

/// A body that comes back to its [`Rest`] when its reader stops before its end.
struct Lent {
    body: Option<Body>,
    back: Arc<Mutex<Back>>,
}

/// What a lent body leaves behind.
#[derive(Default)]
struct Back {
    body: Option<Body>,
    /// Whether a part of the body was asked for: hyper has then told a client that waits to be told
    /// to send.
    was_asked_for: bool,
}

/// The rest of a request once its answer is known.
pub(crate) struct Rest {
    back: Arc<Mutex<Back>>,
    waits_to_be_told: bool,
}

/// Lends a body that has not ended.
pub(crate) fn lend(headers: &HeaderMap, body: Body) -> (Body, Rest) {
    let back = Arc::new(Mutex::new(Back::default()));
    let expects = headers.get(header::EXPECT).and_then(|expects| expects.to_str().ok());
    let waits_to_be_told = expects.is_some_and(|text| text.eq_ignore_ascii_case("100-continue"));
    let lent = Lent { body: Some(body), back: Arc::clone(&back) };
    (Body::new(lent), Rest { back, waits_to_be_told })
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        match polled {
            // Nothing is left to give back.
            Poll::Ready(Some(Err(_)) | None) => self.body = None,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {
                self.back.lock().unwrap_or_else(PoisonError::into_inner).was_asked_for = true;
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            self.back.lock().unwrap_or_else(PoisonError::into_inner).body = Some(body);
        }
    }
}

impl Rest {
    /// Settles what was not read before the answer leaves: the rest is thrown away, or the answer
    /// says that the connection ends.
    pub(crate) async fn settle(self, answer: &mut Response) {
        let (rest, was_asked_for) = {
            let mut back = self.back.lock().unwrap_or_else(PoisonError::into_inner);
            (back.body.take(), back.was_asked_for)
        };
        // A client that was too slow, or broke off, has an answer that closes: it is not waited
        // for again.
        let Some(rest) = rest.filter(|_| !answer.headers().contains_key(header::CONNECTION)) else {
            return;
        };
        if self.waits_to_be_told && !was_asked_for {
            return close(answer);
        }
        match rest.size_hint().exact() {
            Some(bytes) => {
                if bytes > REST_BYTES_MAX {
                    close(answer);
                }
                // A race: the answer leaves while the client still sends. A rest that is too long
                // is read up to the bound as well, for what the client is about to send would
                // otherwise break the connection before the client has read that it ends.
                tokio::spawn(timeout(REST_READ_MAX, throw_away(rest, REST_READ_MAX)));
            }
            None => {
                let thrown_away = timeout(REST_READ_MAX, throw_away(rest, REST_PAUSE_MAX));
                if thrown_away.await != Ok(true) {
                    close(answer);
                }
            }
        }
    }
}

/// Reads to the end of a rest. Tells whether the end came soon enough.
async fn throw_away(mut rest: Body, pause_max: Duration) -> bool {
    let mut left = REST_BYTES_MAX;
    loop {
        match timeout(pause_max, rest.frame()).await {
            Ok(None) => return true,
            Ok(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(less) = left.checked_sub(bytes) else { return false };
                left = less;
            }
            Ok(Some(Err(_))) | Err(_) => return false,
        }
    }
}

fn close(answer: &mut Response) {
    answer.headers_mut().insert(header::CONNECTION, const { HeaderValue::from_static("close") });
}

//! One HTTP/1.1 connection, driven by the future that uses it.
//!
//! Invariant: no task runs behind a connection. The future of an exchange polls hyper's connection
//! itself, so that dropping the future closes the socket; a connection that was interrupted half-way
//! is dropped with the future and never gets back into the pool.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::response::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use shiioo_actors::ports::seams::ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Longest body of a response, bytes.
pub(super) const RESPONSE_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Headers of a response, at most.
const RESPONSE_HEADERS_MAX: usize = 100;
/// Longest status line and headers of a response together, bytes.
const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes that hyper buffers for a connection in either direction.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// Holds an open connection without an exchange in progress.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
    /// Number of bytes received so far.
    received: Arc<AtomicU64>,
}

/// Tells why an exchange brought no answer.
pub(super) enum ExchangeError {
    /// The connection was closed before anything of the request was sent.
    NotSent,
    /// The request was sent in part or whole, and no byte of an answer came.
    Unanswered(String),
    /// The connection broke in the middle of an answer.
    Broken(String),
}

impl ExchangeError {
    /// Describes the error in words.
    pub(super) fn reason(self) -> String {
        match self {
            Self::NotSent => "the connection was closed at once".to_owned(),
            Self::Unanswered(reason) | Self::Broken(reason) => reason,
        }
    }
}

impl Connection {
    /// Starts HTTP/1.1 over a stream.
    pub(super) async fn open(stream: Box<dyn ByteStream>) -> Result<Self, String> {
        let received = Arc::default();
        let (sender, driver) = Builder::new()
            .max_headers(RESPONSE_HEADERS_MAX)
            .max_header_size(RESPONSE_HEAD_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(Counted { stream, received: Arc::clone(&received) }))
            .await
            .map_err(|error| describe(&error))?;
        Ok(Self { sender, driver: Driver { connection: Some(Box::pin(driver)) }, received })
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Parts, Vec<u8>), ExchangeError> {
        let Self { sender, driver, received } = self;
        let received_before = received.load(Ordering::Relaxed);
        driver.run(sender.ready()).await.map_err(|_| ExchangeError::NotSent)?;
        let sending = sender.try_send_request(request);
        let response: Response<Incoming> =
            driver.run(sending).await.map_err(|mut error| match error.take_message() {
                // hyper gives the request back when it has written nothing of it.
                Some(_) => ExchangeError::NotSent,
                None if received.load(Ordering::Relaxed) == received_before => {
                    ExchangeError::Unanswered(describe(&error.into_error()))
                }
                None => ExchangeError::Broken(describe(&error.into_error())),
            })?;
        let (head, mut body) = response.into_parts();
        let announced = body.size_hint().lower();
        let mut bytes = Vec::with_capacity(announced.min(RESPONSE_BODY_BYTES_MAX as u64) as usize);
        if announced > RESPONSE_BODY_BYTES_MAX as u64 {
            return Err(ExchangeError::Broken(body_too_large()));
        }
        while let Some(frame) = driver.run(body.frame()).await {
            let frame = frame.map_err(|error| ExchangeError::Broken(describe(&error)))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > RESPONSE_BODY_BYTES_MAX {
                return Err(ExchangeError::Broken(body_too_large()));
            }
            bytes.extend_from_slice(&data);
        }
        Ok((head, bytes))
    }

    /// Returns whether another request can be sent, as far as can be told without waiting.
    pub(super) fn is_ready(&mut self) -> bool {
        // With a waker that wakes nothing: hyper is only given the chance to notice what has arrived
        // by now, such as the end of the stream. The next exchange polls with its own waker.
        self.driver.poll_once(&mut Context::from_waker(Waker::noop()));
        self.driver.connection.is_some() && self.sender.is_ready()
    }
}

/// Counts the bytes that are received over a stream.
struct Counted {
    stream: Box<dyn ByteStream>,
    received: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.received.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Drives hyper's side of the connection, which reads and writes only while it is polled.
struct Driver {
    /// `None` once the connection is closed.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
}

impl Driver {
    /// Waits for `wanted` while the connection is driven.
    async fn run<F: Future>(&mut self, wanted: F) -> F::Output {
        let mut wanted = pin!(wanted);
        poll_fn(|cx| {
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

fn body_too_large() -> String {
    format!("the body of the answer is larger than {RESPONSE_BODY_BYTES_MAX} bytes")
}

/// Describes an error of hyper with its cause: its own text names only the phase.
fn describe(error: &hyper::Error) -> String {
    if error.is_parse_too_large() {
        return format!(
            "the head of the answer is larger than {RESPONSE_HEAD_BYTES_MAX} bytes or \
             {RESPONSE_HEADERS_MAX} headers"
        );
    }
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// What answers are made of, right and wrong.
    fn piece() -> impl Strategy<Value = Vec<u8>> {
        let known = prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.0 200\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 204 No Content\r\n",
            "HTTP/1.1 999 \r\n",
            "HTTP/2 200\r\n",
            "Content-Length: 3\r\n",
            "Content-Length: 4\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 18446744073709551616\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Connection: upgrade\r\nUpgrade: x\r\n",
            "Connection: close\r\n",
            "3\r\nabc\r\n",
            "ffffffffffffffff\r\n",
            "0\r\n\r\n",
            "\r\n",
            "abc",
            " folded\r\n",
        ]);
        prop_oneof![
            6 => known.prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..20),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Whatever a service says before it closes is an answer or an error, in bounded time.
        #[test]
        fn any_bytes_are_an_answer_or_an_error(pieces in prop::collection::vec(piece(), 0..10)) {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_time().start_paused(true).build().unwrap();
            let judged = runtime.block_on(async {
                let (near, mut far) = tokio::io::duplex(1 << 16);
                let mut connection = Connection::open(Box::new(near)).await.unwrap();
                let service = tokio::spawn(async move {
                    let _ = far.write_all(&pieces.concat()).await;
                    let _ = far.shutdown().await;
                    // Takes what it is sent, so that nothing but its answer decides.
                    let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
                });
                let request = Request::builder().uri("/").body(Full::default()).unwrap();
                let exchange = connection.exchange(request);
                let answer = tokio::time::timeout(std::time::Duration::from_secs(60), exchange);
                let answer = answer.await.map(|answer| answer.map(|(_, body)| body.len()));
                service.abort();
                answer.map(|answer| answer.map_err(ExchangeError::reason))
            });
            prop_assert!(judged.is_ok(), "it hangs");
        }
    }
}

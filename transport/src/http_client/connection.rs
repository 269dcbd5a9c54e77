//! One HTTP/1.1 connection, driven by whoever uses it.
//!
//! Invariant: no task runs behind a connection. The future of an exchange drives hyper's
//! connection itself, so that dropping the future closes the socket and nothing is left behind; a
//! connection that was interrupted half-way is dropped with it and never gets back into the pool.

use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::response::Parts;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use shiioo_actors::seams::ByteStream;

/// Bytes of a response body that are read.
pub(super) const RESPONSE_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Headers of a response.
const RESPONSE_HEADERS_MAX: usize = 100;
/// Bytes of a response's status line and headers together.
const RESPONSE_HEAD_BYTES_MAX: usize = 64 * 1024;
/// Bytes that hyper buffers for a connection in either direction.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// An open connection that has no exchange under way between calls.
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Driver,
}

/// Why an exchange brought no answer.
pub(super) enum ExchangeError {
    /// The connection was closed before anything of the request was sent.
    NotSent,
    /// Something was sent, and then it broke.
    Broken(String),
}

impl Connection {
    /// Speaks HTTP/1.1 over a stream.
    pub(super) async fn open(stream: Box<dyn ByteStream>) -> Result<Self, String> {
        let (sender, driver) = Builder::new()
            .max_headers(RESPONSE_HEADERS_MAX)
            .max_header_size(RESPONSE_HEAD_BYTES_MAX)
            .max_buf_size(BUFFER_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| describe(&error))?;
        Ok(Self { sender, driver: Driver { connection: Some(Box::pin(driver)) } })
    }

    /// Sends a request and reads the whole answer.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Parts, Vec<u8>), ExchangeError> {
        let Self { sender, driver } = self;
        driver.run(sender.ready()).await.map_err(|_| ExchangeError::NotSent)?;
        let sending = sender.try_send_request(request);
        let response: Response<Incoming> =
            driver.run(sending).await.map_err(|mut error| match error.take_message() {
                Some(_) => ExchangeError::NotSent,
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

    /// Whether another request can be sent, as far as can be told without waiting.
    pub(super) fn is_ready(&mut self) -> bool {
        // Nobody waits: hyper is only given the chance to notice what has arrived by now. The next
        // exchange polls with its own waker.
        self.driver.turn(&mut Context::from_waker(Waker::noop()));
        self.driver.connection.is_some() && self.sender.is_ready()
    }
}

/// hyper's side of the connection: reads and writes only while it is polled.
struct Driver {
    /// `None` once the connection is closed.
    connection: Option<Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>>,
}

impl Driver {
    /// Waits for `wanted` while the connection goes on.
    async fn run<F: Future>(&mut self, wanted: F) -> F::Output {
        let mut wanted = pin!(wanted);
        poll_fn(|cx| {
            self.turn(cx);
            wanted.as_mut().poll(cx)
        })
        .await
    }

    fn turn(&mut self, cx: &mut Context<'_>) {
        let Some(connection) = &mut self.connection else { return };
        if let Poll::Ready(_end) = connection.as_mut().poll(cx) {
            // How it ended reaches the exchange through its own future.
            self.connection = None;
        }
    }
}

fn body_too_large() -> String {
    format!("the body of the answer is larger than {RESPONSE_BODY_BYTES_MAX} bytes")
}

/// An error of hyper with its cause: its own text says only in which phase it happened.
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

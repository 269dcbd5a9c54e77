//! One request and its answer on one QUIC stream: whole ([`Exchange`]), or as two streams of bytes
//! ([`stream`]).
//!
//! Payloads are given to QUIC and taken from it without a copy in between. Dropping an
//! [`Exchange`] before its end resets the stream in both directions, so that the other end stops
//! working for a caller that has gone.

pub(crate) mod frame;
pub(crate) mod stream;

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use shiioo_actors::ports::{Declined, Lane};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use frame::{ANSWER_HEAD_BYTES, AnswerHead, FrameError, REQUEST_HEAD_BYTES, RequestHead, Status};

/// Code of a stream that is dropped before the end of its exchange.
const ABANDONED: VarInt = VarInt::from_u32(1);
/// Longest answer that is read without a permit, bytes: short answers are held for a moment only.
const UNCOUNTED_ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest reason of a refusal that is sent, bytes.
const REASON_BYTES_MAX: usize = 1_024;

/// Tells in words why an exchange ended without an answer.
#[derive(Debug)]
pub(crate) struct ExchangeError(String);

impl ExchangeError {
    /// Adds the chain of causes: quinn's errors name what was lost, only their sources name why.
    fn because(what: &str, error: &dyn Error) -> Self {
        let mut text = format!("{what}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        Self(text)
    }
}

impl fmt::Display for ExchangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Carries one request and its answer. Dropping it before the end resets the stream.
pub(crate) struct Exchange {
    send: SendStream,
    receive: RecvStream,
    bytes_max: usize,
    /// All that this end has to send was given to QUIC: dropping does not take it back.
    is_finished: bool,
    /// Nothing is left to send or to receive: dropping resets nothing.
    is_over: bool,
}

/// Holds a request as it was received.
pub(crate) struct Request {
    pub head: RequestHead,
    pub payload: Vec<u8>,
    /// The payload's share of the bytes that may be held for its sender.
    pub bytes_permit: OwnedSemaphorePermit,
}

impl Exchange {
    /// Wraps a stream that was opened to ask on, or accepted to answer on.
    pub const fn new(send: SendStream, receive: RecvStream, bytes_max: usize) -> Self {
        Self { send, receive, bytes_max, is_finished: false, is_over: false }
    }

    /// Orders what this stream sends among the streams of other lanes.
    pub fn set_lane(&self, lane: Lane) {
        let priority = match lane {
            Lane::Control => 3,
            Lane::Raft => 2,
            Lane::Http => 1,
            Lane::Bulk => 0,
        };
        // Fails when the other end has stopped the stream.
        let _ = self.send.set_priority(priority);
    }

    /// Sends a request and waits for its answer. A long answer is read once `answer_bytes` has
    /// permits for it: until then flow control keeps it at the other end.
    pub async fn ask(
        mut self,
        head: [u8; REQUEST_HEAD_BYTES],
        request: Vec<u8>,
        answer_bytes: &Semaphore,
    ) -> Result<Result<Vec<u8>, Declined>, ExchangeError> {
        match self.write(&head, request).await {
            Ok(()) => drop(self.send.finish()),
            // The other end declined before it had read all: its answer, which follows, says why.
            Err(WriteError::Stopped(_)) => {}
            Err(error) => return Err(ExchangeError::because("the request was cut off", &error)),
        }
        let mut head = [0; ANSWER_HEAD_BYTES];
        let cut = |error| ExchangeError::because("the answer was cut off", &error);
        self.receive.read_exact(&mut head).await.map_err(cut)?;
        let head = AnswerHead::decode(head, self.bytes_max)
            .map_err(|error| ExchangeError::because("the answer cannot be read", &error))?;
        let counted =
            u32::try_from(head.bytes).ok().filter(|_| head.bytes > UNCOUNTED_ANSWER_BYTES_MAX);
        // Taken before memory is allocated, and held until the payload is complete.
        let _bytes_permit = match counted {
            // The semaphore is never closed.
            Some(bytes) => answer_bytes.acquire_many(bytes).await.ok(),
            None => None,
        };
        let mut payload = vec![0; head.bytes];
        self.receive.read_exact(&mut payload).await.map_err(cut)?;
        self.is_over = true;
        Ok(match head.status {
            Status::Done => Ok(payload),
            Status::Declined => Err(Declined(String::from_utf8_lossy(&payload).into_owned())),
        })
    }

    /// Receives the head of a request; `Err(None)` when the other end has gone.
    pub async fn request_head(&mut self) -> Result<RequestHead, Option<FrameError>> {
        let mut head = [0; REQUEST_HEAD_BYTES];
        self.receive.read_exact(&mut head).await.map_err(|_| None)?;
        RequestHead::decode(head, self.bytes_max).map_err(Some)
    }

    /// Receives the payload of a request; declines when `request_bytes` has no permits for it.
    /// `Err(None)` when the other end has gone.
    pub async fn request(
        &mut self,
        head: RequestHead,
        request_bytes: &Arc<Semaphore>,
    ) -> Result<Request, Option<Declined>> {
        // The limit of a payload is far below what fits.
        let bytes = u32::try_from(head.bytes).unwrap_or(u32::MAX);
        let bytes_permit = Arc::clone(request_bytes)
            .try_acquire_many_owned(bytes)
            .map_err(|_| Some(Declined("too many bytes of requests are under way".to_owned())))?;
        let mut payload = vec![0; head.bytes];
        self.receive.read_exact(&mut payload).await.map_err(|_| None)?;
        Ok(Request { head, payload, bytes_permit })
    }

    /// Tells the other end to send no more of its request.
    pub fn refuse_rest(&mut self) {
        // Fails when all of the request is here.
        let _ = self.receive.stop(ABANDONED);
    }

    /// Completes when the other end no longer waits for the answer.
    pub fn abandoned(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.send.stopped();
        async move {
            // Whether the stream was stopped or the connection is gone: no caller waits.
            let _ = stopped.await;
        }
    }

    /// Sends the answer. An answer that is too long resets the stream instead: the request has
    /// been served, so that the caller must hear 'lost' and not 'declined'.
    pub async fn answer(mut self, answer: Result<Vec<u8>, Declined>) {
        let (status, payload) = match answer {
            Ok(payload) => (Status::Done, payload),
            Err(Declined(why)) => (Status::Declined, shortened(why).into_bytes()),
        };
        let head = AnswerHead { status, bytes: payload.len() };
        let Ok(head) = head.encode(self.bytes_max) else { return };
        if self.write(&head, payload).await.is_ok() {
            self.is_over = self.send.finish().is_ok();
        }
    }

    /// Writes head and payload at once, so that small ones leave in one packet.
    async fn write(&mut self, head: &[u8], payload: Vec<u8>) -> Result<(), WriteError> {
        let mut frame = [Bytes::copy_from_slice(head), Bytes::from(payload)];
        // quinn makes no progress on an empty chunk.
        let chunks = if frame[1].is_empty() { 1 } else { 2 };
        self.send.write_all_chunks(&mut frame[..chunks]).await
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.is_over {
            // Each fails when its direction has ended already.
            if !self.is_finished {
                let _ = self.send.reset(ABANDONED);
            }
            let _ = self.receive.stop(ABANDONED);
        }
    }
}

/// Cuts a text to [`REASON_BYTES_MAX`] at a character boundary.
fn shortened(mut why: String) -> String {
    let end = (0..=REASON_BYTES_MAX.min(why.len())).rev().find(|end| why.is_char_boundary(*end));
    why.truncate(end.unwrap_or(0));
    why
}

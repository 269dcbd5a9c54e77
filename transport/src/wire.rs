//! Frames on QUIC's streams: one request and its answer a stream.
//!
//! Payloads are handed to QUIC and taken from it without a copy in between. A stream that is let
//! go before its exchange is over is reset, so that the other end stops working for nobody.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use shiioo_actors::ports::{Declined, Lane};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::frame::{
    ANSWER_HEAD_BYTES, AnswerHead, FrameError, REQUEST_HEAD_BYTES, RequestHead, Status,
};

/// Code of a stream that is let go before its exchange is over.
const ABANDONED: VarInt = VarInt::from_u32(1);
/// Longest answer that needs no room: there are many of these, and they are gone at once.
const ROOMLESS_BYTES_MAX: usize = 1 << 20;
/// Longest text of a refusal that is sent, bytes.
const WHY_BYTES_MAX: usize = 1_024;

/// Why an exchange ended without an answer, in words.
#[derive(Debug)]
pub(crate) struct Broken(String);

impl Broken {
    /// With the causes below: quinn's errors tell what was lost, and only their source tells why.
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

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A stream under way. Dropped before it is over, it is reset in both directions.
pub(crate) struct Exchange {
    send: SendStream,
    receive: RecvStream,
    bytes_max: usize,
    answer_bytes_max: usize,
    over: bool,
}

/// A request as it was received.
pub(crate) struct Request {
    pub head: RequestHead,
    pub payload: Vec<u8>,
    /// What it takes of what may be held of its member's requests.
    pub room: OwnedSemaphorePermit,
}

impl Exchange {
    /// A stream that was opened to ask on, or accepted to answer on.
    pub const fn new(send: SendStream, receive: RecvStream, bytes_max: usize) -> Self {
        Self { send, receive, bytes_max, answer_bytes_max: bytes_max, over: false }
    }

    /// Lets the answer be longer, or shorter, than the request.
    pub const fn answer_up_to(&mut self, bytes_max: usize) {
        self.answer_bytes_max = bytes_max;
    }

    /// Has what is sent from here leave before what other lanes have to send, or after.
    pub fn prefer(&self, lane: Lane) {
        let priority = match lane {
            Lane::Control => 2,
            Lane::Raft => 1,
            Lane::Bulk => 0,
        };
        // Fails for a stream that the other end wants nothing on any more.
        let _ = self.send.set_priority(priority);
    }

    /// Sends a request and waits for its answer. A long one is taken once `room` has its bytes:
    /// until then it stays with the other end.
    pub async fn ask(
        mut self,
        head: [u8; REQUEST_HEAD_BYTES],
        request: Vec<u8>,
        room: &Semaphore,
    ) -> Result<Result<Vec<u8>, Declined>, Broken> {
        match self.write(&head, request).await {
            Ok(()) => drop(self.send.finish()),
            // It does not want the rest: its answer says why.
            Err(WriteError::Stopped(_)) => {}
            Err(error) => return Err(Broken::because("the request was cut off", &error)),
        }
        let mut head = [0; ANSWER_HEAD_BYTES];
        let cut = |error| Broken::because("the answer was cut off", &error);
        self.receive.read_exact(&mut head).await.map_err(cut)?;
        let head = AnswerHead::decode(head, self.answer_bytes_max)
            .map_err(|error| Broken::because("the answer is none", &error))?;
        let long = u32::try_from(head.bytes).ok().filter(|_| head.bytes > ROOMLESS_BYTES_MAX);
        let _room = match long {
            // It is never closed.
            Some(bytes) => room.acquire_many(bytes).await.ok(),
            None => None,
        };
        let mut payload = vec![0; head.bytes];
        self.receive.read_exact(&mut payload).await.map_err(cut)?;
        self.over = true;
        Ok(match head.status {
            Status::Done => Ok(payload),
            Status::Declined => Err(Declined(String::from_utf8_lossy(&payload).into_owned())),
        })
    }

    /// Receives the head of a request: `Err(None)` when the other end has gone.
    pub async fn request_head(&mut self) -> Result<RequestHead, Option<FrameError>> {
        let mut head = [0; REQUEST_HEAD_BYTES];
        self.receive.read_exact(&mut head).await.map_err(|_| None)?;
        RequestHead::decode(head, self.bytes_max).map_err(Some)
    }

    /// Receives the rest of a request, of which `room` has to hold the bytes. `Err(None)` when
    /// the other end has gone.
    pub async fn request(
        &mut self,
        head: RequestHead,
        room: &Arc<Semaphore>,
    ) -> Result<Request, Option<Declined>> {
        // The limit of a payload keeps this far below what fits.
        let bytes = u32::try_from(head.bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(room)
            .try_acquire_many_owned(bytes)
            .map_err(|_| Some(Declined("too many bytes of requests are under way".to_owned())))?;
        let mut payload = vec![0; head.bytes];
        self.receive.read_exact(&mut payload).await.map_err(|_| None)?;
        Ok(Request { head, payload, room })
    }

    /// Tells the other end to send no more of its request.
    pub fn refuse_rest(&mut self) {
        // Fails when all of it is here.
        let _ = self.receive.stop(ABANDONED);
    }

    /// Completes when the other end waits no more.
    pub fn abandoned(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.send.stopped();
        async move {
            // Whether it stopped the stream or the connection is gone: nobody waits.
            let _ = stopped.await;
        }
    }

    /// Sends the answer. One that is too long is not sent at all: what was asked has been done,
    /// so that the caller must not take it for declined.
    pub async fn answer(mut self, answer: Result<Vec<u8>, Declined>) {
        let (status, payload) = match answer {
            Ok(payload) => (Status::Done, payload),
            Err(Declined(why)) => (Status::Declined, shortened(why).into_bytes()),
        };
        let head = AnswerHead { status, bytes: payload.len() };
        let Ok(head) = head.encode(self.answer_bytes_max) else { return };
        if self.write(&head, payload).await.is_ok() {
            self.over = self.send.finish().is_ok();
        }
    }

    /// Writes head and payload at once: small ones leave in one packet.
    async fn write(&mut self, head: &[u8], payload: Vec<u8>) -> Result<(), WriteError> {
        let mut frame = [Bytes::copy_from_slice(head), Bytes::from(payload)];
        // quinn makes no progress with a chunk that is empty.
        let chunks = if frame[1].is_empty() { 1 } else { 2 };
        self.send.write_all_chunks(&mut frame[..chunks]).await
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.over {
            // Either fails when that direction is over already.
            let _ = self.send.reset(ABANDONED);
            let _ = self.receive.stop(ABANDONED);
        }
    }
}

fn shortened(mut why: String) -> String {
    let end = (0..=WHY_BYTES_MAX.min(why.len())).rev().find(|end| why.is_char_boundary(*end));
    why.truncate(end.unwrap_or(0));
    why
}

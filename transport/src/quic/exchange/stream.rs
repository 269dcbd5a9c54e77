//! A stream of bytes in both directions over one QUIC stream.
//!
//! It begins like a call (see [`frame`](super::frame)): the caller's bytes follow the head of a
//! request, the other end's follow the head of an answer, each with a payload of length 0. A node
//! that does not know the service declines it as it declines a call, and has done nothing.
//!
//! A head leaves together with the first bytes behind it, so that a short request and a short
//! answer are one packet each.
//!
//! A write that the other end gives no room for fails after [`WRITE_IDLE_MS_MAX`]: whoever does not
//! read is not waited for. How long a read may wait is the business of the two ends.

use std::io::{self, ErrorKind, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use quinn::WriteError;
use shiioo_actors::domain::ids::RaftId;
use shiioo_actors::ports::PeerError;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

use super::frame::{ANSWER_HEAD_BYTES, AnswerHead, REQUEST_HEAD_BYTES, Status};
use super::{Exchange, REASON_BYTES_MAX};

/// Longest time in which the other end takes nothing of a write, ms.
const WRITE_IDLE_MS_MAX: u64 = 30_000;
/// Bytes that are copied together for one write, at most. What is longer goes to QUIC as it is.
const GATHERED_BYTES_MAX: usize = 16 << 10;

/// One end of a stream. Dropping it before its end resets the stream.
pub(crate) struct PeerStream {
    exchange: Exchange,
    /// Head that leaves before all else.
    head: Head,
    incoming: Incoming,
    /// When a write that waits for room fails.
    patience: Option<Pin<Box<Sleep>>>,
    /// The place of the stream among the calls to a member, at the caller's end.
    permit: Option<OwnedSemaphorePermit>,
}

/// A head on its way.
struct Head {
    bytes: [u8; REQUEST_HEAD_BYTES],
    /// The part of the bytes that has yet to leave.
    left: Range<usize>,
}

/// What is read next.
enum Incoming {
    /// The head of the answer of the node with raft id `from`.
    Head { from: RaftId, bytes: [u8; ANSWER_HEAD_BYTES], have: usize },
    /// The reason for which the node with raft id `from` declined.
    Reason { from: RaftId, bytes: Vec<u8>, have: usize },
    /// The bytes of the other end.
    Bytes,
}

impl PeerStream {
    /// Makes the caller's end of a stream to the member with raft id `to`.
    pub fn calling(
        to: RaftId,
        exchange: Exchange,
        head: [u8; REQUEST_HEAD_BYTES],
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let head = Head { bytes: head, left: 0..REQUEST_HEAD_BYTES };
        let incoming = Incoming::Head { from: to, bytes: [0; ANSWER_HEAD_BYTES], have: 0 };
        Self { exchange, head, incoming, patience: None, permit: Some(permit) }
    }

    /// Makes the served end of a stream whose head has been received.
    pub fn served(exchange: Exchange) -> Self {
        let mut bytes = [0; REQUEST_HEAD_BYTES];
        let answer = AnswerHead { status: Status::Done, bytes: 0 }.encode(0);
        // A payload of length 0 is within any limit.
        let left = 0..answer.map_or(0, |answer| answer.len());
        bytes[left.clone()].copy_from_slice(answer.as_ref().map_or(&[], |answer| &answer[..]));
        let head = Head { bytes, left };
        Self { exchange, head, incoming: Incoming::Bytes, patience: None, permit: None }
    }

    /// Writes the head, if it has not left, and as much of `slices` as is taken.
    fn poll_gathered(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let slices = &slices[slices.iter().take_while(|slice| slice.is_empty()).count()..];
        loop {
            let head = self.head.bytes;
            let head = &head[self.head.left.clone()];
            match slices {
                [] if head.is_empty() => return Poll::Ready(Ok(0)),
                [only] if head.is_empty() => return self.poll_put(cx, only),
                _ => {}
            }
            let all =
                slices.iter().map(|slice| slice.len()).fold(head.len(), usize::saturating_add);
            let mut gathered = Vec::with_capacity(all.min(GATHERED_BYTES_MAX));
            gathered.extend_from_slice(head);
            for slice in slices {
                let room = GATHERED_BYTES_MAX - gathered.len();
                gathered.extend_from_slice(&slice[..slice.len().min(room)]);
            }
            let written = ready!(self.poll_put(cx, &gathered))?;
            let of_head = written.min(head.len());
            self.head.left.start += of_head;
            // A write that took the head alone is no progress to whoever writes what follows it.
            if written > of_head || slices.is_empty() && self.head.left.is_empty() {
                return Poll::Ready(Ok(written - of_head));
            }
        }
    }

    /// Gives bytes to QUIC, and tells how many it took.
    fn poll_put(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.exchange.send).poll_write(cx, bytes) {
            Poll::Ready(put) => {
                self.patience = None;
                match put {
                    // The other end needs no more of the request: its answer, which follows, says
                    // why.
                    Err(WriteError::Stopped(_)) if self.permit.is_some() => {
                        Poll::Ready(Ok(bytes.len()))
                    }
                    put => Poll::Ready(put.map_err(io::Error::from)),
                }
            }
            Poll::Pending => {
                let idle_max = Duration::from_millis(WRITE_IDLE_MS_MAX);
                let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(idle_max)));
                ready!(patience.as_mut().poll(cx));
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
        }
    }

    /// Reads the head of the answer, and the reason of an answer that declines.
    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let (from, bytes, have) = match &mut self.incoming {
                Incoming::Head { from, bytes, have } => (*from, &mut bytes[..], have),
                Incoming::Reason { from, bytes, have } => (*from, &mut bytes[..], have),
                Incoming::Bytes => return Poll::Ready(Ok(())),
            };
            if *have < bytes.len() {
                let read = ready!(self.exchange.receive.poll_read(cx, &mut bytes[*have..]))?;
                if read == 0 {
                    return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
                }
                *have += read;
                continue;
            }
            self.incoming = match &self.incoming {
                Incoming::Head { bytes, .. } => {
                    match AnswerHead::decode(*bytes, REASON_BYTES_MAX) {
                        Ok(AnswerHead { status: Status::Done, .. }) => Incoming::Bytes,
                        Ok(AnswerHead { status: Status::Declined, bytes }) => {
                            Incoming::Reason { from, bytes: vec![0; bytes], have: 0 }
                        }
                        Err(error) => {
                            return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, error)));
                        }
                    }
                }
                Incoming::Reason { bytes, .. } => {
                    let why = String::from_utf8_lossy(bytes).into_owned();
                    let declined = PeerError::Declined { to: from, why };
                    return Poll::Ready(Err(io::Error::new(
                        ErrorKind::ConnectionRefused,
                        declined,
                    )));
                }
                Incoming::Bytes => Incoming::Bytes,
            };
        }
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_answered(cx))?;
        AsyncRead::poll_read(Pin::new(&mut self.exchange.receive), cx, buffer)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_gathered(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_gathered(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Does nothing: QUIC sends what it has been given by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.exchange.is_finished {
            ready!(self.poll_gathered(cx, &[]))?;
            self.exchange.send.finish()?;
            self.exchange.is_finished = true;
        }
        Poll::Ready(Ok(()))
    }
}

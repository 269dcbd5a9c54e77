//! Gives up a connection whose client does not read its answer.
//!
//! hyper waits for ever for a socket that takes no more bytes, and looks at nothing else meanwhile: neither a body
//! that has ended nor a handler that has given up is noticed. So the time without any progress is bounded
//! here, below it. A client that reads slowly is left alone.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use shiioo_actors::ports::seams::ByteStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// How long a client may take none of the bytes that are ready for it.
pub(super) const UNREAD_MAX: Duration = Duration::from_secs(30);

/// A connection whose writes fail once the client has read nothing for [`UNREAD_MAX`].
pub(super) struct Unread {
    stream: Box<dyn ByteStream>,
    /// Runs while the system takes no bytes.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Unread {
    pub(super) fn new(stream: Box<dyn ByteStream>) -> Self {
        Self { stream, stalled: None }
    }

    /// Passes on how a write went, or that it has been stalled for too long.
    fn bounded<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(UNREAD_MAX)));
        stalled.as_mut().poll(cx).map(|()| Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Unread {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Unread {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.bounded(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.bounded(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_given_up_and_a_slow_one_is_not() {
        let (mut client, stream) = duplex(4);
        let mut server = Unread::new(Box::new(stream));
        let reading = async {
            // One byte at a time, each almost too late.
            for _ in 0..8 {
                advance(UNREAD_MAX - Duration::from_secs(1)).await;
                client.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(server.write_all(b"12345678"), reading);
        written.unwrap();
        let began = Instant::now();
        let error = server.write_all(b"12345678").await.unwrap_err();
        assert_eq!((error.kind(), began.elapsed()), (ErrorKind::TimedOut, UNREAD_MAX));
    }
}

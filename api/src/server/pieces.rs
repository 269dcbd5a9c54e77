//! Hands a large answer to its connection in small pieces.
//!
//! hyper copies what it is handed into a buffer of the connection, whatever its size, and keeps that
//! buffer as long as the connection: each that was asked for one page would hold on to megabytes. Of a
//! body in pieces it takes the next one when the last is nearly written.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};

/// Largest piece, bytes.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// Cuts the body of an answer, if it is large.
pub(crate) fn in_pieces(response: Response) -> Response {
    let is_small = |bytes| bytes <= PIECE_BYTES_MAX as u64;
    if response.body().size_hint().upper().is_some_and(is_small) {
        return response;
    }
    response.map(|body| Body::new(Pieces { body, rest: Bytes::new() }))
}

/// A body that comes in pieces.
struct Pieces {
    body: Body,
    /// What is left of the frame at hand.
    rest: Bytes,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let bytes = self.rest.len().min(PIECE_BYTES_MAX);
        let piece = self.rest.split_to(bytes);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_large_answer_comes_whole_and_in_small_pieces() {
        for bytes in [0, 1, PIECE_BYTES_MAX, PIECE_BYTES_MAX + 1, 5 * PIECE_BYTES_MAX + 7] {
            let all: Vec<u8> = (0..bytes).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let mut body = in_pieces(Response::new(Body::from(all.clone()))).into_body();
            let mut read = Vec::new();
            loop {
                let left = (bytes - read.len()) as u64;
                assert_eq!(body.size_hint().exact(), Some(left), "of {bytes}");
                let Some(frame) = body.frame().await else { break };
                let piece = frame.unwrap().into_data().unwrap();
                assert!(piece.len() <= PIECE_BYTES_MAX, "{} bytes at once", piece.len());
                read.extend_from_slice(&piece);
            }
            assert!(body.is_end_stream() && read == all, "of {bytes}");
        }
    }
}

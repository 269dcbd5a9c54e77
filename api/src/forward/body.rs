//! Reads the body of a request before it goes anywhere, of bounded size and in bounded time.

use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::input::payload::{BODY_READ_MAX, broken_off, too_slow};
use crate::output::problem::{Code, Problem};
use crate::server::pool::Share;

/// Largest JSON body, bytes.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Seconds after which a body that found no room is worth sending again.
const BUSY_RETRY_SECS: u64 = 1;

/// Reads a body as far as `share` has room for it.
pub(crate) async fn read_body(body: Body, share: &mut Share) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let at_least = body.size_hint().lower();
    if at_least > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    // A body that says it is larger than the room there is would not be finished: it is not begun.
    if !share.has_room(at_least) {
        return Err(no_room());
    }
    match timeout(BODY_READ_MAX, collect(body, share)).await {
        Ok(read) => read,
        Err(_) => Err(too_slow()),
    }
}

async fn collect(mut body: Body, share: &mut Share) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| broken_off())?.into_data() else { continue };
        if first.len().max(all.len()) + data.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        if !share.take(data.len()) {
            return Err(no_room());
        }
        // Most bodies are in one piece, which needs no copy.
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if !first.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if first.is_empty() { all.freeze() } else { first })
}

fn no_room() -> Problem {
    Problem::new(Code::Busy, "too many bytes of bodies are under way: try again")
        .retry_after(BUSY_RETRY_SECS)
        .not_applied()
}

fn too_large() -> Problem {
    Problem::new(Code::TooLarge, format!("the body is larger than {BODY_BYTES_MAX} bytes"))
        .facts(|facts| facts.limit = Some(BODY_BYTES_MAX as u64))
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;

    use super::*;
    use crate::server::pool::{Pool, Whose};

    /// A body that comes in these pieces.
    struct Pieces(VecDeque<&'static str>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let piece = self.0.pop_front();
            Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))))
        }
    }

    #[tokio::test]
    async fn a_body_that_comes_in_pieces_is_whole() {
        for pieces in [&[][..], &["a"], &["a", "b"], &["", "a", "b"], &["ab", "", "c", "de"]] {
            let mut share = Pool::new(100, 1).share(Whose::Cluster);
            let body = Body::new(Pieces(pieces.iter().copied().collect()));
            assert_eq!(collect(body, &mut share).await.unwrap(), pieces.concat());
        }
    }
}

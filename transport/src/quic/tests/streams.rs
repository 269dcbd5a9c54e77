//! Streams between members.

use super::*;
use crate::quic::exchange::stream::PeerStream;

impl Node {
    async fn open(&self, to: u64) -> Result<PeerStream, PeerError> {
        let deadline = Instant::now() + PATIENCE;
        self.quic.dialler.open_stream(RaftId(to), StreamService::Http, deadline).await
    }

    /// Says all that is to be said, and reads the answer.
    async fn ask(&self, to: u64, request: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.open(to).await.map_err(io::Error::other)?;
        stream.write_all(request).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await?;
        Ok(answer)
    }
}

fn declined(error: &io::Error) -> Option<&PeerError> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

#[tokio::test]
async fn bytes_go_both_ways_whatever_their_number() {
    let (one, _two) = Cluster::new(30).connected_pair().await;
    for bytes in [0, 1, 5, (16 << 10) - 10, 16 << 10, 3 << 20] {
        let request: Vec<u8> = (0..bytes).map(|number: usize| (number % 251) as u8).collect();
        assert!(one.ask(2, &request).await.unwrap() == request, "{bytes} bytes");
    }
}

#[tokio::test]
async fn slices_are_written_in_their_order() {
    let (one, _two) = Cluster::new(31).connected_pair().await;
    let parts = [vec![], vec![1; 3], vec![], vec![2; 20 << 10], vec![3; 7]];
    let mut stream = one.open(2).await.unwrap();
    let mut left: Vec<io::IoSlice<'_>> = parts.iter().map(|part| io::IoSlice::new(part)).collect();
    let mut left = &mut left[..];
    while !left.is_empty() {
        let written = stream.write_vectored(left).await.unwrap();
        io::IoSlice::advance_slices(&mut left, written);
    }
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer == parts.concat());
}

#[tokio::test]
async fn an_answer_may_be_longer_than_any_window() {
    let (one, _two) = Cluster::new(32).connected_pair().await;
    let mut stream = one.open(2).await.unwrap();
    stream.write_all(b"much").await.unwrap();
    stream.shutdown().await.unwrap();
    let (mut bytes, mut piece) = (0, vec![0; 64 << 10]);
    loop {
        let read = soon(stream.read(&mut piece)).await.unwrap();
        if read == 0 {
            break;
        }
        bytes += read;
    }
    assert_eq!(bytes, MUCH_BYTES);
}

#[tokio::test]
async fn who_drops_a_stream_is_not_served_any_more() {
    let (one, two) = Cluster::new(33).connected_pair().await;
    for says_all in [true, false] {
        let mut stream = one.open(2).await.unwrap();
        stream.write_all(b"wait").await.unwrap();
        if says_all {
            stream.shutdown().await.unwrap();
        }
        two.service.until_under_way(1).await;
        drop(stream);
        two.service.until_under_way(0).await;
    }
    assert_eq!(one.ask(2, b"hello").await.unwrap(), b"hello", "on the same connection");
}

#[tokio::test]
async fn nothing_was_done_or_it_is_unknown() {
    let (one, two) = Cluster::new(34).connected_pair().await;
    assert!(matches!(one.open(9).await, Err(PeerError::Unreachable { to: RaftId(9), .. })));
    let unsaid = one.ask(2, b"nothing").await.unwrap_err();
    assert!(declined(&unsaid).is_none(), "{unsaid}");
    // A node of another version does not know the service.
    let deadline = Instant::now() + PATIENCE;
    for (service, bytes, words) in [(99, 0, "service 99 is not known"), (7, 3, "no payload")] {
        let (exchange, permit) =
            one.quic.dialler.open(RaftId(2), Lane::Http, deadline).await.unwrap();
        let head = RequestHead { service, time_left_ms: 9_000, bytes }.encode(bytes).unwrap();
        let mut stream = PeerStream::calling(RaftId(2), exchange, head, permit);
        stream.write_all(b"abc").await.unwrap();
        let error = soon(stream.read_u8()).await.unwrap_err();
        let Some(PeerError::Declined { to: RaftId(2), why }) = declined(&error) else {
            panic!("{error}")
        };
        assert!(why.contains(words), "{why}");
    }
    assert_eq!(*two.service.under_way.borrow(), 0);
}

#[tokio::test]
async fn streams_have_places_of_their_own() {
    let (one, two) = Cluster::new(35).connected_pair().await;
    let mut open = Vec::new();
    for _ in 0..PEER_HTTP_STREAMS_MAX {
        open.push(one.open(2).await.unwrap());
    }
    assert!(matches!(one.open(2).await, Err(PeerError::Unreachable { .. })));
    assert_eq!(one.call(2, b"hello").await.unwrap(), b"hello", "calls have others");
    open.pop();
    assert_eq!(one.ask(2, b"hello").await.unwrap(), b"hello");
    assert_eq!(*two.service.under_way.borrow(), 0);
}

/// The answers that nobody reads fill windows of their own: what the logs say to each other passes.
#[tokio::test]
async fn answers_that_nobody_reads_hold_up_no_calls() {
    let (one, two) = Cluster::new(36).connected_pair().await;
    let mut unread = Vec::new();
    // Their windows together are more than those of calls.
    for _ in 0..1_200 {
        let mut stream = one.open(2).await.unwrap();
        stream.write_all(b"much").await.unwrap();
        stream.shutdown().await.unwrap();
        unread.push(stream);
    }
    // Each has come as far as it can once its first byte is here.
    for stream in &mut unread {
        assert_eq!(soon(stream.read_u8()).await.unwrap(), 7);
    }
    let long = soon(one.call(2, b"long")).await.unwrap();
    assert_eq!(long.len(), PEER_MESSAGE_BYTES_MAX);
    drop(unread);
    two.service.until_under_way(0).await;
}

//! Bytes on a socket, for requests that no HTTP client would send.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::message::{self, Head};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What came back before the server closed, or before the head and body of one answer were whole.
#[derive(Debug)]
pub struct Answer {
    /// The status code; none when the server closed without an answer.
    pub status: Option<u16>,
    /// All bytes, lossily as text.
    pub text: String,
}

/// A connection.
pub async fn connect(addr: SocketAddr) -> TcpStream {
    TcpStream::connect(addr).await.expect("connect")
}

/// Sends `request` on a connection of its own and reads one answer.
pub async fn send(addr: SocketAddr, request: impl AsRef<[u8]>) -> Answer {
    let mut stream = connect(addr).await;
    // The server may refuse and close before it has read everything.
    let _ = stream.write_all(request.as_ref()).await;
    read_answer(&mut stream).await
}

/// Reads one answer, or to the end of the stream.
pub async fn read_answer(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let reading = async {
        while bytes.len() < ANSWER_BYTES_MAX && !is_whole(&bytes) {
            match stream.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    let in_time = tokio::time::timeout(ANSWER_TIMEOUT, reading).await.is_ok();
    assert!(in_time, "neither an answer nor the end of the connection within {ANSWER_TIMEOUT:?}");
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Answer { status: message::status(&bytes), text }
}

fn is_whole(bytes: &[u8]) -> bool {
    let whole = |head: Head| head.length.is_some_and(|length| bytes.len() >= head.body + length);
    Head::parse(bytes).is_some_and(whole)
}

//! Calls at little cost: bytes out that were made before, a status and a length in, nothing allocated.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::message::{self, Head};

const BUFFER_BYTES: usize = 16 * 1024;

/// A connection that makes one call after the other.
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Wire {
    /// Connects.
    pub(crate) async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(BUFFER_BYTES) })
    }

    /// Sends a whole request and gives the status and body of its answer.
    pub(crate) async fn call(&mut self, request: &[u8]) -> io::Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(body) = body_of(&self.buffer)? {
                let status = message::status(&self.buffer).ok_or_else(invalid)?;
                return Ok((status, &self.buffer[body..]));
            }
        }
    }
}

/// A request as bytes.
pub(crate) fn request(addr: SocketAddr, method: &str, path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    let kind = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let head = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\n{kind}");
    format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
}

/// Where the body of a message begins that is whole; none as long as it is not. A message without a
/// length has no body, as requests may have it; chunks are not understood.
pub(crate) fn body_of(message: &[u8]) -> io::Result<Option<usize>> {
    match Head::parse(message) {
        Some(Head { length: None, is_chunked: true, .. }) => Err(invalid()),
        Some(Head { body, length, .. }) if message.len() >= body + length.unwrap_or(0) => {
            Ok(Some(body))
        }
        _ => Ok(None),
    }
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer that the load tool does not understand")
}

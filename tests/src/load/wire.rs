//! Just enough of HTTP/1.1 to call at little cost: bytes out, a status and a length in.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

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
            if let Some(message) = Message::parse(&self.buffer)? {
                return Ok((message.status(&self.buffer)?, &self.buffer[message.body..]));
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

/// A message that is whole.
pub(crate) struct Message {
    /// Where its body begins.
    pub(crate) body: usize,
}

impl Message {
    /// None as long as it is not whole.
    pub(crate) fn parse(bytes: &[u8]) -> io::Result<Option<Self>> {
        let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return Ok(None);
        };
        let length = content_length(&bytes[..head])?;
        let body = head + 4;
        Ok((bytes.len() >= body + length).then_some(Self { body }))
    }

    fn status(&self, bytes: &[u8]) -> io::Result<u16> {
        let digits = bytes.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
        digits.and_then(|digits| digits.parse().ok()).ok_or_else(invalid)
    }
}

/// 0 where there is none, as for requests without a body; chunks are not understood.
fn content_length(head: &[u8]) -> io::Result<usize> {
    const NAME: &[u8] = b"content-length:";
    for line in head.split(|byte| *byte == b'\n') {
        if line.len() > NAME.len() && line[..NAME.len()].eq_ignore_ascii_case(NAME) {
            let value = std::str::from_utf8(&line[NAME.len()..]).map_err(|_| invalid())?;
            return value.trim().parse().map_err(|_| invalid());
        }
        if line.to_ascii_lowercase().starts_with(b"transfer-encoding:") {
            return Err(invalid());
        }
    }
    Ok(0)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "an answer that the load tool does not understand")
}

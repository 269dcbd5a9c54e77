//! Connections that are there to take a place.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DRIBBLE_EVERY: Duration = Duration::from_millis(100);

/// What is done with a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Hold {
    /// Nothing is ever sent.
    Silent,
    /// The headers come byte by byte.
    Headers,
    /// The body comes byte by byte.
    Body,
    /// The answer is never read.
    Unread,
    /// It is left at once.
    Left,
}

/// All kinds, by name.
pub(super) const KINDS: [(&str, Hold); 5] = [
    ("Silent", Hold::Silent),
    ("Headers", Hold::Headers),
    ("Body", Hold::Body),
    ("Unread", Hold::Unread),
    ("Left", Hold::Left),
];

/// Takes a connection until the server ends it; gives how.
pub(super) async fn hold(hold: Hold, addr: SocketAddr, tenant: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(addr).await else { return "not connected".to_owned() };
    let head = format!(
        "POST /api/tenants/{tenant}/runs HTTP/1.1\r\nhost: {addr}\r\n\
         content-type: application/json\r\ncontent-length: 900000\r\n\r\n{{"
    );
    match hold {
        Hold::Silent => {}
        Hold::Headers => return dribble(stream, "GET /healthz HTTP/1.1\r\nx: ").await,
        Hold::Body => return dribble(stream, &head).await,
        Hold::Unread => {
            let page = format!("GET /api/tenants/{tenant}/runs HTTP/1.1\r\nhost: {addr}\r\n\r\n");
            // What does not fit into the buffers of the system waits here, for ever.
            let _ = stream.write_all(page.repeat(1_000).as_bytes()).await;
            return "closed".to_owned();
        }
        Hold::Left => {
            let _ = stream.write_all(head.as_bytes()).await;
            return "left".to_owned();
        }
    }
    ended(&mut stream).await
}

async fn dribble(mut stream: TcpStream, begin: &str) -> String {
    let mut sent = stream.write_all(begin.as_bytes()).await;
    while sent.is_ok() {
        if let Ok(ended) = tokio::time::timeout(DRIBBLE_EVERY, ended(&mut stream)).await {
            return ended;
        }
        sent = stream.write_all(b"x").await;
    }
    "closed".to_owned()
}

/// The status that the server answers with, or that it closes.
async fn ended(stream: &mut TcpStream) -> String {
    let mut buffer = [0; 64];
    match stream.read(&mut buffer).await {
        Ok(read) if read > 12 => String::from_utf8_lossy(&buffer[9..12]).into_owned(),
        _ => "closed".to_owned(),
    }
}

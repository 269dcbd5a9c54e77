//! The service that `http` steps of the load call: it answers all requests alike.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::wire::body_of;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"ok\":true}";

/// Ends when dropped.
pub(crate) struct Service {
    url: String,
    served: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Service {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind the service");
        let url = format!("http://{}/", listener.local_addr().expect("its address"));
        let served = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(accept(listener, served.clone()));
        Self { url, served, task }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, served: Arc<AtomicU64>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        connections.spawn(serve(stream, served.clone()));
    }
}

async fn serve(mut stream: TcpStream, served: Arc<AtomicU64>) {
    // Latency is measured: small answers go out at once. A failure shows as a slower answer only.
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(4096);
    loop {
        match stream.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        match body_of(&buffer) {
            Ok(None) => continue,
            Ok(Some(_)) => {}
            Err(_) => return,
        }
        buffer.clear();
        served.fetch_add(1, Ordering::Relaxed);
        if stream.write_all(ANSWER).await.is_err() {
            return;
        }
    }
}

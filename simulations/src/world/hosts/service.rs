//! The service that `http` steps call: counts calls by `Idempotency-Key`, is slow now and then,
//! fails now and then, and drops connections now and then.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use turmoil::net::TcpListener;

use crate::env::trace;
use crate::plan::{SERVICE, SERVICE_PORT};

/// It takes at most so long to answer, ms.
const ANSWER_MS_MAX: u64 = 60;
/// How often it answers 503.
const FAILS: f64 = 0.1;
/// How often it does its work and drops the connection instead of answering.
const DROPS: f64 = 0.05;

/// The service.
pub struct Service {
    calls: RefCell<BTreeMap<String, u64>>,
    rng: RefCell<SmallRng>,
}

impl Service {
    /// The service of the run of `seed`.
    pub fn new(seed: u64) -> Rc<Self> {
        let rng = RefCell::new(SmallRng::seed_from_u64(seed ^ 0x5e7_71ce));
        Rc::new(Self { calls: RefCell::default(), rng })
    }

    /// How many calls with this key did their work.
    pub fn calls(&self, key: &str) -> u64 {
        self.calls.borrow().get(key).copied().unwrap_or_default()
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn serve(self: Rc<Self>) -> turmoil::Result {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, SERVICE_PORT)).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let service = Rc::clone(&self);
            tokio::task::spawn_local(async move {
                let answer = service_fn(|request| Rc::clone(&service).answer(request));
                let mut http = http1::Builder::new();
                // Its date would be the real one, and an answer is recorded as a step's output.
                let http = http.auto_date_header(false);
                // A connection that breaks is the caller's affair.
                let _ = http.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    }

    async fn answer(
        self: Rc<Self>,
        request: Request<Incoming>,
    ) -> io::Result<Response<Full<Bytes>>> {
        let key = request.headers().get("idempotency-key");
        let key = key.and_then(|key| key.to_str().ok()).unwrap_or_default().to_owned();
        let (takes_ms, fails, drops) = {
            let mut rng = self.rng.borrow_mut();
            (rng.random_range(0..=ANSWER_MS_MAX), rng.random_bool(FAILS), rng.random_bool(DROPS))
        };
        tokio::time::sleep(Duration::from_millis(takes_ms)).await;
        let what = if fails { "503" } else { "200" };
        trace::event(SERVICE, "call", format_args!("{key} -> {what} dropped: {drops}"), &[]);
        let mut response = Response::new(Full::default());
        if fails {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        } else {
            *self.calls.borrow_mut().entry(key).or_default() += 1;
        }
        if drops { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(response) }
    }
}

//! The outermost layer: everything that holds for every request.
//!
//! It takes or makes the request id, bounds the headers, checks the credential or, where none is
//! needed, whose page asks, catches panics, writes problems out, takes care of a body that nobody
//! read, and tells the log and the metrics what was answered. All but panics, problems and the log
//! is done once, by the node that the client asked.

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::Poll;

use axum::body::HttpBody;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use shiioo_actors::ports::seams::Seams;
use tokio::time::Instant;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, debug, error, info_span};

use crate::app::{App, Caller};
use crate::auth::Who;
use crate::date::http_date;
use crate::problem::{Code, Problem, Retry};
use crate::rest::{self, Rest};

/// Names a request in logs on every node.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id taken from a client, characters.
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Largest request line and headers together, bytes.
pub(crate) const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// What a header line has beside name and value: colon, space, line end.
const HEADER_LINE_EXTRA_BYTES: usize = 4;

/// Middleware around every route and around the answers for what no route answers.
pub(crate) async fn edge(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let _in_flight = app.metrics.begin();
    let request_id = request_id(request.headers(), &app.seams);
    let method = request.method().clone();
    let template = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = app.metrics.route(template);
    let id = request_id.to_str().unwrap_or_default();
    let span =
        info_span!("request", request_id = id, %method, route, status = Empty, latency_us = Empty);

    let (mut request, rest) = lend_body(request);
    let mut response = match let_in(&app, &request) {
        Ok(who) => {
            request.extensions_mut().insert(Caller { who, request_id: request_id.clone() });
            catching(next.run(request)).instrument(span.clone()).await
        }
        Err(problem) => {
            // The body, which nobody will read, goes back to where the rest of it is looked after.
            drop(request);
            problem.into_response()
        }
    };
    response = written_out(response, id);
    if let Some(rest) = rest {
        rest.settle(&mut response).await;
    }
    response.headers_mut().insert(X_REQUEST_ID, request_id.clone());
    if let Some(date) = http_date(app.seams.clock.now()) {
        response.headers_mut().insert(header::DATE, date);
    }

    let latency = began.elapsed();
    app.metrics.answered(route, &method, response.status(), latency);
    tell(&span, route, response.status(), latency.as_micros());
    response
}

/// A request whose body, if it has one, comes back when it is not read to its end.
fn lend_body(request: Request) -> (Request, Option<Rest>) {
    if request.body().is_end_stream() {
        return (request, None);
    }
    let (parts, body) = request.into_parts();
    let (body, rest) = rest::lend(&parts.headers, body);
    (Request::from_parts(parts, body), Some(rest))
}

/// Who asks, if that may be asked at all.
fn let_in(app: &App, request: &Request) -> Result<Who, Problem> {
    check_headers(request)?;
    if !app.guard.is_locked() {
        app.own_names.check(request, !request.body().is_end_stream())?;
    }
    app.guard.admit(request.uri().path(), request.headers())
}

/// Middleware around every request that another node hands over: it let the client in already.
pub(crate) async fn inner_edge(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request.extensions().get::<Caller>().map(|caller| caller.request_id.clone());
    let id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
    let template = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let (method, route) = (request.method().clone(), app.metrics.route(template));
    let span = info_span!(
        "handed_over",
        request_id = id,
        %method,
        route,
        status = Empty,
        latency_us = Empty
    );
    let who = request.extensions().get::<Caller>().map_or(Who::Anonymous, |caller| caller.who);
    let response = if app.guard.is_locked() && who == Who::Anonymous {
        // The node that was asked has not heard of the cluster's admin token yet.
        const TEXT: &str =
            "the cluster asks for a credential: send 'Authorization: Bearer <token>'";
        Problem::new(Code::Unauthorized, TEXT).into_response()
    } else {
        catching(next.run(request)).instrument(span.clone()).await
    };
    let response = written_out(response, id);
    // What is tried again is no answer yet: the node that was asked tells what becomes of it.
    if response.extensions().get::<Retry>().is_none() {
        tell(&span, route, response.status(), began.elapsed().as_micros());
    }
    response
}

/// The client's id if it is 1-128 visible ASCII characters, else a new one.
fn request_id(headers: &HeaderMap, seams: &Seams) -> HeaderValue {
    let given = headers.get(X_REQUEST_ID).filter(|id| {
        (1..=REQUEST_ID_CHARS_MAX).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    match given {
        Some(id) => id.clone(),
        None => HeaderValue::try_from(seams.uuid().to_string())
            .unwrap_or(const { HeaderValue::from_static("unknown") }),
    }
}

/// hyper's own bound is higher, so that this one can answer as the API does.
fn check_headers(request: &Request) -> Result<(), Problem> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let bytes = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_LINE_EXTRA_BYTES)
        .fold(target, usize::saturating_add);
    if bytes <= HEADERS_BYTES_MAX {
        return Ok(());
    }
    Err(Problem::new(
        Code::TooLarge,
        format!("request line and headers are larger than {HEADERS_BYTES_MAX} bytes"),
    )
    .status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    .facts(|facts| facts.limit = Some(HEADERS_BYTES_MAX as u64))
    .closing())
}

/// A handler that panics answers 500; what it said is for the log only.
async fn catching(handler: impl Future<Output = Response>) -> Response {
    let mut handler = pin!(handler);
    let caught = std::future::poll_fn(|cx| {
        // Nothing of the handler is looked at again after a panic.
        match std::panic::catch_unwind(AssertUnwindSafe(|| handler.as_mut().poll(cx))) {
            Ok(Poll::Ready(response)) => Poll::Ready(Ok(response)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(panic)),
        }
    });
    match caught.await {
        Ok(response) => response,
        Err(panic) => {
            error!(panic = %PanicText(&*panic), "a request handler panicked");
            Problem::internal().into_response()
        }
    }
}

struct PanicText<'a>(&'a (dyn Any + Send));

impl fmt::Display for PanicText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.downcast_ref::<&str>().copied();
        f.write_str(
            text.or_else(|| self.0.downcast_ref::<String>().map(String::as_str))
                .unwrap_or("(no text)"),
        )
    }
}

/// Writes out the problem that an answer carries, under the headers that were added to it.
fn written_out(mut response: Response, request_id: &str) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let mut written = problem.render(request_id);
    if let Some(retry) = response.extensions_mut().remove::<Retry>() {
        written.extensions_mut().insert(retry);
    }
    for (name, value) in response.headers() {
        if !written.headers().contains_key(name) {
            written.headers_mut().insert(name, value.clone());
        }
    }
    written
}

fn tell(span: &Span, route: &str, status: StatusCode, latency_us: u128) {
    span.record("status", status.as_u16());
    span.record("latency_us", display(latency_us));
    // That a node is not ready yet is an answer, not a fault.
    if status.is_server_error() && route != "/readyz" {
        tracing::warn!(parent: span, "answered");
    } else {
        debug!(parent: span, "answered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_internal_problem_without_its_text() {
        let response = catching(async { panic!("the secret is 42") }).await;
        let response = written_out(response, "r-1");
        assert_eq!(response.status(), 500);
        let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((&body["code"], &body["request_id"]), (&"internal".into(), &"r-1".into()));
        assert!(!body.to_string().contains("42"));
        assert!(body.get("applied").is_none(), "a panic leaves the outcome unknown");
    }
}

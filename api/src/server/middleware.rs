//! The outermost layer: everything that holds for every request.
//!
//! It takes or makes the request id, bounds the headers, checks the credential that the matched
//! route declares or, where the node asks for none, whose page sends the request, catches panics,
//! writes problems out, takes care of a body that nobody read, and tells the log and the metrics
//! what was answered. All but panics, problems and the log is done once, by the node that the
//! client asked ([`ingress`]); [`inbound`] is the layer around requests of other nodes.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::task::Poll;

use axum::body::HttpBody;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use shiioo_actors::handles::Owner;
use shiioo_actors::ports::error::CallError;
use shiioo_actors::ports::seams::Seams;
use tokio::time::{Duration, Instant, sleep};
use tracing::field::{Empty, display};
use tracing::{Instrument, Span, debug, error, info_span};

use crate::output::problem::{Code, Problem, Retry};
use crate::server::app::{App, Caller};
use crate::server::auth::Who;
use crate::server::connections::{Seat, parked};
use crate::server::date::http_date;
use crate::server::declaration::{Credential, Declaration, TenantIn, X_TENANT_ID};
use crate::server::metrics::UNMATCHED;
use crate::server::pacing::Pace;
use crate::server::pieces::in_pieces;
use crate::server::places::NoPlace;
use crate::server::pool::Whose;
use crate::server::rest::{self, Rest};

/// Names a request in logs on every node.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Begins the names of headers that nodes set for each other (`forward/headers`).
const INTERNAL_PREFIX: &str = "x-shiioo-";
/// Longest request id taken from a client, characters.
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Largest request line and headers together, bytes.
pub(crate) const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// What a header line has beside name and value: colon, space, line end.
const HEADER_LINE_EXTRA_BYTES: usize = 4;

/// Marks a request over HTTP/1.1 without a `Host` header, or with several: whoever stands in between may take it for a
/// request to another host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnclearHost;

/// Wraps every route, and the answers to requests that no route answers, on the node that the
/// client asked.
pub(crate) async fn ingress(State(app): State<App>, mut request: Request, next: Next) -> Response {
    // Before anything else looks at them.
    remove_internal(request.headers_mut());
    let began = Instant::now();
    let _in_flight = app.metrics.begin();
    let named = name_tenant(&app, &mut request);
    let request_id = request_id(request.headers(), &app.seams);
    let method = request.method().clone();
    let Matched { route, credential, is_probe } = Matched::of(&app, &request);
    let id = request_id.to_str().unwrap_or_default();
    let span =
        info_span!("request", request_id = id, %method, route, status = Empty, latency_us = Empty);

    let (request, rest) = lend_body(request);
    let body_bytes = request.body().size_hint().lower();
    // Who may not ask is told that first, whatever else is wrong.
    let let_in = let_in(&app, &request, credential).and_then(|who| named.map(|()| who));
    let (mut parts, body) = request.into_parts();
    let whose = whose(&app, &parts);
    let turn = match &let_in {
        Ok(_) => take_turn(&app, &parts, whose, body_bytes).await,
        Err(_) => Ok(()),
    };
    let is_last = turn == Err(TurnedAway::NoPlace);
    let mut response = match let_in.and_then(|who| turn.map(|()| who).map_err(Problem::from)) {
        Ok(who) => {
            parts.extensions.insert(Caller { who, request_id: request_id.clone() });
            let handled = next.run(Request::from_parts(parts, body));
            catching(handled).instrument(span.clone()).await
        }
        Err(problem) => {
            // Gives what is unread of it back to `rest`, which settles it below.
            drop(body);
            problem.into_response()
        }
    };
    let is_busy = response.extensions().get::<Problem>().is_some_and(Problem::is_busy);
    response = written_out(response, id);
    if let Some(rest) = rest {
        rest.settle(&mut response).await;
    }
    if let Some(whose) = whose {
        app.pacing.answered(whose, response.status(), body_bytes);
    }
    if is_last {
        let close = const { HeaderValue::from_static("close") };
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response.headers_mut().insert(X_REQUEST_ID, request_id.clone());
    if let Some(date) = http_date(app.seams.clock.now()) {
        response.headers_mut().insert(header::DATE, date);
    }

    let response = in_pieces(response);
    let latency = began.elapsed();
    app.metrics.answered(route, &method, response.status(), latency);
    tell(&span, is_probe || is_busy, response.status(), latency.as_micros());
    response
}

/// Removes headers that only nodes may set.
fn remove_internal(headers: &mut HeaderMap) {
    let internal = headers.keys().filter(|name| name.as_str().starts_with(INTERNAL_PREFIX));
    let internal: Vec<HeaderName> = internal.cloned().collect();
    for name in internal {
        headers.remove(name);
    }
}

/// Names the default tenant in a request at a short path that names none.
fn name_tenant(app: &App, request: &mut Request) -> Result<(), Problem> {
    let Some(default) = &app.default_tenant else { return Ok(()) };
    let declared = app.routes.matched(request.extensions(), request.method());
    let is_short = declared.is_some_and(|declared| declared.tenant_in == TenantIn::Header);
    if !is_short || request.headers().contains_key(X_TENANT_ID) {
        return Ok(());
    }
    let known = default.get().ok_or(CallError::Starting { what: "the default tenant" })?;
    let id = HeaderValue::try_from(known.to_string()).map_err(|_| Problem::internal())?;
    request.headers_mut().insert(X_TENANT_ID, id);
    Ok(())
}

/// What the layer has to know of the route that matched.
struct Matched {
    /// The label in logs and metrics.
    route: &'static str,
    credential: Credential,
    is_probe: bool,
}

impl Matched {
    fn of(app: &App, request: &Request) -> Self {
        let (extensions, method) = (request.extensions(), request.method());
        let declared = app.routes.matched(extensions, method);
        Self {
            route: app.routes.template(extensions).unwrap_or(UNMATCHED),
            credential: app.routes.credential(extensions, method),
            is_probe: declared.is_some_and(|declared: &Declaration| declared.is_probe),
        }
    }
}

/// Lends out a body, if the request has one: it comes back when it is not read to its end.
fn lend_body(request: Request) -> (Request, Option<Rest>) {
    if request.body().is_end_stream() {
        return (request, None);
    }
    let (parts, body) = request.into_parts();
    let (body, rest) = rest::lend(&parts.headers, body);
    (Request::from_parts(parts, body), Some(rest))
}

/// Finds out who asks, or refuses the request.
fn let_in(app: &App, request: &Request, needed: Credential) -> Result<Who, Problem> {
    check_headers(request)?;
    if needed != Credential::Open && !app.guard.is_locked() {
        app.own_names.check(request, !request.body().is_end_stream())?;
    }
    app.guard.admit(needed, request.headers())
}

/// Finds whose share of the node a request takes. A probe takes none, and neither does what names nothing:
/// it is refused at once.
fn whose(app: &App, parts: &Parts) -> Option<Whose> {
    let declared = app.routes.matched(&parts.extensions, &parts.method);
    let owner = declared.filter(|declared| !declared.is_probe)?.owner_of(parts).ok()?;
    Some(app.whose(owner.unwrap_or(Owner::Cluster)))
}

/// Why a request is told that the node is busy before anything else is done for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TurnedAway {
    /// There is no place for its connection, which ends.
    NoPlace,
    /// Its tenant is refused too often.
    TooFast,
}

impl From<TurnedAway> for Problem {
    fn from(_: TurnedAway) -> Self {
        CallError::NodeBusy.into()
    }
}

/// Takes a place for the connection that a request came by, and waits as long as its tenant's pace asks.
async fn take_turn(
    app: &App,
    parts: &Parts,
    whose: Option<Whose>,
    body_bytes: u64,
) -> Result<(), TurnedAway> {
    let Some(whose) = whose else { return Ok(()) };
    let seat = Seat::of(&parts.extensions).cloned();
    if let Some(seat) = &seat {
        seat.claim(whose).map_err(|NoPlace| TurnedAway::NoPlace)?;
    }
    let (pause, goes_on) = match app.pacing.pace(whose, body_bytes) {
        Pace::Wait(Duration::ZERO) => match &seat {
            Some(seat) => (seat.crowd_pause().await, true),
            None => return Ok(()),
        },
        Pace::Wait(pause) => (pause, true),
        Pace::Refuse(pause) => (pause, false),
    };
    if pause.is_zero() {
        return Ok(());
    }
    let waited = parked(seat, sleep(pause)).await;
    if goes_on && waited.is_some() { Ok(()) } else { Err(TurnedAway::TooFast) }
}

/// Wraps every request that another node hands over. That node has let the client in already.
pub(crate) async fn inbound(State(app): State<App>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request.extensions().get::<Caller>().map(|caller| caller.request_id.clone());
    let id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
    let method = request.method().clone();
    let Matched { route, is_probe, .. } = Matched::of(&app, &request);
    let span = info_span!(
        "inbound_request",
        request_id = id,
        %method,
        route,
        status = Empty,
        latency_us = Empty
    );
    let who = request.extensions().get::<Caller>().map_or(Who::Anonymous, |caller| caller.who);
    let response = if app.guard.is_locked() && who == Who::Anonymous {
        // A race: the cluster has got its admin token, and the ingress node has not heard of it
        // yet. It let the client in without one; this node knows better.
        const TEXT: &str =
            "the cluster asks for a credential: send 'Authorization: Bearer <token>'";
        Problem::new(Code::Unauthorized, TEXT).into_response()
    } else {
        catching(next.run(request)).instrument(span.clone()).await
    };
    let response = written_out(response, id);
    // An answer that is worth another attempt is not the client's yet: the ingress node logs what
    // becomes of it.
    if response.extensions().get::<Retry>().is_none() {
        tell(&span, is_probe, response.status(), began.elapsed().as_micros());
    }
    response
}

/// Takes the client's id if it is 1-128 visible ASCII characters, else makes a new one.
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

/// Bounds the request line and the headers. hyper's own bound is higher, so that this one can
/// answer as the API does.
fn check_headers(request: &Request) -> Result<(), Problem> {
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let bytes = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + HEADER_LINE_EXTRA_BYTES)
        .fold(target, usize::saturating_add);
    if bytes > HEADERS_BYTES_MAX {
        let text = format!("request line and headers are larger than {HEADERS_BYTES_MAX} bytes");
        return Err(Problem::new(Code::TooLarge, text)
            .status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            .facts(|facts| facts.limit = Some(HEADERS_BYTES_MAX as u64))
            .closing());
    }
    if request.extensions().get::<UnclearHost>().is_some() {
        let text = "the request has no `Host` header, or several: HTTP/1.1 wants one, with the name or \
                    address that the node is asked by";
        return Err(Problem::new(Code::InvalidParameter, text).closing());
    }
    Ok(())
}

/// Answers 500 for a handler that panics. The text of the panic is for the log only.
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
            error!(panic = %panic_text(&*panic), "a request handler panicked");
            Problem::internal().into_response()
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}

/// Writes out the problem that an answer carries, and keeps the headers that layers have added.
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

fn tell(span: &Span, is_expected: bool, status: StatusCode, latency_us: u128) {
    span.record("status", status.as_u16());
    span.record("latency_us", display(latency_us));
    // A probe's 503 is an answer, not a fault: the node is not ready yet. That the node is busy is counted,
    // and not told for each of the thousands that a client may ask for.
    if status.is_server_error() && !is_expected {
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

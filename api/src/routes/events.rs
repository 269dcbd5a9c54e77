//! A tenant's event log, under `/api/tenants/{tenant_id}/events`: in pages, or as server-sent events.
//!
//! A reader is served by the node that leads the tenant's group, wherever it has connected. When the lead
//! moves, its stream ends, and it goes on with `Last-Event-ID`: numbers of events are the same on every
//! replica, so that it misses none and gets none twice.

use std::fmt::Write as _;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, header};
use serde::{Deserialize, Serialize};
use shiioo_actors::domain::json::Json;
use shiioo_actors::domain::page::PageBudget;
use shiioo_actors::handles::{EventFollower, Owner};
use shiioo_actors::ports::error::CallError;
use tokio::sync::mpsc;
use tokio::time::timeout;
use utoipa::{IntoParams, ToSchema};

use crate::input::extract::{Paging, Query};
use crate::output::event_stream::{COMMENT, COMMENT_EVERY, event_stream};
use crate::output::problem::Problem;
use crate::output::reply::{Answer, Raw, Reply};
use crate::request::ctx::Ctx;
use crate::request::tenant::Tenant;
use crate::routes::builder::Route;
use crate::server::app::App;
use crate::server::declaration::{Credential, RouteOwner};
use crate::server::pool::Share;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// What a reader gets at first: it is connected, and how soon it should come back when it is not any more.
const BEGINNING: &[u8] = b"retry: 1000\n\n";
/// How long a reader may take for a piece of the stream. Then it is disconnected.
const READER_PATIENCE: Duration = Duration::from_secs(30);

/// Lists the route.
pub(crate) fn routes() -> Vec<Route> {
    let events = Route::get("/api/tenants/{tenant_id}/events", list, __path_list);
    vec![events.served(RouteOwner::TenantGroup, Credential::Tenant).metered().page()]
}

/// Where to begin.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AfterQuery {
    /// The number of the last event that is known: those behind it are given. All of them if not given.
    #[serde(default)]
    after: u64,
    /// Most events of a page, 1 to 10000; 1000 if not given. A stream has no end.
    #[param(minimum = 1, maximum = 10_000)]
    #[serde(rename = "limit")]
    _limit: Option<u64>,
}

/// Events of a tenant.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TenantEvents)]
pub(crate) struct TenantEventsBody {
    #[schema(value_type = Vec<Object>)]
    events: Vec<Raw>,
    /// `after` of the next page: the number of the last event of this one.
    next_after: u64,
}

/// Tells whether a client asks for a stream, and where it wants to go on after one that broke off.
pub(crate) struct Wanted {
    is_stream: bool,
    last_event: Option<u64>,
}

impl<S: Sync> FromRequestParts<S> for Wanted {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let is_stream = accepts_events(&parts.headers);
        let last_event = parts.headers.get(LAST_EVENT_ID).filter(|_| is_stream);
        // An empty one is what a browser has that has seen no event.
        let last_event = last_event.filter(|id| !id.is_empty()).map(|id| {
            let number = id.to_str().ok().and_then(|id| id.parse().ok());
            number.ok_or_else(|| {
                Problem::parameter("Last-Event-ID", "must be the id of an event, a whole number")
            })
        });
        Ok(Self { is_stream, last_event: last_event.transpose()? })
    }
}

fn accepts_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut kinds = accepted.flat_map(|value| value.split(',')).map(|kind| kind.split(';').next());
    kinds.any(|kind| kind.unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream"))
}

/// The tenant's events, oldest first. With `Accept: text/event-stream` the log is followed: each event is
/// sent once a quorum has it, its number as `id`, its type as `event`. A client that comes back with
/// `Last-Event-ID` goes on behind that event, on any node.
#[utoipa::path(get, path = "/api/tenants/{tenant_id}/events", operation_id = "list_events",
    tag = "Events", params(AfterQuery),
    responses((status = 200, description = "Events", content(
        (TenantEventsBody = "application/json"), (String = "text/event-stream")))))]
pub(crate) async fn list(
    State(app): State<App>,
    ctx: Ctx,
    tenant: Tenant,
    Query(query): Query<AfterQuery>,
    Paging(page): Paging,
    wanted: Wanted,
) -> Reply {
    if !wanted.is_stream {
        let room = PageBudget::new(page.limit);
        let page = tenant.handle.events(&ctx.call(), query.after, room).await?;
        let events = page.events.into_iter().map(Raw).collect();
        return Answer::ok(&TenantEventsBody { events, next_after: page.last })?.done();
    }
    let whose = app.whose(Owner::Tenant(tenant.id));
    let place = app.long_poll(whose).await.ok_or(CallError::NodeBusy)?;
    let after = wanted.last_event.unwrap_or(query.after);
    let follower = ctx.handles()?.tenants.follow(ctx.call(), tenant.id, after);
    let (events, response) = event_stream();
    tokio::spawn(follow(app, follower, events, place));
    Ok(response)
}

/// Hands events on until the reader has gone, does not read, or is to be served elsewhere.
async fn follow(app: App, mut follower: EventFollower, events: mpsc::Sender<Bytes>, _place: Share) {
    let handing_on = async {
        let mut next = Bytes::from_static(BEGINNING);
        while let Ok(Ok(())) = timeout(READER_PATIENCE, events.send(next)).await {
            next = match timeout(COMMENT_EVERY, follower.next()).await {
                Ok(Ok(page)) => written(page.events.iter().map(Json::as_str)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a reader of events is to come back");
                    return;
                }
                Err(_) if follower.has_moved() => return,
                Err(_) => Bytes::from_static(COMMENT),
            };
        }
    };
    tokio::select! {
        () = handing_on => {}
        () = events.closed() => {}
        () = app.stopped() => {}
    }
}

/// Writes events as server-sent events.
fn written<'a>(events: impl Iterator<Item = &'a str>) -> Bytes {
    let mut text = String::new();
    for event in events {
        let (seq, kind) = (field(event, r#""seq":"#), field(event, r#""event_type":{"type":"#));
        // Writing to a String cannot fail. An event has no line break: it was a line.
        let _ = write!(text, "id: {seq}\nevent: {kind}\ndata: {event}\n\n");
    }
    text.into()
}

/// Finds a number, or a name in quotation marks, behind `before`. Both fields stand before anything that a
/// client has written.
fn field<'a>(event: &'a str, before: &str) -> &'a str {
    let behind = event.split_once(before).map_or("", |(_, rest)| rest).trim_start_matches('"');
    behind.split([',', '"', '}']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_sent_with_its_number_and_type() {
        let event = r#"{"id":"7","seq":7,"run_id":null,"timestamp":"t","event_type":{"type":"run_failed","error":"\"seq\":9"}}"#;
        let sent = written([event].into_iter());
        let expected = format!("id: 7\nevent: run_failed\ndata: {event}\n\n");
        assert_eq!(sent, expected.as_bytes());
    }

    #[test]
    fn a_stream_is_given_to_who_asks_for_one() {
        let asks = |accept: &[&str]| {
            let values = accept.iter().map(|value| (header::ACCEPT, value.parse().unwrap()));
            accepts_events(&values.collect())
        };
        assert!(!asks(&[]) && !asks(&["*/*"]) && !asks(&["application/json, text/events"]));
        assert!(
            asks(&["text/event-stream"])
                && asks(&["text/html", "a/b;q=1, Text/Event-Stream; q=0.9"])
        );
    }
}

//! A tenant's event log, under `/api/tenants/{tenant_id}/events`: in pages, or as server-sent events.
//!
//! A reader is served by the node that leads the tenant's group, wherever it has connected. When the lead
//! moves, its stream ends, and it goes on with `Last-Event-ID`: numbers of events are the same on every
//! replica, so that it misses none and gets none twice. (A repair or a recovery by force may give numbers
//! again: `handles/tenant_events.rs`.)

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
use shiioo_actors::state::tenant::EventPage;
use tokio::time::{sleep, timeout};
use utoipa::{IntoParams, ToSchema};

use crate::input::extract::{Paging, Query};
use crate::output::event_stream::{COMMENT, COMMENT_EVERY, Piece, Pieces, event_stream, hand_on};
use crate::output::problem::Problem;
use crate::output::reply::{Answer, Raw, Reply};
use crate::request::ctx::Ctx;
use crate::request::tenant::Tenant;
use crate::routes::builder::Route;
use crate::server::app::App;
use crate::server::declaration::{Credential, RouteOwner};
use crate::server::pool::{Pool, Share, Whose};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// What a reader gets at first: it is connected, and how soon it should come back when it is not any more.
const BEGINNING: &[u8] = b"retry: 1000\n\n";
/// Longest wait for room in memory for a piece of the stream.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(5);
/// Looks that may fail in a row, for reasons that pass.
const FAILURES_MAX: usize = 5;
/// Pause after one.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Lists the route.
pub(crate) fn routes() -> Vec<Route> {
    let events = Route::get("/api/tenants/{tenant_id}/events", list, __path_list);
    vec![events.served(RouteOwner::TenantGroup, Credential::Tenant).metered().page()]
}

/// Says where to begin.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct AfterQuery {
    /// The number of the last event that is known: those behind it are given. All of them if not given.
    #[serde(default)]
    after: u64,
    /// Most events of a page, 1 to 10000; 1000 if not given. A stream has no end.
    // `Paging` reads it; it stands here for the document.
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
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let mut parts = kind.split(';').map(str::trim);
        let is_it = parts.next().is_some_and(|it| it.eq_ignore_ascii_case("text/event-stream"));
        // With a weight of 0 it is refused (RFC 9110, 12.4.2).
        let weight = parts.find_map(|it| it.to_ascii_lowercase().strip_prefix("q=")?.parse().ok());
        is_it && weight != Some(0.0_f32)
    })
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
        let page = tenant.handle.events(&ctx.call(), query.after.into(), room).await?;
        let events = page.events.into_iter().map(Raw).collect();
        return Answer::ok(&TenantEventsBody { events, next_after: page.end.after })?.done();
    }
    let whose = app.whose(Owner::Tenant(tenant.id));
    let place = app.streams.place(whose).ok_or(CallError::NodeBusy)?;
    let after = wanted.last_event.unwrap_or(query.after);
    let follower = ctx.handles()?.tenants.follow(ctx.call(), tenant.id, after);
    let (events, response) = event_stream();
    let pieces = Followed { follower, answers: app.answers.clone(), whose, _place: place };
    tokio::spawn(async move { hand_on(events, BEGINNING, pieces, app.stopped()).await });
    Ok(response)
}

/// The events of a tenant, written.
struct Followed {
    follower: EventFollower,
    /// Where pieces take their room.
    answers: Pool,
    whose: Whose,
    _place: Share,
}

impl Pieces<Share> for Followed {
    async fn next(&mut self) -> Option<Piece<Share>> {
        let mut failures = 0;
        loop {
            let error = match timeout(COMMENT_EVERY, self.follower.next()).await {
                Ok(Ok(page)) => return self.with_room(&page).await,
                Ok(Err(error)) => error,
                Err(_) => match self.follower.check_lead() {
                    Ok(()) => return Some((Bytes::from_static(COMMENT), None)),
                    Err(error) => error,
                },
            };
            failures += 1;
            if !may_pass(&error) || failures == FAILURES_MAX {
                tracing::debug!(%error, "a reader of events is to come back");
                return None;
            }
            sleep(AGAIN_AFTER).await;
        }
    }
}

impl Followed {
    /// Takes room for events, once there is some.
    async fn with_room(&self, page: &EventPage) -> Option<Piece<Share>> {
        let piece = written(page.events.iter().map(Json::as_str));
        let mut room = self.answers.share(self.whose);
        let has_room = room.take_within(piece.len(), ROOM_WAIT_MAX).await;
        // Without: the reader comes back, when there may be more room.
        has_room.then_some((piece, Some(room)))
    }
}

/// Tells whether another look may end better on this node.
const fn may_pass(error: &CallError) -> bool {
    use CallError::{Busy, DeadlineExceeded, NodeBusy, Starting};
    matches!(error, Busy | NodeBusy | DeadlineExceeded | Starting { .. })
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
        assert!(!asks(&["text/event-stream;q=0, application/json"]));
        assert!(
            asks(&["text/event-stream"])
                && asks(&["text/html", "a/b;q=1, Text/Event-Stream; q=0.9"])
        );
    }
}

//! Bounds the bytes of large answers that a node holds, fairly between tenants: on the node that makes
//! them.
//!
//! An answer is in memory until its client has read it, and a client need not read. A page has up to
//! [`PAGE_BYTES_MAX`], and there may be as many as connections.
//!
//! - A tenant's page has its room before it is made: the rows, what is shown of them, and the JSON are
//!   there side by side. So a tenant has few pages made at once, which bounds the processor's time as
//!   well.
//! - Another large answer, those about the cluster included, takes its room once its size is known, and is let go if there is none.
//! - The room is given back with the body: when the last of it has been handed on.

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use shiioo_actors::domain::page::PAGE_BYTES_MAX;
use shiioo_actors::handles::Owner;
use shiioo_actors::ports::error::CallError;
use tokio::time::Duration;

use crate::output::problem::Problem;
use crate::server::app::RouteLayer;
use crate::server::pool::Share;

/// What a page reserves while it is made, bytes. Rows, views and JSON are some three times as much for a
/// moment; to reserve all of that would refuse a second reader while the first waits for a leader.
const PAGE_WORK_BYTES: usize = PAGE_BYTES_MAX;
/// Answers up to this size are not counted, bytes: they fit into what a connection has anyway.
const SMALL_BYTES_MAX: usize = 64 * 1024;
/// Longest wait for room. Short, because a connection whose request waits keeps its place, and clients that
/// do not read could hold all places by asking for pages.
const ROOM_WAIT_MAX: Duration = Duration::from_millis(100);

/// Makes an answer if there is room for it: the middleware around every read of an owner's.
pub(crate) async fn bounded(
    State(RouteLayer { app, declared }): State<RouteLayer>,
    request: Request,
    next: Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let owner = match declared.owner_of(&parts) {
        Ok(Some(owner)) => owner,
        Ok(None) => return next.run(Request::from_parts(parts, body)).await,
        Err(problem) => return problem.into_response(),
    };
    let share = app.answers.share(app.whose(owner));
    let answer = next.run(Request::from_parts(parts, body));
    // Who looks after the cluster asks most while it has no leader, and many such reads wait for one: they
    // are not refused for lack of room that they may never take.
    let is_page = declared.is_page && matches!(owner, Owner::Tenant(_));
    with_room(share, is_page, answer).await
}

/// Makes an answer if `share` has room for it.
async fn with_room(
    mut share: Share,
    is_page: bool,
    answer: impl Future<Output = Response>,
) -> Response {
    if is_page && !share.take_within(PAGE_WORK_BYTES, ROOM_WAIT_MAX).await {
        return no_room();
    }
    let response = answer.await;
    let bytes = response.body().size_hint().lower();
    let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes <= SMALL_BYTES_MAX {
        return response;
    }
    share.shrink_to(bytes);
    // Not short of room: a page has reserved more than it can be.
    if !is_page && !share.take_within(bytes, ROOM_WAIT_MAX).await {
        return no_room();
    }
    // What maps its errors is dropped with the body, and the share with it.
    response.map(|body| {
        Body::new(body.map_err(move |error| {
            let _held = &share;
            error
        }))
    })
}

/// A read that is let go has changed nothing.
fn no_room() -> Response {
    Problem::from(CallError::NodeBusy).into_response()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::body::to_bytes;

    use super::*;
    use crate::server::pool::{ANSWERS_BYTES_MAX, Pool, Whose};

    const TENANT: &str = "550e8400-e29b-41d4-a716-446655440000";

    /// Answers so large, none of them read, until there is no room for another.
    async fn unread(pool: &Pool, whose: Whose, is_page: bool, bytes: usize) -> Vec<Response> {
        let mut unread = Vec::new();
        loop {
            let large = async { Response::new(Body::from(vec![b'x'; bytes])) };
            let answer = with_room(pool.share(whose), is_page, large).await;
            if !answer.status().is_success() {
                assert!(answer.extensions().get::<Problem>().is_some());
                return unread;
            }
            unread.push(answer);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_no_answer_gets_few_and_leaves_room_for_others() {
        let tenant = Whose::Tenant(TENANT.parse().unwrap());
        for is_page in [true, false] {
            let pool = Pool::new(ANSWERS_BYTES_MAX, 1);
            let mut held = unread(&pool, tenant, is_page, PAGE_BYTES_MAX).await;
            assert!(held.len() * PAGE_BYTES_MAX <= ANSWERS_BYTES_MAX / 2, "{}", held.len());
            assert!(!unread(&pool, Whose::Cluster, is_page, 1 << 20).await.is_empty());
            // What is read makes room.
            let read = to_bytes(held.pop().unwrap().into_body(), usize::MAX).await.unwrap();
            assert_eq!(read.len(), PAGE_BYTES_MAX);
            assert_eq!(unread(&pool, tenant, is_page, PAGE_BYTES_MAX).await.len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenant_has_few_pages_made_at_a_time() {
        /// Half of the room: as much is left for the next tenant.
        const AT_ONCE: usize = ANSWERS_BYTES_MAX / PAGE_WORK_BYTES / 2;
        static MAKING: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let pool = Pool::new(ANSWERS_BYTES_MAX, 1);
        let tenant = Whose::Tenant(TENANT.parse().unwrap());
        let pages = (0..2 * AT_ONCE).map(|_| {
            let share = pool.share(tenant);
            tokio::spawn(with_room(share, true, async {
                let making = MAKING.fetch_add(1, Ordering::Relaxed) + 1;
                MOST.fetch_max(making, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
                MAKING.fetch_sub(1, Ordering::Relaxed);
                Response::new(Body::from("page"))
            }))
        });
        for page in pages.collect::<Vec<_>>() {
            assert!(page.await.unwrap().status().is_success(), "it waits for its turn");
        }
        assert_eq!(MOST.load(Ordering::Relaxed), AT_ONCE);
    }
}

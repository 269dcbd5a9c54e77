//! `/api/locks` and `/api/tenants/{tenant_id}/locks`: the same operations on different key spaces.

use http::request::Parts;
use serde::{Deserialize, Serialize};
use shiioo_actors::domain::json::Json;
use shiioo_actors::domain::lock::{FencingToken, Holder, LOCK_KEY_BYTES_MAX, LockKey, LockView};
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::{Acquired, LockDetail};
use shiioo_actors::handles::AcquireLock;
use tokio::time::Duration;
use utoipa::{IntoParams, ToSchema};

use crate::input::extract::{InPath, PageQuery, Paging, Query};
use crate::input::fields::{Attached, Parsed, Ttl, Wait, Whole};
use crate::input::payload::Payload;
use crate::output::page::List;
use crate::output::problem::Problem;
use crate::output::reply::{Answer, Raw, Reply, Shown};
use crate::request::ctx::Ctx;
use crate::request::tenant::KeySpace;
use crate::routes::builder::{Draft, Route};
use crate::server::declaration::{Credential, RouteOwner};

/// A lock's term where the client names none.
const TTL_DEFAULT: Duration = Duration::from_secs(60);

/// Lists the routes on the locks of the cluster, and the same on those of a tenant.
pub(crate) fn routes() -> Vec<Route> {
    let of_tenant = |draft: Draft| {
        let draft = draft.variant("of_tenant");
        draft.served(RouteOwner::TenantGroup, Credential::Tenant).metered()
    };
    vec![
        Route::get("/api/locks", list, __path_list)
            .served(RouteOwner::SystemGroup, Credential::Admin)
            .page(),
        Route::get("/api/locks/{key}", get, __path_get)
            .served(RouteOwner::SystemGroup, Credential::Admin),
        Route::post("/api/locks/{key}/acquire", acquire, __path_acquire)
            .served(RouteOwner::SystemGroup, Credential::Admin)
            .long_poll(wait_of),
        Route::post("/api/locks/{key}/renew", renew, __path_renew)
            .served(RouteOwner::SystemGroup, Credential::Admin),
        Route::post("/api/locks/{key}/release", release, __path_release)
            .served(RouteOwner::SystemGroup, Credential::Admin),
        of_tenant(Route::get("/api/tenants/{tenant_id}/locks", list, __path_list)).page(),
        of_tenant(Route::get("/api/tenants/{tenant_id}/locks/{key}", get, __path_get)),
        of_tenant(Route::post(
            "/api/tenants/{tenant_id}/locks/{key}/acquire",
            acquire,
            __path_acquire,
        ))
        .long_poll(wait_of),
        of_tenant(Route::post("/api/tenants/{tenant_id}/locks/{key}/renew", renew, __path_renew)),
        of_tenant(Route::post(
            "/api/tenants/{tenant_id}/locks/{key}/release",
            release,
            __path_release,
        )),
    ]
}

/// An attempt to take a lock.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = AcquireLock)]
pub(crate) struct AcquireBody {
    /// Who wants it, 1-256 bytes.
    #[schema(value_type = String, min_length = 1)]
    holder: Parsed<Holder>,
    /// Length of a term, 0.1 to 86400 s; 60 if not given.
    #[schema(value_type = Option<f64>)]
    ttl_secs: Option<Ttl>,
    /// How long to queue for it, 0 to 300 s; 0 if not given.
    #[schema(value_type = Option<f64>)]
    wait_secs: Option<Wait>,
    /// Any JSON, shown with the lock.
    #[schema(value_type = Option<Object>)]
    metadata: Option<Attached>,
}

/// Reads how long an attempt queues for the lock.
fn wait_of(_: &Parts, body: &[u8]) -> Duration {
    #[derive(Deserialize)]
    struct Waiting {
        wait_secs: Option<Wait>,
    }

    // A body that cannot be read is refused by the handler.
    let waiting = serde_json::from_slice::<Waiting>(body).ok();
    waiting.and_then(|waiting| waiting.wait_secs).unwrap_or_default().0
}

/// Begins the holder's term again.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RenewLock)]
pub(crate) struct RenewBody {
    /// Who must hold it.
    #[schema(value_type = String, min_length = 1)]
    holder: Parsed<Holder>,
    /// The token it must be held with.
    #[schema(value_type = Option<u64>)]
    token: Option<Whole>,
    /// Length of the new term; the present one if not given.
    #[schema(value_type = Option<f64>)]
    ttl_secs: Option<Ttl>,
}

/// Gives a lock back.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ReleaseLock)]
pub(crate) struct ReleaseBody {
    /// Who must hold it.
    #[schema(value_type = String, min_length = 1)]
    holder: Parsed<Holder>,
    /// The token it must be held with.
    #[schema(value_type = Option<u64>)]
    token: Option<Whole>,
}

/// A held lock.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Lock)]
pub(crate) struct LockBody {
    /// In the answer to an attempt to take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    acquired: Option<bool>,
    key: String,
    holder: String,
    /// The fencing token: grows with every grant in the key space.
    token: u64,
    #[schema(value_type = String, format = DateTime)]
    acquired_at: Shown<Timestamp>,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Shown<Timestamp>,
    #[schema(value_type = Object)]
    metadata: Raw,
    /// How many wait for it, where the lock itself is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiters: Option<u64>,
}

impl From<LockView> for LockBody {
    fn from(view: LockView) -> Self {
        Self {
            acquired: None,
            key: view.key.into(),
            holder: view.holder.into(),
            token: view.token.0,
            acquired_at: Shown(view.acquired_at),
            expires_at: Shown(view.expires_at),
            metadata: Raw(view.metadata),
            waiters: None,
        }
    }
}

impl From<LockDetail> for LockBody {
    fn from(detail: LockDetail) -> Self {
        Self { waiters: Some(detail.waiters), ..detail.lock.into() }
    }
}

/// Another holds the lock.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LockHeldByOther)]
pub(crate) struct HeldByOtherBody {
    acquired: bool,
    key: String,
    holder: String,
    #[schema(value_type = String, format = DateTime)]
    expires_at: Shown<Timestamp>,
}

/// Answer to an attempt to take a lock.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Acquired)]
pub(crate) enum AcquiredBody {
    /// It is the caller's: `acquired` is true.
    Yes(LockBody),
    /// Another holds it: `acquired` is false.
    HeldByOther(HeldByOtherBody),
}

impl AcquiredBody {
    fn new(acquired: Acquired, key: LockKey) -> Self {
        match acquired {
            Acquired::Yes(lock) => Self::Yes(LockBody { acquired: Some(true), ..lock.into() }),
            Acquired::HeldByOther { holder, expires_at } => Self::HeldByOther(HeldByOtherBody {
                acquired: false,
                key: key.into(),
                holder: holder.into(),
                expires_at: Shown(expires_at),
            }),
        }
    }
}

/// Whether a release ended a hold.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Released)]
pub(crate) struct ReleasedBody {
    /// `false`: it was not held by that holder with that token.
    released: bool,
}

/// Locks.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LockList)]
pub(crate) struct LocksBody {
    locks: Vec<LockBody>,
    next_cursor: Option<String>,
}

/// Which locks are listed.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LocksQuery {
    /// Only those whose keys begin so.
    prefix: Option<String>,
}

/// Takes a lock, or queues for it first-come first-served.
#[utoipa::path(post, path = "/api/locks/{key}/acquire", operation_id = "acquire_lock", tag = "Locks",
    request_body = AcquireBody,
    responses((status = 200, description = "Whether it is the caller's", body = AcquiredBody)))]
pub(crate) async fn acquire(
    ctx: Ctx,
    space: KeySpace,
    InPath(key): InPath<LockKey>,
    body: Payload<AcquireBody>,
) -> Reply {
    let body = body.value;
    // The manager orders waiters by how long they have waited; the queue itself is left sooner.
    let wait = ctx.left_of(body.wait_secs.unwrap_or_default().0);
    let attempt = AcquireLock {
        key: key.clone(),
        holder: body.holder.0,
        ttl: body.ttl_secs.map_or(TTL_DEFAULT, |ttl| ttl.0),
        wait,
        metadata: body.metadata.map_or_else(Json::null, |metadata| metadata.0),
    };
    let call = ctx.waiting_call(wait);
    let acquired = ctx.handles()?.locks.acquire(&call, space.as_lock_space(), attempt).await?;
    Answer::ok(&AcquiredBody::new(acquired, key))?.done()
}

/// Begins the holder's term again.
#[utoipa::path(post, path = "/api/locks/{key}/renew", operation_id = "renew_lock", tag = "Locks",
    request_body = RenewBody,
    responses((status = 200, description = "The lock", body = LockBody)))]
pub(crate) async fn renew(
    ctx: Ctx,
    space: KeySpace,
    InPath(key): InPath<LockKey>,
    body: Payload<RenewBody>,
) -> Reply {
    let RenewBody { holder, token, ttl_secs } = body.value;
    let (token, ttl) = (token.map(|token| FencingToken(token.0)), ttl_secs.map(|ttl| ttl.0));
    let locks = &ctx.handles()?.locks;
    let lock = locks.renew(&ctx.call(), space.as_lock_space(), key, holder.0, token, ttl).await?;
    Answer::ok(&LockBody::from(lock))?.done()
}

/// Gives a lock back.
#[utoipa::path(post, path = "/api/locks/{key}/release", operation_id = "release_lock", tag = "Locks",
    request_body = ReleaseBody,
    responses((status = 200, description = "Whether it was held so", body = ReleasedBody)))]
pub(crate) async fn release(
    ctx: Ctx,
    space: KeySpace,
    InPath(key): InPath<LockKey>,
    body: Payload<ReleaseBody>,
) -> Reply {
    let ReleaseBody { holder, token } = body.value;
    let token = token.map(|token| FencingToken(token.0));
    let locks = &ctx.handles()?.locks;
    let released = locks.release(&ctx.call(), space.as_lock_space(), key, holder.0, token).await?;
    Answer::ok(&ReleasedBody { released })?.done()
}

/// One lock. Keys under `cluster/` can be read as well.
#[utoipa::path(get, path = "/api/locks/{key}", operation_id = "get_lock", tag = "Locks",
    responses((status = 200, description = "The lock", body = LockBody)))]
pub(crate) async fn get(ctx: Ctx, space: KeySpace, InPath(key): InPath<LockKey>) -> Reply {
    let lock = ctx.handles()?.locks.get(&ctx.call(), space.as_lock_space(), key).await?;
    Answer::ok(&LockBody::from(lock))?.done()
}

/// Lists the held locks, by key.
#[utoipa::path(get, path = "/api/locks", operation_id = "list_locks", tag = "Locks",
    params(LocksQuery, PageQuery),
    responses((status = 200, description = "Locks", body = LocksBody)))]
pub(crate) async fn list(
    ctx: Ctx,
    space: KeySpace,
    Query(query): Query<LocksQuery>,
    Paging(page): Paging,
) -> Reply {
    let prefix = query.prefix.unwrap_or_default();
    if prefix.len() > LOCK_KEY_BYTES_MAX {
        let right = format_args!("must be at most {LOCK_KEY_BYTES_MAX} bytes");
        return Err(Problem::parameter("prefix", right));
    }
    let listed = List::new("locks", space.name());
    let page = listed.open(page)?;
    let page = ctx.handles()?.locks.list(&ctx.call(), space.as_lock_space(), prefix, page).await?;
    let (locks, next_cursor) = listed.close(page);
    Answer::ok(&LocksBody { locks, next_cursor })?.done()
}

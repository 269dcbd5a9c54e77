//! `/api/cluster/join-tokens`: what admits nodes to the cluster.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use shiioo_actors::domain::ids::TokenId;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::domain::views::{JoinTokenView, NewJoinToken};
use tokio::time::Duration;
use utoipa::ToSchema;

use crate::input::extract::{InPath, PageQuery, Paging};
use crate::input::fields::seconds;
use crate::input::payload::Payload;
use crate::output::page::List;
use crate::output::reply::{Answer, MessageBody, Reply, Shown};
use crate::request::ctx::Ctx;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// How long a token is valid where the client names no time.
const TTL_DEFAULT: Duration = Duration::from_secs(3600);
/// Shortest and longest life of a token, seconds: up to 30 days.
const TTL_SECS: RangeInclusive<f64> = 1.0..=2_592_000.0;
/// How many nodes a token admits where the client names no number.
const USES_DEFAULT: u32 = 1;
/// How many nodes a token may admit.
const USES: RangeInclusive<u64> = 1..=1000;

/// Lists the routes on join tokens.
pub(crate) fn routes() -> Vec<Route> {
    let system = RouteOwner::SystemGroup;
    vec![
        Route::post("/api/cluster/join-tokens", create, __path_create)
            .served(system, Credential::Admin),
        Route::get("/api/cluster/join-tokens", list, __path_list)
            .served(system, Credential::Admin)
            .page(),
        Route::delete("/api/cluster/join-tokens/{token_id}", remove, __path_remove)
            .served(system, Credential::Admin),
    ]
}

/// How long a token is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
struct TokenTtl(Duration);

impl TryFrom<f64> for TokenTtl {
    type Error = String;

    fn try_from(secs: f64) -> Result<Self, String> {
        seconds(secs, &TTL_SECS).map(Self)
    }
}

/// How many nodes a token admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
struct Uses(u32);

impl TryFrom<u64> for Uses {
    type Error = String;

    fn try_from(uses: u64) -> Result<Self, String> {
        let wrong = || format!("must be a whole number from {} to {}", USES.start(), USES.end());
        let uses = u32::try_from(uses).ok().filter(|uses| USES.contains(&u64::from(*uses)));
        uses.map(Self).ok_or_else(wrong)
    }
}

/// What a new token is.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = NewJoinToken)]
pub(crate) struct NewTokenBody {
    /// How long it is valid, 1 s to 30 days; an hour if not given.
    #[schema(value_type = Option<f64>)]
    ttl_secs: Option<TokenTtl>,
    /// How many nodes it admits, 1 to 1000; one if not given.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 1000)]
    uses: Option<Uses>,
}

/// A new token.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreatedJoinToken)]
pub(crate) struct CreatedBody {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<TokenId>,
    /// What a joining node shows. Told once: `null` where the idempotency key was known.
    token: Option<String>,
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Shown<Timestamp>>,
    /// How many nodes it admits.
    uses: Option<u32>,
}

impl From<NewJoinToken> for CreatedBody {
    fn from(new: NewJoinToken) -> Self {
        Self {
            id: Shown(new.id),
            token: new.token,
            expires_at: new.expires_at.map(Shown),
            uses: new.uses,
        }
    }
}

/// A token, without what it is for.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JoinToken)]
pub(crate) struct TokenBody {
    #[schema(value_type = String, format = "uuid")]
    id: Shown<TokenId>,
    /// `null`: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Shown<Timestamp>>,
    /// How many nodes it still admits; `null`: any number.
    uses_left: Option<u32>,
}

impl From<JoinTokenView> for TokenBody {
    fn from(view: JoinTokenView) -> Self {
        Self {
            id: Shown(view.id),
            expires_at: view.expires_at.map(Shown),
            uses_left: view.uses_left,
        }
    }
}

/// Join tokens.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = JoinTokenList)]
pub(crate) struct TokensBody {
    join_tokens: Vec<TokenBody>,
    next_cursor: Option<String>,
}

/// Makes a token that admits nodes. The token itself is told once, here.
#[utoipa::path(post, path = "/api/cluster/join-tokens", operation_id = "create_join_token",
    tag = "Cluster", request_body = NewTokenBody,
    responses((status = 201, description = "The new token", body = CreatedBody)))]
pub(crate) async fn create(ctx: Ctx, body: Payload<NewTokenBody>) -> Reply {
    let call = ctx.creating_call(&body.bytes)?;
    let NewTokenBody { ttl_secs, uses } = body.value;
    let ttl = ttl_secs.map_or(TTL_DEFAULT, |ttl| ttl.0);
    let uses = uses.map_or(USES_DEFAULT, |uses| uses.0);
    let cluster = &ctx.handles()?.cluster;
    let created = cluster.create_join_token(&call, Some(ttl), Some(uses)).await?;
    let location = format!("/api/cluster/join-tokens/{}", created.resource.id);
    Answer::created(&location, &CreatedBody::from(created.resource))?
        .replayed(created.replayed)?
        .done()
}

/// Lists the tokens that are there, used up and expired ones included until they are forgotten.
#[utoipa::path(get, path = "/api/cluster/join-tokens", operation_id = "list_join_tokens",
    tag = "Cluster", params(PageQuery),
    responses((status = 200, description = "Join tokens", body = TokensBody)))]
pub(crate) async fn list(ctx: Ctx, Paging(page): Paging) -> Reply {
    let listed = List::new("join_tokens", "cluster");
    let page = ctx.handles()?.cluster.join_tokens(&ctx.call(), listed.open(page)?).await?;
    let (join_tokens, next_cursor) = listed.close(page);
    Answer::ok(&TokensBody { join_tokens, next_cursor })?.done()
}

/// Revokes a token.
#[utoipa::path(delete, path = "/api/cluster/join-tokens/{token_id}",
    operation_id = "remove_join_token", tag = "Cluster",
    responses((status = 200, description = "Revoked", body = MessageBody)))]
pub(crate) async fn remove(ctx: Ctx, InPath(id): InPath<TokenId>) -> Reply {
    ctx.handles()?.cluster.remove_join_token(&ctx.call(), id).await?;
    Answer::message(format!("Join token {id} removed successfully"))
}

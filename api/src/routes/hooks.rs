//! `POST /test/tenants/{tenant_id}/{act}`: has a tenant misbehave, for tests of supervision.
//!
//! These routes exist on nodes started for such tests only, and are in no document.

use std::borrow::Cow;
use std::str::Utf8Error;

use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::services::tenants::TestHook;

use crate::input::extract::{InPath, PathParam};
use crate::output::problem::Problem;
use crate::output::reply::{Answer, Reply};
use crate::request::ctx::Ctx;
use crate::routes::builder::Route;
use crate::server::declaration::{Credential, RouteOwner};

/// Lists the test hooks.
pub(crate) fn routes() -> Vec<Route> {
    let act = Route::undocumented_post("/test/tenants/{tenant_id}/{act}", act);
    vec![act.served(RouteOwner::ThisNode, Credential::Admin)]
}

impl PathParam for TestHook {
    const NAME: &'static str = "act";

    fn parse(text: Result<Cow<'_, str>, Utf8Error>) -> Result<Self, Problem> {
        match text.as_deref() {
            Ok("panic") => Ok(Self::Panic),
            Ok("fail") => Ok(Self::Fail),
            Ok("stall") => Ok(Self::Stall),
            Ok("heal") => Ok(Self::Heal),
            _ => Err(Problem::not_found("a tenant can panic, fail, stall or heal")),
        }
    }
}

async fn act(ctx: Ctx, InPath(id): InPath<TenantId>, InPath(hook): InPath<TestHook>) -> Reply {
    ctx.handles()?.tenants.test_hook(id, hook)?;
    Answer::message("done")
}

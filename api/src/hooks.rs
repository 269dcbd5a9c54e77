//! `POST /test/tenants/{tenant_id}/{act}`: has a tenant misbehave, for tests of supervision.
//!
//! These routes exist on nodes started for such tests only, and are in no document.

use std::borrow::Cow;
use std::str::Utf8Error;

use shiioo_actors::domain::ids::TenantId;
use shiioo_actors::services::tenants::TestHook;

use crate::app::Ctx;
use crate::extract::{InPath, PathParam};
use crate::problem::Problem;
use crate::reply::{Answer, Reply};
use crate::routes::Routes;

pub(crate) fn routes() -> Routes {
    Routes::default().post("/test/tenants/{tenant_id}/{act}", act)
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

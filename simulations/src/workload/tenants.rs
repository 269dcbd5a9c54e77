//! Tenants: created, described, suspended, deleted, with one definition each.

use outside::ensure;
use rand::Rng as _;
use serde_json::{Value, json};

use super::client::Call;
use super::session::Session;
use crate::checks::{Checked, Violation};
use crate::facts::{Limits, TenantModel};
use crate::world::board::SharedRegister;

/// Runs at a time in the tenant that all clients share: fewer than there are clients.
const SHARED_CONCURRENT: u64 = 2;

impl Session {
    pub(super) async fn create_tenant(&mut self) -> Checked {
        let limits = Limits {
            concurrent: self.rng.random_bool(0.5).then(|| self.rng.random_range(1..=3)),
            per_day: self.rng.random_bool(0.3).then(|| self.rng.random_range(0..=6)),
        };
        let tenant = self.make_tenant(limits).await?;
        self.tenants.push(tenant);
        Ok(())
    }

    pub(super) async fn create_shared_tenant(&mut self) -> Checked {
        let limits = Limits { concurrent: Some(SHARED_CONCURRENT), per_day: None };
        self.shared = self.make_tenant(limits).await?;
        let (initial, history) = (self.shared.description.clone(), Vec::new());
        self.board.register.replace(Some(SharedRegister { initial, begun: 0, history }));
        self.board.shared_tenant.replace(Some(self.shared.id.clone()));
        Ok(())
    }

    async fn make_tenant(&mut self, limits: Limits) -> Checked<TenantModel> {
        let name = self.mark();
        let quota = json!({
            "max_concurrent_workflows": limits.concurrent,
            "max_workflows_per_day": limits.per_day,
            "max_api_requests_per_minute": Value::Null,
        });
        let body = json!({ "name": name, "description": name, "quota": quota });
        let reply = self.client.settle(Call::post("/api/tenants", body).keyed(&name)).await;
        ensure!(reply.status == 201, "a tenant was not created: {reply}");
        let id = reply.body["id"].as_str().unwrap_or_default().to_owned();
        let first = self.board.limits.borrow_mut().insert(id.clone(), limits).is_none();
        ensure!(first, "an id was given twice: {reply}");
        Ok(TenantModel { id, description: name.clone(), name, limits, ..TenantModel::default() })
    }

    pub(super) async fn describe(&mut self, at: usize) -> Checked {
        let description = self.mark();
        let path = format!("/api/tenants/{}", self.tenants[at].id);
        let call = Call::put(path, json!({ "description": description }));
        let reply = self.client.settle(call).await;
        ensure!(reply.status == 200, "a tenant was not updated: {reply}");
        self.tenants[at].description = description;
        Ok(())
    }

    pub(super) async fn set_suspended(&mut self, at: usize, suspended: bool) -> Checked {
        let verb = if suspended { "suspend" } else { "activate" };
        let path = format!("/api/tenants/{}/{verb}", self.tenants[at].id);
        let reply = self.client.settle(Call::post(path, Value::Null)).await;
        ensure!(reply.status == 200, "a tenant did not {verb}: {reply}");
        self.tenants[at].suspended = suspended;
        Ok(())
    }

    /// Moves a tenant of its own, the shared one or one of the objects to some region, or calls such a move off.
    /// It asks once: whether the tenant moves, and when, is nothing that anybody relies on.
    pub(super) async fn move_tenant(&mut self) -> Checked {
        let own = self.some_tenant().map(|at| self.tenants[at].id.clone());
        let objects = self.board.objects_tenant.borrow().clone();
        let known: Vec<_> =
            [own, objects, Some(self.shared.id.clone())].into_iter().flatten().collect();
        let id = &known[self.rng.random_range(0..known.len())];
        let region = self.board.regions[self.rng.random_range(0..self.board.regions.len())];
        let path = format!("/api/tenants/{id}");
        let call = Call::put(path, json!({ "region": region }));
        // A move that is not over refuses another, and at first nobody is in the other region.
        let Ok(reply) = self.client.anywhere(&call).await else { return Ok(()) };
        let is_known = matches!(reply.status, 200 | 202 | 409 | 422 | 500..);
        ensure!(is_known, "a tenant was not moved: {reply}");
        if reply.status == 200 {
            let shown = reply.body["region"].as_str();
            let is_region = shown.is_some_and(|shown| self.board.regions.contains(&shown));
            ensure!(is_region, "a tenant is nowhere: {reply}");
        }
        Ok(())
    }

    pub(super) async fn delete_tenant(&mut self, at: usize) -> Checked {
        let path = format!("/api/tenants/{}", self.tenants[at].id);
        self.board.deletions.borrow_mut().insert(self.tenants[at].id.clone());
        let reply = self.client.settle(Call::delete(path)).await;
        let gone = reply.status == 200 || (reply.status == 404 && reply.retried);
        ensure!(gone, "a tenant was not deleted: {reply}");
        self.tenants[at].deleted = true;
        self.board.runs.borrow_mut().remove(&self.tenants[at].id);
        Ok(())
    }

    pub(super) async fn define_workflow(&mut self, at: usize) -> Checked {
        let mark = self.mark();
        let tenant = &self.tenants[at];
        let before = tenant.workflow.as_ref().map_or(0, |(version, _)| *version);
        let step = json!({
            "id": "end",
            "description": mark,
            "action": { "type": "set", "output": "{{ input.mark }}" },
        });
        let path = format!("/api/tenants/{}/workflows/main", tenant.id);
        let reply = self.client.settle(Call::put(path, json!({ "steps": [step] }))).await;
        if tenant.suspended {
            ensure!(reply.code() == "tenant_suspended", "written while suspended: {reply}");
            return Ok(());
        }
        ensure!(reply.is_success(), "a workflow was not defined: {reply}");
        let version = reply.body["version"].as_u64();
        let version = version.ok_or_else(|| Violation(format!("no version: {reply}")))?;
        // Asked twice, it may have been defined twice.
        let grew = if reply.retried { version > before } else { version == before + 1 };
        ensure!(grew, "version {version} came after {before}: {reply}");
        self.tenants[at].workflow = Some((version, mark));
        Ok(())
    }
}

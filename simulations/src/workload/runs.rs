//! Runs: started, looked at, awaited.

use std::time::Duration;

use outside::ensure;
use rand::Rng as _;
use serde_json::{Value, json};

use super::client::Call;
use super::session::Session;
use crate::checks::{Checked, durability, liveness};
use crate::facts::{RunModel, TenantModel};
use crate::plan::{SERVICE, SERVICE_PORT};

/// The longest `wait` step, ms.
const WAIT_MS_MAX: u64 = 800;
/// How many runs are started as jobs.
const JOBS: f64 = 0.15;
/// How many runs have a large input, and how large it is at most, bytes.
const FAT: f64 = 0.05;
const FAT_BYTES_MAX: usize = 64 << 10;
/// How long a call waits for the end of a run.
const AWAIT_SECS: u64 = 5;
/// Attempts of a step that calls: the service always answers in the end.
const ATTEMPTS_MAX: u64 = 100;

impl Session {
    pub(super) async fn start_run(&mut self, at: usize) -> Checked {
        let mut tenant = self.tenants[at].clone();
        let result = self.start_in(&mut tenant, false).await;
        self.tenants[at] = tenant;
        result
    }

    pub(super) async fn start_shared_run(&mut self) -> Checked {
        let mut tenant = self.shared.clone();
        let result = self.start_in(&mut tenant, true).await;
        self.shared = tenant;
        result
    }

    async fn start_in(&mut self, tenant: &mut TenantModel, shared: bool) -> Checked {
        let mark = self.mark();
        let is_job = self.rng.random_bool(JOBS);
        let named = !is_job && tenant.workflow.is_some() && self.rng.random_bool(0.3);
        let (mut body, steps) = match (is_job, named) {
            (true, _) => job(&mark),
            (false, true) => (json!({ "workflow_name": "main" }), vec![end(&[])]),
            (false, false) => self.spec(),
        };
        if !is_job {
            body["input"] = json!({ "mark": mark });
            if self.rng.random_bool(FAT) {
                let bytes = self.rng.random_range(0..=FAT_BYTES_MAX);
                body["input"]["padding"] = Value::String("x".repeat(bytes));
            }
        }
        let steps: Vec<String> =
            steps.iter().map(|step| step["id"].as_str().unwrap_or_default().to_owned()).collect();
        let (path, id) = if is_job { ("jobs", "run_id") } else { ("runs", "id") };
        let path = format!("/api/tenants/{}/{path}", tenant.id);
        let reply = self.client.settle(Call::post(path, body).keyed(&mark)).await;
        if reply.retried && reply.status != 201 {
            tenant.unsure.insert(mark.clone());
        }
        match (reply.status, reply.code()) {
            (201, _) => {
                let id = reply.body[id].as_str().unwrap_or_default().to_owned();
                let run = RunModel { mark, steps: steps.clone(), ended: None };
                ensure!(tenant.runs.insert(id.clone(), run).is_none(), "given twice: {reply}");
                let mut runs = self.board.runs.borrow_mut();
                runs.entry(tenant.id.clone()).or_default().insert(id, steps);
                Ok(())
            }
            (403, "tenant_suspended") if tenant.suspended => Ok(()),
            (429, "quota_exceeded") => {
                let of_day = reply.body["quota"] == "max_workflows_per_day";
                let limit = if of_day { tenant.limits.per_day } else { tenant.limits.concurrent };
                let used = (tenant.runs.len() + tenant.unsure.len()) as u64;
                // Nobody else starts runs in a tenant of one's own.
                ensure!(
                    shared || limit.is_some_and(|limit| used >= limit),
                    "refused after {used} runs with {:?}: {reply}",
                    tenant.limits
                );
                Ok(())
            }
            _ => {
                ensure!(false, "a start that should have been accepted: {reply}");
                Ok(())
            }
        }
    }

    /// One to three steps, the last of which says the mark.
    fn spec(&mut self) -> (Value, Vec<Value>) {
        let wait_secs = self.rng.random_range(20..=WAIT_MS_MAX) as f64 / 1000.0;
        let wait = json!({ "id": "wait", "action": { "type": "wait", "secs": wait_secs } });
        let call = json!({
            "id": "call",
            "timeout_secs": 2,
            "retry_policy": { "max_attempts": ATTEMPTS_MAX, "backoff_secs": 0.1 },
            "action": {
                "type": "http",
                "method": "POST",
                "url": format!("http://{SERVICE}:{SERVICE_PORT}/work"),
                "body": { "mark": "{{ input.mark }}" },
            },
        });
        let steps = match self.rng.random_range(0..5) {
            0 => vec![end(&[])],
            1 => vec![wait, end(&["wait"])],
            2 => vec![call, end(&["call"])],
            3 => vec![wait, call, end(&["wait", "call"])],
            _ => {
                let mut call = call;
                call["depends_on"] = json!(["wait"]);
                vec![wait, call, end(&["call"])]
            }
        };
        (json!({ "workflow": { "steps": steps } }), steps)
    }

    pub(super) async fn look_at_runs(&mut self, at: usize) -> Checked {
        let ids: Vec<String> = self.tenants[at].runs.keys().cloned().collect();
        if ids.is_empty() {
            return Ok(());
        }
        let id = &ids[self.rng.random_range(0..ids.len())];
        let path = format!("/api/tenants/{}/runs/{id}", self.tenants[at].id);
        let reply = self.client.settle(Call::get(path)).await;
        ensure!(reply.status == 200, "acknowledged run {id} is lost: {reply}");
        let Some(run) = self.tenants[at].runs.get_mut(id) else { return Ok(()) };
        durability::ended(run, &reply.body)?;
        if !reply.body["completed_at"].is_null() {
            run.ended = Some(reply.body);
        }
        Ok(())
    }

    pub(super) async fn await_runs(&mut self, at: usize) -> Checked {
        let mut tenant = self.tenants[at].clone();
        let result = self.await_all(&mut tenant).await;
        self.tenants[at] = tenant;
        result
    }

    pub(super) async fn await_shared_runs(&mut self) -> Checked {
        let mut tenant = self.shared.clone();
        let result = self.await_all(&mut tenant).await;
        self.shared = tenant;
        result
    }

    /// Waits until all runs have ended, and well. The run's own bound ends this when they do not.
    async fn await_all(&mut self, tenant: &mut TenantModel) -> Checked {
        if tenant.deleted {
            return Ok(());
        }
        for (id, run) in &mut tenant.runs {
            let path = format!("/api/tenants/{}/runs/{id}?wait_secs={AWAIT_SECS}", tenant.id);
            let ended = loop {
                let call = Call::get(&path).waiting(Duration::from_secs(AWAIT_SECS));
                let reply = self.client.settle(call).await;
                ensure!(reply.status == 200, "acknowledged run {id} is lost: {reply}");
                if !reply.body["completed_at"].is_null() {
                    break reply.body;
                }
            };
            durability::ended(run, &ended)?;
            liveness::completed(run, &ended, |key| self.board.service.calls(key))?;
            run.ended = Some(ended);
        }
        Ok(())
    }
}

/// The last step of every workflow.
fn end(needs: &[&str]) -> Value {
    let action = json!({ "type": "set", "output": "{{ input.mark }}" });
    json!({ "id": "end", "action": action, "depends_on": needs })
}

/// A job, which takes no input: the mark is in its workflow, and the id of one of its steps.
fn job(mark: &str) -> (Value, Vec<Value>) {
    let first = json!({ "id": mark, "action": { "type": "set", "output": mark } });
    let mut last = end(&[mark]);
    last["action"]["output"] = Value::String(mark.to_owned());
    let steps = vec![first, last];
    (json!({ "name": mark, "workflow": { "steps": steps } }), steps)
}

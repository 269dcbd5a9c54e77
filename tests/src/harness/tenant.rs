//! One tenant, as its user sees it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Cluster, Server, eventually, spec};
use crate::{Client, Reply};

/// Runs that are read at a time.
const PAGE: usize = 1000;

/// A tenant that exists, and a client to reach it.
#[derive(Clone)]
pub struct Tenant {
    /// Its id.
    pub id: String,
    /// The client that it was made with.
    pub client: Client,
}

impl Tenant {
    /// Makes a tenant with these quotas.
    pub async fn create(client: &Client, quota: Value) -> Self {
        let body = json!({ "name": "Test", "quota": quota });
        let tenant = client.post("/api/tenants", body).await.expect(201);
        let id = tenant["id"].as_str().expect("an id").to_owned();
        Self { id, client: client.clone() }
    }

    /// Makes a tenant without limits on the node that tests of this process share. The node goes with
    /// the last one that holds it.
    pub async fn on_shared() -> (Arc<Server>, Self) {
        let server = Server::shared(&[]).await;
        let tenant = Self::create(&server.client(), spec::unlimited()).await;
        (server, tenant)
    }

    /// The place of the node that leads the tenant's group, once one does.
    pub async fn leader(&self, cluster: &Cluster) -> usize {
        eventually("a leader", async || {
            let placement = self.get("").await.expect(200)["placement"].clone();
            placement["leader"].as_str().map(|leader| cluster.place_of(leader))
        })
        .await
    }

    /// The path of the tenant itself and, with a rest, of what belongs to it.
    pub fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}{rest}", self.id)
    }

    /// `GET` below the tenant.
    pub async fn get(&self, rest: &str) -> Reply {
        self.client.get(&self.path(rest)).await
    }

    /// `POST` below the tenant.
    pub async fn post(&self, rest: &str, body: Value) -> Reply {
        self.client.post(&self.path(rest), body).await
    }

    /// `PUT` below the tenant.
    pub async fn put(&self, rest: &str, body: Value) -> Reply {
        self.client.put(&self.path(rest), body).await
    }

    /// `DELETE` below the tenant.
    pub async fn delete(&self, rest: &str) -> Reply {
        self.client.delete(&self.path(rest)).await
    }

    /// Starts a run that must be accepted, and gives its id.
    pub async fn start(&self, body: Value) -> String {
        let run = self.post("/runs", body).await.expect(201);
        run["id"].as_str().expect("a run's id").to_owned()
    }

    /// Starts a run and gives it when it has ended, however it did.
    pub async fn finished(&self, body: Value) -> Value {
        let run = self.post("/runs?wait_secs=50", body).await.expect(201);
        assert!(!run["completed_at"].is_null(), "the run goes on: {run:#}");
        run
    }

    /// The run as it is now.
    pub async fn run(&self, id: &str) -> Value {
        self.get(&format!("/runs/{id}")).await.expect(200)
    }

    /// The run when it has ended, however it did.
    pub async fn ended(&self, id: &str) -> Value {
        let run = self.get(&format!("/runs/{id}?wait_secs=50")).await.expect(200);
        assert!(!run["completed_at"].is_null(), "the run goes on: {run:#}");
        run
    }

    /// The run as soon as this step waits for, or does, what `status` and `waiting_for` say.
    pub async fn step_reaches(&self, run: &str, step: &str, waiting_for: &str) -> Value {
        eventually(&format!("step {step} of {run} waits for {waiting_for}"), async || {
            let run = self.run(run).await;
            (Self::step(&run, step)["waiting_for"] == waiting_for).then_some(run)
        })
        .await
    }

    /// Waits until no run of it goes on.
    pub async fn idle(&self) {
        eventually(&format!("all runs of {} end", self.id), async || {
            (self.used("max_concurrent_workflows").await == 0).then_some(())
        })
        .await;
    }

    /// All its runs, read page by page.
    pub async fn all_runs(&self) -> Vec<Value> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("/runs?limit={PAGE}{cursor}")).await.expect(200);
            found.extend(page["runs"].as_array().expect("a list").iter().cloned());
            let Some(next) = page["next_cursor"].as_str() else { return found };
            cursor = format!("&cursor={next}");
        }
    }

    /// The events of a run.
    pub async fn events(&self, run: &str) -> Vec<Value> {
        let events = self.get(&format!("/runs/{run}/events")).await.expect(200);
        events["events"].as_array().expect("a list of events").clone()
    }

    /// One quota's entry of `usage`.
    pub async fn usage(&self, quota: &str) -> Value {
        let usage = self.get("/usage").await.expect(200);
        let entries = usage["usage"].as_array().expect("a list of quotas");
        let entry = entries.iter().find(|entry| entry["quota"] == quota);
        entry.unwrap_or_else(|| panic!("no {quota} in {usage:#}")).clone()
    }

    /// How much of one quota is used.
    pub async fn used(&self, quota: &str) -> u64 {
        self.usage(quota).await["used"].as_u64().expect("a number")
    }

    /// One step of a run that was read before.
    #[track_caller]
    pub fn step<'a>(run: &'a Value, id: &str) -> &'a Value {
        let mut steps = run["steps"].as_array().expect("a run's steps").iter();
        steps.find(|step| step["id"] == id).unwrap_or_else(|| panic!("no step {id} in {run:#}"))
    }
}

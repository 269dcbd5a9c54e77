//! Who only looks: asks all nodes who leads, and what they have, all the time, and in the end whether
//! they agree.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use outside::ensure;
use serde_json::Value;
use shiioo_actors::domain::voters::TENANT_GROUP_VOTERS;
use tokio::time::sleep;

use super::client::{Call, Client};
use crate::checks::leaders::{self, Leaders};
use crate::checks::{Checked, liveness, out_of_service};
use crate::env::trace;
use crate::facts::Reply;
use crate::plan::{API_PORT, WATCHER};
use crate::world::{Board, NodeHost, Phase};

/// Pause between two rounds of questions.
const ROUND_PAUSE: Duration = Duration::from_millis(150);
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_millis(1000);
/// How long an answer is waited for that is only worth something soon: who has no majority any more
/// should have none.
const GLANCE: Duration = Duration::from_millis(100);

struct Watcher {
    board: Rc<Board>,
    client: Client,
    leaders: Leaders,
}

/// A replica of a group.
#[derive(Debug)]
struct Replica {
    /// The id of its node.
    node: String,
    votes: bool,
}

impl Replica {
    fn of(body: &Value) -> Self {
        let node = body["node_id"].as_str().unwrap_or_default().to_owned();
        Self { node, votes: body["role"] == "voter" }
    }
}

/// Watches until the run has settled and all nodes say the same.
///
/// # Errors
/// The violation that it saw.
pub(crate) async fn watch(seed: u64, board: Rc<Board>) -> turmoil::Result {
    let client = Client::new(WATCHER, board.node_names(), API_PORT, seed);
    let mut watcher = Watcher { board, client, leaders: Leaders::default() };
    while watcher.board.works() {
        watcher.ask_who_leads().await?;
        watcher.read_everywhere().await?;
        watcher.look_at_damage().await?;
        sleep(ROUND_PAUSE).await;
    }
    watcher.await_leader().await?;
    watcher.await_voters().await?;
    while watcher.board.busy.get() > 0 {
        watcher.ask_who_leads().await?;
        watcher.read_everywhere().await?;
        sleep(ROUND_PAUSE).await;
    }
    watcher.await_replicas().await?;
    watcher.await_agreement().await?;
    Ok(())
}

impl Watcher {
    /// Asks all nodes. Tells whether they name the same leader.
    async fn ask_who_leads(&mut self) -> Checked<bool> {
        let cut_off = self.board.cut_off.borrow().clone();
        let replies = self.ask_all("/api/cluster/leader", PATIENCE).await;
        let still_cut_off = self.board.cut_off.borrow().clone();
        let mut named = Vec::new();
        for (at, reply) in replies.into_iter().enumerate() {
            let Some(reply) = reply else { continue };
            if let Some(since) = cut_off.get(&at)
                && still_cut_off.get(&at) == Some(since)
            {
                leaders::forgotten(*since, &reply)?;
            }
            if let Some(id) = self.leaders.learn(&reply)? {
                if self.board.nodes[at].is_called(&id) {
                    self.board.leader.set(Some(at));
                }
                named.push(id);
            }
        }
        if !self.board.all_vote.get() && !named.is_empty() {
            let groups = self.groups().await;
            self.board.all_vote.set(self.all_vote(&groups));
            let keepers = groups.iter().skip(1).flatten().map(|replica| replica.node.clone());
            self.board.keeps_tenants.borrow_mut().extend(keepers);
        }
        let all = named.len() == self.board.nodes.len();
        Ok(all && named.windows(2).all(|pair| pair[0] == pair[1]))
    }

    /// Reads the shared tenant at all nodes: none may be behind what somebody was shown before.
    async fn read_everywhere(&self) -> Checked {
        let Some(shared) = self.board.shared_tenant.borrow().clone() else { return Ok(()) };
        let told = self.board.told.get();
        let replies = self.ask_all(&format!("/api/tenants/{shared}"), GLANCE).await;
        replies.iter().flatten().try_for_each(|reply| self.board.learn_version(told, reply))
    }

    /// Asks the node of a tenant that has to be out of service for the tenant, and for a neighbour.
    async fn look_at_damage(&self) -> Checked {
        let Some(before) = self.board.out_of_service.borrow().clone() else { return Ok(()) };
        let tenants: Vec<String> = self.board.limits.borrow().keys().cloned().collect();
        let is_gone = |tenant: &String| self.board.deletions.borrow().contains(tenant);
        let other = tenants.iter().find(|other| **other != before.tenant && !is_gone(other));
        let own = self.glance_at_runs(before.at, &before.tenant).await;
        let other = match other {
            Some(other) => self.glance_at_runs(before.at, other).await,
            None => None,
        };
        let mut now = self.board.out_of_service.borrow_mut();
        // By now the folder may be whole again.
        let Some(now) = now.as_mut().filter(|now| **now == before) else { return Ok(()) };
        if let Some(reply) = own {
            let others = self.board.nodes.len() > 1;
            now.was_said |= out_of_service::said(&reply, now.reason, is_gone(&now.tenant), others)?;
        }
        // A disk that has refused something may have cost others their files as well, on whichever node
        // leads their group.
        let has_failed = self.board.nodes.iter().any(|node| node.has_seen_disk_fail());
        if let Some(reply) = other.filter(|_| !has_failed) {
            now.neighbour_served |= out_of_service::spared(&reply)?;
        }
        Ok(())
    }

    async fn glance_at_runs(&self, at: usize, tenant: &str) -> Option<Reply> {
        let call = Call::get(format!("/api/tenants/{tenant}/runs")).within(GLANCE);
        self.client.call_at(at, &call).await.ok()
    }

    /// The same question to all nodes at once.
    async fn ask_all(&self, path: &str, patience: Duration) -> Vec<Option<Reply>> {
        let call = Call::get(path).within(patience);
        let asked = (0..self.client.nodes()).map(|at| self.client.call_at(at, &call));
        let replies = join_all(asked).await;
        replies.into_iter().map(|reply| reply.ok().filter(|reply| reply.status == 200)).collect()
    }

    /// The replicas of each group, the system group first; nothing when nobody says.
    async fn groups(&self) -> Vec<Vec<Replica>> {
        let Ok(reply) =
            self.client.anywhere(&Call::get("/api/cluster/groups").within(PATIENCE)).await
        else {
            return Vec::new();
        };
        let replicas = |group: &Value| {
            let replicas = group["replicas"].as_array().map(Vec::as_slice).unwrap_or_default();
            replicas.iter().map(Replica::of).collect()
        };
        reply.body["groups"].as_array().into_iter().flatten().map(replicas).collect()
    }

    /// Whether every node votes in the system group, and as many of its region as there should be in each
    /// other group, and nobody else.
    fn all_vote(&self, groups: &[Vec<Replica>]) -> bool {
        let ids: Vec<String> = self.board.nodes.iter().map(|node| node.id()).collect();
        let nodes: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
        let voters = |group: &[Replica]| -> BTreeSet<String> {
            group.iter().filter(|it| it.votes).map(|it| it.node.clone()).collect()
        };
        let Some((system, tenants)) = groups.split_first() else { return false };
        let all = voters(system);
        let is_full = |group: &Vec<Replica>| {
            let voters = voters(group);
            let votes = |node: &&Rc<NodeHost>| voters.contains(&node.id());
            let Some(region) = self.board.nodes.iter().find(votes).map(|node| node.region()) else {
                return false;
            };
            let own = self.board.nodes.iter().filter(|node| node.region() == region);
            let own: BTreeSet<String> = own.map(|node| node.id()).collect();
            voters.len() == own.len().min(TENANT_GROUP_VOTERS) && voters.is_subset(&own)
        };
        all.iter().map(String::as_str).eq(nodes.iter().copied())
            && !tenants.is_empty()
            && tenants.iter().all(is_full)
    }

    /// Every node votes in the system group, and nobody else has a replica of it.
    async fn await_voters(&self) -> Checked {
        let nodes = self.board.nodes.len();
        loop {
            let groups = self.groups().await;
            if self.all_vote(&groups) && groups[0].len() == nodes {
                return Ok(());
            }
            let voters_max = liveness::VOTERS_MAX + self.board.replacing_max();
            let in_time = trace::now() < self.board.settles_since.get() + voters_max;
            ensure!(in_time, "these are the groups {voters_max:?} after the faults: {groups:?}");
            sleep(ROUND_PAUSE).await;
        }
    }

    async fn await_leader(&mut self) -> Checked {
        debug_assert_eq!(self.board.phase.get(), Phase::Settle);
        let bound = self.board.settles_since.get() + liveness::LEADER_MAX;
        while !self.ask_who_leads().await? {
            let in_time = trace::now() < bound;
            ensure!(in_time, "no leader that all name {:?} after the faults", liveness::LEADER_MAX);
            sleep(ROUND_PAUSE).await;
        }
        Ok(())
    }

    /// No node has a tenant out of service: others may serve it meanwhile, but in the end all replicas
    /// are compared.
    async fn await_replicas(&self) -> Checked {
        let bound = self.board.settles_since.get().max(trace::now()) + liveness::QUARANTINE_MAX;
        // Damage that nobody has met yet is found by looking for it.
        while !self.board.nodes.iter().all(|node| node.has_scrubbed()) {
            ensure!(trace::now() < bound, "a node has not looked for damage");
            sleep(ROUND_PAUSE).await;
        }
        loop {
            let probes = self.ask_all("/readyz", PATIENCE).await;
            let is_whole = |probe: &Option<Reply>| {
                let warnings = probe.as_ref().map(|probe| &probe.body["warnings"]);
                warnings.is_some_and(|warnings| warnings.as_array().is_none_or(Vec::is_empty))
            };
            if probes.iter().all(is_whole) {
                return Ok(());
            }
            ensure!(trace::now() < bound, "there are still tenants out of service: {probes:?}");
            sleep(ROUND_PAUSE).await;
        }
    }

    /// All nodes have the same of everything that can be asked for.
    async fn await_agreement(&self) -> Checked {
        let mut paths = vec!["/api/tenants".to_owned(), "/api/locks".to_owned()];
        let tenants: Vec<String> = self.board.limits.borrow().keys().cloned().collect();
        for tenant in tenants {
            paths.extend(
                ["", "/runs", "/locks", "/workflows", "/usage"]
                    .map(|of| format!("/api/tenants/{tenant}{of}")),
            );
        }
        let bound = trace::now() + liveness::AGREE_MAX;
        for path in paths {
            let path = format!("{path}?consistency=stale&limit=10000");
            loop {
                let views = self.views(&path).await;
                if views.windows(2).all(|pair| pair[0] == pair[1] && pair[0].is_some()) {
                    break;
                }
                let in_time = trace::now() < bound;
                ensure!(in_time, "the nodes do not agree on {path}: {views:#?}");
                sleep(ROUND_PAUSE).await;
            }
        }
        Ok(())
    }

    async fn views(&self, path: &str) -> Vec<Option<(u16, Value)>> {
        let call = Call::get(path).within(PATIENCE);
        let asked = (0..self.client.nodes()).map(|at| self.client.call_at(at, &call));
        let replies = join_all(asked).await;
        replies
            .into_iter()
            .map(|reply| reply.ok().map(|reply| (reply.status, same(reply))))
            .collect()
    }
}

/// A body without what differs from answer to answer.
fn same(reply: Reply) -> Value {
    let mut body = reply.body;
    if let Some(fields) = body.as_object_mut() {
        fields.remove("request_id");
    }
    if let Some(usage) = body["usage"].as_array_mut() {
        // Counted where the tenant is led, in a window that moves with every look at it.
        usage.retain(|used| used["quota"] != "max_api_requests_per_minute");
    }
    body
}

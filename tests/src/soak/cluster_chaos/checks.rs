//! Holding a cluster that is whole again to what was acknowledged, and comparing its replicas.

use std::path::PathBuf;

use outside::checks::{demand, events, runs};
use serde_json::Value;

use super::writers::Known;
use crate::{Client, Cluster, Tenant, eventually, files};

/// Every acknowledged run is there once and completed; what was refused was not started.
pub(in crate::soak) async fn runs_ended(user: &Tenant, known: &Known) {
    user.idle().await;
    let listed = user.all_runs().await;
    let started = known.runs.iter().map(|(key, id)| (id.as_str(), key.as_str()));
    let by_mark = demand(runs::acknowledged(&listed, started));
    for key in known.runs.keys() {
        demand(runs::completed(by_mark[key.as_str()], key, [], |_| 0));
    }
    for key in &known.refused {
        assert!(!by_mark.contains_key(key.as_str()), "{key} of {} was refused", user.id);
    }
    assert_eq!(by_mark.len(), known.runs.len(), "nobody started the others of {}", user.id);
}

/// Waits until every replica has applied what its leader has.
pub async fn replicas_agree(cluster: &Cluster) {
    eventually("no replica is behind", async || {
        let reply = anybody(cluster).get("/api/cluster/groups").await;
        let groups = (reply.status == 200).then(|| reply.json())?;
        let mut groups = groups["groups"].as_array()?.iter();
        let agrees = |group: &Value| {
            let replicas = group["replicas"].as_array().expect("replicas");
            let voters = replicas.iter().filter(|replica| replica["role"] == "voter");
            voters.count() == replicas.len()
                && replicas
                    .iter()
                    .all(|it| it["lag"] == 0 && it["applied"] == replicas[0]["applied"])
        };
        groups.all(agrees).then_some(())
    })
    .await;
}

/// The data directories of all nodes that have a replica of a tenant.
pub(in crate::soak) async fn homes(cluster: &mut Cluster, tenant: &str) -> Vec<PathBuf> {
    let shown = anybody(cluster).get(&format!("/api/tenants/{tenant}")).await.expect(200);
    let replicas = shown["placement"]["replicas"].as_array().expect("replicas").clone();
    let ids = replicas.iter().map(|id| id.as_str().expect("an id"));
    let places: Vec<usize> = ids.map(|id| cluster.place_of(id)).collect();
    assert!(places.len() >= 3.min(cluster.running().len()), "{shown:#}");
    places.into_iter().map(|node| cluster.server(node).data()).collect()
}

/// A client of a node that runs.
fn anybody(cluster: &Cluster) -> Client {
    cluster.client(cluster.running()[0])
}

/// After all nodes have stopped: the events are equal byte for byte, numbered without a gap, tell each
/// run once, and of no more runs at once than the quota has. Gives how many there are.
pub(in crate::soak) fn events_agree(
    tenant: &str,
    homes: &[PathBuf],
    known: &Known,
    quota: u64,
) -> usize {
    let told = files::whole_events(&homes[0], tenant);
    let copies = homes.iter().map(|data| {
        let path = files::tenant(data, tenant).join("events.jsonl");
        (path.display().to_string(), files::bytes(&path))
    });
    let copies: Vec<(String, Vec<u8>)> = copies.collect();
    for (path, bytes) in &copies[1..] {
        demand(events::same((path, bytes), (&copies[0].0, &copies[0].1)));
    }
    demand(events::at_a_time(tenant, quota, &told));
    let stories = known.runs.values().map(|run| (run.clone(), Vec::new()));
    demand(events::told_once(tenant, &stories.collect(), &told));
    told.len()
}

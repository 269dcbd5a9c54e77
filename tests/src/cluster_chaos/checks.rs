//! Holding a cluster that is whole again to what was acknowledged, and comparing its replicas.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::writers::Known;
use crate::{Cluster, Tenant, eventually, files};

const PAGE: usize = 1000;

/// Every acknowledged run is there once and completed; what was refused was not started.
pub(super) async fn runs_ended(user: &Tenant, known: &Known) {
    eventually(&format!("all runs of {} end", user.id), async || {
        (user.used("max_concurrent_workflows").await == 0).then_some(())
    })
    .await;
    let mut of_mark: BTreeMap<String, Value> = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = user.get(&format!("/runs?limit={PAGE}{cursor}")).await.expect(200);
        for run in page["runs"].as_array().expect("a list") {
            let mark = run["input"]["mark"].as_str().expect("a mark").to_owned();
            if let Some(twice) = of_mark.insert(mark, run.clone()) {
                panic!("one key started two runs of {}: {run:#} {twice:#}", user.id);
            }
        }
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    for (key, id) in &known.runs {
        let run = of_mark.get(key).unwrap_or_else(|| panic!("{id} of {} is lost", user.id));
        assert_eq!(run["id"], id.as_str(), "{key}: {run:#}");
        assert_eq!(run["status"], "completed", "{run:#}");
        assert_eq!(run["output"], json!({ "end": key }), "{run:#}");
    }
    for key in &known.refused {
        assert!(!of_mark.contains_key(key), "{key} of {} was refused and started", user.id);
    }
    assert_eq!(of_mark.len(), known.runs.len(), "nobody started the others of {}", user.id);
}

/// Waits until every replica has applied what its leader has.
pub async fn replicas_agree(cluster: &Cluster) {
    eventually("no replica is behind", async || {
        let reply = cluster.client(0).get("/api/cluster/groups").await;
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

/// The files with the events of a tenant, on all nodes that have a replica of it.
pub(super) async fn event_files(cluster: &mut Cluster, tenant: &str) -> Vec<PathBuf> {
    let shown = cluster.client(0).get(&format!("/api/tenants/{tenant}")).await.expect(200);
    let replicas = shown["placement"]["replicas"].as_array().expect("replicas").clone();
    let ids = replicas.iter().map(|id| id.as_str().expect("an id"));
    let places: Vec<usize> = ids.map(|id| cluster.place_of(id)).collect();
    assert!(places.len() >= 3.min(cluster.len()), "{shown:#}");
    let path = |node| files::tenant(&cluster.server(node).data(), tenant).join("events.jsonl");
    places.into_iter().map(path).collect()
}

/// After all nodes have stopped: the files are equal byte for byte, numbered without a gap, tell each
/// run once, and of no more runs at once than the quota has. Gives how many events there are.
pub(super) fn events_agree(paths: &[PathBuf], known: &Known, quota: usize) -> usize {
    let events = files::events(&paths[0]).unwrap_or_else(|error| panic!("{error}"));
    let events = events.unwrap_or_else(|| panic!("{:?} does not end in a whole line", paths[0]));
    let first = files::bytes(&paths[0]);
    for path in &paths[1..] {
        let other = files::bytes(path);
        let differs = first.iter().zip(&other).position(|(a, b)| a != b);
        let (sizes, shown) = ((first.len(), other.len()), (&paths[0], path));
        assert!(first == other, "{shown:?} have {sizes:?} bytes, and differ at {differs:?}");
    }
    let (mut at_once, mut started, mut ended) = (0, BTreeMap::new(), BTreeMap::new());
    for event in &events {
        let run = event["run_id"].as_str().unwrap_or_default();
        match event["event_type"]["type"].as_str() {
            Some("run_started") => {
                at_once += 1;
                *started.entry(run).or_insert(0) += 1;
            }
            Some("run_completed" | "run_failed" | "run_cancelled") => {
                at_once -= 1;
                *ended.entry(run).or_insert(0) += 1;
            }
            _ => {}
        }
        assert!(at_once <= quota, "{at_once} runs at once, the quota is {quota}: {event}");
    }
    for id in known.runs.values().map(String::as_str) {
        let told = (started.get(id), ended.get(id));
        assert_eq!(told, (Some(&1), Some(&1)), "how often {id} was started and ended");
    }
    events.len()
}

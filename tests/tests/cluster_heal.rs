//! One of three nodes whose log, control plane's file or both are damaged or gone: it is whole again by
//! itself, from what the others have.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Cluster, Tenant, eventually_within, files, spec};
use tokio::time::Instant;

/// Generous: the machine may be busy.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// Tenants enough that most groups have some.
const TENANTS: usize = 8;

/// Three nodes, and tenants that have a finished run each.
async fn village(args: &[&str]) -> (Cluster, Vec<Tenant>) {
    let cluster = Cluster::of(3, args).await;
    let mut tenants = Vec::new();
    for number in 0..TENANTS {
        let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
        tenant.finished(spec::inline([spec::set("a", number as u64)])).await;
        tenants.push(tenant);
    }
    (cluster, tenants)
}

/// The whole of the cluster can lose any node, as each of them says: all vote in all groups.
async fn can_lose_one(cluster: &Cluster) {
    for node in 0..3 {
        eventually_within(WHOLE_WITHIN, &format!("node {node}: one can be lost"), async || {
            let poller = cluster.poller(node);
            let health = poller.call("GET", "/api/cluster/health").try_send().await.ok()?;
            let groups = poller.call("GET", "/api/cluster/groups").try_send().await.ok()?.json();
            let votes = |group: &Value| {
                let replicas = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
                replicas.len() == 3 && replicas.iter().all(|replica| replica["role"] == "voter")
            };
            let all_vote = groups["groups"].as_array()?.iter().all(votes);
            (health.status == 200 && health.json()["can_lose"] == 1 && all_vote).then_some(())
        })
        .await;
    }
}

/// What the tenants did is on the node, and they go on. At the end all replicas hold the same.
async fn check(cluster: &mut Cluster, tenants: &[Tenant], node: usize) {
    let client = cluster.client(node);
    for (number, tenant) in tenants.iter().enumerate() {
        let here = Tenant { id: tenant.id.clone(), client: client.clone() };
        let runs = here.get("/runs").await.expect(200);
        assert_eq!(runs["runs"][0]["output"]["a"], json!(number), "{runs:#}");
        here.finished(spec::inline([spec::set("b", 1)])).await;
    }
    for node in 0..3 {
        cluster.term(node).await;
    }
    for tenant in tenants {
        let [first, second, third] = [0, 1, 2].map(|node| {
            files::bytes(
                &files::tenant(&cluster.server(node).data(), &tenant.id).join("events.jsonl"),
            )
        });
        assert!(!first.is_empty() && first == second && first == third, "{}", tenant.id);
    }
}

/// Flips a bit of a file, at this part of its length.
fn rot(path: &Path, part: f64) {
    let mut bytes = files::bytes(path);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = (bytes.len() as f64 * part) as usize;
    bytes[at] ^= 1;
    files::write_bytes(path, &bytes);
}

#[tokio::test]
async fn a_node_without_its_control_planes_file_gets_it_from_the_leader() {
    let (mut cluster, tenants) = village(&[]).await;
    // The founder knew nobody when it made its identity.
    for (node, how) in [(0, "gone"), (1, "cut"), (2, "another file"), (1, "rotten"), (0, "older")] {
        let path = cluster.server(node).data().join("system.redb");
        let older = files::bytes(&path);
        let tenant = Tenant::create(&cluster.client(node), spec::unlimited()).await;
        tenant.delete("").await.expect(200);
        cluster.term(node).await;
        match how {
            "gone" => files::remove_file(&path),
            "cut" => files::write_bytes(&path, &files::bytes(&path)[..5000]),
            "rotten" => {
                let mut bytes = files::bytes(&path);
                bytes[4096..].fill(0xa5);
                files::write_bytes(&path, &bytes);
            }
            "older" => files::write_bytes(&path, &older),
            _ => files::write(&path, "this is no index"),
        }
        let began = Instant::now();
        cluster.restart(node).await;
        println!("{how}: node {node} was ready after {:?}", began.elapsed());
        let id = cluster.id(node).to_owned();
        let output = cluster.server(node).output();
        assert!(output.contains("the control plane is whole again"), "{how}: {output}");
        let aside = path.with_file_name("system.redb.damaged");
        assert_eq!(aside.exists(), how != "gone", "{how}");
        assert!(cluster.voters(node).await.is_some_and(|voters| voters.contains(&id)), "{how}");
        cluster.whole().await;
    }
    can_lose_one(&cluster).await;
    check(&mut cluster, &tenants, 0).await;
}

/// The leader of the cluster, too: another one leads before it asks.
#[tokio::test]
async fn all_nodes_may_start_at_once_while_one_has_no_control_plane() {
    let (mut cluster, tenants) = village(&[]).await;
    let leader = cluster.leader().await;
    for node in 0..3 {
        cluster.kill9(node);
    }
    files::remove_file(&cluster.server(leader).data().join("system.redb"));
    for node in 0..3 {
        cluster.relaunch(node);
    }
    cluster.whole().await;
    can_lose_one(&cluster).await;
    check(&mut cluster, &tenants, leader).await;
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let log = files::walk(&data.join("log")).into_iter().map(|(path, _)| path);
    log.filter(|path| path.extension().is_some_and(|it| it == "log")).collect()
}

/// Each time the node is another member afterwards, with the same address, and the old one is gone.
#[tokio::test]
async fn a_node_without_its_log_goes_on_as_another_member() {
    let (mut cluster, tenants) = village(&["--join-token", "a-secret-of-the-tests"]).await;
    for (node, how) in [(0, "gone"), (1, "rotten"), (2, "all but the identity")] {
        cluster.kill9(node);
        let data = cluster.server(node).data();
        match how {
            "gone" => files::remove(&data.join("log")),
            "rotten" => rot(&segments(&data)[0], 0.3),
            _ => {
                files::remove(&data.join("log"));
                files::remove(&data.join("tenants"));
                files::remove_file(&data.join("system.redb"));
            }
        }
        let (old, began) = (cluster.id(node).to_owned(), Instant::now());
        cluster.restart(node).await;
        println!("{how}: node {node} was ready after {:?}", began.elapsed());
        cluster.learn_id(node);
        let new = cluster.id(node).to_owned();
        assert_ne!(new, old, "{how}");
        can_lose_one(&cluster).await;
        println!("{how}: whole after {:?}", began.elapsed());
        let statuses = cluster.statuses(node).await.expect("they are listed");
        assert!(statuses.len() == 3 && statuses.contains_key(&new), "{how}: {statuses:?}");
        cluster.whole().await;
        let names = files::names(&data);
        let folders = names.iter().filter(|name| name.starts_with("replaced-")).count();
        assert_eq!(folders, 1, "{how}");
    }
    check(&mut cluster, &tenants, 0).await;
}

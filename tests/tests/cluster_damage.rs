//! Files of tenants on one of three nodes that are damaged, or well-formed and others than they should be:
//! the node gets what they held from the others.

use std::path::Path;

use tests::cluster_chaos::replicas_agree;
use tests::{Client, Cluster, Tenant, eventually, files, spec};

/// Stands in a run's output, and so in rows and events, and nowhere else.
const MARK: &str = "ZZZZ-a-mark-ZZZZ";

/// Flips a bit of every place where the mark stands.
fn rot(path: &Path) {
    let mut bytes = files::bytes(path);
    let is_mark = |at: &usize| bytes[*at..].starts_with(MARK.as_bytes());
    let places: Vec<usize> = (0..bytes.len()).filter(is_mark).collect();
    assert!(!places.is_empty(), "no mark in {path:?}");
    places.into_iter().for_each(|at| bytes[at] ^= 1);
    files::write_bytes(path, &bytes);
}

/// The value of a counter or gauge without labels.
async fn metric(client: &Client, name: &str) -> Option<u64> {
    let reply = client.get("/metrics").await;
    let text = String::from_utf8(reply.body.to_vec()).expect("text");
    let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
    line.split(' ').nth(1)?.parse().ok()
}

/// Nobody asks for these tenants on the node that is damaged: it finds the damage by itself.
#[tokio::test]
async fn damaged_tenants_are_rebuilt_from_the_other_replicas() {
    let mut cluster = Cluster::of(3, &[]).await;
    let client = cluster.client(0);
    let mut tenants = Vec::new();
    for _ in 0..5 {
        let tenant = Tenant::create(&client, spec::unlimited()).await;
        tenant.finished(spec::inline([spec::set("a", MARK)])).await;
        tenants.push(tenant);
    }
    let damaged = cluster.followers().await[0];
    // In order, so that everything is in the files and not in the log alone.
    cluster.term(damaged).await;
    let data = cluster.server(damaged).data();
    let folders: Vec<_> = tenants.iter().map(|tenant| files::tenant(&data, &tenant.id)).collect();
    let events = files::bytes(&folders[0].join("events.jsonl"));
    files::remove(&folders[0]);
    files::remove_file(&folders[1].join("index.redb"));
    files::write_bytes(&folders[2].join("events.jsonl"), &[]);
    rot(&folders[3].join("index.redb"));
    rot(&folders[4].join("events.jsonl"));
    cluster.restart(damaged).await;

    let client = cluster.client(damaged);
    eventually("all of them are whole again", async || {
        let rebuilt = metric(&client, "shiioo_tenants_rebuilt_total").await?;
        let out = metric(&client, "shiioo_tenants_quarantined").await?;
        (rebuilt == tenants.len() as u64 && out == 0).then_some(())
    })
    .await;
    assert_eq!(files::bytes(&folders[0].join("events.jsonl")), events);
    // They go on together, and the events that nobody could read any more are the same again.
    let whole: Vec<usize> = (0..3).filter(|node| *node != damaged).collect();
    for tenant in &tenants {
        tenant.finished(spec::inline([spec::set("b", 2)])).await;
    }
    replicas_agree(&cluster).await;
    for node in 0..3 {
        cluster.term(node).await;
    }
    for (tenant, folder) in tenants.iter().zip(&folders) {
        let there = files::tenant(&cluster.server(whole[0]).data(), &tenant.id);
        let [here, there] = [folder, &there].map(|at| files::bytes(&at.join("events.jsonl")));
        assert!(!here.is_empty() && here == there, "the events of {}", tenant.id);
    }
}

/// Another text of the same length, as if the replica had applied something else.
const FORGED: &str = "ZZZZ-a-lies-ZZZZ";

/// Tenants enough that one node leads the groups of some of them, and others those of the rest.
const TENANTS: usize = 12;

/// How often the nodes are started anew at most, until the node whose events are others has been the leader of
/// some tenants and a follower of others.
const STARTS_MAX: usize = 6;

/// Each group elects its leader by chance. The leader of a tenant finds that a follower's events are others,
/// and that its own are; it is rebuilt in both cases, and no other replica is ever out of service.
#[tokio::test]
async fn a_replica_that_differs_from_two_is_rebuilt_whoever_leads() {
    let mut cluster = Cluster::of(3, &[]).await;
    let mut tenants = Vec::new();
    for _ in 0..TENANTS {
        let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
        tenant.finished(spec::inline([spec::set("a", MARK)])).await;
        tenants.push(tenant);
    }
    let (mut by_itself, mut by_others) = (0, 0);
    for _ in 0..STARTS_MAX {
        for node in 0..3 {
            cluster.term(node).await;
        }
        let data = cluster.server(2).data();
        for tenant in &tenants {
            let events = files::tenant(&data, &tenant.id).join("events.jsonl");
            files::forge_events(&events, MARK, FORGED);
        }
        for node in 0..3 {
            cluster.relaunch(node);
        }
        let [first, second, odd] = [0, 1, 2].map(|node| cluster.client(node));
        cluster.whole().await;
        eventually("the replicas that differ are rebuilt", async || {
            for other in [&first, &second] {
                assert_eq!(metric(other, "shiioo_tenants_quarantined").await, Some(0));
                assert_eq!(metric(other, "shiioo_tenants_rebuilt_total").await, Some(0));
            }
            let rebuilt = metric(&odd, "shiioo_tenants_rebuilt_total").await?;
            let out = metric(&odd, "shiioo_tenants_quarantined").await?;
            (rebuilt == TENANTS as u64 && out == 0).then_some(())
        })
        .await;
        let found = async |client| metric(client, "shiioo_replicas_differ_total").await.unwrap();
        by_itself += found(&odd).await;
        by_others += found(&first).await + found(&second).await;
        if by_itself > 0 && by_others > 0 {
            break;
        }
    }
    assert!(by_itself > 0 && by_others > 0, "found: {by_itself} by itself, {by_others} by others");
    for node in 0..3 {
        cluster.term(node).await;
    }
    for tenant in &tenants {
        let [first, second, odd] = [0, 1, 2].map(|node| {
            let folder = files::tenant(&cluster.server(node).data(), &tenant.id);
            files::read(&folder.join("events.jsonl"))
        });
        assert!(first.contains(MARK) && !first.contains(FORGED), "{first}");
        assert!(first == second && first == odd, "the events of {}", tenant.id);
    }
}

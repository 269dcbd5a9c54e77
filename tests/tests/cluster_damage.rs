//! Damaged files of tenants on one of three nodes: the node gets what they held from the others.

use std::path::Path;

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
    for node in 0..3 {
        cluster.term(node).await;
    }
    for (tenant, folder) in tenants.iter().zip(&folders) {
        let there = files::tenant(&cluster.server(whole[0]).data(), &tenant.id);
        let [here, there] = [folder, &there].map(|at| files::bytes(&at.join("events.jsonl")));
        assert!(!here.is_empty() && here == there, "the events of {}", tenant.id);
    }
}

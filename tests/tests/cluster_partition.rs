//! Networks that fail in part, each node in a network namespace of its own. Skipped, with a line
//! that says so, where namespaces are not permitted.

use std::time::Duration;

use tests::{Cluster, Network, Observer, eventually, pause};
use tokio::time::Instant;

/// So short that a refusal comes before anybody loses patience.
const ARGS: [&str; 2] = ["--request-timeout", "1s"];
/// What is promised is two election timeouts; the machine may be busy.
const UNLED_MAX: Duration = Duration::from_secs(10);

/// A cluster in a network of its own; none, with a line that says so, where that is not permitted.
async fn cluster_of(nodes: usize) -> Option<(Network, Cluster)> {
    match Network::of(nodes) {
        Ok(network) => {
            let cluster = Cluster::within(&network, nodes, &ARGS).await;
            Some((network, cluster))
        }
        Err(error) => {
            println!("SKIPPED: no network namespaces here: {error}");
            None
        }
    }
}

/// These must stop naming a leader, and acknowledge nothing from then on; all others go on.
async fn are_silenced(cluster: &Cluster, observer: &mut Observer, these: &[usize]) {
    let began = Instant::now();
    for node in these {
        eventually(&format!("node {node} names no leader"), async || {
            cluster.lead(*node).await?.leader.is_none().then_some(())
        })
        .await;
    }
    let took = began.elapsed();
    println!("{these:?} name no leader after {took:?}");
    assert!(took <= UNLED_MAX, "{took:?}");
    let before: Vec<_> = these.iter().map(|node| observer.written(*node)).collect();
    pause(Duration::from_millis(1500)).await;
    let after: Vec<_> = these.iter().map(|node| observer.written(*node)).collect();
    assert_eq!(before, after, "a minority acknowledged a write");
    for node in these {
        let client = cluster.client(*node);
        eventually(&format!("node {node} is not ready"), async || {
            (client.get("/readyz").await.status == 503).then_some(())
        })
        .await;
        assert_eq!(client.get("/healthz").await.status, 200);
    }
    for node in (0..cluster.len()).filter(|node| !these.contains(node)) {
        observer.serves(node).await;
    }
}

/// All is well again, and what was acknowledged is there.
async fn heals(network: &Network, cluster: &mut Cluster, mut observer: Observer) {
    network.heal();
    let began = Instant::now();
    cluster.whole().await;
    for node in 0..cluster.len() {
        observer.serves(node).await;
    }
    println!("whole {:?} after the network was healed", began.elapsed());
    observer.end(cluster).await;
}

#[tokio::test]
async fn a_leader_is_cut_off() {
    let Some((network, mut cluster)) = cluster_of(3).await else { return };
    for _ in 0..2 {
        let mut observer = Observer::of(&cluster);
        let old = cluster.leader().await;
        observer.serves(old).await;
        network.cut_off(&[old]);
        are_silenced(&cluster, &mut observer, &[old]).await;
        heals(&network, &mut cluster, observer).await;
    }
}

#[tokio::test]
async fn a_follower_is_cut_off_and_deposes_nobody() {
    /// A busy machine may depose a leader as well, but not each time.
    const ROUNDS_MAX: usize = 3;
    let Some((network, mut cluster)) = cluster_of(3).await else { return };
    for _ in 0..ROUNDS_MAX {
        let mut observer = Observer::of(&cluster);
        let before = cluster.await_leader(&[]).await;
        let alone = (before.0 + 1) % 3;
        network.cut_off(&[alone]);
        are_silenced(&cluster, &mut observer, &[alone]).await;
        heals(&network, &mut cluster, observer).await;
        if cluster.await_leader(&[]).await == before {
            return;
        }
    }
    panic!("the leader stepped down in each of {ROUNDS_MAX} rounds");
}

#[tokio::test]
async fn five_nodes_part_into_two_and_three() {
    let Some((network, mut cluster)) = cluster_of(5).await else { return };
    for with_leader in [true, false] {
        let mut observer = Observer::of(&cluster);
        let leader = cluster.leader().await;
        let first = if with_leader { leader } else { (leader + 1) % 5 };
        let minority = [first, if with_leader { (leader + 1) % 5 } else { (leader + 2) % 5 }];
        network.cut_off(&minority);
        are_silenced(&cluster, &mut observer, &minority).await;
        heals(&network, &mut cluster, observer).await;
    }
}

/// Cuts the links between the leader and all others in one way: another one leads.
async fn a_leader_is_deaf_or_mute(cut: fn(&Network, usize, usize)) {
    let Some((network, mut cluster)) = cluster_of(3).await else { return };
    let mut observer = Observer::of(&cluster);
    let old = cluster.leader().await;
    for other in (0..3).filter(|other| *other != old) {
        cut(&network, old, other);
    }
    are_silenced(&cluster, &mut observer, &[old]).await;
    heals(&network, &mut cluster, observer).await;
}

#[tokio::test]
async fn a_leader_that_is_not_heard_is_replaced() {
    a_leader_is_deaf_or_mute(|network, old, other| network.cut_one_way(old, other)).await;
}

#[tokio::test]
async fn a_leader_that_hears_nobody_is_replaced() {
    a_leader_is_deaf_or_mute(|network, old, other| network.cut_one_way(other, old)).await;
}

#[tokio::test]
async fn two_that_meet_over_a_third_only_do_not_fight() {
    /// A leader may change hands once or twice until somebody whom all hear leads.
    const TERMS_MAX: u64 = 3;
    let Some((network, mut cluster)) = cluster_of(3).await else { return };
    let mut observer = Observer::of(&cluster);
    let (leader, before) = cluster.await_leader(&[]).await;
    let (bridge, far) = ((leader + 1) % 3, (leader + 2) % 3);
    network.cut(leader, far);
    eventually("the bridge sees that one is reached by some only", async || {
        let statuses = cluster.statuses(bridge).await?;
        statuses.values().any(|status| status == "Degraded").then_some(())
    })
    .await;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        observer.serves(bridge).await;
    }
    let after = observer.term();
    let far = observer.written(far);
    println!("term {before} before, {after} after 3 s; the far side acknowledged {far} in all");
    assert!(after <= before + TERMS_MAX, "leaders fight: term {before} -> {after}");
    heals(&network, &mut cluster, observer).await;
}

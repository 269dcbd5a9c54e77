//! Tenants on three nodes: whichever node dies, the others go on with their runs.

use std::time::Duration;

use serde_json::Value;
use tests::{Cluster, Tenant, eventually, eventually_within, files, spec};

/// The place of the node that leads the tenant's group, as the node at `asked` knows it.
async fn home(cluster: &Cluster, asked: usize, tenant: &Tenant) -> Option<usize> {
    let shown = cluster.client(asked).get(&tenant.path("")).await;
    let leader = shown.json()["placement"]["leader"].as_str()?.to_owned();
    Some(cluster.place_of(&leader))
}

#[tokio::test]
async fn a_run_goes_on_when_the_node_dies_that_performs_it() {
    let mut cluster = Cluster::of(3, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    eventually("a node can be lost", async || {
        let health = cluster.client(0).get("/api/cluster/health").await.expect(200);
        (health["can_lose"] == 1).then_some(())
    })
    .await;
    let run = tenant.start(spec::inline([spec::wait("w", 3.0), spec::set("done", 1)])).await;
    let home = eventually("a leader", async || home(&cluster, 0, &tenant).await).await;
    cluster.kill9(home);
    let other = (home + 1) % 3;
    let path = tenant.path(&format!("/runs/{run}"));
    let ended: Value = eventually("the run ends elsewhere", async || {
        let run = cluster.client(other).get(&path).await;
        (run.status == 200 && run.json()["status"] == "completed").then(|| run.json())
    })
    .await;
    assert_eq!(ended["id"], run.as_str());
}

#[tokio::test]
async fn groups_without_a_quorum_say_so() {
    let mut cluster = Cluster::of(3, &[]).await;
    let statuses = async |cluster: &Cluster| {
        let groups = cluster.client(0).get("/api/cluster/groups").await.expect(200);
        let groups = groups["groups"].as_array().expect("groups").clone();
        groups.iter().map(|group| group["status"].clone()).collect::<Vec<_>>()
    };
    let work = async |cluster: &Cluster| (statuses(cluster).await == ["ok"; 9]).then_some(());
    eventually("every group works", async || work(&cluster).await).await;
    cluster.kill9(1);
    cluster.kill9(2);
    eventually("every group lacks its quorum", async || {
        (statuses(&cluster).await == ["no_quorum"; 9]).then_some(())
    })
    .await;
    cluster.relaunch(1);
    eventually("every group works again", async || work(&cluster).await).await;
}

/// The fourth node takes over replicas of some groups. Those who had them before let go of the files, or
/// each disk would fill with what others have.
#[tokio::test]
async fn a_node_that_joins_takes_its_share_and_the_others_let_go_of_it() {
    /// Groups move one after another, and files go 10 s after the last move.
    const SETTLED_WITHIN: Duration = Duration::from_secs(90);
    let mut cluster = Cluster::of(3, &[]).await;
    let mut tenants = Vec::new();
    for _ in 0..16 {
        let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
        tenant.finished(spec::inline([spec::set("a", 1)])).await;
        tenants.push(tenant);
    }
    let launch = cluster.next_launch(&[]);
    let fourth = cluster.admit(launch).await;
    let data: Vec<_> = (0..4).map(|node| cluster.server(node).data()).collect();
    let holders = |tenant: &Tenant| -> Vec<usize> {
        let has =
            |node: &usize| files::tenant(&data[*node], &tenant.id).join("index.redb").exists();
        (0..4).filter(has).collect()
    };
    let settled = "each tenant is on three nodes, and the fourth has its share";
    eventually_within(SETTLED_WITHIN, settled, async || {
        let all: Vec<Vec<usize>> = tenants.iter().map(holders).collect();
        let is_settled = all.iter().all(|holders| holders.len() == 3);
        let share = all.iter().filter(|holders| holders.contains(&fourth)).count();
        (is_settled && share >= tenants.len() / 2).then_some(())
    })
    .await;
    for tenant in &tenants {
        tenant.finished(spec::inline([spec::set("b", 2)])).await;
    }
}

//! A member is who its certificate says, wherever it is, and one process at a time.

use std::path::Path;

use serde_json::{Value, json};
use tests::{Cluster, Ports, eventually, files};

async fn listed(cluster: &Cluster, at: usize, node: usize) -> Option<Value> {
    let reply = cluster.poller(at).call("GET", &cluster.path(node)).try_send().await.ok()?;
    (reply.status == 200).then(|| reply.json()["node_addr"].clone())
}

async fn can_write(cluster: &Cluster, at: usize, key: &str) {
    eventually("a lock is granted", async || {
        let (client, path) = (cluster.poller(at), format!("/api/locks/{key}/acquire"));
        let call = client.call("POST", &path).json(&json!({ "holder": "h" }));
        let reply = call.try_send().await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn members_that_all_moved_find_each_other_by_join() {
    let mut cluster = Cluster::of(2, &[]).await;
    // Both are told of the other; then only one.
    for told in [&[0, 1][..], &[1]] {
        for node in 0..2 {
            cluster.kill9(node);
            cluster.server(node).launch_mut().node_addr = Ports::free().node;
        }
        let addrs = [0, 1].map(|node| cluster.server(node).launch_mut().node_addr.to_string());
        for node in 0..2 {
            let launch = cluster.server(node).launch_mut();
            launch.args.clear();
            if told.contains(&node) {
                // Itself and a dead one among those named do no harm.
                let nobody = Ports::free().node;
                let join = format!("{},{nobody},{}", addrs[node], addrs[1 - node]);
                launch.args.extend(["--join".to_owned(), join]);
            }
            cluster.relaunch(node);
        }
        cluster.whole().await;
        for (at, node) in [(0, 1), (1, 0)] {
            let expected = json!(addrs[node]);
            eventually("the new address is listed", async || {
                (listed(&cluster, at, node).await? == expected).then_some(())
            })
            .await;
        }
        can_write(&cluster, 0, "after-the-move").await;
    }
}

#[tokio::test]
async fn of_a_copied_data_directory_the_later_process_is_the_member() {
    // The member stands still until the copy has taken its place: a copy that lacks what the member
    // has acknowledged since is another fault.
    let mut cluster = Cluster::of(2, &["--election-timeout=2s"]).await;
    let original = 1;
    let mut copied = cluster.next_launch(&[]);
    let data = cluster.server(original).data();
    cluster.stop(original);
    let state = format!("/proc/{}/stat", cluster.server(original).pid());
    eventually("it stands still", async || {
        files::read(Path::new(&state)).contains(") T ").then_some(())
    })
    .await;
    files::copy(&data, &copied.folder.join("data"));
    let own_addr = cluster.node_addr(original);

    copied.args = cluster.server(original).launch_mut().args.clone();
    let mut later = copied.clone().start();
    later.await_ready().await.expect("the later one is the member");
    cluster.cont(original);
    let exit = cluster.ended(original).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    // It lacks by now what the copy has acknowledged; which of the two it is told first is chance.
    let said = ["another process with the identity of this node", "lacks entries that it had"];
    assert!(exit.output.contains("ERROR"), "{}", exit.output);
    assert!(said.iter().any(|said| exit.output.contains(said)), "{}", exit.output);
    let later_addr = later.node_json()["node_addr"].clone();
    eventually("it is listed", async || {
        (listed(&cluster, 0, original).await? == later_addr).then_some(())
    })
    .await;
    can_write(&cluster, 0, "with-the-copy").await;
    assert!(cluster.server(0).is_running(), "the other member goes on");

    // The directory that was in use last goes on where the first was, and no trace is left.
    later.kill9();
    let launch = cluster.server(original).launch_mut();
    launch.folder = copied.folder;
    cluster.restart(original).await;
    cluster.whole().await;
    eventually("the first address is listed again", async || {
        (listed(&cluster, 0, original).await? == json!(own_addr)).then_some(())
    })
    .await;
    can_write(&cluster, 0, "after-the-copy").await;
}

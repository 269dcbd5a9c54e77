//! Files that do not belong together, are missing, or have rotted: each is named, and never taken for
//! a beginning or for data.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Client, Cluster, Server, Tenant, eventually, files, spec};

/// It waits for the others for 20 s.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(60);
/// Stands in a run's output, and so in rows and events, and nowhere else.
const MARK: &str = "ZZZZ-a-mark-ZZZZ";

/// A node with a tenant that has one finished run, and a neighbour that has one, too.
async fn village() -> (Server, [Tenant; 2], String) {
    let server = Server::alone(&[]).await;
    let client = server.client();
    let tenants = [
        Tenant::create(&client, spec::unlimited()).await,
        Tenant::create(&client, spec::unlimited()).await,
    ];
    let run = tenants[0].finished(spec::inline([spec::set(MARK, MARK)])).await;
    tenants[1].finished(spec::inline([spec::set("a", 1)])).await;
    (server, tenants, run["id"].as_str().expect("an id").to_owned())
}

/// The tenants as clients of the node that has started again.
fn again(server: &Server, tenants: [Tenant; 2]) -> [Tenant; 2] {
    tenants.map(|tenant| Tenant { client: server.client(), ..tenant })
}

/// 503 with a reason that names no path, and which may be asked again.
fn assert_out_of_service(reply: &tests::Reply, words: &str) -> Value {
    let problem = reply.problem(503, "internal");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("quarantined") && detail.contains(words), "{detail}");
    assert!(!detail.contains('/'), "a path: {detail}");
    assert_eq!(problem["retryable"], true);
    problem
}

async fn assert_well(tenant: &Tenant) {
    assert_eq!(tenant.get("/runs").await.expect(200)["runs"].as_array().map(Vec::len), Some(1));
    assert_eq!(tenant.finished(spec::inline([spec::set("b", 2)])).await["status"], "completed");
}

/// Flips a bit of every place where the mark stands.
fn rot(path: &Path) {
    let mut bytes = files::bytes(path);
    let places: Vec<_> = bytes
        .windows(MARK.len())
        .enumerate()
        .filter(|(_, window)| *window == MARK.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "no mark in {path:?}");
    for at in places {
        bytes[at] ^= 1;
    }
    files::write_bytes(path, &bytes);
}

#[tokio::test]
async fn a_lone_node_without_its_log_refuses_to_start() {
    let (mut server, _, _) = village().await;
    server.kill9();
    files::remove(&server.data().join("log"));
    server.refuses(&["has lost its log", "no other node has a copy"]).await;
    assert!(!server.data().join("log").exists(), "none was begun");
    // Not even where nothing but its identity is left.
    files::remove(&server.data().join("tenants"));
    files::remove_file(&server.data().join("system.redb"));
    server.refuses(&["has lost its log"]).await;
}

/// Under its own id it must not vote, and nobody is there to let it in under another.
#[tokio::test]
async fn a_member_without_its_log_does_not_vote_where_the_others_are_no_quorum() {
    let mut cluster = Cluster::of(2, &[]).await;
    let follower = cluster.followers().await[0];
    cluster.kill9(follower);
    let server = cluster.server(follower);
    files::remove(&server.data().join("log"));
    server.relaunch();
    let exit = server.wait(GIVES_UP_WITHIN).await.expect("it ends");
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    let line = exit.error();
    let way_out = "stop it, run `shiioo recover --force` on its data directory";
    for words in ["this member has lost its log", "the other members could not go on", way_out] {
        assert!(line.contains(words), "no {words:?} in {line}");
    }
    assert!(!server.data().join("log").exists(), "none was begun");
}

/// The leader of the same term knows what the member had acknowledged.
#[tokio::test]
async fn a_member_on_an_older_copy_of_its_directory_is_refused_and_stops() {
    let mut cluster = Cluster::of(3, &[Cluster::STEADY]).await;
    let (leader, follower) = (cluster.leader().await, cluster.followers().await[0]);
    let kept = TempDir::new().expect("a temporary folder");
    cluster.kill9(follower);
    let data = cluster.server(follower).data();
    files::copy(&data, kept.path());
    cluster.restart(follower).await;
    for _ in 0..4 {
        is_served(&cluster.client(leader)).await;
    }
    let id = cluster.id(follower).to_owned();
    eventually("the follower has acknowledged everything", async || {
        let groups = cluster.client(leader).get("/api/cluster/groups").await.expect(200);
        let groups = groups["groups"].as_array()?.clone();
        let system = groups.iter().find(|group| group["id"] == 0)?;
        let replicas = system["replicas"].as_array()?;
        let own = replicas.iter().find(|replica| replica["node_id"] == id)?;
        (own["lag"] == 0).then_some(())
    })
    .await;
    cluster.kill9(follower);
    files::remove(&data);
    files::copy(kept.path(), &data);
    cluster.relaunch(follower);
    let exit = cluster.ended(follower).await;
    assert_eq!(exit.code, Some(1));
    assert!(exit.output.contains("remove its directory and join anew"), "{}", exit.output);
    // It takes nobody along.
    is_served(&cluster.client(leader)).await;
    assert_eq!(cluster.leader().await, leader);
}

/// Waits until a tenant is created. Its group may have been led by the member that is gone, and then has no leader
/// for as long as an election takes.
async fn is_served(client: &Client) {
    eventually("a tenant is created", async || {
        let reply = client.post("/api/tenants", json!({ "name": "Another" })).await;
        (reply.status == 201).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_log_of_another_node_is_refused() {
    let (mut server, _, _) = village().await;
    let (mut other, _, _) = village().await;
    server.term().await;
    other.term().await;
    let (own, foreign) = (server.data().join("log"), other.data().join("log"));
    files::remove(&own);
    files::rename(&foreign, &own);
    server.refuses(&["log", "another node"]).await;
}

/// Nobody else has what was in it: the file and the place are named, and nothing is changed.
#[tokio::test]
async fn a_lone_node_with_a_rotten_log_names_the_place() {
    let (mut server, _, _) = village().await;
    server.term().await;
    let log = files::walk(&server.data().join("log"));
    let segment = log
        .into_iter()
        .map(|(path, _)| path)
        .find(|path| path.extension().is_some_and(|extension| extension == "log"));
    let segment = segment.expect("a segment");
    let bytes = files::flip(&segment, |bytes| bytes.len() / 3);
    let words = ["log/0000000001.log is damaged at byte ", "put the log back from a copy"];
    server.refuses(&words).await;
    assert_eq!(files::bytes(&segment), bytes, "it was changed");
}

#[tokio::test]
async fn a_node_without_its_system_file_names_it() {
    let (mut server, _, _) = village().await;
    server.term().await;
    files::remove_file(&server.data().join("system.redb"));
    server.refuses(&["system.redb", "missing"]).await;
    let line = server.output();
    assert!(!line.contains("has removed this node"), "{line}");
}

#[tokio::test]
async fn a_system_file_of_another_node_or_from_before_is_refused() {
    let (mut server, _, _) = village().await;
    let (mut other, _, _) = village().await;
    server.term().await;
    other.term().await;
    let (own, foreign) = (server.data().join("system.redb"), other.data().join("system.redb"));
    let before = files::bytes(&own);
    server.restart().await;
    Tenant::create(&server.client(), spec::unlimited()).await;
    server.term().await;
    files::write_bytes(&own, &before);
    server.refuses(&["system.redb", "older"]).await;
    std::fs::copy(foreign, own).expect("put the other file there");
    server.refuses(&["system.redb", "another node"]).await;
}

#[tokio::test]
async fn a_log_from_before_is_refused() {
    let (mut server, _, _) = village().await;
    server.term().await;
    let (log, kept) = (server.data().join("log"), server.data().with_file_name("kept"));
    std::fs::create_dir(&kept).expect("make a folder");
    for (path, _) in files::walk(&log) {
        std::fs::copy(&path, kept.join(path.file_name().expect("a name"))).expect("copy");
    }
    server.restart().await;
    Tenant::create(&server.client(), spec::unlimited()).await;
    server.term().await;
    files::remove(&log);
    files::rename(&kept, &log);
    server.refuses(&["system.redb", "ahead of the log"]).await;
}

#[tokio::test]
async fn a_tenant_whose_folder_is_gone_is_out_of_service_alone() {
    let (mut server, tenants, _) = village().await;
    server.term().await;
    let own = files::tenant(&server.data(), &tenants[0].id);
    let kept = server.data().with_file_name("kept");
    files::rename(&own, &kept);
    server.restart().await;
    let [troubled, neighbour] = again(&server, tenants);
    assert_out_of_service(&troubled.get("/runs").await, "missing");
    assert_out_of_service(&troubled.put("", json!({ "name": "other" })).await, "missing");
    assert_out_of_service(&troubled.get("/runs").await, "missing");
    assert!(!own.exists(), "it was made anew");
    assert_eq!(troubled.get("").await.expect(200)["name"], "Test", "nothing was decided");
    assert_well(&neighbour).await;
    assert_eq!(server.client().get("/readyz").await.status, 200);
    // Put back, it is as it was.
    server.term().await;
    files::rename(&kept, &own);
    server.restart().await;
    let [troubled, _] = again(&server, [troubled, neighbour]);
    assert_well(&troubled).await;
}

#[tokio::test]
async fn a_deleted_tenants_folder_is_not_missed() {
    let (mut server, tenants, _) = village().await;
    tenants[0].delete("").await.expect(200);
    server.kill9();
    server.restart().await;
    let [gone, neighbour] = again(&server, tenants);
    gone.get("/runs").await.problem(404, "not_found");
    assert_well(&neighbour).await;
    let output = server.output();
    assert!(!output.contains("damaged"), "{output}");
}

#[tokio::test]
async fn a_rotten_row_takes_its_tenant_out_of_service_alone() {
    let (mut server, tenants, run) = village().await;
    server.term().await;
    rot(&files::tenant(&server.data(), &tenants[0].id).join("index.redb"));
    server.restart().await;
    let [troubled, neighbour] = again(&server, tenants);
    assert_out_of_service(&troubled.get(&format!("/runs/{run}")).await, "checksum");
    assert_out_of_service(&troubled.get("/runs").await, "checksum");
    assert_well(&neighbour).await;
    let output = server.output();
    assert!(output.contains(&troubled.id) && output.contains("damaged"), "{output}");
    // It can be deleted all the same.
    troubled.delete("").await.expect(200);
    assert!(!files::tenant(&server.data(), &troubled.id).exists());
    server.term().await;
    server.restart().await;
    let [gone, neighbour] = again(&server, [troubled, neighbour]);
    gone.get("/runs").await.problem(404, "not_found");
    neighbour.get("/runs").await.expect(200);
}

#[tokio::test]
async fn a_rotten_event_takes_its_tenant_out_of_service_alone() {
    let (mut server, tenants, run) = village().await;
    let events = tenants[0].events(&run).await;
    assert!(events.iter().all(|event| event.get("crc32").is_none()), "{events:#?}");
    server.term().await;
    let path = files::tenant(&server.data(), &tenants[0].id).join("events.jsonl");
    let written = files::events(&path).expect("whole lines").expect("whole lines");
    assert!(written.iter().all(|event| event["crc32"].is_string()), "{written:#?}");
    rot(&path);
    server.restart().await;
    let [troubled, neighbour] = again(&server, tenants);
    let answer = troubled.get(&format!("/runs/{run}/events")).await;
    assert_out_of_service(&answer, "checksum");
    assert_out_of_service(&troubled.get("/runs").await, "checksum");
    assert_well(&neighbour).await;
}

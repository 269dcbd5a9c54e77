//! Nodes that become a cluster: joining, joining again, and answering alike.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::chaos::seed_or;
use tests::{
    Background, Client, Cluster, Exit, Launch, Ports, Server, Tenant, eventually, files, pause,
    spec,
};

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

fn ids(nodes: &Value) -> Vec<String> {
    let nodes = nodes["nodes"].as_array().expect("a list of nodes");
    nodes.iter().map(|node| node["id"].as_str().expect("an id").to_owned()).collect()
}

/// What each node answers to `path`, with what differs by right removed.
async fn answers(cluster: &Cluster, path: &str) -> Vec<Value> {
    let mut answers = Vec::new();
    for node in cluster.running() {
        let mut answer = cluster.client(node).get(path).await.expect(200);
        forget(&mut answer, "last_heartbeat");
        answers.push(answer);
    }
    answers
}

fn forget(value: &mut Value, field: &str) {
    match value {
        Value::Object(fields) => {
            fields.remove(field);
            fields.values_mut().for_each(|value| forget(value, field));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| forget(item, field)),
        _ => {}
    }
}

#[tokio::test]
async fn three_nodes_answer_alike_and_any_of_them_takes_everything() {
    let cluster = Cluster::of(3, &[Cluster::STEADY]).await;
    let leader = cluster.leader().await;
    let mut tenants = Vec::new();
    for node in 0..3 {
        let client = cluster.client(node);
        let tenant = Tenant::create(&client, spec::unlimited()).await;
        let run = tenant.finished(spec::inline([spec::set("a", node)])).await;
        assert_eq!(run["output"]["a"], node, "a run asked of node {node}");
        let lock = json!({ "holder": format!("holder-{node}"), "ttl_secs": 300 });
        let path = format!("/api/locks/key-{node}/acquire");
        assert_eq!(client.post(&path, lock).await.expect(200)["acquired"], true);
        tenants.push((tenant.id, run));
    }
    for path in [
        "/api/cluster/nodes",
        "/api/cluster/leader",
        "/api/cluster/health",
        "/api/tenants",
        "/api/locks",
    ] {
        // A status may change under the reads, but not for long.
        eventually(&format!("all say the same of {path}"), async || {
            let answers = answers(&cluster, path).await;
            answers.iter().all(|answer| *answer == answers[0]).then_some(())
        })
        .await;
    }
    for node in 0..3 {
        let client = cluster.client(node);
        let nodes = client.get("/api/cluster/nodes").await.expect(200);
        assert_eq!(ids(&nodes).len(), 3, "{nodes:#}");
        for listed in nodes["nodes"].as_array().expect("a list") {
            let place = cluster.place_of(listed["id"].as_str().expect("an id"));
            let role = if place == leader { "Leader" } else { "Follower" };
            assert_eq!((&listed["role"], &listed["status"]), (&json!(role), &json!("Healthy")));
            assert_eq!(listed["metadata"]["place"], place.to_string());
            assert_eq!(listed["node_addr"], cluster.node_addr(place));
            let api = cluster.client(place).addr().to_string();
            assert!(listed["address"].as_str().is_some_and(|at| at.contains(&api)), "{listed:#}");
        }
        let health = client.get("/api/cluster/health").await.expect(200);
        let expected = json!({ "total_nodes": 3, "healthy_nodes": 3, "has_leader": true,
            "leader_id": cluster.id(leader), "voters": 3, "quorum": 2, "can_lose": 1 });
        assert_eq!(health, expected);
        for (tenant, run) in &tenants {
            let id = run["id"].as_str().expect("an id");
            let path = format!("/api/tenants/{tenant}/runs/{id}");
            assert_eq!(&client.get(&path).await.expect(200), run, "read at node {node}");
        }
        let held = client.get("/api/locks/key-0").await.expect(200);
        assert_eq!(held["holder"], "holder-0");
    }
    // Node ids and locks mean the same at each: what one grants another refuses and ends.
    let holder = json!({ "holder": "other" });
    let refused = cluster.client(1).post("/api/locks/key-0/acquire", holder).await.expect(200);
    assert_eq!(refused["acquired"], false);
    let holder = json!({ "holder": "holder-0" });
    let released = cluster.client(2).post("/api/locks/key-0/release", holder).await.expect(200);
    assert_eq!(released["released"], true);
    cluster.client(0).get("/api/locks/key-0").await.problem(404, "not_found");
}

/// Starts the program as a person would, in one folder for all, and waits for its banner.
struct Trial {
    server: Background,
    data: PathBuf,
}

impl Trial {
    async fn start(folder: &Path, data: &str, args: &[&str]) -> Self {
        let server = Background::start(folder, &format!("trial-{data}.log"), args);
        let mut trial = Self { server, data: folder.join(data) };
        eventually(&format!("{data}/node.json"), async || {
            assert!(trial.server.is_running(), "{}", trial.server.output());
            // The banner comes last: once the node votes.
            let is_ready = trial.server.output().contains("to join it");
            (is_ready && trial.data.join("node.json").exists()).then_some(())
        })
        .await;
        trial
    }

    fn node_json(&self) -> Value {
        let text = files::read(&self.data.join("node.json"));
        serde_json::from_str(&text).expect("node.json")
    }
}

#[tokio::test]
async fn a_trial_needs_no_flag_but_join() {
    let folder = folder();
    let ports = Ports::free();
    let (api, node) = (ports.api.to_string(), ports.node.to_string());
    let first = ["--api-addr", &api, "--node-addr", &node];
    let first = Trial::start(folder.path(), "data", &first).await;
    let command = format!("--join {node}");
    assert!(first.server.output().contains(&command), "{}", first.server.output());
    // The defaults are taken, by us or by others.
    let _taken = Ports::taken(3000, 7400);
    let mut trials = vec![first];
    for data in ["data-2", "data-3"] {
        let trial = Trial::start(folder.path(), data, &["--join", &node]).await;
        let (told, output) = (trial.node_json(), trial.server.output());
        let port = |name: &str| {
            let addr = told[name].as_str().and_then(|addr| addr.parse().ok());
            let addr: SocketAddr = addr.unwrap_or_else(|| panic!("{told:#}"));
            assert!(addr.ip().is_loopback(), "{addr}");
            addr.port()
        };
        assert!((3001..3064).contains(&port("api_addr")), "{told:#}");
        assert!((7401..7464).contains(&port("node_addr")), "{told:#}");
        for part in [data, told["api_addr"].as_str().unwrap_or("?"), "taken"] {
            assert!(output.contains(part), "the banner tells {part}:\n{output}");
        }
        trials.push(trial);
    }
    let client = Client::new(ports.api);
    let nodes = client.get("/api/cluster/nodes").await.expect(200);
    let mut listed = ids(&nodes);
    listed.sort();
    let mut told: Vec<_> =
        trials.iter().map(|trial| trial.node_json()["node_id"].clone()).collect();
    told.sort_by_key(Value::to_string);
    assert_eq!(json!(listed), json!(told));
}

#[tokio::test]
async fn a_member_comes_back_by_itself_and_under_its_own_name() {
    let mut cluster = Cluster::of(3, &[]).await;
    let before = cluster.id(1).to_owned();
    cluster.kill9(1);
    cluster.restart(1).await;
    assert_eq!(cluster.server(1).node_json()["node_id"], before);
    cluster.whole().await;
    // Told to join once more, by everybody and itself, it does not.
    cluster.kill9(2);
    let all = [0, 1].map(|node| cluster.node_addr(node)).join(",");
    let own = cluster.server(2).launch_mut().node_addr;
    let launch = cluster.server(2).launch_mut();
    launch.args.extend(["--join".to_owned(), format!("{own},{all}")]);
    cluster.restart(2).await;
    cluster.whole().await;
    let nodes = cluster.client(0).get("/api/cluster/nodes").await.expect(200);
    assert_eq!(ids(&nodes).len(), 3, "{nodes:#}");
}

#[tokio::test]
async fn any_member_lets_in_and_the_dead_among_those_named_do_no_harm() {
    let mut cluster = Cluster::of(2, &[]).await;
    let nobody = Ports::free().node.to_string();
    let mut launch = cluster.next_launch(&[]);
    let joins = [launch.node_addr.to_string(), nobody, cluster.node_addr(1)].join(",");
    launch.args.extend(["--join".to_owned(), joins]);
    let third = cluster.add(launch).await;
    let id = cluster.id(third).to_owned();
    eventually("the third votes", async || cluster.voters(0).await?.contains(&id).then_some(()))
        .await;
    // The first node names itself, as every line of a deployment may be the same.
    let own = cluster.node_addr(0);
    cluster.kill9(0);
    cluster.server(0).launch_mut().args.extend(["--join".to_owned(), own]);
    cluster.restart(0).await;
    cluster.whole().await;
}

#[tokio::test]
async fn a_first_node_that_names_only_itself_founds_a_cluster() {
    let folder = folder();
    let ports = Ports::free();
    let args = vec!["--join".to_owned(), ports.node.to_string()];
    let mut launch = Launch::anywhere(folder.path(), args);
    (launch.api_addr, launch.node_addr) = (ports.api, ports.node);
    let mut server = launch.start();
    server.await_ready().await.expect("it founds a cluster");
    let leader = server.client().get("/api/cluster/leader").await.expect(200);
    assert_eq!(leader["leader"]["id"], server.node_json()["node_id"]);
}

#[tokio::test]
async fn a_joiner_killed_at_any_moment_joins_once() {
    const KILLS: u32 = 8;
    const SEED: u64 = 8;
    const JOIN_MS_MAX: u64 = 700;
    let mut cluster = Cluster::of(2, &[]).await;
    let launch = cluster.next_launch(&[]);
    let mut joiner = launch.clone();
    joiner.args.extend(["--join".to_owned(), cluster.node_addr(0)]);
    let seed = seed_or(SEED);
    let (mut rng, mut told) = (SmallRng::seed_from_u64(seed), Vec::new());
    for _ in 0..KILLS {
        let mut server = joiner.clone().start();
        let after = rng.random_range(0..JOIN_MS_MAX);
        told.push(after);
        pause(Duration::from_millis(after)).await;
        server.kill9();
    }
    println!("seed {seed}: killed after {told:?} ms");
    let place = cluster.add(launch).await;
    let own = cluster.id(place).to_owned();
    cluster.whole().await;
    let nodes = cluster.client(0).get("/api/cluster/nodes").await.expect(200);
    let listed = ids(&nodes);
    assert_eq!(listed.len(), 3, "{nodes:#}");
    assert!(listed.contains(&own), "{nodes:#}");
    let groups = cluster.client(0).get("/api/cluster/groups").await.expect(200);
    assert_eq!(groups["groups"][0]["replicas"].as_array().map(Vec::len), Some(3), "{groups:#}");
}

#[tokio::test]
async fn a_node_without_its_data_joins_as_a_new_one() {
    // A removal is answered once the node has left all groups.
    let mut cluster = Cluster::of(3, &["--request-timeout=30s"]).await;
    let victim = cluster.followers().await.into_iter().find(|node| *node != 0).expect("one");
    let old = cluster.id(victim).to_owned();
    cluster.kill9(victim);
    let launch = cluster.server(victim).launch_mut().clone();
    files::remove(&launch.folder.join("data"));
    let place = cluster.admit(launch).await;
    assert_ne!(cluster.id(place), old);
    let client = cluster.client(0);
    let nodes = client.get("/api/cluster/nodes").await.expect(200);
    assert!(ids(&nodes).contains(&cluster.id(place).to_owned()), "{nodes:#}");
    // A further voter beside a dead one would make the quorum larger, not safer: until its
    // predecessor is lost for good it has no vote, and neither says that it is ready.
    eventually("it is not ready", async || {
        (cluster.statuses(0).await?.get(cluster.id(place))? == "Degraded").then_some(())
    })
    .await;
    // Its predecessor is a dead member; whoever does not want to wait removes it.
    client.delete(&format!("/api/cluster/nodes/{old}")).await.expect(200);
    cluster.whole().await;
    let nodes = client.get("/api/cluster/nodes").await.expect(200);
    assert_eq!(ids(&nodes).len(), 3, "{nodes:#}");
}

#[tokio::test]
async fn a_stale_read_tells_how_far_this_node_is() {
    let server = Server::shared(&[]).await;
    for path in ["/api/locks", "/api/tenants", "/api/cluster/nodes"] {
        let stale = server.client().get(&format!("{path}?consistency=stale")).await;
        stale.expect(200);
        let index = stale.header("shiioo-applied-index").and_then(|index| index.parse().ok());
        assert!(index.is_some_and(|index: u64| index > 0), "{path}: {:?}", stale.headers);
    }
}

#[tokio::test]
async fn where_nobody_answers_the_start_goes_on_trying_and_stops_when_asked() {
    let folder = folder();
    let nobody = Ports::free().node.to_string();
    let args = vec!["--join".to_owned(), nobody];
    let mut server = Server::launch(folder.path(), args);
    eventually("it tells that it is not let in yet", async || {
        server.output().contains("not let in yet").then_some(())
    })
    .await;
    server.term().await;
    let data = folder.path().join("data");
    assert!(!data.join("node.json").exists() && !data.join("system.redb").exists());
    let exit = Exit::of(folder.path(), &["--join", "127.0.0.1"]).await;
    assert_eq!(exit.code, Some(2), "an address without a port:\n{}", exit.output);
}

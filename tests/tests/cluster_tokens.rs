//! Who is let in: secrets of one's own choice, and tokens that the cluster makes.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::chaos::seed_or;
use tests::{Client, Cluster, Exit, Launch, Ports, Server, eventually, files, pause};

const SECRET: &str = "a-secret-of-the-tests";

/// Starts a node that must be refused, and gives the line it ends with.
async fn refused(folder: &TempDir, at: &str, token: &[&str]) -> String {
    let free = ["--api-addr", "127.0.0.1:0", "--node-addr", "127.0.0.1:0", "--data-dir", "d"];
    let args: Vec<&str> = free.into_iter().chain(["--join", at]).chain(token.to_vec()).collect();
    let exit = Exit::of(folder.path(), &args).await;
    assert_eq!(exit.code, Some(1), "{token:?}:\n{}", exit.output);
    let errors: Vec<_> = exit.output.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one clear line:\n{}", exit.output);
    for noise in ["panicked", "RUST_BACKTRACE", SECRET] {
        assert!(!exit.output.contains(noise), "{}", exit.output);
    }
    let data = folder.path().join("d");
    for file in ["node.json", "system.redb", "identity/node.json"] {
        assert!(!data.join(file).exists(), "{file} of a node that was refused");
    }
    errors[0].to_owned()
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

/// What a refused node must not change.
async fn state(client: &Client) -> Value {
    let mut nodes = client.get("/api/cluster/nodes").await.expect(200);
    for node in nodes["nodes"].as_array_mut().expect("a list") {
        node["last_heartbeat"] = Value::Null;
    }
    json!([nodes, client.get("/api/cluster/join-tokens").await.expect(200)])
}

async fn token(client: &Client, body: Value) -> (String, String) {
    let made = client.post("/api/cluster/join-tokens", body).await.expect(201);
    let text = |field: &str| made[field].as_str().unwrap_or_else(|| panic!("{made:#}")).to_owned();
    (text("id"), text("token"))
}

async fn uses_left(client: &Client, id: &str) -> Option<u64> {
    let tokens = client.get("/api/cluster/join-tokens").await.expect(200);
    let tokens = tokens["join_tokens"].as_array().expect("a list").clone();
    tokens.iter().find(|token| token["id"] == id)?["uses_left"].as_u64()
}

#[tokio::test]
async fn a_cluster_with_a_secret_asks_for_it() {
    let mut cluster = Cluster::of(1, &["--join-token", SECRET]).await;
    let (client, at) = (cluster.client(0), cluster.node_addr(0));
    let before = state(&client).await;
    let (unasked, wrong) = (folder(), folder());
    let line = refused(&unasked, &at, &[]).await;
    assert!(line.contains("--join-token"), "{line}");
    refused(&wrong, &at, &["--join-token", "another-secret"]).await;
    let short = refused(&wrong, &at, &["--join-token", "short"]).await;
    assert!(short.contains("8"), "{short}");
    assert_eq!(state(&client).await, before);

    // Whoever was refused once may still come with the right one.
    let args = ["--join", &at, "--join-token", SECRET].map(str::to_owned);
    let launch = Launch::anywhere(wrong.path(), args.to_vec());
    let mut second = launch.start();
    second.await_ready().await.expect("the secret admits it");
    let id = second.node_json()["node_id"].as_str().expect("an id").to_owned();
    eventually("it votes", async || cluster.voters(0).await?.contains(&id).then_some(())).await;
    assert!(!second.output().contains(SECRET), "a secret is never logged");
    assert!(!cluster.server(0).output().contains(SECRET), "a secret is never logged");
}

#[tokio::test]
async fn a_secret_is_not_needed_again_at_a_restart() {
    let mut cluster = Cluster::of(3, &["--join-token", SECRET]).await;
    for node in 0..3 {
        cluster
            .server(node)
            .launch_mut()
            .args
            .retain(|arg| !arg.contains("token") && arg != SECRET);
        cluster.kill9(node);
        cluster.restart(node).await;
    }
    cluster.whole().await;
}

#[tokio::test]
async fn an_open_cluster_refuses_a_wrong_secret_all_the_same() {
    let cluster = Cluster::of(1, &[]).await;
    let (client, at) = (cluster.client(0), cluster.node_addr(0));
    let before = state(&client).await;
    refused(&folder(), &at, &["--join-token", SECRET]).await;
    assert_eq!(state(&client).await, before);
}

#[tokio::test]
async fn tokens_admit_as_often_as_they_say_and_no_longer() {
    let cluster = Cluster::of(1, &["--join-token", SECRET]).await;
    let (client, at) = (cluster.client(0), cluster.node_addr(0));
    let (id, used) = token(&client, json!({})).await;
    assert_eq!(uses_left(&client, &id).await, Some(1));
    let listed = client.get("/api/cluster/join-tokens").await.expect(200).to_string();
    assert!(!listed.contains(&used), "a token is shown once");
    let second = Server::alone(&["--join", &at, "--join-token", &used]).await;
    assert_eq!(uses_left(&client, &id).await.unwrap_or(0), 0);

    let (_, expired) = token(&client, json!({ "ttl_secs": 1 })).await;
    // Made on one node, known on every other.
    let (revoked_id, revoked) = token(&second.client(), json!({ "uses": 5 })).await;
    client.delete(&format!("/api/cluster/join-tokens/{revoked_id}")).await.expect(200);
    let gone = client.delete(&format!("/api/cluster/join-tokens/{revoked_id}")).await;
    gone.problem(404, "not_found");
    let (_, good) = token(&client, json!({ "uses": 2 })).await;
    let other = Cluster::of(1, &[]).await;
    let (_, foreign) = token(&other.client(0), json!({ "uses": 2 })).await;
    let secret_at = good.rfind('.').expect("a token has parts") + 1;
    let flipped = |at: usize| {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
        String::from_utf8(bytes).expect("text")
    };
    pause(Duration::from_millis(1100)).await;
    let before = state(&client).await;
    for (what, token) in [
        ("used up", used),
        ("expired", expired),
        ("revoked", revoked),
        ("of another cluster", foreign),
        ("cut short", good[..good.len() - 1].to_owned()),
        ("without its end", good[..secret_at].to_owned()),
        ("with another secret", flipped(secret_at)),
        ("with another id", flipped(secret_at - 2)),
        ("for another authority", flipped("SHK1.".len())),
        ("of a later kind", good.replace("SHK1", "SHK2")),
    ] {
        let line = refused(&folder(), &at, &["--join-token", &token]).await;
        println!("{what}: {line}");
        assert!(!line.contains(&token[token.len().saturating_sub(20)..]), "{what}: {line}");
    }
    assert_eq!(state(&client).await, before);
    let third = Server::alone(&["--join", &second.node_addr(), "--join-token", &good]).await;
    let nodes = client.get("/api/cluster/nodes").await.expect(200).to_string();
    let id = third.node_json()["node_id"].as_str().expect("an id").to_owned();
    assert!(nodes.contains(&id), "a follower lets in as well: {nodes}");
}

#[tokio::test]
async fn a_token_for_one_node_survives_that_nodes_deaths() {
    const KILLS: u32 = 5;
    const SEED: u64 = 5;
    const JOIN_MS_MAX: u64 = 700;
    let cluster = Cluster::of(1, &["--join-token", SECRET]).await;
    let (client, at) = (cluster.client(0), cluster.node_addr(0));
    let (id, token) = token(&client, json!({ "uses": 1 })).await;
    let folder = folder();
    let args = ["--join", &at, "--join-token", &token].map(str::to_owned);
    let seed = seed_or(SEED);
    let mut rng = SmallRng::seed_from_u64(seed);
    println!("seed {seed}");
    // It keeps its address: with one other voter nobody could agree on a new one.
    let mut launch = Launch::anywhere(folder.path(), args.to_vec());
    launch.node_addr = Ports::free().node;
    for _ in 0..KILLS {
        let mut server = launch.clone().start();
        pause(Duration::from_millis(rng.random_range(0..JOIN_MS_MAX))).await;
        server.kill9();
    }
    let mut server = launch.start();
    server.await_ready().await.expect("the one it was made for");
    assert_eq!(uses_left(&client, &id).await.unwrap_or(0), 0);
    let health = client.get("/api/cluster/health").await.expect(200);
    assert_eq!(health["total_nodes"], 2, "{health:#}");
}

#[tokio::test]
async fn a_secret_in_the_data_directory_of_a_refused_node_is_none() {
    let cluster = Cluster::of(1, &["--join-token", SECRET]).await;
    let folder = folder();
    refused(&folder, &cluster.node_addr(0), &["--join-token", "another-secret"]).await;
    for (file, _) in files::walk(folder.path()) {
        let text = String::from_utf8_lossy(&files::bytes(&file)).into_owned();
        assert!(!text.contains("another-secret"), "{file:?}");
    }
}

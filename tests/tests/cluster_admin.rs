//! The admin token belongs to the cluster, and no secret gets into a log.

use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{Client, Cluster, Exit, Server, Tenant, eventually, spec};

const ADMIN: &str = "an-admin-token-of-the-tests";
const OTHER: &str = "another-token-of-the-tests";

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

fn admin(server: &Server) -> Client {
    server.client().with_header("authorization", &format!("Bearer {ADMIN}"))
}

async fn join_token(client: &Client) -> String {
    let made = client.post("/api/cluster/join-tokens", json!({})).await.expect(201);
    made["token"].as_str().expect("a token").to_owned()
}

/// Starts a node that has to end by itself with one clear line, which is given.
async fn refused(folder: &TempDir, args: &[&str]) -> String {
    let free = ["--api-addr", "127.0.0.1:0", "--node-addr", "127.0.0.1:0", "--data-dir", "data"];
    let exit = Exit::of(folder.path(), &[&free[..], args].concat()).await;
    assert_eq!(exit.code, Some(1), "{args:?}:\n{}", exit.output);
    let errors: Vec<_> = exit.output.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one clear line:\n{}", exit.output);
    assert!(!exit.output.contains(ADMIN) && !exit.output.contains(OTHER), "{}", exit.output);
    errors[0].to_owned()
}

async fn is_guarded(server: &Server) {
    for (method, path) in [
        ("GET", "/api/tenants"),
        ("GET", "/api/cluster/health"),
        ("GET", "/metrics"),
        ("POST", "/api/cluster/leader/step-down"),
        ("POST", "/api/cluster/join-tokens"),
    ] {
        server.client().call(method, path).send().await.problem(401, "unauthorized");
    }
    admin(server).get("/api/tenants").await.expect(200);
}

#[tokio::test]
async fn every_node_asks_for_the_clusters_admin_token() {
    let first = Server::alone(&["--admin-token", ADMIN]).await;
    let at = first.node_addr();
    let line = refused(&folder(), &["--join", &at]).await;
    assert!(line.contains("--join-token"), "loopback is no credential: {line}");
    let nodes = admin(&first).get("/api/cluster/nodes").await.expect(200);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1), "{nodes:#}");

    // One that was started without it asks for it all the same, now and after a restart.
    let own = folder();
    let token = join_token(&admin(&first)).await;
    let mut second = Server::start(&own, &["--join", &at, "--join-token", &token]).await;
    is_guarded(&second).await;
    second.kill9();
    second.launch_mut().args.clear();
    second.restart().await;
    is_guarded(&second).await;
    is_guarded(&first).await;

    // One with another says so and does not start, new or known.
    let token = join_token(&admin(&second)).await;
    let args = ["--join", &at, "--join-token", &token, "--admin-token", OTHER];
    let line = refused(&folder(), &args).await;
    assert!(line.contains("--admin-token"), "{line}");
    second.term().await;
    let line = refused(&own, &["--admin-token", OTHER]).await;
    assert!(line.contains("--admin-token"), "{line}");
    second.launch_mut().args.extend(["--admin-token", ADMIN].map(str::to_owned));
    second.restart().await;
    is_guarded(&second).await;
}

#[tokio::test]
async fn a_cluster_without_a_token_takes_the_first_it_is_started_with() {
    let folder = folder();
    let mut server = Server::start(&folder, &[]).await;
    server.client().get("/api/tenants").await.expect(200);
    server.term().await;
    server.launch_mut().args.extend(["--admin-token", ADMIN].map(str::to_owned));
    server.restart().await;
    is_guarded(&server).await;
    server.kill9();
    server.launch_mut().args.clear();
    server.restart().await;
    is_guarded(&server).await;
}

#[tokio::test]
async fn no_level_of_the_log_shows_a_secret() {
    const HEADER: &str = "planted-header-of-a-step";
    const INPUT: &str = "planted-input-of-a-run";
    const METADATA: &str = "planted-metadata-of-a-lock";
    const SECRET: &str = "planted-join-secret";
    const LOG: [&str; 3] = ["--log", "trace,openraft=trace", Cluster::STEADY];
    let secrets = ["--admin-token", ADMIN, "--join-token", SECRET];
    let first = Server::alone(&[&LOG[..], &secrets].concat()).await;
    let at = first.node_addr();
    let client = admin(&first);
    let made = join_token(&client).await;
    let joins = ["--join", &at, "--join-token", &made];
    let second = Server::alone(&[&LOG[..], &joins].concat()).await;
    let tenant = Tenant::create(&client, spec::unlimited()).await;
    let action = json!({ "type": "http", "method": "GET",
        "url": format!("http://{}/healthz", first.addr()),
        "headers": { "Authorization": format!("Bearer {HEADER}") } });
    let steps = json!([{ "id": "a", "action": action }]);
    let run = json!({ "workflow": { "steps": steps }, "input": { "password": INPUT } });
    let path = format!("/api/tenants/{}/runs?wait_secs=50", tenant.id);
    let run = client.post(&path, run).await.expect(201);
    assert_eq!(run["status"], "completed", "{run:#}");
    let lock = json!({ "holder": "h", "metadata": { "note": METADATA } });
    admin(&second).post("/api/locks/k/acquire", lock).await.expect(200);
    eventually("entries are in the log", async || {
        first.output().contains("StartRun").then_some(())
    })
    .await;
    let secret = made.rsplit('.').next().expect("a secret").to_owned();
    for (server, name) in [(&first, "first"), (&second, "second")] {
        let output = server.output();
        for planted in [HEADER, INPUT, METADATA, SECRET, ADMIN, &secret] {
            let line = output.lines().find(|line| line.contains(planted));
            assert_eq!(line, None, "{planted} in the log of the {name} node");
        }
        let hashes = ["secret_hash: [", "secret_hash: Some([", "key: ["];
        assert!(
            !hashes.iter().any(|hash| output.contains(hash)),
            "a hash or key in the {name} log"
        );
    }
    assert_ne!(run["id"], Value::Null);
}

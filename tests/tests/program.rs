//! The program as such: flags, exit codes, signals, its files, its credentials.

use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tests::{Exit, Server, Tenant, eventually, files, raw, spec};
use tokio::time::Instant;

const FREE: &str = "127.0.0.1:0";

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

/// A failed start says why in one clear line, without a stack trace.
fn assert_clear(exit: &Exit, word: &str) {
    assert!(exit.output.to_lowercase().contains(word), "'{word}' in:\n{}", exit.output);
    for noise in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
        assert!(!exit.output.contains(noise), "{}", exit.output);
    }
}

#[tokio::test]
async fn bad_flags_exit_2() {
    let folder = folder();
    for args in [
        &["--no-such-flag"][..],
        &["--api-addr", "nonsense"],
        &["--node-addr", "127.0.0.1:99999"],
        &["--request-timeout", "soon"],
        &["--log-format", "xml"],
        &["--region", "Not A Region"],
        &["no-such-command"],
    ] {
        let exit = Exit::of(folder.path(), args).await;
        assert_eq!(exit.code, Some(2), "{args:?}:\n{}", exit.output);
        assert!(!exit.output.trim().is_empty(), "{args:?} is explained");
    }
    assert!(files::walk(folder.path()).len() <= 1, "nothing is left but the log of the test");
}

#[tokio::test]
async fn help_and_version_exit_0() {
    let folder = folder();
    let help = Exit::of(folder.path(), &["--help"]).await;
    assert_eq!(help.code, Some(0));
    for flag in ["--api-addr", "--node-addr", "--data-dir", "--join", "--admin-token", "--region"] {
        assert!(help.output.contains(flag), "{flag} in:\n{}", help.output);
    }
    assert!(!help.output.contains("--test-hooks"), "hooks are for tests");
    let version = Exit::of(folder.path(), &["--version"]).await;
    assert_eq!(version.code, Some(0));
    assert!(version.output.contains("shiioo"), "{}", version.output);
}

#[tokio::test]
async fn a_taken_port_exits_1_and_names_it() {
    let folder = folder();
    let taken = raw::taken_port();
    let addr = taken.local_addr().expect("its address").to_string();
    let args = ["--api-addr", &addr, "--node-addr", FREE, "--data-dir", "d"];
    let exit = Exit::of(folder.path(), &args).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    assert_clear(&exit, &addr);
}

#[tokio::test]
async fn a_locked_data_dir_exits_1_and_leaves_its_owner_alone() {
    let folder = folder();
    let server = Server::start(&folder, &[]).await;
    let data = server.data();
    let data = data.to_str().expect("a path");
    let before = server.node_json();
    let args = ["--api-addr", FREE, "--node-addr", FREE, "--data-dir", data];
    let exit = Exit::of(folder.path(), &args).await;
    assert_eq!(exit.code, Some(1), "{}", exit.output);
    assert_clear(&exit, "data");
    assert_eq!(server.node_json(), before);
    assert_eq!(server.client().get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_data_dir_that_cannot_be_one_exits_1() {
    let folder = folder();
    files::write(&folder.path().join("file"), "not a folder");
    for data in ["file", "file/below"] {
        let args = ["--api-addr", FREE, "--node-addr", FREE, "--data-dir", data];
        let exit = Exit::of(folder.path(), &args).await;
        assert_eq!(exit.code, Some(1), "{}", exit.output);
        assert_clear(&exit, "file");
    }
}

#[tokio::test]
async fn node_json_and_the_banner_describe_the_node() {
    let server = Server::alone(&[]).await;
    let node = server.node_json();
    assert!(node["node_id"].as_str().is_some_and(|id| id.starts_with("node-")), "{node:#}");
    assert_eq!(node["api_addr"], server.addr().to_string());
    assert!(node["node_addr"].as_str().is_some_and(|at| at.starts_with("127.0.0.1:")), "{node:#}");
    assert_ne!(node["node_addr"], "127.0.0.1:0");
    assert_eq!(node["pid"], server.pid());
    assert!(node["version"].is_string(), "{node:#}");
    let output = eventually("the banner", async || {
        let output = server.output();
        output.contains("to join it").then_some(output)
    })
    .await;
    for part in ["node_id", "api_addr", "node_addr", "version"] {
        let part = node[part].as_str().expect("text");
        assert!(output.contains(part), "{part} in the banner:\n{output}");
    }
}

#[tokio::test]
async fn sigterm_and_sigint_exit_0_within_ten_seconds() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut server = Server::alone(&[]).await;
        let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
        tenant.start(spec::inline([spec::wait("w", 600.0)])).await;
        // A long poll under way must not hold it up.
        let poll = tenant.start(spec::inline([spec::wait("w", 600.0)])).await;
        let waiting = tenant.clone();
        let poll = tokio::spawn(async move {
            let path = waiting.path(&format!("/runs/{poll}?wait_secs=50"));
            let _ = waiting.client.call("GET", &path).try_send().await;
        });
        let started = Instant::now();
        server.signal(signal);
        let exit = server.wait(Duration::from_secs(10)).await.expect("it ends in time");
        assert_eq!(exit.code, Some(0), "{}", exit.output);
        assert!(started.elapsed() < Duration::from_secs(10));
        assert!(!exit.output.contains("panicked"), "{}", exit.output);
        tokio::time::timeout(Duration::from_secs(5), poll).await.expect("answered").expect("done");
    }
}

#[tokio::test]
async fn the_files_of_a_data_dir_are_where_the_manual_says() {
    let mut server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    tenant.finished(spec::inline([spec::set("a", 1)])).await;
    let data = server.data();
    for file in ["node.json", "node.lock", "system.redb"] {
        assert!(data.join(file).is_file(), "{file}");
    }
    for folder in ["identity", "log", "tenants"] {
        assert!(data.join(folder).is_dir(), "{folder}");
    }
    server.term().await;
    let events = files::tenant(&data, &tenant.id).join("events.jsonl");
    let events = files::events(&events).expect("a valid log").expect("whole lines");
    assert!(events.len() >= 5, "{events:#?}");
}

#[tokio::test]
async fn the_environment_and_a_file_configure_it_and_unknown_keys_are_errors() {
    let folder = folder();
    let config = folder.path().join("own.toml");
    files::write(&config, "region = \"from-file\"\nunhealthy_after = \"7s\"\n");
    let path = config.to_str().expect("a path");
    let server = Server::start(&folder, &["--config", path]).await;
    let node = server.client().get("/api/cluster/nodes").await.expect(200);
    assert_eq!(node["nodes"][0]["region"], "from-file");
    drop(server);
    let other = TempDir::new().expect("a temporary folder");
    let server = Server::start(&other, &["--config", path, "--region", "from-flag"]).await;
    let node = server.client().get("/api/cluster/nodes").await.expect(200);
    assert_eq!(node["nodes"][0]["region"], "from-flag", "a flag beats the file");
    drop(server);
    files::write(&config, "regoin = \"typo\"\n");
    let args = ["--config", path, "--api-addr", FREE, "--node-addr", FREE, "--data-dir", "d"];
    let exit = Exit::of(folder.path(), &args).await;
    assert!(matches!(exit.code, Some(1 | 2)), "{}", exit.output);
    assert_clear(&exit, "regoin");
}

#[tokio::test]
async fn binding_wider_than_loopback_needs_a_credential() {
    let folder = folder();
    let open = ["--api-addr", "0.0.0.0:0", "--node-addr", FREE, "--data-dir", "d"];
    let exit = Exit::of(folder.path(), &open).await;
    assert!(matches!(exit.code, Some(1 | 2)), "{}", exit.output);
    assert_clear(&exit, "--admin-token");
    assert_clear(&exit, "--insecure");
}

#[tokio::test]
async fn an_admin_token_guards_everything_but_the_probes() {
    let server = Server::alone(&["--admin-token", "s3cret"]).await;
    let client = server.client();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(client.get(path).await.status, 200, "{path}");
    }
    let id = "00000000-0000-4000-8000-000000000000";
    let runs = format!("/api/tenants/{id}/runs");
    let guarded = ["/api/tenants", "/api/cluster/nodes", "/api/locks", "/metrics", &runs];
    for path in guarded.into_iter().chain(["/api/openapi.json", "/api/cluster/health"]) {
        let refused = client.get(path).await;
        refused.problem(401, "unauthorized");
        assert!(refused.header("www-authenticate").is_some(), "{refused}");
        for credential in ["Bearer wrong", "Bearer ", "Basic s3cret", "s3cret", "Bearer s3cret2"] {
            let call = client.call("GET", path).header("authorization", credential);
            call.send().await.problem(401, "unauthorized");
        }
    }
    let refused = client.post("/api/tenants", json!({ "name": "No" })).await;
    refused.problem(401, "unauthorized");
    let admin = client.with_header("authorization", "Bearer s3cret");
    let tenant = Tenant::create(&admin, spec::unlimited()).await;
    let run = tenant.finished(spec::inline([spec::set("a", 1)])).await;
    assert_eq!(run["status"], "completed");
    assert_eq!(admin.get("/metrics").await.status, 200);
    assert!(!server.output().contains("s3cret"), "a secret is never logged");
}

#[tokio::test]
async fn without_a_token_the_start_says_that_it_is_open_on_loopback() {
    let server = Server::alone(&[]).await;
    // The banner comes once the node is ready, which a probe may hear a moment before.
    eventually("the banner says so", async || {
        let output = server.output().to_lowercase();
        (output.contains("loopback") || output.contains("admin")).then_some(())
    })
    .await;
}

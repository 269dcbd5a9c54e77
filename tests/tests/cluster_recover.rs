//! Two of three nodes are lost for good, and the third goes on alone by force.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Cluster, Exit, Tenant, eventually, files, spec};

/// What a recovery raises fencing tokens by, at least.
const RAISED: u64 = 1 << 32;
const TENANTS: usize = 12;

async fn acquire(client: &Client, path: &str, holder: &str) -> Value {
    let body = json!({ "holder": holder, "ttl_secs": 3600 });
    client.post(&format!("{path}/acquire"), body).await.expect(200)
}

fn token(lock: &Value) -> u64 {
    lock["token"].as_u64().unwrap_or_else(|| panic!("no token: {lock:#}"))
}

/// Waits until the node has something in what it has applied itself.
async fn is_here(cluster: &Cluster, node: usize, path: &str, wanted: impl Fn(&Value) -> bool) {
    let path = format!("{path}?consistency=stale");
    eventually(&format!("{path} is on node {node}"), async || {
        let reply = cluster.poller(node).call("GET", &path).try_send().await.ok()?;
        (reply.status == 200 && wanted(&reply.json())).then_some(())
    })
    .await;
}

/// What was acknowledged before two nodes were lost.
struct Acknowledged {
    runs: Vec<(Tenant, String)>,
    waiting: String,
    of_cluster: u64,
    of_tenant: u64,
}

impl Acknowledged {
    /// Work on all of three nodes, and node 0 has all of it.
    async fn on(cluster: &Cluster) -> Self {
        let client = cluster.client(0);
        let mut runs = Vec::new();
        for number in 0..TENANTS {
            let tenant = Tenant::create(&client, spec::unlimited()).await;
            let run = tenant.finished(spec::inline([spec::set("a", number as u64)])).await;
            let run = run["id"].as_str().expect("an id").to_owned();
            is_here(cluster, 0, &tenant.path(&format!("/runs/{run}")), |run| {
                run["status"] == "completed"
            })
            .await;
            runs.push((tenant, run));
        }
        let first = &runs[0].0;
        let waiting = first.start(spec::inline([spec::wait("w", 5.0), spec::set("b", 1)])).await;
        let of_tenant = token(&acquire(&client, &first.path("/locks/l"), "me").await);
        let of_cluster = token(&acquire(&client, "/api/locks/l", "me").await);
        is_here(cluster, 0, &first.path("/locks/l"), |lock| lock["token"] == of_tenant).await;
        is_here(cluster, 0, "/api/locks/l", |lock| lock["token"] == of_cluster).await;
        Self { runs, waiting, of_cluster, of_tenant }
    }

    /// All of it is there, and locks have tokens that nobody was given before.
    async fn check(&self, client: &Client) {
        for (number, (tenant, run)) in self.runs.iter().enumerate() {
            let run = client.get(&tenant.path(&format!("/runs/{run}"))).await.expect(200);
            assert_eq!(run["output"]["a"], number, "{run:#}");
            let tenant = Tenant { id: tenant.id.clone(), client: client.clone() };
            tenant.finished(spec::inline([spec::set("again", 1)])).await;
        }
        let first = &self.runs[0].0;
        for (path, before) in
            [("/api/locks".to_owned(), self.of_cluster), (first.path("/locks"), self.of_tenant)]
        {
            let held = client.get(&format!("{path}/l")).await.expect(200);
            assert_eq!((&held["holder"], token(&held)), (&json!("me"), before + RAISED));
            let renew = json!({ "holder": "me", "token": before });
            client.post(&format!("{path}/l/renew"), renew).await.problem(409, "lock_lost");
            assert_eq!(token(&acquire(client, &format!("{path}/l"), "me").await), token(&held));
            let new = acquire(client, &format!("{path}/new"), "me").await;
            assert!(token(&new) > before + RAISED - 1, "{new:#}");
        }
        let tenant = Tenant { id: first.id.clone(), client: client.clone() };
        assert_eq!(tenant.ended(&self.waiting).await["output"]["b"], 1);
    }
}

async fn recover(data: &Path, flags: &[&str]) -> Exit {
    let folder = data.parent().expect("a folder");
    let data = data.to_str().expect("a path");
    Exit::of(folder, &[&["recover", "--data-dir", data], flags].concat()).await
}

/// Three nodes, two of which are lost with their data. Gives a copy of what node 1 had.
async fn lose_two(cluster: &mut Cluster) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    for node in 0..3 {
        cluster.kill9(node);
    }
    let copy = files::keep(&cluster.server(1).data());
    for lost in [1, 2] {
        files::remove(&cluster.server(lost).data());
    }
    copy
}

#[tokio::test]
async fn one_of_three_goes_on_alone_and_the_cluster_grows_again() {
    let mut cluster = Cluster::of(3, &[]).await;
    let acknowledged = Acknowledged::on(&cluster).await;
    lose_two(&mut cluster).await;
    let data = cluster.server(0).data();
    let done = recover(&data, &["--force"]).await;
    assert_eq!(done.code, Some(0), "{}", done.output);

    let reports = files::walk(&data).into_iter().map(|(path, _)| path);
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut reports = reports.filter(|path| name(path).starts_with("recovery-"));
    let report = reports.next().expect("a report");
    assert!(done.output.contains(&name(&report)), "{}", done.output);
    let report: Value = serde_json::from_str(&files::read(&report)).expect("JSON");
    let counts = json!({ "given_up": 2, "groups": 9, "lost_groups": 0, "tenants": TENANTS,
        "lost_tenants": 0, "unknown_tenants": 0 });
    assert_eq!(report["counts"], counts, "{report:#}");
    assert!(
        report["groups"]
            .as_array()
            .is_some_and(|groups| { groups.iter().all(|group| group["may_lack_entries"] == true) })
    );

    cluster.restart(0).await;
    let client = cluster.client(0);
    acknowledged.check(&client).await;
    let nodes = client.get("/api/cluster/nodes").await.expect(200);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1), "{nodes:#}");

    let again = recover(&data, &["--force"]).await;
    assert_eq!(again.code, Some(1), "the node runs: {}", again.output);
    for _ in 0..2 {
        let launch = cluster.next_launch(&[]);
        cluster.add(launch).await;
    }
    tests::eventually_within(Duration::from_secs(90), "one of the three can be lost", async || {
        let health = cluster.poller(0).call("GET", "/api/cluster/health").try_send().await.ok()?;
        (health.status == 200 && health.json()["can_lose"] == 1).then_some(())
    })
    .await;
    cluster.kill9(0);
    let client = cluster.client(4);
    for (tenant, run) in &acknowledged.runs {
        let path = tenant.path(&format!("/runs/{run}"));
        eventually("the newcomers have every run", async || {
            let reply = cluster.poller(4).call("GET", &path).try_send().await.ok()?;
            (reply.status == 200 && reply.json()["status"] == "completed").then_some(())
        })
        .await;
    }
    let new = acquire(&client, "/api/locks/newer", "me").await;
    assert!(token(&new) > acknowledged.of_cluster + RAISED, "{new:#}");
}

/// The only node of a region is lost, and with it what only that node had.
#[tokio::test]
async fn tenants_that_only_the_others_had_are_deleted_and_named() {
    let mut cluster = Cluster::of(1, &[]).await;
    let elsewhere = cluster.next_launch(&["--region", "eu"]);
    let lost = cluster.add(elsewhere).await;
    let create = async |client: &Client, name: &str, region: &str| {
        client.post("/api/tenants", json!({ "name": name, "region": region })).await
    };
    let client = cluster.client(0);
    let kept = create(&client, "kept", "default").await.expect(201);
    let gone = create(&client, "gone", "eu").await.expect(201);
    let path = |tenant: &Value| format!("/api/tenants/{}", tenant["id"].as_str().expect("an id"));
    is_here(&cluster, 0, &path(&gone), |tenant| tenant["name"] == "gone").await;
    for node in [0, lost] {
        cluster.kill9(node);
    }
    let data = cluster.server(0).data();
    let done = recover(&data, &["--force"]).await;
    assert_eq!(done.code, Some(0), "{}", done.output);
    for words in ["tenants that are kept: 1", "tenants that are lost: 1", "(\"gone\")", "region eu"]
    {
        assert!(done.output.contains(words), "'{words}' in:\n{}", done.output);
    }
    cluster.restart(0).await;
    let client = cluster.client(0);
    client.get(&path(&kept)).await.expect(200);
    client.get(&path(&gone)).await.problem(404, "not_found");
    assert_eq!(create(&client, "early", "eu").await.status, 422, "there is no such region now");
    let elsewhere = cluster.next_launch(&["--region", "eu"]);
    cluster.add(elsewhere).await;
    create(&client, "again", "eu").await.expect(201);
}

#[tokio::test]
async fn a_former_member_is_refused_and_says_how_to_go_on() {
    let mut cluster = Cluster::of(3, &[]).await;
    let copy = lose_two(&mut cluster).await;
    let data = cluster.server(0).data();
    let done = recover(&data, &["--force"]).await;
    assert_eq!(done.code, Some(0), "{}", done.output);
    cluster.restart(0).await;
    for (path, bytes) in &copy {
        files::put_back(path.parent().expect("a folder"), &[(path.clone(), bytes.clone())]);
    }
    cluster.server(1).refuses(&["recovered by force", "empty data directory", "--join"]).await;
    let nodes = cluster.client(0).get("/api/cluster/nodes").await.expect(200);
    assert_eq!(nodes["nodes"].as_array().map(Vec::len), Some(1), "{nodes:#}");
}

#[tokio::test]
async fn nothing_is_changed_without_force_while_the_node_runs_or_where_there_is_none() {
    let mut cluster = Cluster::of(2, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let data = cluster.server(0).data();
    let refused = recover(&data, &["--force"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.output.contains("in use by a running node"), "{}", refused.output);
    tenant.finished(spec::inline([spec::set("a", 1)])).await;
    for node in 0..2 {
        cluster.kill9(node);
    }
    let before = files::keep(&data);
    let told = recover(&data, &[]).await;
    assert_eq!(told.code, Some(2), "{}", told.output);
    for word in ["Nothing was changed", "--force", cluster.id(1), "group 8", "may be missing"] {
        assert!(told.output.contains(word), "'{word}' in:\n{}", told.output);
    }
    assert_eq!(files::keep(&data), before, "the same files, the same bytes");
    let nowhere = data.with_file_name("nowhere");
    let refused = recover(&nowhere, &["--force"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.output.contains("not the data directory of a member"), "{}", refused.output);
    assert!(!nowhere.exists());
    // Both are there: nobody was given up.
    cluster.relaunch(0);
    cluster.relaunch(1);
    cluster.whole().await;
}

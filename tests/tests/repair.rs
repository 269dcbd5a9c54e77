//! A lone node whose data is damaged: it refuses to start and says how to go on, and `--repair` goes on with
//! what is left, says what is lost and keeps what was damaged.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::{Cluster, Server, Tenant, files, spec};

/// Fencing tokens rise by so much with a repair that may have lost some.
const RAISED: u64 = 1 << 31;

/// A node with a tenant, and the id of its finished run.
async fn with_a_run() -> (Server, Tenant, String) {
    let server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    let run = tenant.finished(spec::inline([spec::set("a", "kept")])).await;
    let run = run["id"].as_str().expect("an id").to_owned();
    (server, tenant, run)
}

/// Starts the node once with `--repair`, and then as before. Gives the report of the first start.
async fn repaired(server: &mut Server) -> Value {
    server.launch_mut().args.push("--repair".to_owned());
    server.restart().await;
    let report = report(&server.data());
    server.term().await;
    server.launch_mut().args.pop();
    server.restart().await;
    report
}

fn reports(data: &Path) -> Vec<PathBuf> {
    let names = files::names(data).into_iter().filter(|name| name.starts_with("repair-"));
    names.map(|name| data.join(name)).collect()
}

fn report(data: &Path) -> Value {
    let reports = reports(data);
    assert_eq!(reports.len(), 1, "{reports:?}");
    serde_json::from_str(&files::read(&reports[0])).expect("JSON")
}

fn again(server: &Server, tenant: &Tenant) -> Tenant {
    Tenant { client: server.client(), id: tenant.id.clone() }
}

fn segment(data: &Path) -> PathBuf {
    data.join("log").join("0000000001.log")
}

fn find(bytes: &[u8], mark: &str) -> usize {
    let mut windows = bytes.windows(mark.len());
    windows.position(|window| window == mark.as_bytes()).expect("the mark")
}

#[tokio::test]
async fn what_the_files_have_survives_a_log_that_is_rotten_and_one_that_is_gone() {
    let (mut server, tenant, run) = with_a_run().await;
    let lock = "/api/locks/a";
    let acquire = async |server: &Server| {
        let body = serde_json::json!({ "holder": "me", "ttl_secs": 3600 });
        let lock = server.client().post(&format!("{lock}/acquire"), body).await.expect(200);
        lock["token"].as_u64().expect("a token")
    };
    let token = acquire(&server).await;
    server.term().await;
    let path = segment(&server.data());
    let bytes = files::flip(&path, |bytes| bytes.len() / 3);

    server
        .refuses(&["log/0000000001.log is damaged at byte ", "--repair", "places of the log"])
        .await;
    assert_eq!(files::bytes(&path), bytes, "it was changed");
    let told = repaired(&mut server).await;
    assert_eq!(told["log"]["broken"][0]["file"], "log/0000000001.log", "{told:#}");
    let offset = told["log"]["broken"][0]["offset"].as_u64().expect("an offset");
    assert!(offset <= bytes.len() as u64 / 3, "{told:#}");
    let kept = server.data().join(told["kept_in"].as_str().expect("a folder"));
    assert_eq!(files::bytes(&kept.join("log/0000000001.log")), bytes);
    // The node was stopped, so that its files had everything.
    let same = again(&server, &tenant);
    assert_eq!(same.get(&format!("/runs/{run}")).await.expect(200)["status"], "completed");
    same.finished(spec::inline([spec::set("b", 2)])).await;
    let clusters = told["clusters"].as_array().expect("two clusters");
    assert_ne!(clusters[0], clusters[1]);
    assert!(acquire(&server).await > token + RAISED, "tokens of before are refused");

    // And without any log at all.
    server.term().await;
    files::remove(&server.data().join("log"));
    files::remove_file(&reports(&server.data())[0]);
    server.refuses(&["has lost its log", "--repair"]).await;
    let told = repaired(&mut server).await;
    assert_eq!(told["log"]["damage"]["file"], "log", "{told:#}");
    let same = again(&server, &tenant);
    assert_eq!(same.get("/runs").await.expect(200)["runs"].as_array().map(Vec::len), Some(2));
    same.finished(spec::inline([spec::set("c", 3)])).await;
}

/// Nothing had reached the files: what stood behind the broken place is gone, and said to be.
#[tokio::test]
async fn what_only_the_log_had_is_kept_up_to_the_broken_place() {
    let mut server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    // With the files: from here on they are as old as this.
    server.term().await;
    server.restart().await;
    let same = again(&server, &tenant);
    let mut runs = Vec::new();
    for mark in ["first-one", "second-one", "third-one"] {
        let run = same.finished(spec::inline([spec::set("a", mark)])).await;
        runs.push(run["id"].as_str().expect("an id").to_owned());
    }
    server.kill9();
    let log = files::walk(&server.data().join("log"));
    let path = log.iter().map(|(path, _)| path).rfind(|path| path.ends_with("0000000001.log"));
    let path = path.expect("a segment");
    files::flip(path, |bytes| find(bytes, "second-one"));
    server.refuses(&[]).await;
    let told = repaired(&mut server).await;
    let groups = told["log"]["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 1, "{told:#}");
    assert_eq!((&groups[0]["unreadable"], &groups[0]["tenants"]), (&1.into(), &1.into()));
    assert!(groups[0]["dropped"].as_u64() >= Some(2), "{told:#}");
    let same = again(&server, &tenant);
    assert_eq!(same.get(&format!("/runs/{}", runs[0])).await.expect(200)["status"], "completed");
    for lost in &runs[1..] {
        same.get(&format!("/runs/{lost}")).await.problem(404, "not_found");
    }
    same.finished(spec::inline([spec::set("b", 2)])).await;
}

#[tokio::test]
async fn an_event_log_is_cut_where_it_is_rotten() {
    let (mut server, tenant, run) = with_a_run().await;
    let before = tenant.events(&run).await;
    let later = tenant.finished(spec::inline([spec::set("b", "rotten-one")])).await;
    let later = later["id"].as_str().expect("an id");
    server.term().await;
    let path = files::tenant(&server.data(), &tenant.id).join("events.jsonl");
    let bytes = files::flip(&path, |bytes| find(bytes, later));
    let told = repaired(&mut server).await;
    assert!(told["log"].is_null() && told["system"].is_null(), "{told:#}");
    let loss = &told["tenants"][0];
    assert_eq!((&loss["id"], &loss["name"]), (&tenant.id.clone().into(), &"Test".into()));
    assert_eq!(loss["events"]["bytes"], loss["offset"], "{told:#}");
    let kept = loss["events"]["kept"].as_u64().expect("a number");
    let same = again(&server, &tenant);
    assert_eq!(same.events(&run).await, before);
    assert_eq!(same.get(&format!("/runs/{later}")).await.expect(200)["status"], "completed");
    assert!(same.events(later).await.is_empty());
    let new = same.finished(spec::inline([spec::set("c", 1)])).await;
    let first = same.events(new["id"].as_str().expect("an id")).await;
    assert_eq!(first[0]["seq"].as_u64(), Some(kept + 1), "{first:#?}");
    server.term().await;
    files::whole_events(&server.data(), &tenant.id);
    let aside = server.data().join(told["kept_in"].as_str().expect("a folder"));
    let from = usize::try_from(loss["offset"].as_u64().expect("a number")).expect("short");
    let tail = files::tenant(&aside, &tenant.id).join(format!("events.jsonl.from-{from}"));
    assert_eq!(files::bytes(&tail), bytes[from..]);
}

#[tokio::test]
async fn the_control_plane_is_made_anew_from_a_log_that_has_everything() {
    let (mut server, tenant, run) = with_a_run().await;
    server.term().await;
    files::remove_file(&server.data().join("system.redb"));
    server.refuses(&["system.redb", "missing", "--repair"]).await;
    let told = repaired(&mut server).await;
    assert_eq!(told["system"]["file"], "system.redb", "{told:#}");
    assert!(told["log"].is_null(), "nothing is lost: {told:#}");
    let same = again(&server, &tenant);
    assert_eq!(same.get("").await.expect(200)["name"], "Test");
    assert_eq!(same.get(&format!("/runs/{run}")).await.expect(200)["status"], "completed");
    assert!(told["clusters"].is_null(), "it is the same cluster: {told:#}");
}

/// A tenant whose files are not those that they were is not taken for one that began later: not by a log
/// that is made anew either.
#[tokio::test]
async fn a_tenant_whose_files_are_gone_or_older_is_missed_by_the_new_log_as_well() {
    let (mut server, gone, _) = with_a_run().await;
    let older = Tenant::create(&server.client(), spec::unlimited()).await;
    server.term().await;
    let (data, path) = (server.data(), files::tenant(&server.data(), &older.id));
    let before = files::keep(&path);
    server.restart().await;
    again(&server, &older).finished(spec::inline([spec::set("a", 1)])).await;
    server.term().await;
    files::put_back(&path, &before);
    files::remove(&files::tenant(&data, &gone.id));
    let segment = segment(&data);
    files::flip(&segment, |bytes| bytes.len() / 3);
    let told = repaired(&mut server).await;
    let mut named: Vec<_> = told["tenants"].as_array().expect("a list").iter().collect();
    named.sort_by_key(|loss| loss["what"].as_str().map(str::to_owned));
    let ids: Vec<_> = named.iter().filter_map(|loss| loss["id"].as_str()).collect();
    assert_eq!(ids, [&gone.id, &older.id], "missing, and older: {told:#}");
    for tenant in [&gone, &older] {
        again(&server, tenant).get("/runs").await.problem(503, "internal");
    }
}

/// A tenant's rows are nowhere else.
#[tokio::test]
async fn a_tenant_whose_index_is_damaged_stays_out_of_service_and_is_named() {
    let (mut server, tenant, _) = with_a_run().await;
    server.term().await;
    let path = files::tenant(&server.data(), &tenant.id).join("index.redb");
    let half = files::bytes(&path).len() / 2;
    files::write_bytes(&path, &files::bytes(&path)[..half]);
    let told = repaired(&mut server).await;
    assert_eq!(told["tenants"][0]["id"], tenant.id, "{told:#}");
    assert!(told["tenants"][0]["events"].is_null(), "{told:#}");
    let same = again(&server, &tenant);
    same.get("/runs").await.problem(503, "internal");
    Tenant::create(&server.client(), spec::unlimited())
        .await
        .finished(spec::inline([spec::set("a", 1)]))
        .await;
}

#[tokio::test]
async fn a_node_that_is_whole_needs_no_repair_and_one_with_others_is_not_repaired() {
    let mut cluster = Cluster::of(1, &[]).await;
    cluster.kill9(0);
    let server = cluster.server(0);
    server.launch_mut().args.push("--repair".to_owned());
    server.restart().await;
    assert!(server.output().contains("nothing is damaged"), "{}", server.output());
    assert!(reports(&server.data()).is_empty());
    let launch = cluster.next_launch(&[]);
    cluster.add(launch).await;
    cluster.kill9(0);
    cluster.server(0).refuses(&["1 other members", "without --repair"]).await;
}

/// An older control plane, as from a copy: the log knows that it went further, and has the rest.
#[tokio::test]
async fn an_older_control_plane_goes_on_from_where_it_is() {
    let (mut server, first, _) = with_a_run().await;
    server.term().await;
    let path = server.data().join("system.redb");
    let before = files::bytes(&path);
    server.restart().await;
    let second = Tenant::create(&server.client(), spec::unlimited()).await;
    server.term().await;
    files::write_bytes(&path, &before);
    server.refuses(&["system.redb", "older", "--repair"]).await;
    let told = repaired(&mut server).await;
    assert!(told["log"].is_null(), "nothing is lost: {told:#}");
    for tenant in [&first, &second] {
        again(&server, tenant).finished(spec::inline([spec::set("a", 1)])).await;
    }
}

/// Without the control plane's file and without the log nothing says which tenants there are.
#[tokio::test]
async fn what_nobody_knows_any_more_is_not_repaired_and_nothing_is_changed() {
    let (mut server, tenant, _) = with_a_run().await;
    server.term().await;
    files::remove(&server.data().join("log"));
    files::remove_file(&server.data().join("system.redb"));
    let before = files::names(&server.data());
    server.launch_mut().args.push("--repair".to_owned());
    server.refuses(&["put system.redb back from a copy"]).await;
    assert_eq!(files::names(&server.data()), before);
    assert!(files::tenant(&server.data(), &tenant.id).exists());
}

/// The log that would have missed the files is gone as well, and no other tenant keeps the group.
#[tokio::test]
async fn a_tenant_of_which_nothing_can_be_read_is_out_of_service_and_not_deleted() {
    let (mut server, tenant, _) = with_a_run().await;
    server.term().await;
    let path = files::tenant(&server.data(), &tenant.id);
    files::remove(&server.data().join("log"));
    let index = files::bytes(&path.join("index.redb"));
    files::write_bytes(&path.join("index.redb"), &index[..index.len() / 2]);
    let events = files::bytes(&path.join("events.jsonl"));
    let told = repaired(&mut server).await;
    assert_eq!(told["tenants"][0]["id"], tenant.id, "{told:#}");
    again(&server, &tenant).get("/runs").await.problem(503, "internal");
    let other = Tenant::create(&server.client(), spec::unlimited()).await;
    other.finished(spec::inline([spec::set("a", 1)])).await;
    assert_eq!(
        files::bytes(&path.join("events.jsonl")),
        events,
        "it is kept for whoever has a copy"
    );
}

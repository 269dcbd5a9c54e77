//! Leaders that die, fall silent, or go in turn.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tests::failover::{self, Blow, Times};
use tests::{Client, Cluster, Lead, Reply, Tenant, eventually, spec};
use tokio::time::Instant;

const ROUNDS: usize = 3;
/// Far longer than an election: speed is measured by the soak, not asserted here.
const PATIENT: [&str; 1] = ["--request-timeout=20s"];

async fn acquire(client: &Client, key: &str, holder: &str, ttl: f64) -> u64 {
    let body = json!({ "holder": holder, "ttl_secs": ttl });
    let lock = client.post(&format!("/api/locks/{key}/acquire"), body).await.expect(200);
    assert_eq!(lock["acquired"], true, "{lock:#}");
    lock["token"].as_u64().expect("a token")
}

/// What has been acknowledged so far, and is held to.
#[derive(Default)]
struct Acknowledged {
    /// Fencing tokens, by key, of locks that are held by "holder".
    tokens: BTreeMap<String, u64>,
    tenants: Vec<String>,
}

impl Acknowledged {
    async fn lock(&mut self, client: &Client, key: String) -> u64 {
        let token = acquire(client, &key, "holder", 3600.0).await;
        self.granted(key, token);
        token
    }

    fn granted(&mut self, key: String, token: u64) {
        let before = self.tokens.values().max().copied().unwrap_or(0);
        assert!(token > before, "{key} has {token} after {before}");
        self.tokens.insert(key, token);
    }

    /// Everything is there, as each node that runs tells.
    async fn check(&self, cluster: &Cluster) {
        for node in cluster.running() {
            let locks = cluster.client(node).get("/api/locks").await.expect(200);
            let locks = locks["locks"].as_array().expect("a list").clone();
            for (key, token) in &self.tokens {
                let lock = locks.iter().find(|lock| lock["key"] == **key);
                let lock = lock.unwrap_or_else(|| panic!("node {node} lost {key}: {locks:#?}"));
                assert_eq!(lock["token"], *token, "{lock:#}");
            }
            let tenants = cluster.client(node).get("/api/tenants").await.expect(200).to_string();
            for tenant in &self.tenants {
                assert!(tenants.contains(tenant), "node {node} lost {tenant}: {tenants}");
            }
        }
    }
}

async fn rounds(blow: Blow) {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let (mut leaders, mut writes) = (Times::default(), Times::default());
    let mut acknowledged = Acknowledged::default();
    for round in 0..ROUNDS {
        let old = cluster.leader().await;
        let via = (old + 1) % 3;
        let client = cluster.client(via);
        acknowledged.lock(&cluster.client(old), format!("at-leader-{round}")).await;
        acknowledged.lock(&client, format!("at-follower-{round}")).await;
        acknowledged.tenants.push(Tenant::create(&client, spec::unlimited()).await.id);
        acquire(&client, &format!("short-{round}"), "holder", 1.0).await;
        let wanted = format!("wanted-{round}");
        let held = acquire(&client, &wanted, "first", 3600.0).await;
        let waiter = waiting(&cluster, (old + 2) % 3, &wanted).await;

        let struck = failover::strike(&mut cluster, old, via, blow, &format!("new-{round}")).await;
        println!("{blow:?}, round {round}: {struck:?}");
        assert_eq!(struck.refused, 0, "a node waits for the next leader");
        leaders.add(struck.leader);
        writes.add(struck.write);
        assert!(struck.token > held);
        acknowledged.granted(format!("new-{round}"), struck.token);
        let (_, term) = cluster.await_leader(&[old]).await;
        acknowledged.check(&cluster).await;

        // Who waited before is served by the new leader, in its turn.
        let body = json!({ "holder": "first", "token": held });
        let released = client.post(&format!("/api/locks/{wanted}/release"), body).await;
        assert_eq!(released.expect(200)["released"], true);
        let token = waiter.await.expect("the waiter does not panic");
        acknowledged.granted(wanted, token);
        eventually("what nobody renews expires under the new leader too", async || {
            let reply = client.get(&format!("/api/locks/short-{round}")).await;
            (reply.status == 404).then_some(())
        })
        .await;

        if blow == Blow::Stop {
            cluster.cont(old);
            comes_back(&cluster, old, term, round, &mut acknowledged).await;
        }
        failover::recover(&mut cluster, old, blow).await;
        acknowledged.check(&cluster).await;
    }
    println!("{blow:?}: new leader  {leaders}");
    println!("{blow:?}: first write {writes}");
}

/// Queues "holder" for a lock at a node, and returns once it is known to wait.
async fn waiting(cluster: &Cluster, at: usize, key: &str) -> tokio::task::JoinHandle<u64> {
    let (client, path) = (cluster.client(at), format!("/api/locks/{key}"));
    let waiter = tokio::spawn({
        let path = format!("{path}/acquire");
        async move {
            let body = json!({ "holder": "holder", "ttl_secs": 3600, "wait_secs": 50 });
            let lock = client.post(&path, body).await.expect(200);
            assert_eq!(lock["acquired"], true, "{lock:#}");
            lock["token"].as_u64().expect("a token")
        }
    });
    eventually("somebody waits", async || {
        let lock = cluster.client(at).get(&path).await.expect(200);
        (lock["waiters"] == 1).then_some(())
    })
    .await;
    waiter
}

/// A leader that was stopped wakes up and must learn that it is none.
async fn comes_back(
    cluster: &Cluster,
    old: usize,
    term: u64,
    round: usize,
    acknowledged: &mut Acknowledged,
) {
    let (client, key) = (cluster.client(old), format!("woken-{round}"));
    let until = Instant::now() + Duration::from_millis(600);
    let (asking, writing) = (
        async {
            while Instant::now() < until {
                let answer = client.get("/api/cluster/leader").await.expect(200);
                let lead = Lead::of(&answer);
                let says_itself = lead.leader.as_deref() == Some(cluster.id(old));
                assert!(!says_itself || lead.term > term, "it led before {term}: {answer:#}");
            }
        },
        acquire(&client, &key, "holder", 3600.0),
    );
    let ((), token) = tokio::join!(asking, writing);
    acknowledged.granted(key, token);
}

#[tokio::test]
async fn a_leader_is_killed() {
    rounds(Blow::Kill).await;
}

#[tokio::test]
async fn a_leader_falls_silent_and_wakes_up() {
    rounds(Blow::Stop).await;
}

#[tokio::test]
async fn runs_go_on_where_their_tenant_lives_while_leaders_die() {
    let mut cluster = Cluster::of(3, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let owner = tenant.leader(&cluster).await;
    let leader = cluster.led_by_another_than(owner).await;
    let survivor = 3 - owner - leader;
    let steps = (0..6).map(|at| {
        let step = spec::wait(&format!("w{at}"), 0.4);
        if at == 0 { step } else { spec::after(step, &[&format!("w{}", at - 1)]) }
    });
    let through_survivor = Tenant { id: tenant.id.clone(), client: cluster.client(survivor) };
    let run = through_survivor.start(spec::inline(steps)).await;
    cluster.kill9(leader);
    // While nobody leads the cluster, the tenant's own group works.
    let second = through_survivor.start(spec::inline([spec::set("a", 1)])).await;
    assert_eq!(through_survivor.ended(&second).await["status"], "completed");
    let ended = through_survivor.ended(&run).await;
    assert_eq!(ended["status"], "completed", "{ended:#}");
    for step in ended["steps"].as_array().expect("steps") {
        assert_eq!(step["attempt"], 1, "nothing was done twice: {ended:#}");
    }
    cluster.restart(leader).await;
    cluster.whole().await;
    let again = Tenant { id: tenant.id, client: cluster.client(leader) };
    assert_eq!(again.run(&run).await, ended);
}

#[tokio::test]
async fn a_wait_for_a_run_goes_on_at_the_next_leader() {
    let mut cluster = Cluster::of(3, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let owner = tenant.leader(&cluster).await;
    let client = cluster.client((owner + 1) % 3);
    let through_another = Tenant { id: tenant.id, client: client.clone() };
    let path = through_another.path("/runs?wait_secs=50");
    // Long enough for the owner to go meanwhile.
    let body = spec::inline([spec::wait("w", 3.0)]);
    let waiter = tokio::spawn(async move { client.post(&path, body).await });
    let runs = async || through_another.get("/runs").await.expect(200)["runs"].clone();
    eventually("the run has begun", async || (!runs().await.as_array()?.is_empty()).then_some(()))
        .await;
    cluster.term(owner).await;
    let run = waiter.await.expect("the client does not panic").expect(201);
    assert_eq!(run["status"], "completed", "{run:#}");
    let all = runs().await;
    assert_eq!(all.as_array().map(Vec::len), Some(1), "{all:#}");
}

/// What is promised is two election timeouts, a second; the machine may be busy.
const UNLED_MAX: Duration = Duration::from_secs(10);

/// Two of three are gone.
async fn minority(leader_survives: bool) {
    let mut cluster = Cluster::of(3, &["--request-timeout", "1s"]).await;
    let leader = cluster.leader().await;
    let last = if leader_survives { leader } else { (leader + 1) % 3 };
    let client = cluster.client(last);
    let lock = json!({ "holder": "holder", "ttl_secs": 3600 });
    let take = async || client.post("/api/locks/kept/acquire", lock.clone()).await;
    let token = served(take).await["token"].clone();
    // Its own view, which it is asked for below, may be a moment late.
    eventually("it knows of the lock", async || {
        let stale = client.get("/api/locks/kept?consistency=stale").await;
        (stale.status == 200).then_some(())
    })
    .await;
    let gone: Vec<_> = (0..3).filter(|node| *node != last).collect();
    for node in &gone {
        cluster.kill9(*node);
    }
    let began = Instant::now();
    eventually("it knows that nobody leads", async || {
        let reply = client.get("/api/cluster/leader").await;
        (reply.expect(200)["leader"].is_null()).then_some(())
    })
    .await;
    let unled = began.elapsed();
    println!("leader survives: {leader_survives}; null after {unled:?}");
    assert!(unled < UNLED_MAX, "{unled:?}");
    eventually("it is not ready", async || {
        (client.get("/readyz").await.status == 503).then_some(())
    })
    .await;
    println!("not ready after {:?}", began.elapsed());
    let refused = [
        client.post("/api/locks/other/acquire", json!({ "holder": "h" })).await,
        client.post("/api/tenants", json!({ "name": "No" })).await,
        client.get("/api/locks/kept").await,
        client.post_empty("/api/cluster/leader/step-down").await,
    ];
    for reply in refused {
        assert_eq!(reply.status, 503, "{reply}");
        assert!(reply.header("retry-after").is_some(), "{reply}");
        assert!(["no_leader", "no_quorum"].contains(&reply.json()["code"].as_str().unwrap_or("")));
    }
    assert_eq!(client.get("/healthz").await.status, 200);
    let health = client.get("/api/cluster/health").await.expect(200);
    assert_eq!((&health["has_leader"], &health["total_nodes"]), (&json!(false), &json!(3)));
    assert_eq!(health["leader_id"], Value::Null);
    let stale = client.get("/api/locks/kept?consistency=stale").await;
    assert_eq!(stale.expect(200)["holder"], "holder");

    for node in &gone {
        cluster.relaunch(*node);
    }
    cluster.whole().await;
    for node in 0..3 {
        let client = cluster.client(node);
        assert_eq!(served(async || client.get("/api/locks/kept").await).await["token"], token);
    }
    let other = json!({ "holder": "h" });
    let take = async || client.post("/api/locks/other/acquire", other.clone()).await;
    assert_eq!(served(take).await["acquired"], true);
}

/// The first answer with 200: where a request has a second, it may be refused on a busy machine.
async fn served(call: impl AsyncFn() -> Reply) -> Value {
    eventually("a request is served", async || {
        let reply = call().await;
        (reply.status == 200).then(|| reply.json())
    })
    .await
}

#[tokio::test]
async fn a_follower_that_is_left_alone_refuses_and_waits() {
    minority(false).await;
}

#[tokio::test]
async fn a_leader_that_is_left_alone_refuses_and_waits() {
    minority(true).await;
}

#[tokio::test]
async fn a_rolling_restart_is_not_noticed() {
    let mut cluster = Cluster::of(3, &PATIENT).await;
    let mut left_leading = 0;
    for node in 0..3 {
        let others = [(node + 1) % 3, (node + 2) % 3];
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut clients = tokio::task::JoinSet::new();
        for (at, other) in others.into_iter().cycle().take(6).enumerate() {
            let client = cluster.client(other);
            clients.spawn(cycles(client, format!("k{at}"), stop.clone(), done.clone()));
        }
        eventually("all are at work", async || (done.load(Ordering::Relaxed) > 30).then_some(()))
            .await;
        let took = cluster.term(node).await;
        println!("node {node} ended after {took:?}");
        // At once: nobody had to notice that it went.
        let groups = cluster.client(others[0]).get("/api/cluster/groups").await.expect(200);
        let groups = groups["groups"].as_array().expect("a list");
        left_leading += groups.iter().filter(|group| group["leader"] == cluster.id(node)).count();
        for other in others {
            eventually(&format!("node {other} knows that {node} is offline"), async || {
                (cluster.statuses(other).await?.get(cluster.id(node))? == "Offline").then_some(())
            })
            .await;
        }
        cluster.restart(node).await;
        cluster.whole().await;
        stop.store(true, Ordering::Relaxed);
        let mut slowest = Duration::ZERO;
        while let Some(client) = clients.join_next().await {
            slowest = slowest.max(client.expect("no client was refused"));
        }
        println!("{} cycles, the slowest took {slowest:?}", done.load(Ordering::Relaxed));
    }
    println!("{left_leading} leads of stopped nodes");
    // A leader may give a node a lead before it has heard of its goodbye, a moment ago.
    assert!(left_leading <= 1, "{left_leading} leads of stopped nodes were not handed over");
}

/// Takes and gives back a lock until it is told to stop; panics where that is refused. Gives how
/// long the slowest cycle took.
async fn cycles(
    client: Client,
    key: String,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
) -> Duration {
    let (mut slowest, mut last) = (Duration::ZERO, 0);
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let token = acquire(&client, &key, &key, 60.0).await;
        assert!(token > last, "{token} after {last}");
        last = token;
        let body = json!({ "holder": key, "token": token });
        let path = format!("/api/locks/{key}/release");
        assert_eq!(client.post(&path, body).await.expect(200)["released"], true);
        client.get("/api/cluster/nodes").await.expect(200);
        client.get("/api/cluster/leader").await.expect(200);
        slowest = slowest.max(started.elapsed());
        done.fetch_add(1, Ordering::Relaxed);
    }
    slowest
}

//! Locks: one holder at a time, tokens that only grow, waiters in their order.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Client, Server, Tenant, eventually, raw, spec};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::Instant;

async fn acquire(client: &Client, key: &str, holder: &str, ttl: f64) -> Value {
    let body = json!({ "holder": holder, "ttl_secs": ttl });
    client.post(&format!("/api/locks/{key}/acquire"), body).await.expect(200)
}

async fn release(client: &Client, key: &str, holder: &str) -> Value {
    client.post(&format!("/api/locks/{key}/release"), json!({ "holder": holder })).await.expect(200)
}

fn token(lock: &Value) -> u64 {
    lock["token"].as_u64().unwrap_or_else(|| panic!("a token in {lock:#}"))
}

async fn waiters(client: &Client, key: &str, count: u64) {
    eventually(&format!("{count} waiters of {key}"), async || {
        let lock = client.get(&format!("/api/locks/{key}")).await.expect(200);
        (lock["waiters"] == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lock_is_held_by_one_until_released() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let body = json!({ "holder": "me", "ttl_secs": 60, "metadata": { "why": "test" } });
    let mine = client.post("/api/locks/basic/acquire", body).await.expect(200);
    assert_eq!(mine["acquired"], true);
    assert_eq!((&mine["key"], &mine["holder"]), (&json!("basic"), &json!("me")));
    assert!(mine["expires_at"].as_str() > mine["acquired_at"].as_str(), "{mine:#}");
    let theirs = acquire(&client, "basic", "you", 60.0).await;
    assert_eq!((&theirs["acquired"], &theirs["holder"]), (&json!(false), &json!("me")));
    assert!(theirs["expires_at"].is_string(), "{theirs:#}");
    let read = client.get("/api/locks/basic").await.expect(200);
    assert_eq!((&read["holder"], &read["token"]), (&json!("me"), &mine["token"]));
    assert_eq!(read["metadata"], json!({ "why": "test" }));
    assert_eq!(read["waiters"], 0);

    assert_eq!(release(&client, "basic", "you").await["released"], false);
    assert_eq!(release(&client, "basic", "me").await["released"], true);
    assert_eq!(release(&client, "basic", "me").await["released"], false);
    client.get("/api/locks/basic").await.problem(404, "not_found");
    let next = acquire(&client, "basic", "you", 60.0).await;
    assert_eq!(next["acquired"], true);
    assert!(token(&next) > token(&mine));
}

#[tokio::test]
async fn the_holder_renews_with_the_same_token() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let first = acquire(&client, "renewed", "me", 30.0).await;
    let again = acquire(&client, "renewed", "me", 300.0).await;
    assert_eq!(again["acquired"], true);
    assert_eq!(again["token"], first["token"]);
    assert!(again["expires_at"].as_str() > first["expires_at"].as_str());
    let renew = async |body: Value| client.post("/api/locks/renewed/renew", body).await;
    let longer = json!({ "holder": "me", "token": first["token"], "ttl_secs": 3000 });
    let renewed = renew(longer).await.expect(200);
    assert_eq!(renewed["token"], first["token"]);
    assert!(renewed["expires_at"].as_str() > again["expires_at"].as_str());
    renew(json!({ "holder": "me" })).await.expect(200);
    renew(json!({ "holder": "you" })).await.problem(409, "lock_lost");
    let wrong = json!({ "holder": "me", "token": token(&first) + 1 });
    renew(wrong.clone()).await.problem(409, "lock_lost");
    let released = client.post("/api/locks/renewed/release", wrong).await.expect(200);
    assert_eq!(released["released"], false);
    release(&client, "renewed", "me").await;
    renew(json!({ "holder": "me" })).await.problem(409, "lock_lost");
}

#[tokio::test]
async fn a_lock_expires_and_its_next_grant_has_a_new_token() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let started = Instant::now();
    let first = acquire(&client, "short", "me", 3.0).await;
    assert_eq!(acquire(&client, "short", "you", 60.0).await["acquired"], false);
    eventually("it expires", async || {
        (client.get("/api/locks/short").await.status == 404).then_some(())
    })
    .await;
    assert!(started.elapsed() >= Duration::from_secs(3), "{:?}", started.elapsed());
    let renew = client.post("/api/locks/short/renew", json!({ "holder": "me" })).await;
    renew.problem(409, "lock_lost");
    // The same holder, but no longer the same grant.
    let second = acquire(&client, "short", "me", 60.0).await;
    assert!(token(&second) > token(&first));
}

#[tokio::test]
async fn of_many_at_once_one_acquires() {
    let server = Server::shared(&[]).await;
    let mut calls = JoinSet::new();
    for number in 0..64 {
        let client = server.client();
        calls.spawn(async move { acquire(&client, "race", &format!("h{number}"), 60.0).await });
    }
    let answers = calls.join_all().await;
    let winners: Vec<_> = answers.iter().filter(|answer| answer["acquired"] == true).collect();
    assert_eq!(winners.len(), 1);
    for answer in &answers {
        assert_eq!(answer["holder"], winners[0]["holder"]);
    }
}

#[tokio::test]
async fn holders_never_overlap_and_tokens_grow_in_the_order_of_grants() {
    let server = Server::shared(&[]).await;
    let inside = Arc::new(tokio::sync::Mutex::new(0_u64));
    let mut clients = JoinSet::new();
    for number in 0..8 {
        let (client, inside) = (server.client(), inside.clone());
        clients.spawn(async move {
            let holder = format!("h{number}");
            for _ in 0..10 {
                let body = json!({ "holder": holder, "ttl_secs": 60, "wait_secs": 50 });
                let lock = client.post("/api/locks/critical/acquire", body).await.expect(200);
                assert_eq!(lock["acquired"], true, "{lock:#}");
                let mut last = inside.try_lock().expect("nobody else is inside");
                assert!(token(&lock) > *last, "{} after {}", token(&lock), *last);
                *last = token(&lock);
                tokio::task::yield_now().await;
                drop(last);
                assert_eq!(release(&client, "critical", &holder).await["released"], true);
            }
        });
    }
    clients.join_all().await;
}

#[tokio::test]
async fn waiters_are_served_first_come_first_served() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    acquire(&client, "queue", "first", 60.0).await;
    let mut queue = Vec::new();
    for number in 0..4 {
        let client = server.client();
        queue.push(tokio::spawn(async move {
            let holder = format!("w{number}");
            let body = json!({ "holder": holder, "wait_secs": 20 });
            client.post("/api/locks/queue/acquire", body).await.expect(200)
        }));
        waiters(&server.client(), "queue", number + 1).await;
    }
    let mut holder = "first".to_owned();
    let mut last = 0;
    for (number, waiter) in queue.into_iter().enumerate() {
        assert_eq!(release(&client, "queue", &holder).await["released"], true);
        let granted = waiter.await.expect("the waiter");
        assert_eq!(granted["acquired"], true, "{granted:#}");
        assert_eq!(granted["holder"], format!("w{number}"));
        assert!(token(&granted) > last);
        last = token(&granted);
        holder = format!("w{number}");
    }
}

#[tokio::test]
async fn a_waiter_gets_an_expired_lock_and_gives_up_in_time() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    acquire(&client, "patience", "me", 0.5).await;
    let body = json!({ "holder": "you", "ttl_secs": 60, "wait_secs": 50 });
    let granted = client.post("/api/locks/patience/acquire", body).await.expect(200);
    assert_eq!((&granted["acquired"], &granted["holder"]), (&json!(true), &json!("you")));
    let started = Instant::now();
    let body = json!({ "holder": "late", "wait_secs": 0.3 });
    let refused = client.post("/api/locks/patience/acquire", body).await.expect(200);
    assert_eq!((&refused["acquired"], &refused["holder"]), (&json!(false), &json!("you")));
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    waiters(&client, "patience", 0).await;
}

#[tokio::test]
async fn a_waiter_that_hangs_up_is_dropped() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    acquire(&client, "hangup", "me", 60.0).await;
    let body = json!({ "holder": "ghost", "wait_secs": 60 }).to_string();
    let mut ghost = raw::connect(server.addr()).await;
    let request = format!(
        "POST /api/locks/hangup/acquire HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    ghost.write_all(request.as_bytes()).await.expect("send");
    waiters(&client, "hangup", 1).await;
    drop(ghost);
    waiters(&client, "hangup", 0).await;
    release(&client, "hangup", "me").await;
    let next = acquire(&client, "hangup", "next", 60.0).await;
    assert_eq!(next["acquired"], true, "the ghost got nothing: {next:#}");
}

#[tokio::test]
async fn keys_are_percent_encoded_text() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    for (path, key) in [
        ("a%2Fb%2Fc", "a/b/c"),
        ("%C3%BCber", "über"),
        ("with%20space", "with space"),
        ("..%2F..%2Fetc%2Fpasswd", "../../etc/passwd"),
        ("acquire", "acquire"),
    ] {
        let lock = acquire(&client, path, "h", 60.0).await;
        assert_eq!((&lock["acquired"], &lock["key"]), (&json!(true), &json!(key)));
        assert_eq!(client.get(&format!("/api/locks/{path}")).await.expect(200)["key"], key);
    }
    let reply = client.post("/api/locks/%FF%FE/acquire", json!({ "holder": "h" })).await;
    assert!(matches!(reply.status, 400 | 404 | 422), "not UTF-8: {reply}");
}

#[tokio::test]
async fn keys_of_the_cluster_are_reserved() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    for key in ["cluster%2Fleader", "cluster%2Fmine"] {
        for act in ["acquire", "renew", "release"] {
            let path = format!("/api/locks/{key}/{act}");
            client.post(&path, json!({ "holder": "h" })).await.problem(403, "reserved");
        }
    }
    let leader = eventually("the leader's term is a lock", async || {
        let leader = client.get("/api/locks/cluster%2Fleader").await;
        (leader.status == 200).then(|| leader.json())
    })
    .await;
    let node = server.node_json()["node_id"].clone();
    assert_eq!(leader["holder"], node, "{leader:#}");
    assert!(token(&leader) > 0);
}

#[tokio::test]
async fn locks_are_listed_by_prefix() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    for key in ["list-a1", "list-a2", "list-b1"] {
        acquire(&client, key, "h", 60.0).await;
    }
    let keys = async |query: &str| -> Vec<String> {
        let listed = client.get(&format!("/api/locks{query}")).await.expect(200);
        let locks = listed["locks"].as_array().expect("a list");
        locks.iter().filter_map(|lock| lock["key"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(keys("?prefix=list-a").await, ["list-a1", "list-a2"]);
    assert_eq!(keys("?prefix=list-nothing").await, Vec::<String>::new());
    let all = keys("").await;
    assert!(all.iter().any(|key| key == "list-b1"), "{all:?}");
}

#[tokio::test]
async fn a_tenants_locks_are_a_key_space_of_their_own() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let one = Tenant::create(&client, spec::unlimited()).await;
    let two = Tenant::create(&client, spec::unlimited()).await;
    acquire(&client, "shared-name", "cluster", 60.0).await;
    for tenant in [&one, &two] {
        let body = json!({ "holder": "tenant" });
        let lock = tenant.post("/locks/shared-name/acquire", body).await.expect(200);
        assert_eq!((&lock["acquired"], &lock["holder"]), (&json!(true), &json!("tenant")));
    }
    let read = client.get("/api/locks/shared-name").await.expect(200);
    assert_eq!(read["holder"], "cluster");
    let before = token(&one.get("/locks/shared-name").await.expect(200));
    for _ in 0..5 {
        two.post("/locks/k/acquire", json!({ "holder": "h" })).await.expect(200);
        two.post("/locks/k/release", json!({ "holder": "h" })).await.expect(200);
    }
    let next = one.post("/locks/next/acquire", json!({ "holder": "h" })).await.expect(200);
    assert_eq!(token(&next), before + 1, "another tenant's grants take no tokens of this one");
    assert_eq!(one.get("/locks").await.expect(200)["locks"].as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn holders_and_tokens_outlive_a_kill() {
    let mut server = Server::alone(&[]).await;
    let client = server.client();
    let tenant = Tenant::create(&client, spec::unlimited()).await;
    let cluster = acquire(&client, "kept", "me", 600.0).await;
    let own = tenant.post("/locks/kept/acquire", json!({ "holder": "me", "ttl_secs": 600 }));
    let own = own.await.expect(200);
    let short = acquire(&client, "short", "me", 1.0).await;
    server.kill9();
    server.restart().await;
    let client = server.client();
    let tenant = Tenant { client: client.clone(), ..tenant };
    let read = client.get("/api/locks/kept").await.expect(200);
    assert_eq!((&read["holder"], &read["token"]), (&json!("me"), &cluster["token"]));
    let read = tenant.get("/locks/kept").await.expect(200);
    assert_eq!((&read["holder"], &read["token"]), (&json!("me"), &own["token"]));
    let body = json!({ "holder": "me", "token": cluster["token"] });
    client.post("/api/locks/kept/renew", body).await.expect(200);
    eventually("the short one expires after the restart as well", async || {
        (client.get("/api/locks/short").await.status == 404).then_some(())
    })
    .await;
    let next = acquire(&client, "short", "me", 60.0).await;
    assert!(token(&next) > token(&short) && token(&next) > token(&cluster));
}

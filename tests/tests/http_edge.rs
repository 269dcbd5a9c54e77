//! The edge of the API: whatever comes in, the answer is a clear refusal and never a 500.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Reply, Server, Tenant, eventually, raw, spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// What a request line, its headers and a body look like on the wire.
fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}").into_bytes();
    bytes.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
    bytes.extend(body);
    bytes
}

#[tokio::test]
async fn bodies_that_are_not_json_are_400() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let deep = "[".repeat(100_000);
    let bad: [&[u8]; 9] = [
        b"{",
        b"{\"name\":}",
        b"{\"name\":\"a\"} trailing",
        b"\xff\xfe",
        b"{\"name\":\"\xff\"}",
        b"'single'",
        b"{\"name\":\"a\",}",
        b"NaN",
        deep.as_bytes(),
    ];
    for body in bad {
        let call = client.call("POST", "/api/tenants").header("content-type", "application/json");
        let reply = call.body(body.to_vec()).send().await;
        reply.problem(400, "malformed_json");
    }
}

#[tokio::test]
async fn json_of_the_wrong_shape_is_422() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    for body in [json!([]), json!("text"), json!(5), json!(true), Value::Null] {
        client.post("/api/tenants", body).await.problem(422, "invalid_field");
    }
    // A body is required here.
    let none = client.post_empty("/api/tenants").await;
    assert!(matches!(none.status, 400 | 422), "{none}");
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_a_missing_content_type_is_json() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let body = json!({ "name": "More", "shoe_size": 43, "quota": { "max_dreams": 1 } });
    client.post("/api/tenants", body.clone()).await.expect(201);
    client.call("POST", "/api/tenants").body(body.to_string()).send().await.expect(201);
    let charset = "application/json; charset=utf-8";
    let call = client.call("POST", "/api/tenants").header("content-type", charset);
    call.body(body.to_string()).send().await.expect(201);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/xml", "garbage"] {
        let call = client.call("POST", "/api/tenants").header("content-type", kind);
        let reply = call.body(body.to_string()).send().await;
        reply.problem(415, "unsupported_media_type");
    }
}

#[tokio::test]
async fn endpoints_without_a_body_take_none_and_null() {
    let (_server, tenant) = Tenant::on_shared().await;
    for act in ["suspend", "activate"] {
        let path = tenant.path(&format!("/{act}"));
        tenant.client.post_empty(&path).await.expect(200);
        tenant.client.post(&path, Value::Null).await.expect(200);
        tenant.client.post(&path, json!({})).await.expect(200);
        let call = tenant.client.call("POST", &path).header("content-type", "application/json");
        call.send().await.expect(200);
    }
    for body in [None, Some(Value::Null)] {
        let run = tenant.start(spec::inline([spec::wait("w", 60.0)])).await;
        let path = tenant.path(&format!("/runs/{run}/cancel"));
        let call = tenant.client.call("POST", &path);
        let call = if let Some(body) = &body { call.json(body) } else { call };
        call.send().await.expect(200);
    }
}

#[tokio::test]
async fn unknown_paths_are_404_and_wrong_methods_405_with_allow() {
    let (_server, tenant) = Tenant::on_shared().await;
    let client = &tenant.client;
    for path in ["/nothing", "/api", "/api/", "/api/nothing", "/api/tenants/x/y/z", "/API/tenants"]
    {
        client.get(path).await.problem(404, "not_found");
        client.post_empty(path).await.problem(404, "not_found");
    }
    let lock_path = "/api/locks/k/acquire".to_owned();
    for (method, path, allowed) in [
        ("PATCH", "/api/tenants".to_owned(), &["GET", "POST"][..]),
        ("POST", tenant.path(""), &["GET", "PUT", "DELETE"]),
        ("GET", tenant.path("/suspend"), &["POST"]),
        ("DELETE", tenant.path("/runs"), &["GET", "POST"]),
        ("POST", "/api/cluster/leader".to_owned(), &["GET"]),
        ("GET", lock_path, &["POST"]),
        ("DELETE", "/healthz".to_owned(), &["GET"]),
    ] {
        let reply = client.call(method, &path).send().await;
        reply.problem(405, "method_not_allowed");
        let allow = reply.header("allow").unwrap_or_else(|| panic!("Allow in {reply}"));
        for method in allowed {
            assert!(allow.split(',').any(|known| known.trim() == *method), "{method}: {allow}");
        }
    }
    let head = client.call("HEAD", "/healthz").send().await;
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[tokio::test]
async fn tricks_with_paths_reach_nothing() {
    let (server, tenant) = Tenant::on_shared().await;
    let id = &tenant.id;
    for path in [
        "/api/tenants/..".to_owned(),
        "/api/tenants/../cluster/nodes".to_owned(),
        "/api/tenants/%2e%2e/%2e%2e/etc/passwd".to_owned(),
        "/api/tenants/..%2F..%2Fetc%2Fpasswd".to_owned(),
        "/api/tenants/%00".to_owned(),
        format!("/api/tenants/{id}%00"),
        format!("/api/tenants/{id}%2Fruns"),
        format!("/api/tenants/{id}/../{id}"),
        format!("/api/tenants/{id}/workflows/..%2F..%2Fx"),
        format!("/api/tenants/{id}/runs/%2e%2e"),
        format!("/api/tenants/{id}/runs/..%5C..%5Cwindows"),
        format!("/api/tenants/{id}/jobs/%c0%ae%c0%ae"),
        "/api/cluster/nodes/%2e%2e%2f".to_owned(),
        "/../../etc/passwd".to_owned(),
        "//api//tenants".to_owned(),
        "/%2e%2e/%2e%2e/etc/passwd".to_owned(),
    ] {
        let answer = raw::send(server.addr(), request(&format!("GET {path}"), "", b"")).await;
        assert!(matches!(answer.status, Some(400 | 404 | 422)), "{path}: {}", answer.text);
        assert!(!answer.text.contains("root:"), "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn names_of_any_kind_are_stored_or_refused_and_never_become_paths() {
    let (server, tenant) = Tenant::on_shared().await;
    let long = "n".repeat(10_000);
    let names =
        [long.as_str(), "..", "%2e%2e", "%00", "..%2F..%2Fx", "%2Fetc%2Fpasswd", "a%0Ab", "%20"];
    for name in names {
        let definition = spec::workflow([spec::set("a", 1)]);
        let path = tenant.path(&format!("/workflows/{name}"));
        let body = definition.to_string();
        let line = format!("PUT {path}");
        let answer = raw::send(
            server.addr(),
            request(&line, "content-type: application/json\r\n", body.as_bytes()),
        )
        .await;
        let status = answer.status.expect("an answer");
        assert!(status < 500, "{name:.30}: {}", answer.text);
    }
    for name in [long.as_str(), "a\u{0}b", "..", "../../x", "\u{202e}reversed", "\n"] {
        let reply = tenant.client.post("/api/tenants", json!({ "name": name })).await;
        assert!(matches!(reply.status, 201 | 422), "{reply}");
        let body = json!({ "name": name, "workflow": spec::workflow([spec::set("a", 1)]) });
        let reply = tenant.post("/jobs", body).await;
        assert!(matches!(reply.status, 201 | 422), "{reply}");
        let reply = tenant.post("/runs", spec::inline([spec::set(name, 1)])).await;
        assert!(matches!(reply.status, 201 | 422), "{reply}");
    }
    let strays = tests::files::walk(&server.data()).into_iter().filter(|(path, _)| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.contains("nnnn") || name == "x" || name.contains("reversed")
    });
    assert_eq!(strays.count(), 0);
}

#[tokio::test]
async fn bodies_beyond_a_mebibyte_are_413() {
    let (server, tenant) = Tenant::on_shared().await;
    let fits =
        json!({ "workflow": spec::workflow([spec::set("a", 1)]), "input": "x".repeat(900_000) });
    assert_eq!(tenant.post("/runs", fits).await.status, 201);
    let big = spec::inline([spec::set("a", "x".repeat(1_100_000))]);
    tenant.post("/runs", big).await.problem(413, "too_large");
    // Told by its length alone, before the body comes.
    let path = tenant.path("/runs");
    let announced = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: 5000000000\r\n\r\n"
    );
    let answer = raw::send(server.addr(), announced).await;
    assert_eq!(answer.status, Some(413), "{}", answer.text);
    // And by counting where no length is given.
    let mut chunked = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n"
    );
    for _ in 0..20 {
        chunked.push_str(&format!("10000\r\n{}\r\n", " ".repeat(0x10000)));
    }
    let answer = raw::send(server.addr(), chunked).await;
    assert_eq!(answer.status, Some(413), "{}", answer.text);
}

#[tokio::test]
async fn malformed_http_is_answered_or_dropped_and_harms_nobody() {
    let server = Server::shared(&[]).await;
    let huge_header =
        format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(70_000));
    let many_headers = format!("GET /healthz HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let long_line = format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "p".repeat(100_000));
    let cases: [&[u8]; 10] = [
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /api/tenants HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /api/tenants HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
        huge_header.as_bytes(),
        many_headers.as_bytes(),
        long_line.as_bytes(),
    ];
    for case in cases {
        let answer = raw::send(server.addr(), case).await;
        let shown = String::from_utf8_lossy(&case[..case.len().min(60)]).into_owned();
        match answer.status {
            None => assert!(answer.text.is_empty(), "{shown}: {}", answer.text),
            Some(status) => assert!((400..500).contains(&status), "{shown}: {}", answer.text),
        }
    }
    assert_eq!(server.client().get("/healthz").await.status, 200);
}

/// Slow to be told apart from stuck takes the ten seconds of the contract.
#[tokio::test]
async fn a_client_that_sends_its_head_too_slowly_is_dropped() {
    let server = Server::shared(&[]).await;
    let started = Instant::now();
    let mut slow = raw::connect(server.addr()).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").await.expect("send");
    let mut silent = raw::connect(server.addr()).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), async {
        // One header byte at a time must not keep it open either.
        while slow.write_all(b"x").await.is_ok() {
            let reading = slow.read_buf(&mut answer);
            let read = tokio::time::timeout(Duration::from_millis(300), reading).await;
            if matches!(read, Ok(Ok(0) | Err(_))) {
                break;
            }
        }
    });
    read.await.expect("the slow client is dropped");
    assert!(started.elapsed() > Duration::from_secs(5), "{:?}", started.elapsed());
    let closed = tokio::time::timeout(Duration::from_secs(10), silent.read_buf(&mut answer)).await;
    assert!(matches!(closed, Ok(Ok(0) | Err(_))), "a silent client is dropped: {closed:?}");
    assert_eq!(server.client().get("/healthz").await.status, 200);
}

#[tokio::test]
async fn many_idle_connections_do_not_keep_others_out() {
    let server = Server::shared(&[]).await;
    let mut idle = Vec::new();
    for _ in 0..200 {
        idle.push(raw::connect(server.addr()).await);
    }
    eventually("an answer beside idle connections", async || {
        (server.client().get("/healthz").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_request_id_is_taken_or_made_and_echoed() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let reply = client.call("GET", "/api/tenants/x").header("x-request-id", "mine-7").send().await;
    assert_eq!(reply.header("x-request-id"), Some("mine-7"));
    assert_eq!(reply.problem(404, "not_found")["request_id"], "mine-7");
    let made = |reply: &Reply| reply.header("x-request-id").expect("a request id").to_owned();
    let first = made(&client.get("/api/tenants").await);
    assert_ne!(first, made(&client.get("/api/tenants").await));
}

#[tokio::test]
async fn keep_alive_serves_pipelined_requests_in_order() {
    let server = Server::shared(&[]).await;
    let one = "GET /api/health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let last = "GET /nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    let mut stream = raw::connect(server.addr()).await;
    stream.write_all(format!("{one}{one}{last}").as_bytes()).await.expect("send");
    let mut text = String::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_string(&mut text));
    read.await.expect("in time").expect("text");
    let found = text.match_indices("HTTP/1.1 ");
    let statuses: Vec<_> = found.map(|(at, _)| &text[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "200", "404"], "{text}");
}

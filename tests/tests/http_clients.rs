//! The API as existing clients use it: requests in two packets, as Python's clients send them,
//! pages in a browser, lists read to their end, types that are decoded strictly.

use std::time::Duration;

use serde_json::{Value, json};
use tests::{Cluster, Server, Tenant, raw, spec};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Bytes that a page of a list ends at.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Sends head and body in packets of their own, as `http.client` of Python does.
async fn send_in_two(stream: &mut TcpStream, line: &str, body: &str) -> raw::Answer {
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {}\r\nAccept-Encoding: identity\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        stream.peer_addr().expect("an address"),
        body.len(),
    );
    stream.write_all(head.as_bytes()).await.expect("the head is taken");
    stream.flush().await.expect("sent");
    // The packets arrive apart: the server has answered, or not, by the time the body comes.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(body.as_bytes()).await.expect("the body is taken");
    raw::read_answer(stream).await
}

#[tokio::test]
async fn a_refusal_is_heard_and_the_next_request_on_the_connection_is_answered() {
    let (server, tenant) = Tenant::on_shared().await;
    let gone = "/api/tenants/550e8400-e29b-41d4-a716-446655440000/runs";
    let runs = tenant.path("/runs");
    let large = "x".repeat(2 << 20);
    let mut stream = raw::connect(server.addr()).await;
    stream.set_nodelay(true).expect("no delay");
    for (line, body, status) in [
        ("POST /nowhere".to_owned(), "{\"name\":\"a\"}", 404),
        (format!("PATCH {runs}"), "{}", 405),
        ("POST /api/runs".to_owned(), "{}", 400),
        (format!("POST {gone}"), "{}", 404),
        (format!("POST {runs}"), "{}", 422),
        (format!("POST {runs}"), &large, 413),
        ("POST /api/tenants".to_owned(), "{\"name\":\"a\"}", 201),
    ] {
        let answer = send_in_two(&mut stream, &line, body).await;
        assert_eq!(answer.status, Some(status), "{line}: {}", answer.text);
        assert!(!answer.text.contains("connection: close"), "{line}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_name_of_the_api_is_answered_where_it_was_given() {
    let server = Server::alone(&["--api-host", "shiioo.example"]).await;
    let client = server.client();
    let asked = async |host: &str| {
        client.call("GET", "/api/tenants").header("host", host).send().await.status
    };
    assert_eq!(asked("shiioo.example:3000").await, 200);
    assert_eq!(asked("other.example:3000").await, 403);
}

/// Reads a list to its end, and checks that no page is too large.
async fn all(tenant: &Tenant, list: &str, path: &str) -> (Vec<Value>, usize) {
    let (mut items, mut pages, mut cursor) = (Vec::new(), 0, None::<String>);
    loop {
        let query = cursor.map_or_else(String::new, |cursor| format!("?cursor={cursor}"));
        let reply = tenant.get(&format!("{path}{query}")).await;
        assert!(reply.body.len() <= PAGE_BYTES_MAX, "{} bytes", reply.body.len());
        let page = reply.expect(200);
        items.extend(page[list].as_array().expect("a list").iter().cloned());
        pages += 1;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = Some(next.to_owned()),
            None => return (items, pages),
        }
    }
}

#[tokio::test]
async fn lists_end_by_bytes_and_go_on_by_key() {
    let server = Server::alone(&[]).await;
    let tenant = Tenant::create(&server.client(), spec::unlimited()).await;
    let large = "x".repeat(900_000);
    let mut started = Vec::new();
    for _ in 0..12 {
        let body = spec::inline_with(json!(large), [spec::set("a", "{{ input }}")]);
        started.push(tenant.finished(body).await["id"].clone());
        let job =
            json!({ "name": "j", "workflow": spec::workflow([spec::set("a", large.clone())]) });
        tenant.post("/jobs", job).await.expect(201);
    }
    started.reverse();
    let (runs, pages) = all(&tenant, "runs", "/runs").await;
    let large_runs = runs.iter().filter(|run| run["input"] == large.as_str());
    assert_eq!(large_runs.map(|run| run["id"].clone()).collect::<Vec<_>>(), started);
    assert!(pages > 4, "{pages}");
    let (jobs, pages) = all(&tenant, "jobs", "/jobs").await;
    assert!(jobs.len() == 12 && pages > 1, "{} jobs in {pages} pages", jobs.len());

    let cursor = tenant.get("/runs?limit=1").await.expect(200)["next_cursor"].clone();
    let cursor = cursor.as_str().expect("a cursor");
    for (path, bad) in [("/jobs", cursor), ("/runs", "1"), ("/runs", "-1"), ("/runs", "00ff")] {
        let refused = tenant.get(&format!("{path}?cursor={bad}")).await;
        assert_eq!(refused.problem(400, "invalid_parameter")["field"], "cursor", "{bad}");
    }
}

#[tokio::test]
async fn names_of_any_kind_stand_at_the_end_of_a_page() {
    let (_server, tenant) = Tenant::on_shared().await;
    for name in ["a%20b", "%C3%BC%2F%3F", "z"] {
        let path = format!("/workflows/{name}");
        tenant.put(&path, spec::workflow([spec::set("a", 1)])).await.expect(201);
    }
    let mut names = Vec::new();
    let mut query = "?limit=1".to_owned();
    loop {
        let page = tenant.get(&format!("/workflows{query}")).await.expect(200);
        names.push(page["workflows"][0]["name"].clone());
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("?limit=1&cursor={cursor}");
    }
    assert_eq!(names, ["a b", "z", "\u{fc}/?"]);
}

#[tokio::test]
async fn events_of_a_run_are_its_own_and_no_audit() {
    let (_server, tenant) = Tenant::on_shared().await;
    let run = tenant.finished(spec::inline([spec::set("a", 1)])).await;
    let events = tenant.events(run["id"].as_str().expect("an id")).await;
    let types: Vec<_> = events.iter().map(|event| &event["event_type"]["type"]).collect();
    assert_eq!(types.first(), Some(&&json!("run_started")), "{types:?}");
    assert!(!types.contains(&&json!("audit")), "{types:?}");
}

#[tokio::test]
async fn values_are_kept_whole_or_refused() {
    let server = Server::shared(&[]).await;
    let client = server.client();
    let tenant = Tenant::create(&client, spec::unlimited()).await;
    let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    let run = async |input: &str| {
        let steps = r#"{"steps":[{"id":"a","action":{"type":"set","output":1}}]}"#;
        let body = format!("{{\"workflow\":{steps},\"input\":{input}}}");
        let path = tenant.path("/runs");
        let call = client.call("POST", &path).header("content-type", "application/json");
        call.body(body).send().await
    };
    for input in ["18446744073709551615", "-9223372036854775808", &nested(64)] {
        let reply = run(input).await;
        reply.expect(201);
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        assert!(text.contains(&format!("\"input\":{input}")), "{text}");
    }
    for input in ["18446744073709551616", "{\"a\":[-9223372036854775809]}", &nested(65)] {
        let problem = run(input).await.problem(422, "invalid_field");
        assert!(problem["field"].as_str().is_some_and(|at| at.starts_with("input")), "{problem}");
    }
    let ignored = b"{\"name\":\"a\",\"ignored\":\"\xc3\x28\"}".to_vec();
    let call = client.call("POST", "/api/tenants").header("content-type", "application/json");
    call.body(ignored).send().await.problem(400, "malformed_json");
    let quota = json!({ "name": "a", "quota": { "max_storage_bytes": i64::MAX } });
    let made = client.post("/api/tenants", quota).await.expect(201);
    assert_eq!(made["quota"]["max_storage_bytes"], i64::MAX);
}

/// One run may be larger than a message between nodes: every node shows it all the same.
#[tokio::test]
async fn a_run_larger_than_a_message_is_shown_by_every_node() {
    let cluster = Cluster::of(2, &[]).await;
    let tenant = Tenant::create(&cluster.client(0), spec::unlimited()).await;
    let large = "x".repeat(900_000);
    let steps = (0..12).map(|n| spec::set(&format!("s{n}"), "{{ input }}"));
    let run = tenant.finished(spec::inline_with(json!(large), steps)).await;
    assert_eq!(run["status"], "completed", "{}", run["error"]);
    let path = tenant.path(&format!("/runs/{}", run["id"].as_str().expect("an id")));
    for node in 0..cluster.len() {
        let client = cluster.client(node).patient_for(Duration::from_secs(60));
        let reply = client.get(&path).await;
        assert!(reply.body.len() > 20_000_000, "{}: {} bytes", reply.status, reply.body.len());
        assert_eq!(reply.expect(200)["output"]["s11"], large.as_str());
    }
}

#[tokio::test]
async fn no_credential_of_a_request_is_in_the_log_at_any_level() {
    let server = Server::alone(&["--log", "trace", "--admin-token", "right-s3cret"]).await;
    let client = server.client();
    for (name, value, status) in [
        ("authorization", "Bearer right-s3cret", 200),
        ("authorization", "Bearer wrong-s3cret", 401),
        ("cookie", "session=cookie-s3cret", 401),
        ("idempotency-key", "key-s3cret", 401),
    ] {
        let reply = client.call("GET", "/api/tenants").header(name, value).send().await;
        assert_eq!(reply.status, status, "{name}: {reply}");
    }
    let body = json!({ "name": "a", "x": "body-s3cret" });
    let call = client.call("POST", "/api/tenants").header("authorization", "Bearer right-s3cret");
    call.json(&body).send().await.expect(201);
    let log = server.output();
    assert!(log.contains("/api/tenants"), "it is written at trace");
    let told: Vec<_> = log.lines().filter(|line| line.contains("s3cret")).collect();
    assert!(told.is_empty(), "{told:#?}");
}

//! Paths and names that would reach files, if anything made paths of them. What else may come in,
//! `api/tests` tries.

use serde_json::json;
use tests::{Tenant, raw, spec};

/// What a request line, its headers and a body look like on the wire.
fn request(line: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}").into_bytes();
    bytes.extend(format!("content-length: {}\r\n\r\n", body.len()).bytes());
    bytes.extend(body);
    bytes
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

/// Who asks by no name, or by two, may mean another host.
#[tokio::test]
async fn a_request_names_its_host_once() {
    let (server, _) = Tenant::on_shared().await;
    for (request, status) in [
        ("GET /healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: example.org\r\n\r\n", 400),
        ("GET http://localhost/healthz HTTP/1.1\r\n\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n\r\n", 200),
    ] {
        let answer = raw::send(server.addr(), request).await;
        assert_eq!(answer.status, Some(status), "{request}: {}", answer.text);
        let closes = answer.text.contains("connection: close");
        assert!(
            closes || status == 200,
            "{request}: what comes next is not clear either: {}",
            answer.text
        );
    }
}

//! What the API answers by itself: refusals, their shape, and the open pages. What is right in
//! every way meets 503 `starting` here, for there are no actors to ask.

mod access;
#[path = "../support/mod.rs"]
mod support;

use axum::body::{Body, to_bytes};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::Value;
use tower::ServiceExt;

const ID: &str = "550e8400-e29b-41d4-a716-446655440000";
/// The least that makes a tenant.
const NAMED: &str = r#"{"name":"a"}"#;

/// One request, without a socket.
struct Sent {
    request: http::request::Builder,
    token: Option<&'static str>,
}

struct Answered {
    status: u16,
    headers: HeaderMap,
    text: String,
}

fn send(method: &str, path: &str) -> Sent {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    Sent { request: Request::builder().method(method).uri(path), token: None }
}

impl Sent {
    fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    fn admin(mut self, token: &'static str) -> Self {
        self.token = Some(token);
        self
    }

    /// Sends a body of this type, or of none that is named.
    async fn typed(mut self, kind: Option<&str>, body: impl Into<Body>) -> Answered {
        if let Some(kind) = kind {
            self = self.header("Content-Type", kind);
        }
        let request = self.request.body(body.into()).unwrap();
        let response = support::api(self.token).router().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
        Answered { status: parts.status.as_u16(), headers: parts.headers, text }
    }

    async fn body(self, body: &str) -> Answered {
        self.typed(Some("application/json"), body.to_owned()).await
    }

    async fn empty(self) -> Answered {
        self.typed(None, Body::empty()).await
    }
}

impl Answered {
    /// Checks that it is a whole problem, with this status and code.
    #[track_caller]
    fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let body: Value = serde_json::from_str(&self.text).unwrap();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["type"], format!("/problems/{code}"));
        assert_eq!(body["status"], status);
        assert_eq!(body["detail"], body["error"]);
        assert!(!body["detail"].as_str().unwrap().is_empty());
        assert!(body["title"].is_string() && body["retryable"].is_boolean());
        assert_eq!(body["request_id"], self.headers["x-request-id"].to_str().unwrap());
        body
    }
}

#[tokio::test]
async fn unknown_paths_are_404() {
    for path in ["/nowhere", "/api", "/api/tenants/", "/api/runs/x/y/z", "/api//tenants", "//"] {
        send("GET", path).empty().await.problem(404, "not_found");
    }
    send("POST", "/api/tasks/claim").body("{}").await.problem(404, "not_found");
    let hook = format!("/test/tenants/{ID}/panic");
    send("POST", &hook).empty().await.problem(404, "not_found");
}

#[tokio::test]
async fn ids_that_are_no_uuid_are_404() {
    for path in [
        "/api/tenants/x",
        "/api/tenants/..%2F..%2Fetc%2Fpasswd",
        "/api/tenants/%FF",
        "/api/tenants/550E8400-E29B-41D4-A716-446655440000",
        "/api/tenants/x/runs",
        "/api/tenants/x/usage",
        "/api/cluster/nodes/x",
        &format!("/api/cluster/nodes/{ID}"),
    ] {
        send("GET", path).empty().await.problem(404, "not_found");
    }
    let short = send("GET", "/api/runs").header("X-Tenant-Id", "../x").empty().await;
    short.problem(404, "not_found");
}

#[tokio::test]
async fn short_paths_need_a_tenant() {
    for path in ["/api/runs", "/api/jobs", &format!("/api/runs/{ID}"), &format!("/api/jobs/{ID}")] {
        send("GET", path).empty().await.problem(400, "tenant_required");
    }
}

#[tokio::test]
async fn wrong_methods_are_405_and_name_the_right_ones() {
    for (method, path, allowed) in [
        ("PATCH", "/api/tenants".to_owned(), "GET,HEAD,POST"),
        ("POST", format!("/api/tenants/{ID}"), "GET,HEAD,PUT,DELETE"),
        ("GET", format!("/api/tenants/{ID}/suspend"), "POST"),
        ("DELETE", format!("/api/tenants/{ID}/runs"), "GET,HEAD,POST"),
        ("PUT", "/api/locks/k/acquire".to_owned(), "POST"),
        ("BREW", "/healthz".to_owned(), "GET,HEAD"),
    ] {
        let answer = send(method, &path).empty().await;
        answer.problem(405, "method_not_allowed");
        let mut given: Vec<&str> = answer.headers["allow"].to_str().unwrap().split(',').collect();
        let mut expected: Vec<&str> = allowed.split(',').collect();
        given.sort_unstable();
        expected.sort_unstable();
        assert_eq!(given, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn bodies_that_are_not_json_are_400() {
    let deep = "[".repeat(100_000);
    for body in [
        "{",
        "name=x",
        "{'name':'x'}",
        "{\"name\":\"x\"}}",
        "{\"name\":\"x\",}",
        "{\"name\":NaN}",
        "\u{feff}{}",
        &deep,
    ] {
        send("POST", "/api/tenants").body(body).await.problem(400, "malformed_json");
    }
    for bytes in
        [&b"{\"name\":\"a\",\"x\":\"\xff\"}"[..], b"{\"x\":\"\xc3\"}", b"{\"name\":\"a\"}\xff"]
    {
        let answer = send("POST", "/api/tenants").typed(None, bytes).await;
        answer.problem(400, "malformed_json");
    }
}

#[tokio::test]
async fn bad_fields_are_422_and_named() {
    let tenant = "/api/tenants".to_owned();
    let change = format!("/api/tenants/{ID}");
    for (method, path, body, field) in [
        ("POST", &tenant, r#"{}"#, "name"),
        ("POST", &tenant, "null", "name"),
        ("POST", &tenant, "[]", "body"),
        ("POST", &tenant, r#"["Acme"]"#, "body"),
        ("POST", &tenant, "5", "body"),
        ("POST", &tenant, "", "name"),
        ("POST", &tenant, r#"{"name":"a","description":1}"#, "description"),
        ("POST", &tenant, r#"{"name":"a","quota":5}"#, "quota"),
        ("POST", &tenant, r#"{"name":"  "}"#, "name"),
        ("POST", &tenant, r#"{"name":"a\u0007"}"#, "name"),
        ("POST", &tenant, r#"{"name":"a","region":"US"}"#, "region"),
        ("POST", &tenant, r#"{"name":"a","region":"tenants"}"#, "region"),
        ("POST", &tenant, r#"{"name":"a","quota":[1]}"#, "quota"),
        ("POST", &tenant, r#"{"name":"a","quota":{"max_routines":-1}}"#, "quota.max_routines"),
        ("POST", &tenant, r#"{"name":"a","quota":{"max_routines":1.5}}"#, "quota.max_routines"),
        (
            "POST",
            &tenant,
            r#"{"name":"a","quota":{"max_storage_bytes":9223372036854775808}}"#,
            "quota.max_storage_bytes",
        ),
        (
            "POST",
            &tenant,
            r#"{"name":"a","quota":{"max_routines":4294967296}}"#,
            "quota.max_routines",
        ),
        ("POST", &tenant, r#"{"name":"a","quota":{"max_routines":1.0}}"#, "quota.max_routines"),
        ("POST", &tenant, r#"{"name":"a","settings":{"metadata":{"n":1}}}"#, "settings.metadata.n"),
        ("POST", &tenant, r#"{"name":"a","x":[{"y":18446744073709551616}]}"#, "x[0].y"),
        (
            "PUT",
            &change,
            r#"{"settings":{"data_retention_days":4294967296}}"#,
            "settings.data_retention_days",
        ),
        ("POST", &tenant, r#"{"name":"a","settings":{"metadata":[]}}"#, "settings.metadata"),
        ("PUT", &change, r#"{"name":""}"#, "name"),
        ("PUT", &change, r#"{"status":"active"}"#, "status"),
        (
            "PUT",
            &change,
            r#"{"settings":{"data_retention_days":-1}}"#,
            "settings.data_retention_days",
        ),
    ] {
        let problem = send(method, path).body(body).await.problem(422, "invalid_field");
        assert_eq!(problem["field"], field, "{body}: {problem}");
    }
}

#[tokio::test]
async fn what_is_right_is_let_through_to_the_node() {
    let tenant = format!("/api/tenants/{ID}");
    let seed = r#"{
        "name": "Acme Corporation",
        "description": "Enterprise customer with custom workflows",
        "quota": {
          "max_concurrent_workflows": 50, "max_workflows_per_day": 5000, "max_routines": 100,
          "max_storage_bytes": 53687091200, "max_api_requests_per_minute": null
        },
        "settings": {
          "data_retention_days": 365, "enable_audit_logging": true,
          "metadata": { "tier": "enterprise", "region": "us-east" }
        }, "unknown": [1]
    }"#;
    let node = r#"{"address":"http://node-1.example.com:3000","region":"us-east-1",
        "metadata":{"instance_type":"m5.xlarge","availability_zone":"us-east-1a"}}"#;
    let with_node = format!("/api/cluster/nodes/node-{ID}");
    let longest_lease = format!(r#"{{"holder":"{}","ttl_secs":86400}}"#, "h".repeat(256));
    for (method, path, body) in [
        ("POST", "/api/tenants", seed),
        ("PUT", &tenant, r#"{"name":"Acme Corp (Updated)","quota":{"max_routines":200}}"#),
        ("PUT", &tenant, ""),
        ("DELETE", &tenant, "null"),
        ("POST", &format!("{tenant}/suspend"), ""),
        ("POST", &format!("{tenant}/suspend"), "null"),
        ("POST", &format!("{tenant}/runs/{ID}/cancel"), ""),
        ("POST", &format!("{tenant}/runs/{ID}/cancel"), "null"),
        ("POST", &format!("{tenant}/activate"), "{}"),
        ("GET", "/api/tenants?status=Suspended&limit=10&consistency=stale", ""),
        ("GET", &format!("{tenant}/storage-stats"), ""),
        ("GET", &format!("{tenant}/usage"), ""),
        ("POST", "/api/cluster/nodes", node),
        ("GET", &with_node, ""),
        ("DELETE", &with_node, ""),
        ("POST", &format!("{with_node}/heartbeat"), ""),
        ("GET", "/api/cluster/leader", ""),
        ("POST", "/api/cluster/leader/step-down", ""),
        ("GET", "/api/cluster/health", ""),
        ("GET", "/api/cluster/groups", ""),
        ("POST", "/api/cluster/join-tokens", ""),
        ("POST", "/api/cluster/join-tokens", r#"{"ttl_secs":null,"uses":null}"#),
        ("POST", "/api/cluster/join-tokens", r#"{"ttl_secs":1,"uses":1000}"#),
        ("POST", "/api/cluster/join-tokens", r#"{"ttl_secs":2592000,"uses":1}"#),
        ("GET", "/api/cluster/join-tokens?limit=3", ""),
        ("DELETE", &format!("/api/cluster/join-tokens/{ID}"), "null"),
        ("POST", "/api/locks/a%2Fb/acquire", r#"{"holder":"h","ttl_secs":0.1,"wait_secs":300}"#),
        ("POST", &format!("/api/locks/{}/acquire", "k".repeat(512)), &longest_lease),
        ("GET", "/api/locks/cluster%2Fleader", ""),
        ("GET", "/api/locks?prefix=a%2F", ""),
        ("GET", &format!("{tenant}/runs"), ""),
        ("POST", &format!("{tenant}/locks/k/release"), r#"{"holder":"h"}"#),
    ] {
        let answer = send(method, path).body(body).await;
        assert_eq!(answer.problem(503, "starting")["applied"], false, "{method} {path}");
        assert!(answer.headers.contains_key("retry-after"));
    }
    for path in ["/api/runs", "/api/jobs"] {
        let answer = send("GET", path).header("X-Tenant-Id", ID).empty().await;
        answer.problem(503, "starting");
    }
    let ready = send("GET", "/readyz").empty().await.problem(503, "starting");
    assert_eq!(ready["reasons"], serde_json::json!(["the node is starting"]));
}

#[tokio::test]
async fn nodes_are_checked() {
    for (body, field) in [
        ("", "address"),
        (r#"{"address":""}"#, "address"),
        (r#"{"address":5}"#, "address"),
        (r#"{"address":"a","metadata":"x"}"#, "metadata"),
        (r#"{"address":"a","region":"A"}"#, "region"),
        (r#"{"address":"a","metadata":{"k":7}}"#, "metadata.k"),
    ] {
        let problem = send("POST", "/api/cluster/nodes").body(body).await;
        assert_eq!(problem.problem(422, "invalid_field")["field"], field, "{body}");
    }
}

#[tokio::test]
async fn join_tokens_are_checked() {
    for (body, field) in [
        (r#"{"ttl_secs":0.9}"#, "ttl_secs"),
        (r#"{"ttl_secs":-1}"#, "ttl_secs"),
        (r#"{"ttl_secs":2592001}"#, "ttl_secs"),
        (r#"{"ttl_secs":"3600"}"#, "ttl_secs"),
        (r#"{"uses":0}"#, "uses"),
        (r#"{"uses":1001}"#, "uses"),
        (r#"{"uses":4294967297}"#, "uses"),
        (r#"{"uses":1.5}"#, "uses"),
        ("[]", "body"),
    ] {
        let problem = send("POST", "/api/cluster/join-tokens").body(body).await;
        assert_eq!(problem.problem(422, "invalid_field")["field"], field, "{body}");
    }
    send("DELETE", "/api/cluster/join-tokens/x").empty().await.problem(404, "not_found");
    let path = format!("/api/cluster/join-tokens/{ID}");
    send("GET", &path).empty().await.problem(405, "method_not_allowed");
}

#[tokio::test]
async fn locks_are_checked() {
    let long = format!("/api/locks/{}/acquire", "k".repeat(513));
    let long_holder = format!(r#"{{"holder":"{}"}}"#, "h".repeat(257));
    for (path, body, field) in [
        (long.as_str(), r#"{"holder":"h"}"#, "key"),
        ("/api/locks/k/acquire", "", "holder"),
        ("/api/locks/k/acquire", r#"{"holder":""}"#, "holder"),
        ("/api/locks/k/acquire", &long_holder, "holder"),
        ("/api/locks/k/acquire", r#"{"holder":"h","ttl_secs":0}"#, "ttl_secs"),
        ("/api/locks/k/acquire", r#"{"holder":"h","ttl_secs":0.05}"#, "ttl_secs"),
        ("/api/locks/k/acquire", r#"{"holder":"h","ttl_secs":86401}"#, "ttl_secs"),
        ("/api/locks/k/acquire", r#"{"holder":"h","ttl_secs":"60"}"#, "ttl_secs"),
        ("/api/locks/k/acquire", r#"{"holder":"h","wait_secs":301}"#, "wait_secs"),
        ("/api/locks/k/acquire", r#"{"holder":"h","wait_secs":-1}"#, "wait_secs"),
        ("/api/locks/k/renew", r#"{"holder":"h","token":-1}"#, "token"),
        ("/api/locks/k/release", r#"{"token":1}"#, "holder"),
    ] {
        let problem = send("POST", path).body(body).await.problem(422, "invalid_field");
        assert_eq!(problem["field"], field, "{body}");
    }
    send("POST", "/api/locks/%FF/acquire").body("{}").await.problem(400, "invalid_parameter");
    let prefix = format!("/api/locks?prefix={}", "k".repeat(513));
    send("GET", &prefix).empty().await.problem(400, "invalid_parameter");
}

#[tokio::test]
async fn query_parameters_are_checked() {
    for (path, field) in [
        ("/api/tenants?limit=0", "limit"),
        ("/api/tenants?limit=10001", "limit"),
        ("/api/tenants?limit=x", "limit"),
        ("/api/tenants?status=active", "status"),
        ("/api/cluster/nodes?limit=-1", "limit"),
    ] {
        let problem = send("GET", path).empty().await.problem(400, "invalid_parameter");
        assert_eq!(problem["field"], field, "{path}");
    }
}

#[tokio::test]
async fn other_content_types_are_415() {
    let typed = |kind| send("POST", "/api/tenants").typed(kind, NAMED);
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/xml", "garbage"] {
        typed(Some(kind)).await.problem(415, "unsupported_media_type");
    }
    // No content type is taken for JSON.
    for kind in [Some("application/json; charset=utf-8"), None] {
        typed(kind).await.problem(503, "starting");
    }
}

#[tokio::test]
async fn large_bodies_and_headers_are_refused() {
    let exact = format!(r#"{{"name":"a","x":"{}"}}"#, "x".repeat(1024 * 1024 - 19));
    assert_eq!(exact.len(), 1024 * 1024);
    send("POST", "/api/tenants").body(&exact).await.problem(503, "starting");
    let body = format!("{exact} ");
    let answer = send("POST", "/api/tenants").body(&body).await;
    assert_eq!(answer.problem(413, "too_large")["limit"], 1024 * 1024);
    let answer = send("GET", "/healthz").header("X-Large", &"x".repeat(17 * 1024)).empty().await;
    answer.problem(431, "too_large");
}

#[tokio::test]
async fn preconditions_that_can_match_nothing_are_412() {
    for tag in ["W/\"1\"", "1", "\"x\"", "\"01\""] {
        let path = format!("/api/tenants/{ID}");
        let answer = send("PUT", &path).header("If-Match", tag).body("{}").await;
        answer.problem(412, "precondition_failed");
    }
}

#[tokio::test]
async fn idempotency_keys_are_checked() {
    for key in ["", "a b", &"k".repeat(256)] {
        let sent = send("POST", "/api/tenants").header("Idempotency-Key", key);
        let problem = sent.body(NAMED).await.problem(400, "invalid_parameter");
        assert_eq!(problem["field"], "Idempotency-Key");
    }
}

#[tokio::test]
async fn request_ids_are_taken_or_made() {
    let taken = send("GET", "/healthz").header("X-Request-Id", "abc-1").empty().await;
    assert_eq!(taken.headers["x-request-id"], "abc-1");
    for bad in ["", "a b", &"x".repeat(129)] {
        let made = send("GET", "/nowhere").header("X-Request-Id", bad).empty().await;
        made.problem(404, "not_found");
        assert_eq!(made.headers["x-request-id"], "07070707-0707-4707-8707-070707070707");
    }
}

#[tokio::test]
async fn operators_get_their_pages() {
    let health = send("GET", "/api/health").empty().await;
    let body: Value = serde_json::from_str(&health.text).unwrap();
    assert_eq!(body, serde_json::json!({"status": "ok", "version": "1.2.3"}));
    assert_eq!(health.headers["date"], "Sun, 06 Nov 1994 08:49:37 GMT");
    let document = send("GET", "/api/openapi.json").empty().await;
    assert_eq!(document.headers["content-type"], "application/json");
    let document: Value = serde_json::from_str(&document.text).unwrap();
    assert!(document["paths"]["/api/tenants/{tenant_id}/locks/{key}/acquire"]["post"].is_object());
    assert!(send("GET", "/docs").empty().await.text.contains("/api/runs/{run_id}/cancel"));
    assert!(send("GET", "/").empty().await.text.contains("href=\"/docs\""));
    let metrics = send("GET", "/metrics").empty().await.text;
    assert!(metrics.contains("shiioo_http_requests_in_flight 1"), "{metrics}");
    assert!(metrics.contains("shiioo_up 1"));
}

#[tokio::test]
async fn head_answers_like_get_without_the_body() {
    for path in ["/api/health", "/nowhere", "/api/tenants/x"] {
        let get = send("GET", path).empty().await;
        let head = send("HEAD", path).empty().await;
        assert_eq!((head.status, head.text.as_str()), (get.status, ""), "{path}");
        assert_eq!(head.headers["content-length"], get.text.len().to_string().as_str());
        assert_eq!(head.headers["content-type"], get.headers["content-type"]);
    }
    assert_eq!(StatusCode::OK, send("HEAD", "/metrics").empty().await.status);
}

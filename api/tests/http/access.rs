//! Who is let in: callers with a credential, and pages of the node.

use serde_json::Value;

use super::{ID, send};

#[tokio::test]
async fn other_peoples_pages_and_callers_without_a_token_are_kept_out_of_every_route() {
    let document = send("GET", "/api/openapi.json").empty().await;
    let document: Value = serde_json::from_str(&document.text).unwrap();
    let mut asked = 0;
    for (template, item) in document["paths"].as_object().unwrap() {
        let open = ["/", "/healthz", "/readyz"].contains(&template.as_str());
        let path = template
            .replace("{node_id}", &format!("node-{ID}"))
            .replace("{key}", "k")
            .replace("{name}", "n")
            .replace("{tenant_id}", ID)
            .replace("{run_id}", ID)
            .replace("{job_id}", ID)
            .replace("{token_id}", ID);
        for method in item.as_object().unwrap().keys().map(|method| method.to_ascii_uppercase()) {
            asked += 1;
            for (name, value) in [
                ("Host", "evil.example"),
                ("Origin", "https://evil.example"),
                ("Origin", "null"),
                ("Sec-Fetch-Site", "cross-site"),
                ("Sec-Fetch-Site", "same-site"),
            ] {
                let sent = send(&method, &path).header("X-Tenant-Id", ID).header(name, value);
                let answer = sent.empty().await;
                assert_eq!(answer.status == 403, !open, "{method} {path}: {name}: {value}");
                if !open {
                    answer.problem(403, "forbidden");
                }
            }
            // With an admin token every route asks for it but the open ones.
            let sent = send(&method, &path).header("X-Tenant-Id", ID).admin("s3cret");
            assert_eq!(sent.empty().await.status == 401, !open, "{method} {path}");
            // The node's own page, and a program.
            for origin in [Some("http://localhost:3000"), None] {
                let mut sent = send(&method, &path).header("Host", "localhost:3000");
                if let Some(origin) = origin {
                    sent = sent.header("Origin", origin).header("Sec-Fetch-Site", "same-origin");
                }
                assert_ne!(sent.empty().await.status, 403, "{method} {path}");
            }
        }
    }
    assert!(asked > 30, "{asked}");
}

#[tokio::test]
async fn a_page_is_let_in_by_the_admin_token_alone() {
    let page = || send("GET", "/metrics").header("Origin", "https://ops.example").admin("s3cret");
    assert_eq!(page().header("Authorization", "Bearer s3cret").empty().await.status, 200);
    page().empty().await.problem(401, "unauthorized");
}

#[tokio::test]
async fn the_admin_token_guards_everything_but_the_open_paths() {
    for path in ["/", "/healthz"] {
        assert_eq!(send("GET", path).admin("s3cret").empty().await.status, 200, "{path}");
    }
    // A wrong method at an open path is no secret; what is not there is.
    send("POST", "/healthz").admin("s3cret").empty().await.problem(405, "method_not_allowed");
    for path in ["/metrics", "/docs", "/api/openapi.json", "/api/health", "/api/tenants", "/no"] {
        let refused = send("GET", path).admin("s3cret").empty().await;
        refused.problem(401, "unauthorized");
        assert!(refused.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
    }
    let wrong = send("GET", "/metrics").admin("s3cret").header("Authorization", "Bearer s3cre");
    wrong.empty().await.problem(401, "unauthorized");
    let right = send("GET", "/metrics").admin("s3cret").header("Authorization", "Bearer s3cret");
    assert_eq!(right.empty().await.status, 200);
}

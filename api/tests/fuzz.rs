//! Any bytes, and any JSON, to every route: a refusal that says why, never a failure of the node.
//! What nothing is wrong with meets 503 `starting`, for there are no actors to ask.

mod support;

use axum::body::{Body, to_bytes};
use http::{Method, Request};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;

const ID: &str = "550e8400-e29b-41d4-a716-446655440000";
/// Names that requests know, so that the reader of each is met, and one that none does.
const FIELDS: [&str; 24] = [
    "name",
    "description",
    "quota",
    "settings",
    "metadata",
    "region",
    "max_routines",
    "max_storage_bytes",
    "data_retention_days",
    "workflow",
    "workflow_name",
    "steps",
    "id",
    "action",
    "type",
    "retry_policy",
    "timeout_secs",
    "depends_on",
    "dependencies",
    "input",
    "holder",
    "ttl_secs",
    "wait_secs",
    "x",
];

/// Every route that reads a body.
const ROUTES: [(&str, &str); 14] = [
    ("POST", "/api/tenants"),
    ("PUT", "/api/tenants/{id}"),
    ("POST", "/api/tenants/{id}/suspend"),
    ("POST", "/api/cluster/nodes"),
    ("POST", "/api/cluster/nodes/node-{id}/heartbeat"),
    ("POST", "/api/cluster/join-tokens"),
    ("POST", "/api/locks/k/acquire"),
    ("POST", "/api/locks/k/renew"),
    ("POST", "/api/locks/k/release"),
    ("POST", "/api/tenants/{id}/locks/k/acquire"),
    ("PUT", "/api/tenants/{id}/workflows/w"),
    ("POST", "/api/tenants/{id}/runs"),
    ("POST", "/api/tenants/{id}/runs/{id}/cancel"),
    ("POST", "/api/tenants/{id}/jobs"),
];

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        "[a-z{}% .]{0,12}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        prop::sample::select(vec!["set", "http", "wait", "GET", "Active", "a"])
            .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let field = prop_oneof![
            4 => prop::sample::select(FIELDS.to_vec()).prop_map(str::to_owned),
            1 => any::<String>(),
        ];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(field, inner, 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// A JSON text with some of its bytes changed.
fn spoiled() -> impl Strategy<Value = Vec<u8>> {
    (values(), prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3)).prop_map(
        |(value, changes)| {
            let mut bytes = value.to_string().into_bytes();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes
        },
    )
}

/// Sends the body to every route, and gives back what was wrong with an answer.
fn sent(body: &[u8]) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let router = support::api(None).router();
        for (method, path) in ROUTES {
            let path = path.replace("{id}", ID);
            let request = Request::builder()
                .method(Method::from_bytes(method.as_bytes()).unwrap())
                .uri(&path)
                .header("Content-Type", "application/json")
                .body(Body::from(body.to_vec()))
                .unwrap();
            let response = router.clone().oneshot(request).await.unwrap();
            let status = response.status().as_u16();
            let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let problem: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            let is_right = match status {
                400 => problem["code"] == "malformed_json",
                422 => problem["code"].as_str().is_some_and(|code| code.starts_with("invalid_")),
                503 => problem["code"] == "starting",
                _ => false,
            };
            let names_a_type = ["struct ", "enum ", "Option", "u64", "f64", "::"]
                .iter()
                .any(|word| status == 422 && says(&problem, word) && !contains(body, word));
            if !is_right || names_a_type {
                return Err(format!("{method} {path}: {text}"));
            }
        }
        Ok(())
    })
}

/// Whether the text has the word outside of the name of the field, which is the client's own: a key
/// that ends with a colon makes two of them before what is wrong with it.
fn says(problem: &Value, word: &str) -> bool {
    let detail = problem["detail"].as_str().unwrap_or_default();
    let field = problem["field"].as_str().unwrap_or_default();
    let rest = detail.strip_prefix(field).unwrap_or(detail);
    rest.contains(word)
}

fn contains(body: &[u8], word: &str) -> bool {
    body.windows(word.len()).any(|bytes| bytes == word.as_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_refused_or_understood(body in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(sent(&body), Ok(()));
    }

    #[test]
    fn any_json_is_refused_or_understood(body in values()) {
        prop_assert_eq!(sent(body.to_string().as_bytes()), Ok(()));
    }

    #[test]
    fn any_spoiled_json_is_refused_or_understood(body in spoiled()) {
        prop_assert_eq!(sent(&body), Ok(()));
    }
}

#[test]
fn a_key_of_the_client_is_not_taken_for_the_name_of_a_type() {
    assert_eq!(sent(br#"{"metadata":{":":null}}"#), Ok(()));
}

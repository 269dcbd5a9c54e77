//! What the routes declare, and whether all of it is documented.

use std::collections::BTreeSet;

use http::request::Parts;
use http::{Method, Request};
use serde_json::Value;
use tokio::time::Duration;

use super::*;
use crate::docs::openapi::{document, json};
use crate::docs::pages;
use crate::server::declaration::{Credential, Declaration, TenantIn};

/// Every route that a node may have: method, path, owner, credential, and what else it declares.
const TABLE: &str = "
GET    /                                                     node        open
GET    /api/cluster/events                                   node        admin
GET    /api/cluster/groups                                   node        admin
GET    /api/cluster/health                                   node        admin
POST   /api/cluster/join-tokens                              system      admin
GET    /api/cluster/join-tokens                              system      admin  page
DELETE /api/cluster/join-tokens/{token_id}                   system      admin
GET    /api/cluster/leader                                   node        admin
POST   /api/cluster/leader/step-down                         system once admin
POST   /api/cluster/nodes                                    system      admin
GET    /api/cluster/nodes                                    system      admin  page
GET    /api/cluster/nodes/{node_id}                          system      admin
DELETE /api/cluster/nodes/{node_id}                          system      admin
POST   /api/cluster/nodes/{node_id}/heartbeat                system      admin
GET    /api/health                                           node        admin
POST   /api/jobs                                             tenant      tenant metered tenant-header
GET    /api/jobs                                             tenant      tenant metered page tenant-header
GET    /api/jobs/{job_id}                                    tenant      tenant metered tenant-header
GET    /api/locks                                            system      admin  page
GET    /api/locks/{key}                                      system      admin
POST   /api/locks/{key}/acquire                              system      admin  long-poll
POST   /api/locks/{key}/release                              system      admin
POST   /api/locks/{key}/renew                                system      admin
GET    /api/openapi.json                                     node        admin
POST   /api/runs                                             tenant      tenant metered long-poll tenant-header
GET    /api/runs                                             tenant      tenant metered page tenant-header
GET    /api/runs/{run_id}                                    tenant      tenant metered long-poll tenant-header
POST   /api/runs/{run_id}/cancel                             tenant      tenant metered tenant-header
GET    /api/runs/{run_id}/events                             tenant      tenant metered page tenant-header
POST   /api/tenants                                          system      admin
GET    /api/tenants                                          system      admin  page
GET    /api/tenants/{tenant_id}                              system      tenant
PUT    /api/tenants/{tenant_id}                              system      admin
DELETE /api/tenants/{tenant_id}                              system      admin
POST   /api/tenants/{tenant_id}/activate                     system      admin
GET    /api/tenants/{tenant_id}/events                       tenant      tenant metered page
POST   /api/tenants/{tenant_id}/jobs                         tenant      tenant metered
GET    /api/tenants/{tenant_id}/jobs                         tenant      tenant metered page
GET    /api/tenants/{tenant_id}/jobs/{job_id}                tenant      tenant metered
GET    /api/tenants/{tenant_id}/locks                        tenant      tenant metered page
GET    /api/tenants/{tenant_id}/locks/{key}                  tenant      tenant metered
POST   /api/tenants/{tenant_id}/locks/{key}/acquire          tenant      tenant metered long-poll
POST   /api/tenants/{tenant_id}/locks/{key}/release          tenant      tenant metered
POST   /api/tenants/{tenant_id}/locks/{key}/renew            tenant      tenant metered
POST   /api/tenants/{tenant_id}/runs                         tenant      tenant metered long-poll
GET    /api/tenants/{tenant_id}/runs                         tenant      tenant metered page
GET    /api/tenants/{tenant_id}/runs/{run_id}                tenant      tenant metered long-poll
POST   /api/tenants/{tenant_id}/runs/{run_id}/cancel         tenant      tenant metered
GET    /api/tenants/{tenant_id}/runs/{run_id}/events         tenant      tenant metered page
GET    /api/tenants/{tenant_id}/storage-stats                tenant      tenant
POST   /api/tenants/{tenant_id}/suspend                      system      admin
GET    /api/tenants/{tenant_id}/usage                        tenant      tenant
GET    /api/tenants/{tenant_id}/workflows                    tenant      tenant metered page
GET    /api/tenants/{tenant_id}/workflows/{name}             tenant      tenant metered
PUT    /api/tenants/{tenant_id}/workflows/{name}             tenant      tenant metered
DELETE /api/tenants/{tenant_id}/workflows/{name}             tenant      tenant metered
GET    /docs                                                 node        admin
GET    /healthz                                              node        open   probe
GET    /metrics                                              node        admin
GET    /readyz                                               node        open   probe
POST   /test/tenants/{tenant_id}/{act}                       node        admin
";

fn row(declared: &Declaration) -> String {
    let owner = match declared.owner {
        RouteOwner::ThisNode => "node",
        RouteOwner::SystemGroup => "system",
        RouteOwner::SystemGroupOnce => "system once",
        RouteOwner::TenantGroup => "tenant",
    };
    let credential = match declared.credential {
        Credential::Open => "open",
        Credential::Tenant => "tenant",
        Credential::Admin => "admin",
    };
    let mut row =
        format!("{:6} {:53} {owner:11} {credential:6}", declared.method.as_str(), declared.path);
    for (is_so, word) in [
        (declared.is_metered, "metered"),
        (declared.wait_of.is_some(), "long-poll"),
        (declared.is_page, "page"),
        (declared.is_probe, "probe"),
        (declared.tenant_in == TenantIn::Header, "tenant-header"),
    ] {
        if is_so {
            row += " ";
            row += word;
        }
    }
    row.trim_end().to_owned()
}

#[test]
fn every_route_declares_what_the_table_says() {
    let RouteList(routes) = RouteList::new(true);
    let mut rows: Vec<String> = routes.iter().map(|route| row(&route.declared)).collect();
    rows.sort_by_key(|row| row.split_whitespace().nth(1).unwrap_or_default().to_owned());
    assert_eq!(rows.join("\n"), TABLE.trim(), "\n{}\n", rows.join("\n"));
}

/// The operation of a tenant's resource is the same at its long and at its short path.
#[test]
fn idempotency_keys_know_the_operation_whatever_the_path() {
    let RouteList(routes) = RouteList::new(false);
    let resource = |path: &str| {
        let mut routes = routes.iter().map(|route| &route.declared);
        routes.find(|declared| declared.path == path).unwrap().resource
    };
    assert_eq!(resource("/api/tenants/{tenant_id}/runs"), "/runs");
    assert_eq!(resource("/api/runs"), "/runs");
    assert_eq!(resource("/api/jobs"), "/jobs");
    assert_eq!(resource("/api/tenants"), "/api/tenants");
    assert_eq!(resource("/api/cluster/join-tokens"), "/api/cluster/join-tokens");
}

#[test]
fn waits_are_read_where_they_are() {
    let RouteList(routes) = RouteList::new(false);
    let wait = |method: &Method, path: &str, query: &str, body: &str| {
        let mut routes = routes.iter().map(|route| &route.declared);
        let declared = routes.find(|it| it.method == method && it.path == path).unwrap();
        let uri = format!("{}{query}", path.replace(['{', '}'], ""));
        let (parts, ()): (Parts, ()) = Request::get(uri).body(()).unwrap().into_parts();
        declared.wait_of(&parts, body.as_bytes())
    };
    let secs = Duration::from_secs;
    for acquire in ["/api/locks/{key}/acquire", "/api/tenants/{tenant_id}/locks/{key}/acquire"] {
        let body = r#"{"holder":"h","wait_secs":7}"#;
        assert_eq!(wait(&Method::POST, acquire, "", body), secs(7));
        let body = r#"{"wait_secs":301}"#;
        assert_eq!(wait(&Method::POST, acquire, "?wait_secs=7", body), Duration::ZERO);
    }
    for (method, path, waits) in [
        (Method::POST, "/api/tenants/{tenant_id}/runs", 7),
        (Method::POST, "/api/runs", 7),
        (Method::GET, "/api/runs", 0),
        (Method::GET, "/api/runs/{run_id}", 7),
        (Method::GET, "/api/runs/{run_id}/events", 0),
        (Method::POST, "/api/jobs", 0),
    ] {
        assert_eq!(wait(&method, path, "?x=1&wait_secs=7", ""), secs(waits), "{path}");
        assert_eq!(wait(&method, path, "?wait_secs=x", ""), Duration::ZERO, "{path}");
    }
}

#[test]
fn every_route_is_in_the_document_at_its_path_and_method() {
    let routes = RouteList::new(false);
    let document = document("1.2.3", &routes.documented());
    let documented: BTreeSet<(String, String)> = document
        .paths
        .paths
        .iter()
        .flat_map(|(path, item)| {
            pages::methods(item).map(|(method, _)| (path.clone(), method.to_owned()))
        })
        .collect();
    let declared = routes.0.iter().map(|route| &route.declared);
    let routed: BTreeSet<(String, String)> =
        declared.map(|it| (it.path.to_owned(), it.method.to_string())).collect();
    assert_eq!(documented, routed);
    let hooks = RouteList::new(true).documented().len();
    assert_eq!(hooks, routes.documented().len(), "test hooks are in no document");
}

#[test]
fn the_document_is_json_and_every_operation_has_an_id_of_its_own() {
    let text = json("1.2.3", &RouteList::new(false).documented());
    let document: Value = serde_json::from_slice(&text).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    assert_eq!(document["info"]["version"], "1.2.3");
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap_or_default();
            assert!(!id.is_empty() && ids.insert(id.to_owned()), "{method} {path}: {id:?}");
            assert!(operation["summary"].is_string(), "{method} {path}");
            assert!(operation["responses"]["default"].is_object(), "{method} {path}");
        }
    }
    let text = document.to_string();
    for (name, _) in document["components"]["schemas"].as_object().unwrap() {
        assert!(!name.ends_with("Body"), "{name} is a name of the code");
    }
    // Every reference leads somewhere.
    for reference in text.split("\"$ref\":\"").skip(1) {
        let pointer = reference.split('"').next().unwrap().trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
}

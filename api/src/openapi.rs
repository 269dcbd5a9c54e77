//! The OpenAPI document, generated from the handlers and their types.
//!
//! What holds for every operation (path parameters, the credential, preconditions, errors) is
//! added here, once, so that handlers state only what is theirs.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, Required, ResponseBuilder};
use utoipa::{OpenApi as _, ToSchema};

use crate::problem::ProblemBody;
use crate::{cluster, jobs, join_tokens, locks, operations, runs, tenants, workflows};

/// What long paths of tenant-scoped operations begin with.
const TENANT_PREFIX: &str = "/api/tenants/{tenant_id}";
/// Sections that answer at short paths as well, for the tenant in `X-Tenant-Id`.
const SHORT_SECTIONS: [&str; 2] = ["/runs", "/jobs"];
/// The cluster's locks; a tenant's own answer alike under the tenant's path.
const LOCKS_PREFIX: &str = "/api/locks";

/// A workflow as clients send it. Every field of a step's action beside `type` depends on it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = WorkflowSpec)]
pub(crate) struct WorkflowSpecBody {
    /// Its steps, at least one: `id`, `action`, and optionally `name`, `description`, `role`,
    /// `depends_on`, `timeout_secs`, `retry_policy`.
    #[schema(value_type = Vec<Object>, min_items = 1, max_items = 1000)]
    steps: Vec<serde_json::Value>,
    /// What each step needs, by id.
    dependencies: Option<BTreeMap<String, Vec<String>>>,
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "shiioo",
        license(name = "Apache-2.0"),
        description = "Tenants, their workflows and locks, and the cluster they live in."
    ),
    paths(
        operations::start_page,
        operations::healthz,
        operations::readyz,
        operations::metrics,
        operations::docs,
        operations::health,
        operations::openapi_json,
        tenants::create,
        tenants::list,
        tenants::get,
        tenants::update,
        tenants::delete,
        tenants::suspend,
        tenants::activate,
        tenants::storage_stats,
        tenants::usage,
        cluster::register,
        cluster::list,
        cluster::get,
        cluster::remove,
        cluster::heartbeat,
        cluster::leader,
        cluster::step_down,
        cluster::health,
        cluster::groups,
        join_tokens::create,
        join_tokens::list,
        join_tokens::remove,
        locks::acquire,
        locks::renew,
        locks::release,
        locks::get,
        locks::list,
        workflows::put,
        workflows::get,
        workflows::list,
        workflows::delete,
        runs::start,
        runs::list,
        runs::get,
        runs::events,
        runs::cancel,
        jobs::create,
        jobs::list,
        jobs::get,
    ),
    components(schemas(ProblemBody))
)]
struct Document;

/// The document.
pub(crate) fn document(version: &str) -> OpenApi {
    let mut document = Document::openapi();
    document.info.version = version.to_owned();
    if let Some(components) = &mut document.components {
        components
            .add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
    let others: Vec<_> = document.paths.paths.iter().filter_map(also_at).collect();
    document.paths.paths.extend(others);
    for (path, item) in &mut document.paths.paths {
        for operation in [&mut item.get, &mut item.post, &mut item.put, &mut item.delete] {
            operation.iter_mut().for_each(|operation| complete(path, operation));
        }
    }
    document
}

/// The document as JSON.
pub(crate) fn json(version: &str) -> Bytes {
    document(version).to_json().unwrap_or_default().into()
}

/// The same operations at their other path: short for a tenant's, under the tenant for locks.
fn also_at((path, item): (&String, &PathItem)) -> Option<(String, PathItem)> {
    let (other, suffix) = if let Some(rest) = path.strip_prefix(TENANT_PREFIX) {
        let short = SHORT_SECTIONS.iter().any(|section| rest.starts_with(section));
        (short.then(|| format!("/api{rest}"))?, "short")
    } else {
        let rest = path.strip_prefix(LOCKS_PREFIX)?;
        (format!("{TENANT_PREFIX}/locks{rest}"), "of_tenant")
    };
    let mut item = item.clone();
    for operation in [&mut item.get, &mut item.post, &mut item.put, &mut item.delete] {
        if let Some(id) = operation.as_mut().and_then(|operation| operation.operation_id.as_mut()) {
            *id = format!("{id}_{suffix}");
        }
    }
    Some((other, item))
}

/// Adds what holds for every operation.
fn complete(path: &str, operation: &mut Operation) {
    let has = |status: &str| operation.responses.responses.contains_key(status);
    let (creates, conditional) = (has("201") && operation.request_body.is_some(), has("412"));
    let parameters = operation.parameters.get_or_insert_default();
    let in_path = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    parameters.extend(in_path.map(|name| parameter(name, ParameterIn::Path, "")));
    let section = path.strip_prefix("/api");
    if section.is_some_and(|rest| SHORT_SECTIONS.iter().any(|section| rest.starts_with(section))) {
        let mut tenant = parameter("X-Tenant-Id", ParameterIn::Header, "The tenant.");
        tenant.required = Required::True;
        parameters.push(tenant);
    }
    if creates && !conditional {
        let text = "The same key and body within 24 h gives the first answer again.";
        parameters.push(parameter("Idempotency-Key", ParameterIn::Header, text));
    }
    if conditional {
        let text = "The ETag of the version to change.";
        parameters.push(parameter("If-Match", ParameterIn::Header, text));
    }
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let error = ResponseBuilder::new()
        .description("Any error")
        .content("application/problem+json", problem)
        .build();
    operation.responses.responses.insert("default".to_owned(), error.into());
}

fn parameter(name: &str, parameter_in: ParameterIn, description: &str) -> Parameter {
    let required = match parameter_in {
        ParameterIn::Path => Required::True,
        ParameterIn::Query | ParameterIn::Header | ParameterIn::Cookie => Required::False,
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(parameter_in)
        .required(required)
        .description((!description.is_empty()).then_some(description))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pages;

    #[test]
    fn every_route_is_in_the_document_and_the_other_way_round() {
        let document = document("1.2.3");
        let documented: BTreeSet<(String, String)> = document
            .paths
            .paths
            .iter()
            .flat_map(|(path, item)| {
                pages::methods(item).map(|(method, _)| (path.clone(), method.to_owned()))
            })
            .collect();
        let routed: BTreeSet<(String, String)> = crate::routes::table()
            .into_iter()
            .map(|(method, path)| (path.to_owned(), method.to_string()))
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn the_document_is_json_and_every_operation_has_an_id_of_its_own() {
        let document: serde_json::Value = serde_json::from_slice(&json("1.2.3")).unwrap();
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
}

//! The OpenAPI document, made of the routes: each brings what `utoipa` has read off its handler.
//!
//! What holds for every operation (path parameters, preconditions, errors) is added here, once, so
//! that handlers state only what is theirs.

use bytes::Bytes;
use utoipa::__dev::{SchemaReferences, Tags};
use utoipa::OpenApi as _;
use utoipa::openapi::path::{self, HttpMethod, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, RefOr, Required, ResponseBuilder};

use crate::output::problem::ProblemBody;

/// What `#[utoipa::path]` makes for a handler `x`: the type `__path_x`.
pub(crate) trait Operation: utoipa::Path + Tags<'static> + SchemaReferences {}

impl<O: utoipa::Path + Tags<'static> + SchemaReferences> Operation for O {}

/// The schemas of an operation's bodies, by name.
type Schemas = Vec<(String, RefOr<Schema>)>;

/// An operation, to be read when the document is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OperationSource {
    methods: fn() -> Vec<HttpMethod>,
    operation: fn() -> path::Operation,
    schemas: fn(&mut Schemas),
}

impl OperationSource {
    /// Takes the operation of a handler.
    pub(crate) fn of<O: Operation>(_: O) -> Self {
        Self { methods: O::methods, operation: tagged::<O>, schemas: O::schemas }
    }
}

fn tagged<O: Operation>() -> path::Operation {
    let mut operation = O::operation();
    let tags = O::tags().into_iter().map(str::to_owned);
    operation.tags.get_or_insert_default().extend(tags);
    operation
}

/// A route's entry in the document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DocumentedRoute {
    pub(crate) path: &'static str,
    /// Tells the operation from the same one at another path: its id ends so.
    pub(crate) variant: Option<&'static str>,
    /// Whether `X-Tenant-Id` names the tenant.
    pub(crate) has_tenant_header: bool,
    pub(crate) operation: OperationSource,
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "shiioo",
        license(name = "Apache-2.0"),
        description = "Tenants, their workflows and locks, and the cluster they live in."
    ),
    components(schemas(ProblemBody))
)]
struct Document;

/// Makes the document of these routes.
pub(crate) fn document(version: &str, routes: &[DocumentedRoute]) -> OpenApi {
    let mut document = Document::openapi();
    document.info.version = version.to_owned();
    let mut schemas = Schemas::new();
    for route in routes {
        (route.operation.schemas)(&mut schemas);
        let mut operation = (route.operation.operation)();
        if let (Some(variant), Some(id)) = (route.variant, &mut operation.operation_id) {
            *id = format!("{id}_{variant}");
        }
        complete(route, &mut operation);
        document.paths.add_path_operation(route.path, (route.operation.methods)(), operation);
    }
    let components = document.components.get_or_insert_default();
    components.schemas.extend(schemas);
    components
        .add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    document
}

/// Makes the document as JSON.
pub(crate) fn json(version: &str, routes: &[DocumentedRoute]) -> Bytes {
    document(version, routes).to_json().unwrap_or_default().into()
}

/// Adds what holds for every operation.
fn complete(route: &DocumentedRoute, operation: &mut path::Operation) {
    let has = |status: &str| operation.responses.responses.contains_key(status);
    let (creates, conditional) = (has("201") && operation.request_body.is_some(), has("412"));
    let parameters = operation.parameters.get_or_insert_default();
    let in_path =
        route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    parameters.extend(in_path.map(|name| parameter(name, ParameterIn::Path, "")));
    if route.has_tenant_header {
        let text = "The tenant. May be left out where the node has a default tenant.";
        parameters.push(parameter("X-Tenant-Id", ParameterIn::Header, text));
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

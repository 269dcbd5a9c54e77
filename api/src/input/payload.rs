//! Reads JSON bodies.

use std::sync::Arc;

use axum::body::HttpBody;
use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, IgnoredAny};
use shiioo_actors::handles::TenantHandle;
use tokio::time::{Duration, Instant, timeout};

use crate::input::values::{self, Unfit};
use crate::output::problem::{Code, Problem};
use crate::output::wording;

/// Longest time for a body to arrive.
pub(crate) const BODY_READ_MAX: Duration = Duration::from_secs(10);

/// Longest body that is read where its request runs, bytes. To hand it to another thread and back would
/// take longer.
const READ_HERE_BYTES_MAX: usize = 64 * 1024;

/// White space between values (RFC 8259, 2).
const JSON_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// A JSON object as the body. No body at all, and `null`, are taken for `{}`.
#[derive(Debug)]
pub(crate) struct Payload<T> {
    /// The object, read.
    pub(crate) value: T,
    /// The body as it was sent: the idempotency key stands for these bytes.
    pub(crate) bytes: Bytes,
}

/// What is made of a JSON object by checks that may take as long as reading it.
pub(crate) trait Checked: Sized + Send + 'static {
    /// The object.
    type Body: DeserializeOwned;

    /// Checks it.
    fn check(body: Self::Body) -> Result<Self, Problem>;
}

/// A JSON object as the body, checked. No body at all, and `null`, are taken for `{}`.
#[derive(Debug)]
pub(crate) struct CheckedPayload<T> {
    /// What was made of the object.
    pub(crate) value: T,
    /// The body as it was sent: the idempotency key stands for these bytes.
    pub(crate) bytes: Bytes,
}

impl<S: Sync, T: DeserializeOwned + Send + 'static> FromRequest<S> for Payload<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (value, bytes) = read(request, parse_object).await?;
        Ok(Self { value, bytes })
    }
}

impl<S: Sync, T: Checked> FromRequest<S> for CheckedPayload<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (value, bytes) = read(request, |bytes| T::check(parse_object(bytes)?)).await?;
        Ok(Self { value, bytes })
    }
}

/// Lets a long body be read in the turn of the tenant that has admitted the request. The admission puts
/// it into the request.
#[derive(Clone)]
pub(crate) struct LongRead {
    pub(crate) tenant: Arc<TenantHandle>,
    /// By when the turn has to come.
    pub(crate) deadline: Instant,
}

/// Reads a body; a long one of a tenant away from the runtime's threads, which serve everybody.
async fn read<T: Send + 'static>(
    request: Request,
    parse: impl FnOnce(&[u8]) -> Result<T, Problem> + Send + 'static,
) -> Result<(T, Bytes), Problem> {
    let (parts, body) = request.into_parts();
    if !body.is_end_stream() {
        check_content_type(&parts.headers)?;
    }
    // `forward` has read the bytes already, counted and bounded: they are in memory. Routes
    // without an owner take no body.
    let bytes = timeout(BODY_READ_MAX, body.collect()).await;
    let bytes = bytes.map_err(|_| too_slow())?.map_err(|_| broken_off())?.to_bytes();
    let value = match parts.extensions.get::<LongRead>() {
        Some(LongRead { tenant, deadline }) if bytes.len() > READ_HERE_BYTES_MAX => {
            let long = bytes.clone();
            let read = tenant.work(*deadline, move || parse(&long)).await?;
            read.ok_or_else(Problem::internal)??
        }
        _ => parse(&bytes)?,
    };
    Ok((value, bytes))
}

/// Refuses a body that ended too early.
pub(crate) fn broken_off() -> Problem {
    Problem::new(Code::MalformedJson, "the body broke off before its end").closing()
}

/// Refuses a body that came too slowly.
pub(crate) fn too_slow() -> Problem {
    let text = format!("the body did not arrive within {} s", BODY_READ_MAX.as_secs());
    Problem::new(Code::RequestTimeout, text).retryable().not_applied().closing()
}

/// Checks that the content type is JSON by any of its names. None at all is taken for JSON.
fn check_content_type(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"));
    if json {
        return Ok(());
    }
    Err(Problem::new(
        Code::UnsupportedMediaType,
        format!("Content-Type must be application/json, is {text:?}"),
    ))
}

/// Reads a JSON object. The reason of a failure is looked for only after it.
fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // UTF-8 is checked before all else: serde looks only at the texts that somebody wants.
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        Problem::new(Code::MalformedJson, format!("the body is not UTF-8 at byte {at}"))
    })?;
    let text = match text.trim_matches(JSON_SPACE) {
        "" | "null" => "{}",
        text => text,
    };
    // serde takes an array for a struct, field by field; the API does not.
    if text.starts_with('{')
        && let Ok(value) = serde_json::from_str(text)
    {
        return values::check(text).map(|()| value).map_err(unfit);
    }
    Err(refusal_of::<T>(text))
}

/// Finds out why a text is no `T`.
fn refusal_of<T: DeserializeOwned>(text: &str) -> Problem {
    let not_json = |error: &serde_json::Error| {
        Problem::new(Code::MalformedJson, format!("the body is not JSON: {error}"))
    };
    if let Err(error) = serde_json::from_str::<IgnoredAny>(text) {
        return not_json(&error);
    }
    if let Err(value) = values::check(text) {
        return unfit(value);
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    match serde_path_to_error::deserialize::<_, T>(&mut reader) {
        Err(error) if error.inner().is_data() => {
            let wrong = wording::plain(&error.inner().to_string());
            Problem::invalid_field(&field_at_fault(&error), wrong)
        }
        Err(error) => not_json(error.inner()),
        // It could be read but is no object.
        Ok(_) => Problem::invalid_field("body", "must be a JSON object"),
    }
}

fn unfit(value: Unfit) -> Problem {
    let field = if value.field.is_empty() { "body" } else { &value.field };
    Problem::invalid_field(field, value.why)
}

/// Finds the path of the field at fault. serde reports a missing field at the object it is missing in,
/// and names it only in the text.
fn field_at_fault(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    let text = error.inner().to_string();
    let missing = text
        .strip_prefix("missing field `")
        .or_else(|| text.strip_prefix("duplicate field `"))
        .and_then(|rest| rest.split('`').next());
    match (path.as_str(), missing) {
        (".", Some(name)) => name.to_owned(),
        (".", None) => "body".to_owned(),
        (_, Some(name)) if !path.ends_with(name) => format!("{path}.{name}"),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::input::fields::{Name, UpTo, Whole, nullable, object};

    #[derive(Debug, Default, Deserialize)]
    struct Inner {
        #[serde(default, deserialize_with = "nullable")]
        limit: Option<Option<Whole>>,
    }

    #[derive(Debug, Deserialize)]
    struct Outer {
        name: Name,
        #[serde(default, deserialize_with = "object")]
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Optional {
        reason: Option<String>,
    }

    /// Status and field of the refusal.
    fn refusal(body: &str) -> (u16, String) {
        let problem = parse_object::<Outer>(body.as_bytes()).unwrap_err();
        let mut field = String::new();
        let problem = problem.facts(|facts| field = facts.field.clone().unwrap_or_default());
        (problem.render("r").status().as_u16(), field)
    }

    #[test]
    fn wrong_json_names_the_field() {
        for (body, status, field) in [
            ("{", 400, ""),
            ("{} x", 400, ""),
            ("{\"name\":\"a\",}", 400, ""),
            ("name=a", 400, ""),
            ("{\"name\":\"a\"} {}", 400, ""),
            ("[]", 422, "body"),
            ("[\"a\"]", 422, "body"),
            ("7", 422, "body"),
            ("", 422, "name"),
            ("null", 422, "name"),
            ("{}", 422, "name"),
            ("{\"name\":null}", 422, "name"),
            ("{\"name\":7}", 422, "name"),
            ("{\"name\":\"\"}", 422, "name"),
            ("{\"name\":\"a\",\"name\":\"b\"}", 422, "name"),
            ("{\"name\":\"a\",\"inner\":[]}", 422, "inner"),
            ("{\"name\":\"a\",\"inner\":[3]}", 422, "inner"),
            ("{\"name\":\"a\",\"inner\":{\"limit\":-1}}", 422, "inner.limit"),
            ("{\"name\":\"a\",\"inner\":{\"limit\":1.5}}", 422, "inner.limit"),
            ("{\"name\":\"a\",\"inner\":{\"limit\":1,\"limit\":2}}", 422, "inner.limit"),
        ] {
            assert_eq!(refusal(body), (status, field.to_owned()), "{body}");
        }
    }

    #[test]
    fn null_and_absent_are_told_apart_where_it_matters() {
        let limit = |body: &str| {
            let outer: Outer = parse_object(body.as_bytes()).unwrap();
            assert_eq!(outer.name.0, "a");
            outer.inner.unwrap_or_default().limit
        };
        assert_eq!(limit("{\"name\":\"a\",\"x\":[]}"), None);
        assert_eq!(limit("{\"name\":\"a\",\"inner\":null}"), None);
        assert_eq!(limit("{\"name\":\"a\",\"inner\":{\"limit\":null}}"), Some(None));
        assert_eq!(limit(" {\"name\":\"a\",\"inner\":{\"limit\":3}}\n"), Some(Some(UpTo(3))));
    }

    #[test]
    fn no_body_and_null_are_an_empty_object() {
        for body in ["", " \n", "null", " null ", "{}"] {
            assert!(parse_object::<Optional>(body.as_bytes()).unwrap().reason.is_none());
        }
    }

    #[test]
    fn json_goes_by_several_names() {
        let check = |content_type: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, content_type.parse().unwrap());
            check_content_type(&headers).is_ok()
        };
        assert!(check_content_type(&HeaderMap::new()).is_ok());
        for good in ["application/json", "Application/JSON; charset=utf-8", "application/ld+json"] {
            assert!(check(good), "{good}");
        }
        for bad in ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""] {
            assert!(!check(bad), "{bad}");
        }
    }
}

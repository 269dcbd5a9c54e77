//! Reads JSON bodies, of bounded size and in bounded time.

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::time::{Duration, timeout};

use crate::app::App;
use crate::pool::Share;
use crate::problem::{Code, Problem};
use crate::values::{self, Unfit};
use crate::wording;

/// Largest JSON body.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Longest time for a body to arrive.
const BODY_READ_MAX: Duration = Duration::from_secs(10);
/// Seconds after which a body that found no room is worth sending again.
const BUSY_RETRY_SECS: u64 = 1;

/// White space between values (RFC 8259, 2).
const JSON_SPACE: [char; 4] = [' ', '\t', '\n', '\r'];

/// A JSON object as the body: its fields, and its bytes for the idempotency key. No body at all,
/// and `null`, are taken for `{}`.
#[derive(Debug)]
pub(crate) struct Payload<T> {
    /// What it says.
    pub(crate) value: T,
    /// As it was sent.
    pub(crate) bytes: Bytes,
}

impl<T: DeserializeOwned> FromRequest<App> for Payload<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &App) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        if !body.is_end_stream() {
            check_content_type(&parts.headers)?;
        }
        // Its bytes are in memory, and counted, since it was found out where it belongs.
        let bytes = timeout(BODY_READ_MAX, body.collect()).await;
        let bytes = bytes.map_err(|_| too_slow())?.map_err(|_| broken_off())?.to_bytes();
        parse_object(&bytes).map(|value| Self { value, bytes })
    }
}

/// Reads a body of bounded size in bounded time, as far as `share` has room for it.
pub(crate) async fn read_body(body: Body, share: &mut Share) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let at_least = body.size_hint().lower();
    if at_least > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    // Not begun, where it is known already that it would not be finished.
    if !share.has_room(at_least) {
        return Err(no_room());
    }
    match timeout(BODY_READ_MAX, collect(body, share)).await {
        Ok(read) => read,
        Err(_) => Err(too_slow()),
    }
}

async fn collect(mut body: Body, share: &mut Share) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| broken_off())?.into_data() else { continue };
        if first.len().max(all.len()) + data.len() > BODY_BYTES_MAX {
            return Err(too_large());
        }
        if !share.take(data.len()) {
            return Err(no_room());
        }
        // Most bodies are in one piece, which needs no copy.
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if !first.is_empty() {
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if first.is_empty() { all.freeze() } else { first })
}

fn broken_off() -> Problem {
    Problem::new(Code::MalformedJson, "the body broke off before its end").closing()
}

fn too_slow() -> Problem {
    let text = format!("the body did not arrive within {} s", BODY_READ_MAX.as_secs());
    Problem::new(Code::RequestTimeout, text).retryable().not_applied().closing()
}

fn no_room() -> Problem {
    Problem::new(Code::Busy, "too many bytes of bodies are under way: try again")
        .retry_after(BUSY_RETRY_SECS)
        .not_applied()
}

fn too_large() -> Problem {
    Problem::new(Code::TooLarge, format!("the body is larger than {BODY_BYTES_MAX} bytes"))
        .facts(|facts| facts.limit = Some(BODY_BYTES_MAX as u64))
}

/// JSON by any of its names; none at all is taken for JSON.
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

/// Reads a JSON object. What is wrong with a body is looked for only once something is.
fn parse_object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // Before all else: serde looks only at the texts that somebody wants.
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

/// Says why this text is no `T`.
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

/// The path of the field at fault. serde reports a missing field at the object it is missing in,
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
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::Frame;
    use serde::Deserialize;

    use super::*;
    use crate::fields::{Name, Whole, nullable, object};

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

    /// A body that comes in these pieces.
    struct Pieces(VecDeque<&'static str>);

    impl HttpBody for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let piece = self.0.pop_front();
            Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))))
        }
    }

    #[tokio::test]
    async fn a_body_that_comes_in_pieces_is_whole() {
        for pieces in [&[][..], &["a"], &["a", "b"], &["", "a", "b"], &["ab", "", "c", "de"]] {
            let mut share = crate::pool::Pool::new(100, 1).share(None);
            let body = Body::new(Pieces(pieces.iter().copied().collect()));
            assert_eq!(collect(body, &mut share).await.unwrap(), pieces.concat());
        }
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
        assert_eq!(limit(" {\"name\":\"a\",\"inner\":{\"limit\":3}}\n"), Some(Some(Whole(3))));
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

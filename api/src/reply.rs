//! Answers: JSON written once, straight from a view.

use std::fmt::Display;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use shiioo_actors::domain::json::Json;
use utoipa::ToSchema;

use crate::problem::Problem;

/// What every handler returns.
pub(crate) type Reply = Result<Response, Problem>;

/// Says that the idempotency key was known.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// What most answers fit in, so that writing them takes one allocation.
const ANSWER_BYTES_USUAL: usize = 1024;

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Answer(Response);

impl Answer {
    /// 200 with a JSON body.
    pub(crate) fn ok(body: &impl Serialize) -> Result<Self, Problem> {
        Self::json(StatusCode::OK, body)
    }

    /// 201 with a JSON body, and where the new resource is.
    pub(crate) fn created(location: &str, body: &impl Serialize) -> Result<Self, Problem> {
        Self::json(StatusCode::CREATED, body)?.header(header::LOCATION, location)
    }

    /// 200 with a text for people.
    pub(crate) fn message(text: impl Into<String>) -> Reply {
        Self::ok(&MessageBody { message: text.into() })?.done()
    }

    /// The version of the resource, for `If-Match`.
    pub(crate) fn etag(self, version: u64) -> Result<Self, Problem> {
        self.header(header::ETAG, &format!("\"{version}\""))
    }

    /// Says whether the idempotency key was known.
    pub(crate) fn replayed(self, replayed: bool) -> Result<Self, Problem> {
        if replayed { self.header(IDEMPOTENT_REPLAYED, "true") } else { Ok(self) }
    }

    /// The answer.
    pub(crate) fn done(self) -> Reply {
        Ok(self.0)
    }

    fn json(status: StatusCode, body: &impl Serialize) -> Result<Self, Problem> {
        let mut bytes = Vec::with_capacity(ANSWER_BYTES_USUAL);
        serde_json::to_writer(&mut bytes, body).map_err(|error| {
            tracing::error!(%error, "an answer cannot be written as JSON");
            Problem::internal()
        })?;
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = status;
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, const { HeaderValue::from_static("application/json") });
        Ok(Self(response))
    }

    fn header(mut self, name: HeaderName, value: &str) -> Result<Self, Problem> {
        let value = HeaderValue::from_str(value).map_err(|error| {
            tracing::error!(%error, header = %name, "an answer's header cannot be written");
            Problem::internal()
        })?;
        self.0.headers_mut().insert(name, value);
        Ok(self)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        self.0
    }
}

/// A text for people.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Message)]
pub(crate) struct MessageBody {
    /// What was done.
    pub(crate) message: String,
}

/// An id or a moment, shown as it displays.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<T>(pub(crate) T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// JSON that is passed through as it is.
#[derive(Debug, Clone)]
pub(crate) struct Raw(pub(crate) Json);

impl Serialize for Raw {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Walks over the text once, without building anything.
        match serde_json::from_str::<&RawValue>(self.0.as_str()) {
            Ok(raw) => raw.serialize(serializer),
            Err(error) => Err(serde::ser::Error::custom(error)),
        }
    }
}

//! Answers: JSON, written once.

use std::fmt::Display;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use shiioo_actors::domain::ids::RunId;
use shiioo_actors::domain::json::Json;
use utoipa::ToSchema;

use crate::output::problem::{Problem, Retry};

/// The result of every handler.
pub(crate) type Reply = Result<Response, Problem>;

/// Tells that the idempotency key was known.
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Capacity that most answers fit in, bytes, so that writing them takes one allocation.
const ANSWER_BYTES_USUAL: usize = 1024;

/// An answer in the making.
#[derive(Debug)]
pub(crate) struct Answer(Response);

/// A run that was started by a request whose wait for the run's end broke off. An extension of the answer,
/// and a fact for the attempts that follow: they must not start it again, and by the name of the request
/// alone they would once its completion record is forgotten. A node that dies says nothing, and then the
/// record is all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Started {
    /// The run.
    pub(crate) run: RunId,
    /// Whether it was there before, under the same idempotency key.
    pub(crate) replayed: bool,
}

impl Answer {
    /// Makes a 200 with a JSON body.
    pub(crate) fn ok(body: &impl Serialize) -> Result<Self, Problem> {
        Self::json(StatusCode::OK, body)
    }

    /// Makes a 202 with a JSON body.
    pub(crate) fn accepted(body: &impl Serialize) -> Result<Self, Problem> {
        Self::json(StatusCode::ACCEPTED, body)
    }

    /// Makes a 201 with a JSON body and the path of the new resource.
    pub(crate) fn created(location: &str, body: &impl Serialize) -> Result<Self, Problem> {
        Self::json(StatusCode::CREATED, body)?.header(header::LOCATION, location)
    }

    /// Makes a 200 with a text for people.
    pub(crate) fn message(text: impl Into<String>) -> Reply {
        Self::ok(&MessageBody { message: text.into() })?.done()
    }

    /// Adds the version of the resource, for `If-Match`.
    pub(crate) fn etag(self, version: u64) -> Result<Self, Problem> {
        self.header(header::ETAG, &format!("\"{version}\""))
    }

    /// Adds whether the idempotency key was known.
    pub(crate) fn replayed(self, replayed: bool) -> Result<Self, Problem> {
        if replayed { self.header(IDEMPOTENT_REPLAYED, "true") } else { Ok(self) }
    }

    /// Says that the wait for what was started broke off: another attempt may wait for the rest of the time.
    pub(crate) fn broke_off(mut self, started: Started) -> Self {
        self.0.extensions_mut().insert(Retry::Unknown);
        self.0.extensions_mut().insert(started);
        self
    }

    /// Ends with the answer.
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

/// A value that is written as its `Display` text: an id, a moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<T>(pub(crate) T);

impl<T: Display> Serialize for Shown<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// JSON that is passed through unchanged.
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

impl From<Json> for Raw {
    fn from(json: Json) -> Self {
        Self(json)
    }
}

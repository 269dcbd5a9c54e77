//! The HTTP client of `http` steps.

use super::BoxFuture;
use crate::domain::ids::TenantId;

/// Sends the requests of `http` steps.
pub trait HttpCaller: Send + Sync + 'static {
    /// Sends one request and reads the whole answer, within the caller's deadline.
    fn call(&self, request: HttpRequest) -> BoxFuture<'_, Result<HttpResponse, HttpCallError>>;
}

/// A request of an `http` step, rendered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// Whose step it is: calls and name lookups are shared out among tenants.
    pub tenant: TenantId,
    /// Method, upper case.
    pub method: String,
    /// Absolute `http` or `https` URL.
    pub url: String,
    /// Headers as given.
    pub headers: Vec<(String, String)>,
    /// Body; may be empty.
    pub body: Vec<u8>,
}

/// An answer to an `http` step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpResponse {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

/// Why an `http` step got no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpCallError {
    /// The request cannot be sent as it is; another attempt will not help.
    #[error("{0}")]
    Unsendable(String),
    /// The network or the other side failed; another attempt may help.
    #[error("{0}")]
    Failed(String),
}

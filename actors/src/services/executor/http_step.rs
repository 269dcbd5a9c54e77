//! `http` steps: the request that a step sends, and what the answer of the service comes to.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::attempt::Failure;
use crate::domain::ids::{RunId, TenantId};
use crate::domain::json;
use crate::ports::{HttpCallError, HttpRequest, HttpResponse};

/// Statuses below 500 that another attempt may better.
const RETRYABLE_STATUSES: [u16; 3] = [408, 425, 429];

/// Makes the request of a step. A service that is called twice for one step sees the same
/// `idempotency-key`, unless the step sets its own.
pub(super) fn request(
    tenant: TenantId,
    (run, step_id): (RunId, &str),
    method: String,
    url: String,
    headers: BTreeMap<String, String>,
    body: Option<Value>,
) -> HttpRequest {
    let mut headers: Vec<(String, String)> = headers.into_iter().collect();
    let has = |headers: &[(String, String)], name: &str| {
        headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name))
    };
    if !has(&headers, "idempotency-key") {
        let key = format!("{run}/{step_id}");
        // A header takes visible ASCII only; an id with anything else is written as JSON escapes.
        let key = if key.is_ascii() { key } else { key.escape_default().to_string() };
        headers.push(("idempotency-key".to_owned(), key));
    }
    let body = match body {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => text.into_bytes(),
        Some(value) => {
            if !has(&headers, "content-type") {
                headers.push(("content-type".to_owned(), "application/json".to_owned()));
            }
            value.to_string().into_bytes()
        }
    };
    HttpRequest { tenant, method: method.to_ascii_uppercase(), url, headers, body }
}

/// Returns the answer if it means that the step has succeeded.
pub(super) fn accepted(
    answer: Result<HttpResponse, HttpCallError>,
) -> Result<HttpResponse, Failure> {
    let response = match answer {
        Ok(response) => response,
        Err(HttpCallError::Unsendable(error)) => return Err(Failure { error, retryable: false }),
        Err(HttpCallError::Failed(error)) => return Err(Failure { error, retryable: true }),
    };
    let status = response.status;
    if !(200..300).contains(&status) {
        let retryable = RETRYABLE_STATUSES.contains(&status) || (500..600).contains(&status);
        return Err(Failure { error: format!("the service answered {status}"), retryable });
    }
    Ok(response)
}

/// Makes the output of a step from the answer. A body that is declared as JSON and is none is text.
pub(super) fn output_of(response: HttpResponse) -> Result<Value, Failure> {
    let status = response.status;
    let is_json = response
        .headers
        .iter()
        .any(|(name, value)| name == "content-type" && value.to_ascii_lowercase().contains("json"));
    let text = || Value::String(String::from_utf8_lossy(&response.body).into_owned());
    let body = if is_json {
        json::check_exact(&response.body)
            .map_err(|why| Failure::fatal(format!("the answer cannot be kept as it is: {why}")))?;
        serde_json::from_slice(&response.body).unwrap_or_else(|_| text())
    } else {
        text()
    };
    let headers: Map<String, Value> =
        response.headers.into_iter().map(|(name, value)| (name, Value::String(value))).collect();
    Ok(json!({ "status": status, "headers": headers, "body": body }))
}

#[cfg(test)]
mod tests {
    use super::super::prepare::succeeded;
    use super::*;

    #[test]
    fn an_answer_is_kept_as_it_is_or_fails_the_step() {
        let answer = |body: &str| {
            let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
            output_of(HttpResponse { status: 200, headers, body: body.as_bytes().to_vec() })
        };
        assert_eq!(answer(r#"{"id":18446744073709551615}"#).unwrap()["body"]["id"], u64::MAX);
        assert_eq!(answer("no JSON").unwrap()["body"], "no JSON");
        let error = answer(r#"{"id":18446744073709551616}"#).unwrap_err();
        assert!(error.error.contains("64 bits") && !error.retryable, "{}", error.error);
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        assert!(answer(&deep).unwrap_err().error.contains("64 levels"));
        // With what is around it, a body may be one level too deep.
        let deep = format!("{}{}", "[".repeat(64), "]".repeat(64));
        assert!(succeeded(&answer(&deep).unwrap()).is_err());
    }
}

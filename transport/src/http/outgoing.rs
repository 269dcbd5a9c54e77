//! A request that is ready to be sent, and the one that follows a redirect.
//!
//! Invariant: this client alone sets the framing of a request. Tenants share connections: a step that
//! could say where a body ends could smuggle a second request into the connection.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use shiioo_actors::ports::HttpRequest;

use super::target::Target;

/// Headers of a request, at most.
const REQUEST_HEADERS_MAX: usize = 100;

/// `User-Agent`, unless the step sets another.
const USER_AGENT: &str = concat!("shiioo/", env!("CARGO_PKG_VERSION"));

/// Headers about the connection or the body's length. They are left out of a step's headers without
/// an error: this client sets them to what the step can only have meant.
const IGNORED: [HeaderName; 2] = [header::CONNECTION, header::CONTENT_LENGTH];

/// Headers that a step cannot set: they would change how the connection is used.
const REFUSED: [HeaderName; 5] =
    [header::EXPECT, header::TE, header::TRAILER, header::TRANSFER_ENCODING, header::UPGRADE];

/// Headers that a redirect to another host, port or scheme drops.
const FOR_ONE_HOST: [HeaderName; 4] =
    [header::AUTHORIZATION, header::COOKIE, header::HOST, header::PROXY_AUTHORIZATION];

/// Headers that are dropped with the body.
const OF_A_BODY: [HeaderName; 4] = [
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_TYPE,
];

/// Holds a request that has been checked.
#[derive(Debug, Clone)]
pub(super) struct Outgoing {
    pub(super) target: Target,
    method: Method,
    headers: HeaderMap,
    body: Bytes,
}

impl Outgoing {
    /// Checks a step's request. The error says why it cannot be sent and repeats no values.
    pub(super) fn new(request: HttpRequest) -> Result<Self, String> {
        let target = Target::parse(&request.url)?;
        let method = Method::from_bytes(request.method.as_bytes())
            .ok()
            .filter(|method| method != Method::CONNECT)
            .ok_or("the method is not one that can be sent")?;
        let headers = parse_headers(&request.headers)?;
        Ok(Self { target, method, headers, body: request.body.into() })
    }

    /// Returns whether sending the request twice has the same effect as sending it once.
    pub(super) fn is_idempotent(&self) -> bool {
        self.method.is_idempotent()
    }

    /// Makes the request for hyper.
    pub(super) fn to_request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.request_uri();
        *request.headers_mut() = self.headers.clone();
        let headers = request.headers_mut();
        let host = || self.target.host_header.clone();
        headers.entry(header::HOST).or_insert_with(host);
        headers.entry(header::USER_AGENT).or_insert_with(|| HeaderValue::from_static(USER_AGENT));
        headers.entry(header::ACCEPT).or_insert_with(|| HeaderValue::from_static("*/*"));
        let expects_a_body = [Method::POST, Method::PUT, Method::PATCH].contains(&self.method);
        if expects_a_body || !self.body.is_empty() {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(self.body.len()));
        }
        request
    }

    /// Makes the next request, when the answer is a redirect; the error says why it is not followed.
    pub(super) fn redirected(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Result<Option<Self>, String> {
        let keeps_method = match status {
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => {
                [Method::GET, Method::HEAD].contains(&self.method)
            }
            StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
            _ => return Ok(None),
        };
        let Some(location) = headers.get(header::LOCATION) else { return Ok(None) };
        let location = std::str::from_utf8(location.as_bytes())
            .map_err(|_| "redirected to a place that is not UTF-8".to_owned())?;
        let mut next = Self { target: self.target.redirected(location)?, ..self.clone() };
        if next.target.origin != self.target.origin {
            for name in FOR_ONE_HOST {
                next.headers.remove(name);
            }
        }
        if !keeps_method {
            next.method = Method::GET;
            next.body = Bytes::new();
            for name in OF_A_BODY {
                next.headers.remove(name);
            }
        }
        Ok(Some(next))
    }
}

fn parse_headers(given: &[(String, String)]) -> Result<HeaderMap, String> {
    if given.len() > REQUEST_HEADERS_MAX {
        return Err(format!(
            "the request has {} headers; at most {REQUEST_HEADERS_MAX} can be sent",
            given.len()
        ));
    }
    let mut headers = HeaderMap::with_capacity(given.len());
    for (index, (name, value)) in given.iter().enumerate() {
        let name = HeaderName::try_from(name)
            .map_err(|_| format!("header {} has a name that cannot be sent", index + 1))?;
        if REFUSED.contains(&name) {
            return Err(format!("the header {name} cannot be set by a step"));
        }
        let value = HeaderValue::try_from(value)
            .map_err(|_| format!("the value of the header {name} cannot be sent"))?;
        let repeated = name == header::HOST && headers.contains_key(header::HOST);
        if repeated {
            return Err("the header host is given twice".into());
        }
        if !IGNORED.contains(&name) && name != "keep-alive" && name != "proxy-connection" {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(method: &str, headers: &[(&str, &str)]) -> Result<Outgoing, String> {
        Outgoing::new(HttpRequest {
            tenant: crate::testing::tenant(1),
            method: method.into(),
            url: "http://a.example/x".into(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
            body: b"body".to_vec(),
        })
    }

    #[test]
    fn what_cannot_be_sent_is_refused_without_repeating_values() {
        for (method, headers) in [
            ("", &[][..]),
            ("GE T", &[]),
            ("CONNECT", &[]),
            ("GET", &[("bad name", "x")]),
            ("GET", &[("x", "sesame\r\ny: z")]),
            ("GET", &[("Transfer-Encoding", "chunked")]),
            ("GET", &[("host", "a"), ("Host", "b")]),
        ] {
            let error = outgoing(method, headers).unwrap_err();
            assert!(!error.contains("sesame"), "{error}");
        }
        let many = vec![("x", "y"); REQUEST_HEADERS_MAX + 1];
        assert!(outgoing("GET", &many).is_err());
    }

    #[test]
    fn framing_is_ours() {
        let request =
            outgoing("POST", &[("Content-Length", "1"), ("Connection", "close"), ("x-a", "b")])
                .unwrap()
                .to_request();
        assert_eq!(request.headers()[header::CONTENT_LENGTH], "4");
        assert_eq!(request.headers()["x-a"], "b");
        assert!(!request.headers().contains_key(header::CONNECTION));
    }

    #[test]
    fn redirects_change_what_they_must() {
        let sent = outgoing(
            "POST",
            &[("authorization", "k"), ("cookie", "c"), ("content-type", "t"), ("x-a", "b")],
        )
        .unwrap();
        let to = |location: &'static str| {
            HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static(location))])
        };
        let follow = |status: StatusCode, location| {
            let next = sent.redirected(status, &to(location)).unwrap().unwrap();
            let mut names: Vec<_> = next.headers.keys().map(HeaderName::to_string).collect();
            names.sort();
            format!("{} {} [{}]", next.method, next.body.len(), names.join(" "))
        };

        let same = follow(StatusCode::FOUND, "/y");
        assert_eq!(same, "GET 0 [authorization cookie x-a]");
        let kept = follow(StatusCode::TEMPORARY_REDIRECT, "http://a.example/y");
        assert_eq!(kept, "POST 4 [authorization content-type cookie x-a]");
        let other = follow(StatusCode::PERMANENT_REDIRECT, "//b.example/y");
        assert_eq!(other, "POST 4 [content-type x-a]");
        let port = follow(StatusCode::SEE_OTHER, "http://a.example:81/y");
        assert_eq!(port, "GET 0 [x-a]");

        assert!(sent.redirected(StatusCode::OK, &to("/y")).unwrap().is_none());
        assert!(sent.redirected(StatusCode::FOUND, &HeaderMap::new()).unwrap().is_none());
        assert!(sent.redirected(StatusCode::FOUND, &to("https://a.example/")).is_err());
    }
}

//! Where a request goes: parses absolute `http` and `https` URLs, and resolves the reference of a
//! redirect against one (RFC 3986, section 5.2).
//!
//! The parser is strict on purpose: browsers' rules (WHATWG) repair a URL in ways that other parsers
//! do not, and such differences are what forged requests are made of. Decision 16 lists them.
//!
//! Error texts never repeat a URL: the secrets of a step may be part of it.

use std::fmt::Write as _;

use http::Uri;
use http::header::HeaderValue;
use http::uri::{Authority, PathAndQuery};

/// Names the protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Names the other end of a connection. Requests with an equal origin share connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) scheme: Scheme,
    /// Lower case; an IPv6 address is without its brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

/// Holds a URL that a request can be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) origin: Origin,
    /// Host and port as the `Host` header has them: the default port is left out.
    pub(super) host_header: HeaderValue,
    path_and_query: PathAndQuery,
}

impl Target {
    /// Parses an absolute URL. Drops its fragment, which is never sent.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = split_scheme(url) else {
            return Err("the URL is not absolute: it has to begin with http:// or https://".into());
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err("the URL is neither http nor https".into()),
        };
        let Some(rest) = rest.strip_prefix("//") else {
            return Err(format!("the URL has to begin with {}://", scheme.name()));
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        Self::new(scheme, authority, rest)
    }

    fn new(scheme: Scheme, authority: &str, rest: &str) -> Result<Self, String> {
        if authority.contains('@') {
            return Err(
                "the URL holds a user name or password: send an Authorization header instead"
                    .into(),
            );
        }
        if !authority.is_ascii() {
            return Err("the URL's host is not ASCII: write its xn-- form".into());
        }
        let parsed: Authority = authority
            .to_ascii_lowercase()
            .parse()
            .map_err(|_| "the URL's host or port is not valid".to_owned())?;
        // `Authority` accepts any digits as a port, also none and too many.
        let port = match parsed.as_str().strip_prefix(parsed.host()) {
            Some("") | None => scheme.default_port(),
            Some(port) => match port.strip_prefix(':').map(str::parse) {
                Some(Ok(port)) if port > 0 => port,
                _ => return Err("the URL's port is not a number from 1 to 65535".into()),
            },
        };
        let host = parsed.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err("the URL has no host".into());
        }
        let host_header = if port == scheme.default_port() {
            parsed.host().to_owned()
        } else {
            format!("{}:{port}", parsed.host())
        };
        Ok(Self {
            origin: Origin { scheme, host, port },
            host_header: HeaderValue::try_from(host_header)
                .map_err(|_| "the URL's host is not valid".to_owned())?,
            path_and_query: parse_path_and_query(rest)?,
        })
    }

    /// Returns the target of the request line.
    pub(super) fn request_uri(&self) -> Uri {
        Uri::from(self.path_and_query.clone())
    }

    /// Resolves the reference of a `Location` header. Refuses another scheme.
    pub(super) fn redirected(&self, reference: &str) -> Result<Self, String> {
        if split_scheme(reference).is_some() {
            let target = Self::parse(reference)
                .map_err(|error| format!("redirected to a place that cannot be called: {error}"))?;
            if target.origin.scheme != self.origin.scheme {
                return Err(format!(
                    "redirected from {} to {}; only redirects within a scheme are followed",
                    self.origin.scheme.name(),
                    target.origin.scheme.name(),
                ));
            }
            return Ok(target);
        }
        if let Some(rest) = reference.strip_prefix("//") {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let (authority, rest) = rest.split_at(end);
            return Self::new(self.origin.scheme, authority, rest);
        }
        let reference = reference.split('#').next().unwrap_or_default();
        let path = self.path_and_query.path();
        let resolved = if reference.is_empty() {
            self.path_and_query.as_str().to_owned()
        } else if reference.starts_with('?') {
            format!("{path}{reference}")
        } else {
            let (below, query) = reference.split_at(reference.find('?').unwrap_or(reference.len()));
            let merged = if below.starts_with('/') {
                below.to_owned()
            } else {
                format!("{}{below}", &path[..=path.rfind('/').unwrap_or(0)])
            };
            format!("{}{query}", without_dot_segments(&merged))
        };
        Ok(Self { path_and_query: parse_path_and_query(&resolved)?, ..self.clone() })
    }
}

/// Splits `scheme:rest`; `None` for a relative reference.
fn split_scheme(url: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = url.split_once(':')?;
    let mut bytes = scheme.bytes();
    let starts_well = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic());
    let goes_on = bytes.all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    (starts_well && goes_on).then_some((scheme, rest))
}

/// Parses the path and the query. Percent-encodes characters that a URL cannot contain, as every
/// browser does; refuses control characters, which could end a header.
fn parse_path_and_query(text: &str) -> Result<PathAndQuery, String> {
    let text = text.split('#').next().unwrap_or_default();
    let mut encoded = String::with_capacity(text.len() + 1);
    if !text.starts_with('/') {
        encoded.push('/');
    }
    for byte in text.bytes() {
        if byte.is_ascii_control() {
            return Err("the URL holds a control character".into());
        }
        if !byte.is_ascii() || b" \"<>\\^`{|}".contains(&byte) {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        } else {
            encoded.push(char::from(byte));
        }
    }
    encoded.parse().map_err(|_| "the URL's path or query is not valid".to_owned())
}

/// Removes `.` and `..` segments from an absolute path.
fn without_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(target: &Target) -> String {
        let Origin { scheme, host, port } = &target.origin;
        format!("{} {host} {port} {}", scheme.name(), target.request_uri())
    }

    #[test]
    fn urls_are_taken_apart() {
        for (url, expected) in [
            ("http://Example.com", "http example.com 80 /"),
            ("HTTPS://example.com/a?b=c#d", "https example.com 443 /a?b=c"),
            ("http://example.com?x=1", "http example.com 80 /?x=1"),
            ("http://[::1]:8080/a b?q=\u{fc}|", "http ::1 8080 /a%20b?q=%C3%BC%7C"),
            ("http://10.0.0.1:81#x", "http 10.0.0.1 81 /"),
        ] {
            assert_eq!(show(&Target::parse(url).unwrap()), expected, "{url}");
        }
        assert_eq!(Target::parse("https://a:443/").unwrap().host_header, "a");
        assert_eq!(Target::parse("http://[::1]:443/").unwrap().host_header, "[::1]:443");
    }

    #[test]
    fn what_cannot_be_called_is_refused_without_repeating_it() {
        for url in [
            "",
            "sesame",
            "/sesame",
            "ftp://sesame/",
            "file:///etc/sesame",
            "http:sesame",
            "http://",
            "http:///sesame",
            "http://user:sesame@example.com/",
            "http://sesame:0/",
            "http://sesame:99999/",
            "http://sesame:x/",
            "http://ses ame/",
            "http://s\u{e9}same/",
            "http://example.com/sesame\r\nHost: other",
            // What a browser repairs, and another parser reads otherwise (decision 16).
            "http:///sesame/",
            "http://sesame\\@other/",
            "http://sesame\\other/",
            "http://ses\tame/",
            "http://example.com/ses\tame",
            "http://%73esame/",
            "http://sesame\u{ff0e}example/",
            "http://ses\u{ad}ame/",
        ] {
            let error = Target::parse(url).unwrap_err();
            assert!(!error.contains("same"), "{url}: {error}");
        }
    }

    #[test]
    fn references_are_resolved() {
        let base = Target::parse("http://a:81/b/c/d;p?q").unwrap();
        for (reference, expected) in [
            ("", "http a 81 /b/c/d;p?q"),
            ("#s", "http a 81 /b/c/d;p?q"),
            ("g", "http a 81 /b/c/g"),
            ("./g/", "http a 81 /b/c/g/"),
            ("/g", "http a 81 /g"),
            ("//g", "http g 80 /"),
            ("//g:82/x?y", "http g 82 /x?y"),
            ("?y", "http a 81 /b/c/d;p?y"),
            ("g?y/../x", "http a 81 /b/c/g?y/../x"),
            ("..", "http a 81 /b/"),
            ("../../../g", "http a 81 /g"),
            ("/./g/../h/.", "http a 81 /h/"),
            ("http://z/y", "http z 80 /y"),
        ] {
            assert_eq!(show(&base.redirected(reference).unwrap()), expected, "{reference}");
        }
        let secure = Target::parse("https://a:444/b").unwrap();
        for (reference, expected) in [
            ("//g", "https g 443 /"),
            ("//g:80/x", "https g 80 /x"),
            ("/g", "https a 444 /g"),
            ("https://z/y", "https z 443 /y"),
        ] {
            assert_eq!(show(&secure.redirected(reference).unwrap()), expected, "{reference}");
        }
        assert!(secure.redirected("http://a:444/").is_err());
        for reference in ["https://a/", "ftp://a/", "javascript:x", "http://u@a/", "//u@a/"] {
            assert!(base.redirected(reference).is_err(), "{reference}");
        }
    }
}

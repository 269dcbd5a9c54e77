//! Keeps other people's web pages out of a node that asks for no credential.
//!
//! Whoever can reach such a node may do everything, and a browser on the same machine reaches it
//! for every page it shows: directly, with a request that needs no permission (`fetch` without
//! CORS), or as the page's own server, once the page's name has been made to point to this
//! machine (DNS rebinding). Three headers that browsers set and pages cannot change tell them
//! apart from programs:
//!
//! - `Host` is the name that was asked for: a rebound one is none of this node's;
//! - `Origin` is who asks: another one than the node's own is another page;
//! - `Sec-Fetch-Site` says so in words, where a browser sends no `Origin`.
//!
//! Programs send the first alone. Open routes are not checked (by the caller): they tell nothing
//! about anybody, and probes ask for them under whatever address they know.

use std::net::IpAddr;

use http::header::{CONTENT_TYPE, HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Request};

use crate::output::problem::{Code, Problem};

/// Where the page comes from that sends the request, in a browser's words.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Values of `Sec-Fetch-Site` in requests of other people's pages.
const OTHER_SITES: [&str; 2] = ["cross-site", "same-site"];
/// Most characters of a header's value that are repeated in a refusal.
const SHOWN_CHARS_MAX: usize = 100;

/// The names that this node answers to, beside localhost and the loopback addresses.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnNames(Vec<String>);

impl OwnNames {
    /// Host names and IP addresses, without ports.
    pub(crate) fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| name_of(name).to_ascii_lowercase()).collect())
    }

    /// Refuses what another people's web page had a browser send.
    pub(crate) fn check<B>(&self, request: &Request<B>, has_body: bool) -> Result<(), Problem> {
        let headers = request.headers();
        let asked_for = request.uri().authority().map(Authority::as_str);
        let hosts = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
        for host in hosts.chain(asked_for) {
            if !self.is_own(host) {
                return Err(foreign_host(host));
            }
        }
        let site = headers.get(SEC_FETCH_SITE).and_then(|site| site.to_str().ok());
        let is_other =
            |site: &str| OTHER_SITES.iter().any(|other| site.eq_ignore_ascii_case(other));
        if site.is_some_and(is_other) {
            return Err(forbidden(
                "Sec-Fetch-Site says that the page of another site sent this request; without an \
                 admin token this node takes requests of its own pages and of programs only"
                    .to_owned(),
            ));
        }
        let mut origins = headers.get_all(ORIGIN).iter().peekable();
        if has_body && origins.peek().is_some() && !headers.contains_key(CONTENT_TYPE) {
            return Err(forbidden(
                "a page's request with a body needs a Content-Type: send application/json".into(),
            ));
        }
        match origins.find(|origin| !is_of(origin.to_str().unwrap_or_default(), headers)) {
            Some(origin) => Err(foreign_origin(origin.to_str().unwrap_or_default())),
            None => Ok(()),
        }
    }

    fn is_own(&self, host: &str) -> bool {
        let name = name_of(host);
        if let Ok(address) = name.parse::<IpAddr>()
            && address.to_canonical().is_loopback()
        {
            return true;
        }
        name.eq_ignore_ascii_case("localhost")
            || self.0.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

/// The name in `name`, `name:port`, `[address]` or `[address]:port`; empty when it is none of
/// these.
fn name_of(host: &str) -> &str {
    if host.parse::<IpAddr>().is_ok() {
        return host;
    }
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, "")) => (address, ""),
        Some((address, rest)) => match rest.strip_prefix(':') {
            Some(port) => (address, port),
            None => return "",
        },
        None => host.split_once(':').unwrap_or((host, "")),
    };
    if !port.bytes().all(|digit| digit.is_ascii_digit()) {
        return "";
    }
    // With the dot at its end it is the same name, written out.
    name.strip_suffix('.').unwrap_or(name)
}

/// Whether the origin is the node's own: the name and port that the request asked for.
fn is_of(origin: &str, headers: &HeaderMap) -> bool {
    let Some((scheme, of_page)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return false,
    };
    let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else { return false };
    let port = |authority: &str| {
        let name = name_of(authority);
        let port = authority.rsplit_once(':').map_or("", |(_, port)| port);
        let is_port = !port.is_empty() && !port.ends_with(']') && authority.len() > name.len();
        if is_port { port.to_owned() } else { default_port.to_owned() }
    };
    let same_name = name_of(of_page).eq_ignore_ascii_case(name_of(host));
    !name_of(of_page).is_empty() && same_name && port(of_page) == port(host)
}

fn foreign_host(host: &str) -> Problem {
    let host = shown(host);
    forbidden(format!(
        "the request is for the host '{host}', which is no name of this node: ask it as localhost \
         or by a loopback address, or start it with --api-host and that name"
    ))
}

fn foreign_origin(origin: &str) -> Problem {
    let origin = shown(origin);
    forbidden(format!(
        "the page at '{origin}' sent this request; without an admin token this node takes \
         requests of its own pages and of programs only"
    ))
}

fn forbidden(text: String) -> Problem {
    Problem::new(Code::Forbidden, text).not_applied()
}

fn shown(value: &str) -> String {
    value.chars().take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, headers: &[(&str, &str)], has_body: bool) -> bool {
        let own = OwnNames::new(&["Node-1.example".into(), "10.0.0.7".into(), "[fd00::7]".into()]);
        let mut request = Request::post(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        own.check(&request.body(()).unwrap(), has_body).is_ok()
    }

    #[test]
    fn only_names_of_the_node_are_answered() {
        for host in [
            "localhost",
            "LocalHost:3000",
            "localhost.",
            "127.0.0.1:3000",
            "127.9.9.9",
            "[::1]:3000",
            "[::1]",
            "[::ffff:127.0.0.1]:1",
            "node-1.EXAMPLE:80",
            "10.0.0.7:3000",
            "[fd00::7]:3000",
        ] {
            assert!(check("/api/tenants", &[("Host", host)], true), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:3000",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost:3000@evil.example",
            "localhost:x",
            "0.0.0.0:3000",
            "10.0.0.8",
            "[::2]:3000",
            "[::1]x",
            "[::1",
        ] {
            assert!(!check("/api/tenants", &[("Host", host)], false), "{host:?}");
        }
        let both = [("Host", "localhost"), ("Host", "evil.example")];
        assert!(!check("/api/tenants", &both, false));
        assert!(!check("http://evil.example/api/tenants", &[("Host", "localhost")], false));
        assert!(check("http://localhost:3000/api/tenants", &[("Host", "localhost:3000")], false));
        assert!(check("/api/tenants", &[], true), "a program that names no host");
    }

    #[test]
    fn only_pages_of_the_node_may_ask() {
        let json = ("Content-Type", "application/json");
        for (host, origin, own) in [
            ("localhost:3000", "http://localhost:3000", true),
            ("localhost:3000", "http://LOCALHOST:3000", true),
            ("localhost", "http://localhost", true),
            ("localhost:80", "http://localhost", true),
            ("localhost:443", "https://localhost", true),
            ("[::1]:3000", "http://[::1]:3000", true),
            ("[::1]", "http://[::1]", true),
            ("[::1]:80", "http://[::1]", true),
            ("[::1]", "https://[::1]:443", true),
            ("[::1]:443", "http://[::1]", false),
            ("localhost:3000", "http://localhost:8080", false),
            ("localhost:3000", "http://localhost", false),
            ("localhost:3000", "http://127.0.0.1:3000", false),
            ("localhost:3000", "https://evil.example", false),
            ("localhost:3000", "null", false),
            ("localhost:3000", "", false),
            ("localhost:3000", "file://localhost:3000", false),
            ("localhost:3000", "chrome-extension://localhost:3000", false),
        ] {
            let headers = [("Host", host), ("Origin", origin), json];
            assert_eq!(check("/api/tenants", &headers, true), own, "{origin} at {host}");
        }
    }

    #[test]
    fn a_page_says_what_its_body_is() {
        let own = [("Host", "localhost:3000"), ("Origin", "http://localhost:3000")];
        assert!(!check("/api/tenants", &own, true));
        assert!(check("/api/tenants", &own, false));
        assert!(check("/api/tenants", &own[..1], true), "a program may leave it out");
    }

    #[test]
    fn other_sites_are_refused_by_their_own_word() {
        for (site, taken) in [
            ("same-origin", true),
            ("none", true),
            ("cross-site", false),
            ("same-site", false),
            ("Cross-Site", false),
        ] {
            let headers = [("Host", "localhost"), ("Sec-Fetch-Site", site)];
            assert_eq!(check("/api/cluster/leader/step-down", &headers, false), taken, "{site}");
        }
    }
}

//! The values of settings, each parsed from text. An error says what was given and what is valid.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use shiioo_actors::domain::region::Region;
use tracing_subscriber::EnvFilter;

use super::{DefaultTenant, LogFormat, Secret};

/// Longest name of a tenant, characters.
const NAME_CHARS_MAX: usize = 200;
/// Longest host name, bytes.
const HOST_BYTES_MAX: usize = 253;
/// Longest key of a label, bytes.
const LABEL_KEY_BYTES_MAX: usize = 63;
/// Longest value of a label, bytes.
const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Longest token, bytes.
const SECRET_BYTES_MAX: usize = 1024;
/// Shortest election timeout, ms: below, the kernel's timer tick of 4 ms causes false elections.
const ELECTION_TIMEOUT_MS_MIN: u64 = 150;
/// Longest election timeout, ms: a cluster that waits longer is as good as down.
const ELECTION_TIMEOUT_MS_MAX: u64 = 60_000;
/// Longest wait of a request, ms; long polls may take as long.
const REQUEST_TIMEOUT_MS_MAX: u64 = 300_000;
/// Longest time between heartbeats, ms.
const HEARTBEAT_MS_MAX: u64 = 86_400_000;

pub(super) type Parsed<T> = Result<T, String>;

/// Parses a tenant: what is an id is one, and anything else a name.
pub(super) fn default_tenant(text: &str) -> Parsed<DefaultTenant> {
    let chars = text.chars().count();
    match text.parse() {
        Ok(id) => Ok(DefaultTenant::Id(id)),
        Err(_) if (1..=NAME_CHARS_MAX).contains(&chars) && !text.trim().is_empty() => {
            Ok(DefaultTenant::Name(text.to_owned()))
        }
        Err(_) => Err(format!(
            "{text:?} is neither the id of a tenant nor a name of 1 to {NAME_CHARS_MAX} characters"
        )),
    }
}

/// Parses an address to listen at.
pub(super) fn socket_addr(text: &str) -> Parsed<SocketAddr> {
    let localhost = || {
        let port = text.strip_prefix("localhost:")?.parse().ok()?;
        Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    text.parse().ok().or_else(localhost).ok_or_else(|| {
        format!("{text:?} is not an IP address and a port, as 127.0.0.1:3000 or [::1]:3000 is")
    })
}

/// Parses an address to dial: host name or IP address, and port.
pub(super) fn host_port(text: &str) -> Parsed<String> {
    let valid = || {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return addr.port() > 0 && !addr.ip().is_unspecified();
        }
        let Some((host, port)) = text.rsplit_once(':') else { return false };
        let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        !host.is_empty() && host.bytes().all(of_a_name) && port.parse().is_ok_and(|p: u16| p > 0)
    };
    if valid() {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is not a host and a port, as node1:7400 or 10.0.0.1:7400 is"))
    }
}

/// Parses a host name or an IP address without a port: requests may come by any.
pub(super) fn host(text: &str) -> Parsed<String> {
    let address = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let of_a_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_name = (1..=HOST_BYTES_MAX).contains(&text.len()) && text.bytes().all(of_a_name);
    if is_name || address.parse::<IpAddr>().is_ok() {
        Ok(address.to_owned())
    } else {
        Err(format!("{text:?} is not a host name or an IP address, without scheme and port"))
    }
}

pub(super) fn path(text: &str) -> Parsed<PathBuf> {
    if text.is_empty() { Err("the path is empty".into()) } else { Ok(text.into()) }
}

pub(super) fn region(text: &str) -> Parsed<Region> {
    Region::try_from(text.to_owned()).map_err(|why| format!("{text:?} is not a region: {why}"))
}

pub(super) fn label(text: &str) -> Parsed<(String, String)> {
    let of_a_key = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/".contains(&byte);
    match text.split_once('=') {
        Some((key, value))
            if (1..=LABEL_KEY_BYTES_MAX).contains(&key.len())
                && key.bytes().all(of_a_key)
                && value.len() <= LABEL_VALUE_BYTES_MAX =>
        {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err(format!(
            "{text:?} is not key=value, with a key of 1 to {LABEL_KEY_BYTES_MAX} letters, digits, \
             '-', '.', '_' and '/', and a value of at most {LABEL_VALUE_BYTES_MAX} bytes"
        )),
    }
}

/// Parses a token: visible ASCII, because it travels in a header. The error does not repeat it.
pub(super) fn secret(text: &str) -> Parsed<Secret> {
    let length_fits = (1..=SECRET_BYTES_MAX).contains(&text.len());
    if length_fits && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Ok(Secret::new(text))
    } else {
        Err(format!("a token is 1 to {SECRET_BYTES_MAX} visible ASCII characters without spaces"))
    }
}

pub(super) fn log_filter(text: &str) -> Parsed<String> {
    match EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "{text:?} is not a level or a list of directives, as info or info,shiioo=debug is: \
             {error}"
        )),
    }
}

pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    }
}

pub(super) fn switch(text: &str) -> Parsed<bool> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

pub(super) fn election_timeout(text: &str) -> Parsed<Duration> {
    duration(text, ELECTION_TIMEOUT_MS_MIN, ELECTION_TIMEOUT_MS_MAX)
}

pub(super) fn request_timeout(text: &str) -> Parsed<Duration> {
    duration(text, 1, REQUEST_TIMEOUT_MS_MAX)
}

pub(super) fn heartbeat(text: &str) -> Parsed<Duration> {
    duration(text, 1, HEARTBEAT_MS_MAX)
}

fn duration(text: &str, ms_min: u64, ms_max: u64) -> Parsed<Duration> {
    let (min, max) = (Duration::from_millis(ms_min), Duration::from_millis(ms_max));
    let parsed = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is not a duration, as 500ms, 5s or 1h is"))?;
    if (min..=max).contains(&parsed) {
        Ok(parsed)
    } else {
        let show = humantime::format_duration;
        Err(format!("{text:?} is out of range: from {} to {}", show(min), show(max)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_or_refused() {
        for (text, valid) in [
            ("127.0.0.1:0", true),
            ("[::1]:3000", true),
            ("localhost:3000", true),
            ("3000", false),
            (":3000", false),
            ("example.com:80", false),
            ("127.0.0.1", false),
        ] {
            assert_eq!(socket_addr(text).is_ok(), valid, "{text}");
        }
        for (text, valid) in [
            ("node-1.internal:7400", true),
            ("10.0.0.1:7400", true),
            ("[fd00::1]:7400", true),
            ("10.0.0.1", false),
            ("0.0.0.0:7400", false),
            ("[::]:7400", false),
            ("10.0.0.1:0", false),
            ("[fd00::1]:0", false),
            ("node:0", false),
            ("node:65536", false),
            ("node:x", false),
            ("http://node:7400", false),
            ("", false),
        ] {
            assert_eq!(host_port(text).is_ok(), valid, "{text}");
        }
        let long = "r".repeat(63);
        for (text, valid) in [
            ("eu-1", true),
            (long.as_str(), true),
            (&format!("{long}r"), false),
            ("", false),
            ("EU", false),
            ("..", false),
            ("a_b", false),
            ("log", false),
            ("identity", false),
            ("tenants", false),
            ("logs", true),
        ] {
            assert_eq!(region(text).is_ok(), valid, "{text}");
        }
        for (text, valid) in [("zone=a", true), ("zone=", true), ("zone", false), ("=a", false)] {
            assert_eq!(label(text).is_ok(), valid, "{text}");
        }
        for (text, valid) in [
            ("500ms", true),
            ("149ms", false),
            ("150ms", true),
            ("1m", true),
            ("60001ms", false),
            ("2m", false),
            ("5", false),
        ] {
            assert_eq!(election_timeout(text).is_ok(), valid, "{text}");
        }
        for (text, valid) in [("0s", false), ("1ms", true), ("5m", true), ("300001ms", false)] {
            assert_eq!(request_timeout(text).is_ok(), valid, "{text}");
        }
        for (text, valid) in [("0s", false), ("1ms", true), ("1day", true), ("86401s", false)] {
            assert_eq!(heartbeat(text).is_ok(), valid, "{text}");
        }
        let error = secret("se same").unwrap_err();
        assert!(!error.contains("same"), "{error}");
        assert_eq!(secret("abc").unwrap().reveal(), "abc");
    }
}

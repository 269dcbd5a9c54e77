//! From a `host:port` to a connection.

use std::net::SocketAddr;

use quinn::{ClientConfig, Connection, Endpoint};
use tokio::time::{Instant, timeout_at};

use crate::sockets::lookups::{Asker, Lookups};

/// Addresses of a name that are tried, in the order in which the resolver gave them.
const ADDRESSES_TRIED_MAX: usize = 3;

/// Connects to `addr`, a `host:port`, and verifies that the other end is `name`. The addresses of the
/// host share the time until `deadline`.
///
/// # Errors
/// What failed, in words.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    lookups: &Lookups,
    config: &ClientConfig,
    addr: &str,
    name: &str,
    deadline: Instant,
) -> Result<Connection, String> {
    let found = timeout_at(deadline, addresses(endpoint, lookups, addr)).await;
    let found = found.map_err(|_| format!("the name of {addr} was not resolved in time"))??;
    let mut failure = format!("{addr} has no address that this node's socket reaches");
    for (tried, address) in found.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        // An equal share of what is left for each: what a fast failure saves goes to the others.
        let share = u32::try_from(found.len() - tried).unwrap_or(u32::MAX);
        let until = Instant::now() + left / share;
        match endpoint.connect_with(config.clone(), *address, name) {
            Err(error) => failure = format!("{address}: {error}"),
            Ok(connecting) => match timeout_at(until, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => failure = format!("{address}: {error}"),
                Err(_) => failure = format!("{address}: no answer"),
            },
        }
    }
    Err(failure)
}

async fn addresses(
    endpoint: &Endpoint,
    lookups: &Lookups,
    addr: &str,
) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = split(addr).ok_or_else(|| format!("{addr:?} is not a host and a port"))?;
    let found = lookups.resolve(Asker::Node, host, port).await;
    let mut found = found.map_err(|error| format!("{addr}: {error}"))?;
    // A socket of IPv6 also reaches addresses of IPv4; not the other way round.
    if endpoint.local_addr().is_ok_and(|local| local.is_ipv4()) {
        found.retain(SocketAddr::is_ipv4);
    }
    found.truncate(ADDRESSES_TRIED_MAX);
    Ok(found)
}

/// Splits `host:port`, where the host may be an IPv6 address in brackets.
fn split(addr: &str) -> Option<(&str, u16)> {
    let (host, port) = addr.rsplit_once(':')?;
    let host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?,
        None => host,
    };
    if host.is_empty() { None } else { Some((host, port.parse().ok()?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_at_the_port() {
        assert_eq!(split("node-1.example:7001"), Some(("node-1.example", 7001)));
        assert_eq!(split("[::1]:7001"), Some(("::1", 7001)));
        for bad in ["", ":1", "host", "host:", "host:70000", "[::1:7001", "[]:1"] {
            assert_eq!(split(bad), None, "{bad}");
        }
    }
}

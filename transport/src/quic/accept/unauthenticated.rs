//! The connected peers without a certificate, and which of them has to make room for another.
//!
//! A peer with a request in progress is never closed for another. An idle one is, once all places
//! are taken: the longest connected one of the network that has the most idle peers.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bits of an IPv6 address below the network that one host usually has to itself.
const IPV6_HOST_BITS: u32 = 64;

/// Returns what counts as one source of connections: an IPv4 address, or an IPv6 network of 64 bits,
/// all addresses of which a single host may use.
pub(super) fn source_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> IPV6_HOST_BITS << IPV6_HOST_BITS))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// Describes one connected peer.
#[derive(Debug)]
struct UnauthenticatedPeer<C> {
    network: IpAddr,
    connection: C,
    /// Set by the task that serves the connection, while a request is in progress.
    is_requesting: Arc<AtomicBool>,
}

/// Holds the connected peers by number, in the order in which they came.
#[derive(Debug)]
pub(super) struct UnauthenticatedPeers<C> {
    connections_max: usize,
    next_number: u64,
    connected: BTreeMap<u64, UnauthenticatedPeer<C>>,
}

/// Tells whether a new peer is let in.
#[derive(Debug)]
pub(super) enum Entry<C> {
    /// The peer is let in.
    Admitted {
        /// Identifies the peer in [`UnauthenticatedPeers::leave`].
        number: u64,
        /// To be set while a request of the peer is in progress.
        is_requesting: Arc<AtomicBool>,
        /// The connection that is to be closed to make room.
        instead_of: Option<C>,
    },
    /// All places are taken by peers with a request in progress.
    Full,
}

impl<C> UnauthenticatedPeers<C> {
    pub(super) const fn new(connections_max: usize) -> Self {
        Self { connections_max, next_number: 0, connected: BTreeMap::new() }
    }

    /// Lets a peer in when there is a place, or an idle peer that makes room.
    pub(super) fn enter(&mut self, address: IpAddr, connection: C) -> Entry<C> {
        let instead_of = if self.connected.len() < self.connections_max {
            None
        } else if let Some(idle) = self.idlest().and_then(|number| self.connected.remove(&number)) {
            Some(idle.connection)
        } else {
            return Entry::Full;
        };
        let (number, is_requesting) = (self.next_number, Arc::<AtomicBool>::default());
        self.next_number += 1;
        let peer = UnauthenticatedPeer {
            network: source_network(address),
            connection,
            is_requesting: Arc::clone(&is_requesting),
        };
        self.connected.insert(number, peer);
        Entry::Admitted { number, is_requesting, instead_of }
    }

    /// Removes a peer that has gone; does nothing for one that had to make room before.
    pub(super) fn leave(&mut self, number: u64) {
        self.connected.remove(&number);
    }

    /// Returns the number of the peer that has to make room first.
    fn idlest(&self) -> Option<u64> {
        // Read once: a peer may begin a request while this runs. It is then closed all the same,
        // having lost the race by less than the time that this takes, and asks again.
        let idle: Vec<_> = self
            .connected
            .iter()
            .filter(|(_, peer)| !peer.is_requesting.load(Ordering::Acquire))
            .collect();
        let mut by_network = BTreeMap::<IpAddr, usize>::new();
        for (_, peer) in &idle {
            *by_network.entry(peer.network).or_default() += 1;
        }
        let most = by_network.values().max().copied()?;
        idle.into_iter()
            .find(|(_, peer)| by_network.get(&peer.network) == Some(&most))
            .map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(
        peers: &mut UnauthenticatedPeers<u32>,
        address: &str,
        name: u32,
    ) -> (u64, Arc<AtomicBool>, Option<u32>) {
        match peers.enter(address.parse().unwrap(), name) {
            Entry::Admitted { number, is_requesting, instead_of } => {
                (number, is_requesting, instead_of)
            }
            Entry::Full => panic!("no place for {name}"),
        }
    }

    #[test]
    fn the_idlest_of_the_network_with_most_idle_peers_makes_room() {
        let mut peers = UnauthenticatedPeers::new(4);
        let (_, _, none) = enter(&mut peers, "10.0.0.9", 0);
        assert_eq!(none, None);
        let (_, is_requesting, _) = enter(&mut peers, "2001:db8::1", 1);
        let (second, ..) = enter(&mut peers, "2001:db8::2", 2);
        enter(&mut peers, "2001:db8::3", 3);
        is_requesting.store(true, Ordering::Release);
        // The first of that network has a request in progress, so that the second goes.
        assert_eq!(enter(&mut peers, "10.0.0.8", 4).2, Some(2));
        peers.leave(second);
        // Each network has one idle peer now: the longest connected one goes.
        assert_eq!(enter(&mut peers, "2001:db8::4", 5).2, Some(0));
        assert_eq!(enter(&mut peers, "10.0.0.7", 6).2, Some(3));
    }

    #[test]
    fn a_peer_with_a_request_is_not_closed() {
        let mut peers = UnauthenticatedPeers::new(2);
        let (first, one, _) = enter(&mut peers, "10.0.0.1", 1);
        let (_, two, _) = enter(&mut peers, "10.0.0.1", 2);
        one.store(true, Ordering::Release);
        two.store(true, Ordering::Release);
        assert!(matches!(peers.enter("10.0.0.2".parse().unwrap(), 3), Entry::Full));
        peers.leave(first);
        assert_eq!(enter(&mut peers, "10.0.0.2", 4).2, None);
    }

    #[test]
    fn one_network_of_ipv6_is_one_source() {
        let of = |text: &str| source_network(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}

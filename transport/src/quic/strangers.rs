//! The strangers who are connected, and who of them has to make room for another.
//!
//! A stranger that asks to join is never sent away for another. One that says nothing is, as soon
//! as all places are taken: first of the network that has the most such, the longest there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bits of an IPv6 address below the network that one host usually has to itself.
const IPV6_HOST_BITS: u32 = 64;

/// What counts as one party at the door: an IPv4 address, or an IPv6 network of 64 bits, all of
/// which a single host may use.
pub(super) fn party(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> IPV6_HOST_BITS << IPV6_HOST_BITS))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// A stranger that is connected.
#[derive(Debug)]
struct Guest<C> {
    party: IpAddr,
    connection: C,
    asks: Arc<AtomicBool>,
}

/// Those who are connected, in the order in which they came.
#[derive(Debug)]
pub(super) struct Strangers<C> {
    places_max: usize,
    came: u64,
    here: BTreeMap<u64, Guest<C>>,
}

/// What becomes of a newcomer.
#[derive(Debug)]
pub(super) enum Entry<C> {
    /// It is in, and another has to go where there was no place left.
    Admitted {
        /// To leave with.
        number: u64,
        /// To be set once it asks for something.
        asks: Arc<AtomicBool>,
        /// Who has to go.
        instead_of: Option<C>,
    },
    /// All places are taken by strangers who ask for something.
    Full,
}

impl<C> Strangers<C> {
    pub(super) const fn new(places_max: usize) -> Self {
        Self { places_max, came: 0, here: BTreeMap::new() }
    }

    /// Lets a stranger in, if there is a place or somebody to make room.
    pub(super) fn enter(&mut self, address: IpAddr, connection: C) -> Entry<C> {
        let instead_of = if self.here.len() < self.places_max {
            None
        } else if let Some(guest) = self.idlest().and_then(|number| self.here.remove(&number)) {
            Some(guest.connection)
        } else {
            return Entry::Full;
        };
        let (number, asks) = (self.came, Arc::<AtomicBool>::default());
        self.came += 1;
        let guest = Guest { party: party(address), connection, asks: Arc::clone(&asks) };
        self.here.insert(number, guest);
        Entry::Admitted { number, asks, instead_of }
    }

    /// Forgets a stranger that has gone, perhaps one that had to make room before.
    pub(super) fn leave(&mut self, number: u64) {
        self.here.remove(&number);
    }

    /// The first to go.
    fn idlest(&self) -> Option<u64> {
        let idle = || self.here.iter().filter(|(_, guest)| !guest.asks.load(Ordering::Acquire));
        let mut of_party = BTreeMap::<IpAddr, usize>::new();
        for (_, guest) in idle() {
            *of_party.entry(guest.party).or_default() += 1;
        }
        let most = of_party.values().max().copied()?;
        idle()
            .find(|(_, guest)| of_party.get(&guest.party) == Some(&most))
            .map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(
        strangers: &mut Strangers<u32>,
        address: &str,
        name: u32,
    ) -> (u64, Arc<AtomicBool>, Option<u32>) {
        match strangers.enter(address.parse().unwrap(), name) {
            Entry::Admitted { number, asks, instead_of } => (number, asks, instead_of),
            Entry::Full => panic!("no place for {name}"),
        }
    }

    #[test]
    fn the_idlest_of_the_largest_party_makes_room() {
        let mut strangers = Strangers::new(4);
        let (_, _, none) = enter(&mut strangers, "10.0.0.9", 0);
        assert_eq!(none, None);
        let (_, asks, _) = enter(&mut strangers, "2001:db8::1", 1);
        let (second, ..) = enter(&mut strangers, "2001:db8::2", 2);
        enter(&mut strangers, "2001:db8::3", 3);
        asks.store(true, Ordering::Release);
        // The first of that network asks for something, so that the second goes.
        assert_eq!(enter(&mut strangers, "10.0.0.8", 4).2, Some(2));
        strangers.leave(second);
        // One idle stranger a party now: the longest here goes.
        assert_eq!(enter(&mut strangers, "2001:db8::4", 5).2, Some(0));
        assert_eq!(enter(&mut strangers, "10.0.0.7", 6).2, Some(3));
    }

    #[test]
    fn who_asks_is_not_sent_away() {
        let mut strangers = Strangers::new(2);
        let (first, one, _) = enter(&mut strangers, "10.0.0.1", 1);
        let (_, two, _) = enter(&mut strangers, "10.0.0.1", 2);
        one.store(true, Ordering::Release);
        two.store(true, Ordering::Release);
        assert!(matches!(strangers.enter("10.0.0.2".parse().unwrap(), 3), Entry::Full));
        strangers.leave(first);
        assert_eq!(enter(&mut strangers, "10.0.0.2", 4).2, None);
    }

    #[test]
    fn one_host_of_a_network_is_one_party() {
        let of = |text: &str| party(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::"));
        assert_ne!(of("2001:db8:1:2::"), of("2001:db8:1:3::"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}

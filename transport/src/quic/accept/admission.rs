//! Admission of handshakes: how many are in progress, and from which addresses.
//!
//! - A few handshakes are begun for any address. Above that an address has to prove first that it
//!   is real, by a retry token, which costs this node no memory. Above the bound none is begun.
//! - One proven address, or one IPv6 network, has a share of the handshakes only.
//! - A part of the handshakes is kept for addresses of members: peers that begin handshakes and
//!   stall do not keep members from coming back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::unauthenticated::source_network;

/// Handshakes in progress before addresses have to prove that they are real.
pub(in crate::quic) const UNPROVEN_HANDSHAKES_MAX: usize = 32;
/// Handshakes in progress at most.
const HANDSHAKES_MAX: usize = 256;
/// Handshakes of these that are kept for addresses of members.
const MEMBERS_HANDSHAKES: usize = 64;
/// Handshakes in progress of one address that has proven to be real.
const ADDRESS_HANDSHAKES_MAX: usize = 64;

/// Counts the handshakes in progress.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    total: usize,
    /// Part of `total`: those from addresses of members.
    of_members: usize,
    by_network: BTreeMap<IpAddr, usize>,
}

/// Tells what to do with a connection that begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Begin the handshake.
    Begin,
    /// Have the address prove that it is real: it comes again with a token.
    Prove,
    /// Refuse it.
    Refuse,
}

impl Handshakes {
    /// Judges a connection from `address`, which is `proven` when it showed a token.
    pub(super) fn judge(&self, address: IpAddr, proven: bool, is_member: bool) -> Admission {
        let of_network = self.by_network.get(&source_network(address)).copied().unwrap_or(0);
        let of_others = self.total - self.of_members;
        match proven {
            false if self.total < UNPROVEN_HANDSHAKES_MAX => Admission::Begin,
            // Also above all bounds: a retry is stateless, and a forged source never comes again.
            false => Admission::Prove,
            true if self.total >= HANDSHAKES_MAX => Admission::Refuse,
            true if of_network >= ADDRESS_HANDSHAKES_MAX => Admission::Refuse,
            true if !is_member && of_others >= HANDSHAKES_MAX - MEMBERS_HANDSHAKES => {
                Admission::Refuse
            }
            true => Admission::Begin,
        }
    }
}

/// Counts one handshake as in progress until it is dropped.
pub(super) struct HandshakePermit {
    handshakes: Arc<Mutex<Handshakes>>,
    network: IpAddr,
    is_member: bool,
}

impl HandshakePermit {
    pub(super) fn new(
        handshakes: &Arc<Mutex<Handshakes>>,
        address: IpAddr,
        is_member: bool,
    ) -> Self {
        let network = source_network(address);
        let mut counts = handshakes.lock();
        counts.total += 1;
        counts.of_members += usize::from(is_member);
        *counts.by_network.entry(network).or_default() += 1;
        drop(counts);
        Self { handshakes: Arc::clone(handshakes), network, is_member }
    }
}

impl Drop for HandshakePermit {
    fn drop(&mut self) {
        let mut counts = self.handshakes.lock();
        counts.total -= 1;
        // By what was counted at the beginning: the address may be a member's by now, or no more.
        counts.of_members -= usize::from(self.is_member);
        if let Some(count) = counts.by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                counts.by_network.remove(&self.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_flood_of_handshakes_leaves_room_for_real_addresses() {
        let address = |number| IpAddr::V4(Ipv4Addr::from_bits(number));
        let mut handshakes = Handshakes::default();
        assert_eq!(handshakes.judge(address(1), false, false), Admission::Begin);
        handshakes.total = UNPROVEN_HANDSHAKES_MAX;
        assert_eq!(handshakes.judge(address(1), false, false), Admission::Prove);
        assert_eq!(handshakes.judge(address(1), true, false), Admission::Begin);
        handshakes.by_network.insert(address(1), ADDRESS_HANDSHAKES_MAX);
        assert_eq!(handshakes.judge(address(1), true, false), Admission::Refuse);
        assert_eq!(handshakes.judge(address(2), true, false), Admission::Begin);
        handshakes.total = HANDSHAKES_MAX;
        assert_eq!(handshakes.judge(address(2), true, true), Admission::Refuse);
        assert_eq!(
            handshakes.judge(address(2), false, true),
            Admission::Prove,
            "it costs no memory"
        );
    }

    #[test]
    fn others_leave_handshakes_to_members() {
        let address = |number| IpAddr::V4(Ipv4Addr::from_bits(number));
        let others = HANDSHAKES_MAX - MEMBERS_HANDSHAKES;
        let mut handshakes = Handshakes { total: others, ..Handshakes::default() };
        assert_eq!(handshakes.judge(address(1), true, false), Admission::Refuse);
        assert_eq!(handshakes.judge(address(2), true, true), Admission::Begin);
        // Handshakes of members do not take the others' permits.
        (handshakes.total, handshakes.of_members) = (others + 9, 10);
        assert_eq!(handshakes.judge(address(1), true, false), Admission::Begin);
    }

    #[test]
    fn all_of_a_network_has_one_share() {
        let mut handshakes = Handshakes::default();
        let [one, another]: [IpAddr; 2] =
            ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        handshakes.by_network.insert(source_network(one), ADDRESS_HANDSHAKES_MAX);
        assert_eq!(handshakes.judge(another, true, false), Admission::Refuse);
    }
}

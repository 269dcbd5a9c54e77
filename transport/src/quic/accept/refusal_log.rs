//! Remembers the addresses that were refused lately, so that each is logged once and not once a
//! packet.
//!
//! The table is bounded: in a flood from more addresses than it holds the rest is not logged.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;

/// Time in which an address is logged once, ms.
const QUIET_MS: u64 = 10_000;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 256;

/// Maps refused addresses to the time when that was last logged.
#[derive(Debug, Default)]
pub(super) struct RefusalLog(BTreeMap<IpAddr, Instant>);

impl RefusalLog {
    /// Decides whether to log that this address was refused, and remembers it.
    pub fn should_log(&mut self, address: IpAddr, now: Instant) -> bool {
        let fresh =
            |at: &Instant| now.saturating_duration_since(*at) < Duration::from_millis(QUIET_MS);
        if self.0.get(&address).is_some_and(fresh) {
            return false;
        }
        if self.0.len() >= ADDRESSES_MAX {
            self.0.retain(|_, at| fresh(at));
        }
        if self.0.len() >= ADDRESSES_MAX {
            return false;
        }
        self.0.insert(address, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_address_is_logged_once_in_an_interval_and_the_table_does_not_grow() {
        let (mut refusals, now) = (RefusalLog::default(), Instant::now());
        let address = |number: u32| IpAddr::V4(Ipv4Addr::from_bits(number));
        assert!(refusals.should_log(address(0), now));
        assert!(!refusals.should_log(address(0), now));
        for number in 0..10_000 {
            refusals.should_log(address(number), now);
        }
        assert_eq!(refusals.0.len(), ADDRESSES_MAX);
        let later = now + Duration::from_millis(QUIET_MS);
        assert!(refusals.should_log(address(99_999), later));
        assert!(refusals.should_log(address(0), later));
        assert_eq!(refusals.0.len(), 2, "what is old makes room");
    }
}

//! The addresses that `--deny-private-targets` keeps `http` steps from.
//!
//! The address that is connected to is checked, never the name: a public name may resolve to a
//! private address. IPv6 forms that contain an IPv4 address are checked by that address as well.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Names the kind of a non-public address; `None` for a public one.
pub(super) fn private_kind(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => private_kind_v4(ip),
        IpAddr::V6(ip) => private_kind_v6(ip),
    }
}

fn private_kind_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let kind = match ip.octets() {
        [0, ..] => "unspecified",
        [127, ..] => "loopback",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [169, 254, ..] => "link-local",
        [100, 64..=127, ..] => "carrier-grade NAT",
        [192, 0, 0, _] | [198, 18..=19, ..] | [240..=255, ..] => "reserved",
        [224..=239, ..] => "multicast",
        _ => return None,
    };
    Some(kind)
}

fn private_kind_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    let kind = match ip.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        // No program has a reason to use these two forms over the network.
        [0, 0, 0, 0, 0, 0xffff, ..] => "IPv4-mapped",
        [0, 0, 0, 0, 0, 0, ..] => "IPv4-compatible",
        // NAT64 and 6to4 gateways forward these to the IPv4 address inside.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => return private_kind_v4(embedded(high, low)),
        [0x64, 0xff9b, 1, ..] => "private",
        [0x2002, high, low, ..] => return private_kind_v4(embedded(high, low)),
        [0xfc00..=0xfdff, ..] => "unique-local",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xff00..=0xffff, ..] => "multicast",
        _ => return None,
    };
    Some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_recognised_in_every_form() {
        for (ip, kind) in [
            ("127.0.0.1", Some("loopback")),
            ("127.255.0.9", Some("loopback")),
            ("0.0.0.0", Some("unspecified")),
            ("10.1.2.3", Some("private")),
            ("172.15.0.1", None),
            ("172.16.0.1", Some("private")),
            ("172.31.255.255", Some("private")),
            ("172.32.0.1", None),
            ("192.168.0.1", Some("private")),
            ("169.254.169.254", Some("link-local")),
            ("100.63.0.1", None),
            ("100.64.0.1", Some("carrier-grade NAT")),
            ("100.127.0.1", Some("carrier-grade NAT")),
            ("100.128.0.1", None),
            ("224.0.0.1", Some("multicast")),
            ("255.255.255.255", Some("reserved")),
            ("93.184.216.34", None),
            ("::", Some("unspecified")),
            ("::1", Some("loopback")),
            ("::ffff:93.184.216.34", Some("IPv4-mapped")),
            ("::ffff:127.0.0.1", Some("IPv4-mapped")),
            ("::127.0.0.1", Some("IPv4-compatible")),
            ("64:ff9b::7f00:1", Some("loopback")),
            ("64:ff9b::5db8:d822", None),
            ("64:ff9b::a00:1", Some("private")),
            ("64:ff9b:1::", Some("private")),
            ("64:ff9b:1::5db8:d822", Some("private")),
            ("64:ff9b:1:ffff:ffff:ffff:ffff:ffff", Some("private")),
            ("64:ff9b:2::5db8:d822", None),
            ("fbff:ffff::1", None),
            ("fc00::1", Some("unique-local")),
            ("fcff::1", Some("unique-local")),
            ("fdff:ffff::1", Some("unique-local")),
            ("fe00::1", None),
            ("febf::1", Some("link-local")),
            ("feff::1", Some("site-local")),
            ("2002:5db8:d822::1", None),
            ("2002:a00:1::1", Some("private")),
            ("fd00:ec2::254", Some("unique-local")),
            ("fe80::1", Some("link-local")),
            ("fec0::1", Some("site-local")),
            ("ff02::1", Some("multicast")),
            ("2606:2800:220:1:248:1893:25c8:1946", None),
        ] {
            assert_eq!(private_kind(ip.parse().unwrap()), kind, "{ip}");
        }
    }
}

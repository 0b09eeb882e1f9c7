//! Which addresses a provider's public name may lead to.
//!
//! The pod's DNS and `/etc/hosts` are the agent's to forge, so a public name that resolves to an
//! address which is not globally reachable is not dialled. The ranges are those of the IANA
//! registries of special-purpose IPv4 and IPv6 addresses (RFC 6890, as of November 2026). An
//! IPv6 address that carries an IPv4 address (mapped, NAT64, 6to4, Teredo, compatible) is judged
//! by the IPv4 address that it carries.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 ranges that are not globally reachable: base address and prefix length.
#[rustfmt::skip]
const SPECIAL_V4: &[([u8; 4], u32)] = &[
    ([0, 0, 0, 0], 8),          // "this network"
    ([10, 0, 0, 0], 8),         // private
    ([100, 64, 0, 0], 10),      // shared by carriers
    ([127, 0, 0, 0], 8),        // loopback
    ([169, 254, 0, 0], 16),     // link-local, cloud metadata
    ([172, 16, 0, 0], 12),      // private
    ([192, 0, 0, 0], 24),       // protocol assignments; 192.0.0.192 is a metadata service
    ([192, 0, 2, 0], 24),       // documentation
    ([192, 31, 196, 0], 24),    // AS112
    ([192, 52, 193, 0], 24),    // AMT
    ([192, 88, 99, 0], 24),     // 6to4 relays
    ([192, 168, 0, 0], 16),     // private
    ([192, 175, 48, 0], 24),    // AS112
    ([198, 18, 0, 0], 15),      // benchmarking
    ([198, 51, 100, 0], 24),    // documentation
    ([203, 0, 113, 0], 24),     // documentation
    ([224, 0, 0, 0], 4),        // multicast
    ([240, 0, 0, 0], 4),        // reserved, broadcast
];

/// Global unicast, the only IPv6 space that is routed: everything outside it is special.
const GLOBAL_V6: (u16, u32) = (0x2000, 3);

/// Ranges within global unicast that are not globally reachable.
#[rustfmt::skip]
const SPECIAL_V6: &[([u16; 3], u32)] = &[
    ([0x2001, 0x0000, 0], 23),  // protocol assignments: Teredo, benchmarking, ORCHID
    ([0x2001, 0x0db8, 0], 32),  // documentation
    ([0x2620, 0x004f, 0x8000], 48), // AS112
    ([0x3fff, 0x0000, 0], 20),  // documentation
];

/// Whether an address belongs to no public host.
pub(super) fn is_special(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_special_v4(v4),
        IpAddr::V6(v6) => match embedded(v6) {
            Some(v4) => is_special_v4(v4),
            None => is_special_v6(v6),
        },
    }
}

/// Link-local addresses, among them the metadata service of most clouds. They are never
/// dialled, not even for a name that the operator wrote.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => embedded(v6).map_or(v6.is_unicast_link_local(), |v4| v4.is_link_local()),
    }
}

/// The IPv4 address that an IPv6 address leads to.
fn embedded(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let pair = |high: u16, low: u16| Some(Ipv4Addr::from((u32::from(high) << 16) | u32::from(low)));
    match s {
        // `::a.b.c.d` (but for `::` and `::1`) and `::ffff:a.b.c.d`.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => pair(high, low),
        [0, 0, 0, 0, 0, 0xffff, high, low] => pair(high, low),
        // `::ffff:0:a.b.c.d`, the translated form of RFC 2765.
        [0, 0, 0, 0, 0xffff, 0, high, low] => pair(high, low),
        // NAT64's well-known prefix. Local NAT64 prefixes (64:ff9b:1::/48) are special as a whole.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => pair(high, low),
        // 6to4.
        [0x2002, high, low, ..] => pair(high, low),
        _ => None,
    }
}

fn is_special_v4(v4: Ipv4Addr) -> bool {
    let bits = u32::from(v4);
    SPECIAL_V4
        .iter()
        .any(|(base, prefix)| (bits ^ u32::from(Ipv4Addr::from(*base))) >> (32 - prefix) == 0)
}

fn is_special_v6(v6: Ipv6Addr) -> bool {
    let s = v6.segments();
    if (s[0] ^ GLOBAL_V6.0) >> (16 - GLOBAL_V6.1) != 0 {
        return true;
    }
    let top = |s: &[u16]| (u64::from(s[0]) << 32) | (u64::from(s[1]) << 16) | u64::from(s[2]);
    SPECIAL_V6
        .iter()
        .any(|(base, prefix)| (top(&s) ^ top(base)) >> (48 - prefix) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_purpose_addresses_are_not_public() {
        let cases = [
            "0.1.2.3",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:10.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:2::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:a00:1::",
            "2002:7f00:1::",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ];
        for ip in cases {
            assert!(is_special(ip.parse().unwrap()), "{ip}");
        }
        let cases = [
            "1.1.1.1",
            "100.128.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "2a00:1450::1",
            "64:ff9b::808:808",
            "2002:808:808::1",
            "::ffff:8.8.8.8",
        ];
        for ip in cases {
            assert!(!is_special(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn metadata_services_are_found_in_every_spelling() {
        for ip in [
            "169.254.169.254",
            "fe80::1",
            "::ffff:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "2002:a9fe:a9fe::",
        ] {
            assert!(is_link_local(ip.parse().unwrap()), "{ip}");
        }
        assert!(!is_link_local("10.0.0.1".parse().unwrap()));
    }
}

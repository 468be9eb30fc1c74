//! The key of an address: an IPv4 address, or the prefix of an IPv6 one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Prefix;
use crate::key::Key;

/// Each octet followed by a point, and the length of that text.
static OCTETS: [([u8; 4], usize); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut n = 0;
    while n < 256 {
        let (hundreds, tens, ones) =
            (b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8);
        octets[n] = match n {
            0..10 => ([ones, b'.', 0, 0], 2),
            10..100 => ([tens, ones, b'.', 0], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        n += 1;
    }
    octets
};

/// Returns the default key of an address, as [`ClientIp::key`](super::ClientIp::key) does: an IPv4
/// address as it is, or the first 64 bits of an IPv6 address.
#[inline]
pub fn prefix(ip: IpAddr) -> Key {
    key_of(ip, Prefix::default().0)
}

#[inline]
pub(super) fn key_of(ip: IpAddr, bits: u8) -> Key {
    match inner(ip) {
        IpAddr::V4(v4) => {
            // Formatted by hand: `Display` would cost as much as the whole check.
            let (mut text, mut end) = ([0; 16], 0);
            for octet in v4.octets() {
                let (digits, length) = OCTETS[usize::from(octet)];
                // Always copies four bytes, in one step; the next octet overwrites the surplus.
                text[end..end + 4].copy_from_slice(&digits);
                end += length;
            }
            Key::short(std::str::from_utf8(&text[..end - 1]).unwrap_or_default())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            format!("{}/{bits}", Ipv6Addr::from_bits(v6.to_bits() & mask)).into()
        }
    }
}

/// Returns the IPv4 address that an IPv6 address embeds, if it does: the owner of one IPv4 address
/// must not get more limits by writing it in another form.
pub(crate) fn inner(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    let s = v6.segments();
    let joined = |high: u16, low: u16| {
        IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
    };
    match s {
        // NAT64, with the well-known prefix and the one for local use; 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => joined(high, low),
        // Teredo: the client's address with all bits inverted.
        [0x2001, 0, .., high, low] => joined(!high, !low),
        _ => ip,
    }
}

//! Who is asking: the client's address behind trusted proxies, with IPv6 by prefix.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;
use serde::Deserialize;

use crate::head::Head;
pub use crate::key::Key;
pub use crate::networks::Networks;

/// The address the connection came from. The server puts it into the request's extensions, where [`ClientIp::key`] finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Finds the client's address.
///
/// A forwarding header is believed only as far as it was written by proxies you trust: the chain is read from the right, and the first
/// address that is not a trusted proxy is the client. What an untrusted peer sends is ignored altogether.
///
/// ```
/// use http::HeaderMap;
/// use scale_limit::client::ClientIp;
///
/// let finder = ClientIp::behind(["10.0.0.0/8".parse().unwrap()]);
/// let mut headers = HeaderMap::new();
/// headers.insert("x-forwarded-for", "1.1.1.1, 203.0.113.7, 10.0.0.2".parse().unwrap());
/// assert_eq!(finder.find("10.0.0.1".parse().unwrap(), &headers).to_string(), "203.0.113.7");
/// assert_eq!(finder.find("198.51.100.9".parse().unwrap(), &headers).to_string(), "198.51.100.9");
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientIp {
    /// Addresses of proxies whose forwarding headers are believed. Default: none.
    #[serde(default)]
    trusted: Vec<IpNet>,
    /// How many proxies stand in front, at most. Default: as many as are trusted.
    #[serde(default)]
    hops: Option<usize>,
}

/// The longest chain looked at, from the right.
const LONGEST_CHAIN: usize = 32;

impl ClientIp {
    /// No proxies: the peer is the client.
    pub fn direct() -> Self {
        Self::default()
    }

    /// Behind proxies of these networks.
    pub fn behind(trusted: impl IntoIterator<Item = IpNet>) -> Self {
        Self { trusted: trusted.into_iter().collect(), hops: None }
    }

    /// Exactly so many proxies stand in front, whatever their addresses: a load balancer without fixed ones, a server on a Unix socket. The
    /// peer counts as the first of them. Only safe if nobody else can connect.
    pub fn behind_hops(hops: usize) -> Self {
        let everybody = ["0.0.0.0/0", "::/0"].into_iter().filter_map(|net| net.parse().ok());
        Self { trusted: everybody.collect(), hops: Some(hops) }
    }

    #[inline]
    fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&ip.to_canonical()))
    }

    /// The client's address, given the peer's and the request's headers.
    #[inline]
    pub fn find(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let hops = self.hops.unwrap_or(LONGEST_CHAIN).min(LONGEST_CHAIN);
        for written in chain(headers).into_iter().take(hops) {
            // An unreadable entry ends what can be believed: the proxy that wrote it is as far as we know.
            let Some(ip) = written.and_then(|w| address(&w)) else { return client };
            client = ip;
            if !self.trusts(client) {
                return client;
            }
        }
        client
    }

    /// The key for limits: an IPv4 address, or the /64 of an IPv6 one, since a single client usually owns that much.
    ///
    /// `None` if the server has put no [`Peer`] into the extensions. For a Unix socket put in `127.0.0.1` and trust it, if the proxy behind
    /// the socket is trusted; for the PROXY protocol the address it tells.
    pub fn key<'r>(&self, request: impl Into<Head<'r>>) -> Option<Key> {
        let Head { headers, extensions, .. } = request.into();
        Some(prefix(self.find(extensions.get::<Peer>()?.0.ip(), headers)))
    }
}

/// Each octet with a point after it, and how long that is.
static OCTETS: [([u8; 4], usize); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut n = 0;
    while n < 256 {
        let (hundreds, tens, ones) = (b'0' + (n / 100) as u8, b'0' + (n / 10 % 10) as u8, b'0' + (n % 10) as u8);
        octets[n] = match n {
            0..10 => ([ones, b'.', 0, 0], 2),
            10..100 => ([tens, ones, b'.', 0], 3),
            _ => ([hundreds, tens, ones, b'.'], 4),
        };
        n += 1;
    }
    octets
};

/// An IPv4 address as it is; an IPv6 address' first 64 bits.
#[inline]
pub fn prefix(ip: IpAddr) -> Key {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            // By hand: `Display` would cost as much as the check.
            let (mut text, mut end) = ([0; 16], 0);
            for octet in v4.octets() {
                let (digits, length) = OCTETS[usize::from(octet)];
                // Always four bytes, which is one step: the next octet overwrites what is too many.
                text[end..end + 4].copy_from_slice(&digits);
                end += length;
            }
            Key::short(std::str::from_utf8(&text[..end - 1]).unwrap_or_default())
        }
        IpAddr::V6(v6) => {
            let s = v6.segments();
            format!("{}/64", Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0)).into()
        }
    }
}

/// Who wrote on the way, nearest first: `Forwarded` (RFC 7239) if there is one, else `X-Forwarded-For`.
fn chain(headers: &HeaderMap) -> Vec<Option<String>> {
    let lines = |name| headers.get_all(name).iter().map(|v| v.to_str().unwrap_or("?")).collect::<Vec<_>>();
    let forwarded = lines("forwarded");
    let mut chain: Vec<Option<String>> = if forwarded.is_empty() {
        lines("x-forwarded-for").iter().flat_map(|line| line.split(',')).map(|e| Some(e.trim().to_owned())).collect()
    } else {
        forwarded.iter().flat_map(|line| split_quoted(line, ',')).map(|element| for_parameter(&element)).collect()
    };
    chain.reverse();
    chain
}

/// The `for` of one element of `Forwarded`; `None` if it has none or hides it.
fn for_parameter(element: &str) -> Option<String> {
    split_quoted(element, ';').into_iter().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case("for").then(|| value.trim().trim_matches('"').to_owned())
    })
}

/// Splits outside of quotes.
fn split_quoted(text: &str, at: char) -> Vec<String> {
    let (mut parts, mut part, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in text.chars() {
        match c {
            '\\' if quoted && !escaped => escaped = true,
            '"' if !escaped => {
                quoted = !quoted;
                part.push(c);
            }
            c if c == at && !quoted => parts.push(std::mem::take(&mut part)),
            c => {
                part.push(c);
                escaped = false;
            }
        }
    }
    parts.push(part);
    parts
}

/// `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn address(written: &str) -> Option<IpAddr> {
    let bracketed = written.strip_prefix('[').and_then(|w| w.split_once(']'));
    let ip: IpAddr = match bracketed {
        Some((inside, rest)) if rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port) => {
            IpAddr::V6(inside.parse().ok()?)
        }
        Some(_) => return None,
        None => match written.split_once(':') {
            Some((v4, port)) if !port.contains(':') && is_port(port) => IpAddr::V4(v4.parse().ok()?),
            _ => written.parse().ok()?,
        },
    };
    Some(ip.to_canonical())
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn find(peer: &str, headers: &[(&'static str, &str)]) -> String {
        let finder = ClientIp::behind(["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        finder.find(peer.parse().unwrap(), &map).to_string()
    }

    fn hops(hops: usize, xff: &str) -> String {
        let mut map = HeaderMap::new();
        map.insert("x-forwarded-for", xff.parse().unwrap());
        ClientIp::behind_hops(hops).find("198.51.100.9".parse().unwrap(), &map).to_string()
    }

    #[test]
    fn a_table_of_headers() {
        let xff = |value| find(PROXY, &[("x-forwarded-for", value)]);
        let fwd = |value| find(PROXY, &[("forwarded", value)]);
        let table = vec![
            // No proxy, or none that is trusted: headers are a stranger's words.
            (find("198.51.100.1", &[]), "198.51.100.1"),
            (find("198.51.100.1", &[("x-forwarded-for", "1.1.1.1")]), "198.51.100.1"),
            (find("198.51.100.1", &[("forwarded", "for=1.1.1.1")]), "198.51.100.1"),
            (find("2001:db8::1", &[("x-forwarded-for", "1.1.1.1")]), "2001:db8::1"),
            (find("::ffff:198.51.100.1", &[("x-forwarded-for", "1.1.1.1")]), "198.51.100.1"),
            // A trusted proxy that says nothing is the client.
            (find(PROXY, &[]), PROXY),
            (xff(""), PROXY),
            (xff("unknown"), PROXY),
            (xff("not an address"), PROXY),
            // Read from the right.
            (xff("203.0.113.7"), "203.0.113.7"),
            (xff("1.1.1.1, 203.0.113.7"), "203.0.113.7"),
            (xff("1.1.1.1,203.0.113.7,10.0.0.2"), "203.0.113.7"),
            (xff("  203.0.113.7  ,  10.0.0.2 "), "203.0.113.7"),
            (xff("203.0.113.7, 10.0.0.3, 10.0.0.2"), "203.0.113.7"),
            (xff("10.0.0.9, 10.0.0.2"), "10.0.0.9"),
            (find("::ffff:10.0.0.1", &[("x-forwarded-for", "203.0.113.7")]), "203.0.113.7"),
            (find("fd00::1", &[("x-forwarded-for", "203.0.113.7")]), "203.0.113.7"),
            // What a spoofer prepends, or breaks, does not help him.
            (xff("127.0.0.1, 203.0.113.7"), "203.0.113.7"),
            (xff("10.0.0.5, 203.0.113.7, 10.0.0.2"), "203.0.113.7"),
            (xff("garbage, 203.0.113.7"), "203.0.113.7"),
            (xff("203.0.113.7, garbage"), PROXY),
            (xff("203.0.113.7, garbage, 10.0.0.2"), "10.0.0.2"),
            (xff("203.0.113.7, , 10.0.0.2"), "10.0.0.2"),
            // Several header lines are one list.
            (find(PROXY, &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7, 10.0.0.2")]), "203.0.113.7"),
            // Ports and brackets.
            (xff("203.0.113.7:4711"), "203.0.113.7"),
            (xff("203.0.113.7:99999"), PROXY),
            (xff("[2001:db8::7]:4711"), "2001:db8::7"),
            (xff("[2001:db8::7]"), "2001:db8::7"),
            (xff("2001:db8::7"), "2001:db8::7"),
            (xff("[2001:db8::7]x"), PROXY),
            (xff("[203.0.113.7]"), PROXY),
            (xff("::ffff:203.0.113.7"), "203.0.113.7"),
            (xff("::ffff:10.0.0.2, 10.0.0.3"), "10.0.0.2"),
            // Forwarded wins over X-Forwarded-For, and is read as RFC 7239 says.
            (fwd("for=203.0.113.7"), "203.0.113.7"),
            (fwd("For=203.0.113.7"), "203.0.113.7"),
            (fwd("proto=https;for=203.0.113.7;by=10.0.0.1"), "203.0.113.7"),
            (fwd("for=\"203.0.113.7:80\""), "203.0.113.7"),
            (fwd("for=\"[2001:db8::7]:80\""), "2001:db8::7"),
            (fwd("for=\"[2001:db8::7]\""), "2001:db8::7"),
            (fwd("for=1.1.1.1, for=203.0.113.7"), "203.0.113.7"),
            (fwd("for=203.0.113.7, for=10.0.0.2"), "203.0.113.7"),
            (fwd("for=203.0.113.7;ext=\"a,b;for=1.1.1.1\", for=10.0.0.2"), "203.0.113.7"),
            (fwd("for=203.0.113.7;ext=\"a\\\",for=1.1.1.1\""), "203.0.113.7"),
            (fwd("for=_hidden"), PROXY),
            (fwd("for=unknown"), PROXY),
            (fwd("proto=https"), PROXY),
            (fwd(""), PROXY),
            (fwd("for=\"unclosed"), PROXY),
            (find(PROXY, &[("forwarded", "for=203.0.113.7"), ("x-forwarded-for", "1.1.1.1")]), "203.0.113.7"),
            (find(PROXY, &[("forwarded", "for=1.1.1.1"), ("forwarded", "for=203.0.113.7")]), "203.0.113.7"),
            // Attempts to break out of a list, a quote or a bracket.
            (fwd("for=203.0.113.7;for=1.1.1.1"), "203.0.113.7"),
            (fwd("for=1.1.1.1;by=\"\\\", for=203.0.113.7\""), "1.1.1.1"),
            (fwd("for = 203.0.113.7"), "203.0.113.7"),
            (fwd("for=\"203.0.113.7\"x"), PROXY),
            (fwd("for=[2001:db8::7]"), "2001:db8::7"),
            (fwd("for=\"[2001:db8::7%eth0]\""), PROXY),
            (fwd(",,for=203.0.113.7"), "203.0.113.7"),
            (fwd("for=203.0.113.7,"), PROXY),
            (xff("203.0.113.7,"), PROXY),
            (xff("0x7f.0.0.1"), PROXY),
            (xff("127.1"), PROXY),
            (xff("0177.0.0.1"), PROXY),
            (xff("203.0.113.7\t"), "203.0.113.7"),
            (xff("203.0.113.7:"), PROXY),
            (xff("203.0.113.7:-1"), PROXY),
            (xff("[::1]:80:80"), PROXY),
            (xff("::ffff:127.0.0.1"), "127.0.0.1"),
            (xff("fd00::2, 203.0.113.7, fd00::3"), "203.0.113.7"),
            (find(PROXY, &[("x-real-ip", "1.1.1.1")]), PROXY),
            (find(PROXY, &[("true-client-ip", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7")]), "203.0.113.7"),
            (find(PROXY, &[("forwarded", "proto=https"), ("x-forwarded-for", "1.1.1.1")]), PROXY),
            // By number of proxies.
            (hops(0, "1.1.1.1, 203.0.113.7"), "198.51.100.9"),
            (hops(1, "1.1.1.1, 203.0.113.7"), "203.0.113.7"),
            (hops(2, "1.1.1.1, 203.0.113.7, 192.0.2.1"), "203.0.113.7"),
            (hops(2, "203.0.113.7"), "203.0.113.7"),
            (hops(1, ""), "198.51.100.9"),
        ];
        assert!(table.len() >= 60, "{}", table.len());
        for (n, (got, expected)) in table.into_iter().enumerate() {
            assert_eq!(got, expected, "case {n}");
        }
        let endless = vec!["10.0.0.2"; 10_000].join(",");
        assert_eq!(find(PROXY, &[("x-forwarded-for", &endless)]), "10.0.0.2");
    }

    #[test]
    fn ipv6_is_limited_by_prefix() {
        assert_eq!(&*prefix("2001:db8:1:2:3:4:5:6".parse().unwrap()), "2001:db8:1:2::/64");
        for v4 in ["1.2.3.4", "0.0.0.0", "255.255.255.255", "203.0.113.10"] {
            assert_eq!(&*prefix(format!("::ffff:{v4}").parse().unwrap()), v4);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                for name in ["forwarded", "x-forwarded-for"] {
                    let mut map = HeaderMap::new();
                    map.insert(name, value.clone());
                    ClientIp::behind(["10.0.0.0/8".parse().unwrap()]).find(PROXY.parse().unwrap(), &map);
                }
            }
        }
    }
}

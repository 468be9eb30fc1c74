//! Who is asking: the client's address behind trusted proxies, with IPv6 by prefix.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{Extensions, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;
use serde::Deserialize;

use crate::head::Head;
pub use crate::key::Key;
pub use crate::networks::Networks;
use crate::networks::canonical;

/// The address the connection came from. Whoever accepts connections puts it into the request's extensions, where [`ClientIp::key`]
/// finds it. axum's and tonic's servers say it in their own words, which the features `axum` and `tonic` read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// Finds the address of a connection among what a server knows of a request: a [`Peer`], or with the features `axum` and `tonic` what
    /// their servers leave.
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<IpAddr> {
        if let Some(Self(address)) = extensions.get() {
            return Some(address.ip());
        }
        #[cfg(feature = "axum")]
        if let Some(axum::extract::ConnectInfo(address)) = extensions.get::<axum::extract::ConnectInfo<SocketAddr>>() {
            return Some(address.ip());
        }
        #[cfg(feature = "tonic")]
        if let Some(address) = extensions.get::<tonic::transport::server::TcpConnectInfo>().and_then(|info| info.remote_addr) {
            return Some(address.ip());
        }
        None
    }
}

/// The one header in which a proxy says who asked.
///
/// A proxy writes one of them and, as a rule, lets pass what a client writes in the others. So exactly one is read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[non_exhaustive]
pub enum Header {
    /// `X-Forwarded-For`: a list, to which each proxy appends the address it was asked from.
    XForwardedFor,
    /// `Forwarded` (RFC 7239): likewise, with `for=`.
    Forwarded,
    /// `X-Real-IP`: one address.
    XRealIp,
    /// `CF-Connecting-IP`: one address.
    CfConnectingIp,
    /// Another one, with one address.
    Custom(HeaderName),
}

impl TryFrom<String> for Header {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Ok(match name.to_ascii_lowercase().as_str() {
            "x-forwarded-for" => Self::XForwardedFor,
            "forwarded" => Self::Forwarded,
            "x-real-ip" => Self::XRealIp,
            "cf-connecting-ip" => Self::CfConnectingIp,
            other => Self::Custom(other.parse().map_err(|_| format!("`{name}` is no name of a header"))?),
        })
    }
}

/// Finds the client's address.
///
/// One forwarding header is read, the one your proxy writes, and it is believed only as far as proxies you trust have written it: the chain
/// is read from the right, and the first address that is not a trusted proxy is the client. What an untrusted peer sends is ignored
/// altogether.
///
/// ```
/// use http::HeaderMap;
/// use scale_limit::client::{ClientIp, Header};
///
/// let finder = ClientIp::behind(["10.0.0.0/8".parse().unwrap()], Header::XForwardedFor);
/// let mut headers = HeaderMap::new();
/// headers.insert("x-forwarded-for", "1.1.1.1, 203.0.113.7, 10.0.0.2".parse().unwrap());
/// assert_eq!(finder.find("10.0.0.1".parse().unwrap(), &headers).to_string(), "203.0.113.7");
/// assert_eq!(finder.find("198.51.100.9".parse().unwrap(), &headers).to_string(), "198.51.100.9");
/// ```
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(try_from = "Written")]
pub struct ClientIp {
    /// Addresses of proxies whose header is believed.
    trusted: Vec<IpNet>,
    /// How many proxies stand in front, at most.
    hops: Option<usize>,
    header: Option<Header>,
    lenient: bool,
    /// Bits of an IPv6 address that make a client.
    prefix: Prefix,
}

/// The length of IPv6 prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix(u8);

impl Default for Prefix {
    fn default() -> Self {
        Self(64)
    }
}

/// As it stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Addresses of proxies whose header is believed. Default: none.
    #[serde(default)]
    trusted: Vec<IpNet>,
    /// The one header they write.
    header: Option<Header>,
    /// How many proxies stand in front, at most. Default: as many as are trusted.
    #[serde(default)]
    hops: Option<usize>,
    /// Bits of an IPv6 address that make a client. Default: 64.
    ipv6_prefix: Option<u8>,
}

impl TryFrom<Written> for ClientIp {
    type Error = &'static str;

    fn try_from(Written { trusted, header, hops, ipv6_prefix }: Written) -> Result<Self, &'static str> {
        let prefix = ipv6_prefix.map_or_else(Prefix::default, Prefix);
        if !(32..=128).contains(&prefix.0) {
            return Err("`ipv6_prefix` is a number from 32 to 128");
        }
        if header.is_none() && (hops.is_some() || !trusted.is_empty()) {
            return Err("`header` is missing: the one in which your proxy says who asked, as `x-forwarded-for`");
        }
        let trusted = trusted.into_iter().map(canonical).collect();
        Ok(Self { trusted, hops, header, lenient: false, prefix })
    }
}

/// The longest chain looked at, from the right.
const LONGEST_CHAIN: usize = 32;
/// The longest element of a chain, bytes.
const LONGEST_ELEMENT: usize = 256;

impl ClientIp {
    /// No proxies: the peer is the client.
    pub fn direct() -> Self {
        Self::default()
    }

    /// Behind proxies of these networks, which say in this header who asked them.
    pub fn behind(trusted: impl IntoIterator<Item = IpNet>, header: Header) -> Self {
        Self { trusted: trusted.into_iter().map(canonical).collect(), header: Some(header), ..Self::default() }
    }

    /// Exactly so many proxies stand in front, whatever their addresses: a load balancer without fixed ones, a server on a Unix socket. The
    /// peer counts as the first of them. Only safe if nobody else can connect.
    pub fn behind_hops(hops: usize, header: Header) -> Self {
        let everybody = ["0.0.0.0/0", "::/0"].into_iter().filter_map(|net| net.parse().ok());
        Self { hops: Some(hops), ..Self::behind(everybody, header) }
    }

    /// A request of which nobody knows where it came from is not limited, and passes the gate. Without this it is refused: a limit that is
    /// configured and silently limits nobody is worse than an error.
    pub fn lenient(self) -> Self {
        Self { lenient: true, ..self }
    }

    /// So many bits of an IPv6 address make a client, 32 to 128. Default: 64, which is what most networks give to one machine or one home.
    /// Many providers give homes a /56, and machines a /48: fewer bits put more neighbours into one limit, more bits give more limits to
    /// whoever has a whole network. [`LoginGuard`](crate::LoginGuard) counts by /56 and /48 as well, whatever this is.
    pub fn ipv6_prefix(self, bits: u8) -> Self {
        Self { prefix: Prefix(bits.clamp(32, 128)), ..self }
    }

    pub(crate) fn is_lenient(&self) -> bool {
        self.lenient
    }

    #[inline]
    fn trusts(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|net| net.contains(&ip.to_canonical()))
    }

    /// The client's address, given the peer's and the request's headers.
    #[inline]
    pub fn find(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        match &self.header {
            Some(header) if self.trusts(peer) => self.follow(header, peer, headers),
            _ => peer,
        }
    }

    /// Follows the chain, from the peer on.
    fn follow(&self, header: &Header, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let hops = self.hops.unwrap_or(LONGEST_CHAIN).min(LONGEST_CHAIN);
        let (name, read): (&str, fn(&[u8]) -> Option<IpAddr>) = match header {
            Header::XForwardedFor => ("x-forwarded-for", address),
            Header::Forwarded => ("forwarded", for_parameter),
            Header::XRealIp => return one(&headers.get_all("x-real-ip"), hops).unwrap_or(peer),
            Header::CfConnectingIp => return one(&headers.get_all("cf-connecting-ip"), hops).unwrap_or(peer),
            Header::Custom(name) => return one(&headers.get_all(name), hops).unwrap_or(peer),
        };
        let mut client = peer;
        let lines = headers.get_all(name).iter().rev();
        let elements = lines.flat_map(|line| FromTheRight { rest: line.as_bytes(), quotes: *header == Header::Forwarded });
        for element in elements.filter(|element| !element.is_empty()).take(hops) {
            // An unreadable element ends what can be believed: the proxy that wrote it is as far as we know.
            let Some(ip) = Some(element).filter(|e| e.len() <= LONGEST_ELEMENT).and_then(read) else { return client };
            client = ip;
            if !self.trusts(client) {
                return client;
            }
        }
        client
    }

    /// The key for limits: an IPv4 address, or the [prefix](Self::ipv6_prefix) of an IPv6 one, since a single client usually owns a /64. IPv6
    /// addresses that stand for an IPv4 one are keyed by that: mapped, NAT64 (RFC 6052), 6to4, Teredo.
    ///
    /// Where nobody says where the connection came from ([`Peer::of`]), layers refuse the request with 500 and say in the log what is missing;
    /// with [`lenient`](Self::lenient) this is `None`. For a Unix socket put in `127.0.0.1` and trust it, if the proxy behind
    /// the socket is trusted; for the PROXY protocol the address it tells.
    pub fn key<'r>(&self, request: impl Into<Head<'r>>) -> Option<Key> {
        let Head { headers, extensions, .. } = request.into();
        match Peer::of(extensions) {
            Some(peer) => Some(key_of(self.find(peer, headers), self.prefix.0)),
            None if self.lenient => None,
            None => {
                say_what_is_missing();
                Some(Key::unknown())
            }
        }
    }
}

/// Says so once in ten seconds.
pub(crate) fn say_what_is_missing() {
    static SAID: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    if SAID.fetch_max(now, Relaxed) + 10 <= now {
        tracing::error!(
            "nobody knows where requests come from, so what is limited by address is refused: serve axum with \
             `into_make_service_with_connect_info::<SocketAddr>()` and the feature `axum` of scale-limit, tonic with its feature `tonic`, \
             or put `scale_limit::client::Peer` into each request's extensions; `ClientIp::lenient` lets them pass unlimited"
        );
    }
}

/// The one address of a header that holds one; the last, if there are several.
fn one(lines: &http::header::GetAll<'_, HeaderValue>, hops: usize) -> Option<IpAddr> {
    let last = lines.iter().next_back().filter(|line| hops > 0 && line.len() <= LONGEST_ELEMENT)?;
    address(last.as_bytes().trim_ascii())
}

/// The elements of a list, the last first: what a stranger has written before a proxy's own does not keep that from being read.
struct FromTheRight<'l> {
    rest: &'l [u8],
    /// Commas inside of quotes part nothing.
    quotes: bool,
}

impl<'l> Iterator for FromTheRight<'l> {
    type Item = &'l [u8];

    fn next(&mut self) -> Option<&'l [u8]> {
        let rest = self.rest;
        if rest.is_empty() {
            return None;
        }
        let mut quoted = false;
        let start = rest.iter().enumerate().rev().find(|(n, byte)| {
            let is_escaped = || rest[..*n].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
            if self.quotes && **byte == b'"' && !is_escaped() {
                quoted = !quoted;
            }
            // What is longer is nobody's address: it is given up as one piece.
            (**byte == b',' && !quoted) || rest.len() - n > 16 * LONGEST_ELEMENT
        });
        let (before, element) = start.map_or((&[][..], rest), |(n, _)| (&rest[..n], &rest[n + 1..]));
        self.rest = before;
        Some(element.trim_ascii())
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

/// An IPv4 address as it is, an IPv6 address' first 64 bits: what [`ClientIp::key`] makes of an address.
#[inline]
pub fn prefix(ip: IpAddr) -> Key {
    key_of(ip, Prefix::default().0)
}

#[inline]
fn key_of(ip: IpAddr, bits: u8) -> Key {
    match inner(ip) {
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
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            format!("{}/{bits}", Ipv6Addr::from_bits(v6.to_bits() & mask)).into()
        }
    }
}

/// The IPv4 address that an IPv6 one stands for, if it does: who has one IPv4 address must not have more limits by writing it otherwise.
pub(crate) fn inner(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    let s = v6.segments();
    let joined = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match s {
        // NAT64, the well-known prefix and the one for local use; 6to4.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] | [0x2002, high, low, ..] => {
            joined(high, low)
        }
        // Teredo: the client's address, each bit turned.
        [0x2001, 0, .., high, low] => joined(!high, !low),
        _ => ip,
    }
}

/// The address in the `for` of one element of `Forwarded`; `None` if it has none or hides it.
fn for_parameter(element: &[u8]) -> Option<IpAddr> {
    let element = std::str::from_utf8(element).ok()?;
    split_quoted(element, ';').into_iter().find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').map_or(Some(value), |value| value.strip_suffix('"'));
        name.trim().eq_ignore_ascii_case("for").then(|| address(value?.as_bytes()))
    })?
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

/// `1.2.3.4`, `1.2.3.4:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`. A port may be hidden (RFC 7239, 6): `:_x`.
fn address(written: &[u8]) -> Option<IpAddr> {
    let written = std::str::from_utf8(written).ok()?;
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
    let is_hidden = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    text.strip_prefix('_').map_or_else(|| text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok(), is_hidden)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: &str = "10.0.0.1";

    fn behind(header: Header) -> ClientIp {
        ClientIp::behind(["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()], header)
    }

    fn found(finder: &ClientIp, peer: &str, lines: &[(&'static str, &[u8])]) -> String {
        let mut map = HeaderMap::new();
        for (name, line) in lines {
            map.append(*name, HeaderValue::from_bytes(line).unwrap());
        }
        finder.find(peer.parse().unwrap(), &map).to_string()
    }

    fn hops(hops: usize, xff: &str) -> String {
        found(&ClientIp::behind_hops(hops, Header::XForwardedFor), "198.51.100.9", &[("x-forwarded-for", xff.as_bytes())])
    }

    /// Lines of one header, and who the client is behind a proxy that writes it. What a stranger may have written stands on the left.
    #[test]
    fn a_table_of_lists() {
        let xff: &[(&[&[u8]], &str)] = &[
            // A trusted proxy that says nothing readable is the client.
            (&[], PROXY),
            (&[b""], PROXY),
            (&[b" "], PROXY),
            (&[b","], PROXY),
            (&[b"unknown"], PROXY),
            (&[b"not an address"], PROXY),
            (&[b"203.0.113.7, garbage"], PROXY),
            (&[b"203.0.113.7, garbage, 10.0.0.2"], "10.0.0.2"),
            (&[b"203.0.113.7, \xff\xfe"], PROXY),
            // Read from the right.
            (&[b"203.0.113.7"], "203.0.113.7"),
            (&[b"1.1.1.1, 203.0.113.7"], "203.0.113.7"),
            (&[b"1.1.1.1,203.0.113.7,10.0.0.2"], "203.0.113.7"),
            (&[b"  203.0.113.7  ,  10.0.0.2 "], "203.0.113.7"),
            (&[b"203.0.113.7, 10.0.0.3, 10.0.0.2"], "203.0.113.7"),
            (&[b"10.0.0.9, 10.0.0.2"], "10.0.0.9"),
            // What a spoofer prepends, or breaks, helps him with nothing, and keeps nothing from being read.
            (&[b"127.0.0.1, 203.0.113.7"], "203.0.113.7"),
            (&[b"10.0.0.5, 203.0.113.7, 10.0.0.2"], "203.0.113.7"),
            (&[b"garbage, 203.0.113.7"], "203.0.113.7"),
            (&[b"\xff\xfe, 203.0.113.7"], "203.0.113.7"),
            (&["größe, 203.0.113.7".as_bytes()], "203.0.113.7"),
            (&[b"\"unclosed, 203.0.113.7"], "203.0.113.7"),
            (&[b"for=1.1.1.1;by=\", 203.0.113.7"], "203.0.113.7"),
            (&[b"\xff", b"203.0.113.7"], "203.0.113.7"),
            // Empty elements are none (RFC 9110, 5.6.1).
            (&[b"203.0.113.7, , 10.0.0.2"], "203.0.113.7"),
            (&[b"203.0.113.7,"], "203.0.113.7"),
            (&[b",,,203.0.113.7,,,"], "203.0.113.7"),
            (&[b"203.0.113.7", b""], "203.0.113.7"),
            // Several lines are one list.
            (&[b"1.1.1.1", b"203.0.113.7, 10.0.0.2"], "203.0.113.7"),
            (&[b"203.0.113.7", b"10.0.0.3", b"10.0.0.2"], "203.0.113.7"),
            // Ports and brackets.
            (&[b"203.0.113.7:4711"], "203.0.113.7"),
            (&[b"203.0.113.7:99999"], PROXY),
            (&[b"203.0.113.7:"], PROXY),
            (&[b"203.0.113.7:-1"], PROXY),
            (&[b"203.0.113.7:+1"], PROXY),
            (&[b"203.0.113.7:_hidden"], "203.0.113.7"),
            (&[b"203.0.113.7:_"], PROXY),
            (&[b"[2001:db8::7]:4711"], "2001:db8::7"),
            (&[b"[2001:db8::7]:_a.b-c"], "2001:db8::7"),
            (&[b"[2001:db8::7]"], "2001:db8::7"),
            (&[b"2001:db8::7"], "2001:db8::7"),
            (&[b"[2001:db8::7]x"], PROXY),
            (&[b"[203.0.113.7]"], PROXY),
            (&[b"[::1]:80:80"], PROXY),
            (&[b"::ffff:203.0.113.7"], "203.0.113.7"),
            (&[b"::ffff:10.0.0.2, 10.0.0.3"], "10.0.0.2"),
            (&[b"::ffff:127.0.0.1"], "127.0.0.1"),
            (&[b"fd00::2, 203.0.113.7, fd00::3"], "203.0.113.7"),
            // Addresses are not guessed.
            (&[b"0x7f.0.0.1"], PROXY),
            (&[b"127.1"], PROXY),
            (&[b"0177.0.0.1"], PROXY),
            (&[b"203.0.113.7\t"], "203.0.113.7"),
            (&[b"203.0.113.7 10.0.0.2"], PROXY),
            (&[b"203.0.113.7;10.0.0.2"], PROXY),
            (&[b"fe80::1%eth0"], PROXY),
        ];
        let forwarded: &[(&[&[u8]], &str)] = &[
            (&[], PROXY),
            (&[b""], PROXY),
            (&[b"proto=https"], PROXY),
            (&[b"for=_hidden"], PROXY),
            (&[b"for=unknown"], PROXY),
            (&[b"for="], PROXY),
            (&[b"for"], PROXY),
            (&[b"for=203.0.113.7"], "203.0.113.7"),
            (&[b"For=203.0.113.7"], "203.0.113.7"),
            (&[b"FOR=203.0.113.7"], "203.0.113.7"),
            (&[b"proto=https;for=203.0.113.7;by=10.0.0.1"], "203.0.113.7"),
            (&[b"for=\"203.0.113.7:80\""], "203.0.113.7"),
            (&[b"for=\"203.0.113.7:_gazonk\""], "203.0.113.7"),
            (&[b"for=\"[2001:db8::7]:80\""], "2001:db8::7"),
            (&[b"for=\"[2001:db8::7]\""], "2001:db8::7"),
            (&[b"for=\"[2001:db8::7]:_x\""], "2001:db8::7"),
            (&[b"for=[2001:db8::7]"], "2001:db8::7"),
            (&[b"for=\"[2001:db8::7%eth0]\""], PROXY),
            (&[b"for=1.1.1.1, for=203.0.113.7"], "203.0.113.7"),
            (&[b"for=203.0.113.7, for=10.0.0.2"], "203.0.113.7"),
            (&[b"for=1.1.1.1", b"for=203.0.113.7"], "203.0.113.7"),
            (&[b"for=203.0.113.7;ext=\"a,b;for=1.1.1.1\", for=10.0.0.2"], "203.0.113.7"),
            (&[b"for=203.0.113.7;ext=\"a\\\",for=1.1.1.1\""], "203.0.113.7"),
            (&[b"for=1.1.1.1;by=\"\\\", for=203.0.113.7\""], "1.1.1.1"),
            (&[b"for=203.0.113.7;for=1.1.1.1"], "203.0.113.7"),
            (&[b"for = 203.0.113.7"], "203.0.113.7"),
            (&[b"for=\"203.0.113.7\"x"], PROXY),
            (&[b"for=\"unclosed"], PROXY),
            (&[b",,for=203.0.113.7"], "203.0.113.7"),
            (&[b"for=203.0.113.7,"], "203.0.113.7"),
            // What a stranger leaves open does not swallow what the proxy has appended.
            (&[b"for=\"unclosed, for=203.0.113.7"], "203.0.113.7"),
            (&[b"for=1.1.1.1;ext=\"a, for=203.0.113.7;proto=http"], "203.0.113.7"),
            (&[b"for=\"1.1.1.1, for=\"203.0.113.7\";proto=http"], "203.0.113.7"),
            (&[b"\xff\xfe;for=1.1.1.1, for=203.0.113.7"], "203.0.113.7"),
            (&[b"for=\"unclosed", b"for=203.0.113.7"], "203.0.113.7"),
            (&[b", for=\"203.0.113.7\";proto=http"], "203.0.113.7"),
        ];
        for (header, name, table) in
            [(Header::XForwardedFor, "x-forwarded-for", xff), (Header::Forwarded, "forwarded", forwarded)]
        {
            let finder = behind(header);
            for (lines, expected) in table {
                let lines: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
                let shown: Vec<_> = lines.iter().map(|(_, line)| String::from_utf8_lossy(line)).collect();
                assert_eq!(found(&finder, PROXY, &lines), *expected, "{name}: {shown:?}");
                // A stranger is believed nothing.
                for stranger in ["198.51.100.1", "2001:db8::1"] {
                    assert_eq!(found(&finder, stranger, &lines), stranger, "{name}: {shown:?}");
                }
                // Nor is any other header read.
                for other in [Header::XRealIp, Header::Custom("x-client".parse().unwrap())] {
                    assert_eq!(found(&behind(other), PROXY, &lines), PROXY, "{name}: {shown:?}");
                }
                assert_eq!(found(&ClientIp::direct(), PROXY, &lines), PROXY, "{name}: {shown:?}");
            }
        }
        assert!(xff.len() + forwarded.len() >= 80);
    }

    /// A stranger writes all other headers; the proxy writes its own.
    #[test]
    fn one_header_is_read_and_no_other() {
        let all = [
            (Header::XForwardedFor, "x-forwarded-for", "203.0.113.7"),
            (Header::Forwarded, "forwarded", "for=203.0.113.7"),
            (Header::XRealIp, "x-real-ip", "203.0.113.7"),
            (Header::CfConnectingIp, "cf-connecting-ip", "203.0.113.7"),
            (Header::Custom(HeaderName::from_static("fly-client-ip")), "fly-client-ip", "203.0.113.7"),
        ];
        for (header, own, written) in &all {
            let mut lines: Vec<(&'static str, &[u8])> = Vec::new();
            for (_, name, _) in all.iter().filter(|(_, name, _)| name != own) {
                lines.push((*name, b"1.1.1.1"));
                lines.push((*name, b"for=1.1.1.1"));
            }
            assert_eq!(found(&behind(header.clone()), PROXY, &lines), PROXY, "{own}: the proxy says nothing");
            lines.push((*own, written.as_bytes()));
            assert_eq!(found(&behind(header.clone()), PROXY, &lines), "203.0.113.7", "{own}");
            assert_eq!(found(&behind(header.clone()), "198.51.100.1", &lines), "198.51.100.1", "{own}: from a stranger");
        }
        for (line, expected) in
            [("", PROXY), ("nonsense", PROXY), ("1.1.1.1, 203.0.113.7", PROXY), ("[2001:db8::7]:80", "2001:db8::7")]
        {
            assert_eq!(found(&behind(Header::XRealIp), PROXY, &[("x-real-ip", line.as_bytes())]), expected, "{line}");
        }
        // Of two lines the proxy's is the last.
        let twice: [(&'static str, &[u8]); 2] = [("x-real-ip", b"1.1.1.1"), ("x-real-ip", b"203.0.113.7")];
        assert_eq!(found(&behind(Header::XRealIp), PROXY, &twice), "203.0.113.7");
    }

    #[test]
    fn proxies_are_counted_where_they_have_no_addresses() {
        assert_eq!(hops(0, "1.1.1.1, 203.0.113.7"), "198.51.100.9");
        assert_eq!(hops(1, "1.1.1.1, 203.0.113.7"), "203.0.113.7");
        assert_eq!(hops(2, "1.1.1.1, 203.0.113.7, 192.0.2.1"), "203.0.113.7");
        assert_eq!(hops(2, "203.0.113.7"), "203.0.113.7");
        assert_eq!(hops(1, ""), "198.51.100.9");
        let real = |hops| found(&ClientIp::behind_hops(hops, Header::XRealIp), "198.51.100.9", &[("x-real-ip", b"203.0.113.7")]);
        assert_eq!((real(0).as_str(), real(1).as_str()), ("198.51.100.9", "203.0.113.7"));
    }

    #[test]
    fn a_long_list_is_read_no_further_than_it_may_be_believed() {
        let endless = vec!["10.0.0.2"; 10_000].join(",");
        assert_eq!(found(&behind(Header::XForwardedFor), PROXY, &[("x-forwarded-for", endless.as_bytes())]), "10.0.0.2");
        for one in ["9".repeat(100_000), "\"".repeat(100_000), "\\".repeat(100_000), format!("\"{}\"", "\\".repeat(100_000))] {
            for header in [Header::XForwardedFor, Header::Forwarded, Header::XRealIp] {
                for name in ["x-forwarded-for", "forwarded", "x-real-ip"] {
                    assert_eq!(found(&behind(header.clone()), PROXY, &[(name, one.as_bytes())]), PROXY);
                }
            }
        }
    }

    #[test]
    fn settings_name_the_header() {
        let read = |text: &str| serde_json::from_str::<ClientIp>(text).map_err(|e| e.to_string());
        assert!(read("{}").is_ok());
        assert!(read("{\"trusted\":[\"10.0.0.0/8\"]}").unwrap_err().contains("`header` is missing"));
        let finder = read("{\"trusted\":[\"10.0.0.0/8\"],\"header\":\"X-Forwarded-For\"}").unwrap();
        assert_eq!(found(&finder, PROXY, &[("x-forwarded-for", b"203.0.113.7")]), "203.0.113.7");
        assert!(read("{\"trusted\":[\"10.0.0.0/8\"],\"header\":\"two words\"}").unwrap_err().contains("two words"));
    }

    #[test]
    fn ipv6_is_limited_by_prefix() {
        assert_eq!(&*prefix("2001:db8:1:2:3:4:5:6".parse().unwrap()), "2001:db8:1:2::/64");
        for v4 in ["1.2.3.4", "0.0.0.0", "255.255.255.255", "203.0.113.10"] {
            assert_eq!(&*prefix(format!("::ffff:{v4}").parse().unwrap()), v4);
        }
    }

    #[test]
    fn an_ipv4_address_is_one_client_however_it_is_written_in_ipv6() {
        for (written, key) in [
            ("::ffff:203.0.113.7", "203.0.113.7"),
            ("64:ff9b::203.0.113.7", "203.0.113.7"),
            ("64:ff9b:1::203.0.113.7", "203.0.113.7"),
            ("64:ff9b:1:ffff::203.0.113.7", "203.0.113.7"),
            ("2002:cb00:7107::1", "203.0.113.7"),
            ("2002:cb00:7107:ffff:1:2:3:4", "203.0.113.7"),
            ("2001:0:4136:e378:8000:63bf:34ff:8ef8", "203.0.113.7"),
            ("2001:0:1:2:3:4:34ff:8ef8", "203.0.113.7"),
            ("2001:1::203.0.113.7", "2001:1::/64"),
            ("64:ff9b:2::203.0.113.7", "64:ff9b:2::/64"),
            ("2003:cb00:7107::1", "2003:cb00:7107::/64"),
        ] {
            assert_eq!(&*prefix(written.parse().unwrap()), key, "{written}");
        }
    }

    #[test]
    fn the_length_of_prefixes_is_chosen() {
        let request = |address: &str| {
            let mut request = http::Request::new(());
            request.extensions_mut().insert(Peer(SocketAddr::new(address.parse().unwrap(), 1)));
            request
        };
        for (bits, key) in [
            (128, "2001:db8:1:2ff:3:4:5:6/128"),
            (64, "2001:db8:1:2ff::/64"),
            (56, "2001:db8:1:200::/56"),
            (48, "2001:db8:1::/48"),
            (0, "2001:db8::/32"),
        ] {
            let clients = ClientIp::direct().ipv6_prefix(bits);
            assert_eq!(&*clients.key(&request("2001:db8:1:2ff:3:4:5:6")).unwrap(), key);
            assert_eq!(&*clients.key(&request("203.0.113.7")).unwrap(), "203.0.113.7");
        }
        let read = |text: &str| serde_json::from_str::<ClientIp>(text).map_err(|error| error.to_string());
        assert_eq!(read(r#"{"ipv6_prefix": 56}"#).unwrap().prefix, Prefix(56));
        assert!(read(r#"{"ipv6_prefix": 200}"#).unwrap_err().contains("32 to 128"));
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(value) = http::HeaderValue::from_bytes(&bytes) {
                for (name, header) in [("forwarded", Header::Forwarded), ("x-forwarded-for", Header::XForwardedFor), ("x-real-ip", Header::XRealIp)] {
                    let mut map = HeaderMap::new();
                    map.insert(name, value.clone());
                    behind(header).find(PROXY.parse().unwrap(), &map);
                }
            }
        }
    }
}

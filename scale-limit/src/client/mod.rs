//! Who is asking: the client's address behind trusted proxies, with IPv6 by prefix.

mod lists;
mod prefix;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{Extensions, HeaderMap, HeaderName};
use ipnet::IpNet;
use serde::Deserialize;

use self::lists::{FromTheRight, address, for_parameter, one};
pub(crate) use self::prefix::inner;
use self::prefix::key_of;
pub use self::prefix::prefix;
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

    /// Takes so many bits of an IPv6 address for a client, 32 to 128. Default: 64, which is what most networks give to one machine or one home.
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
    /// If nobody says where the connection came from ([`Peer::of`]), layers refuse the request with 500 and say in the log what is missing;
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

#[cfg(test)]
mod tests;

//! Client addresses behind trusted proxies, with prefixes for IPv6.

mod lists;
mod prefix;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use http::{Extensions, HeaderMap, HeaderName};
use ipnet::IpNet;
use serde::Deserialize;

use self::lists::{FromTheRight, address, for_parameter, one};
pub(crate) use self::prefix::inner;
use self::prefix::key_of;
pub use self::prefix::prefix;
pub use crate::key::Key;
pub use crate::networks::Networks;
use crate::networks::canonical;
use crate::request_head::RequestHead;

/// Address of the connection's peer. The server puts it into the request's extensions, where
/// [`ClientIp::key`] finds it. The servers of axum and tonic have their own types for it, which the
/// features `axum` and `tonic` read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

impl Peer {
    /// Returns the address of the connection from a request's extensions: a [`Peer`], or with the
    /// features `axum` and `tonic` the types of their servers.
    #[inline]
    pub fn of(extensions: &Extensions) -> Option<IpAddr> {
        if let Some(Self(address)) = extensions.get() {
            return Some(address.ip());
        }
        #[cfg(feature = "axum")]
        if let Some(axum::extract::ConnectInfo(address)) =
            extensions.get::<axum::extract::ConnectInfo<SocketAddr>>()
        {
            return Some(address.ip());
        }
        #[cfg(feature = "tonic")]
        if let Some(address) = extensions
            .get::<tonic::transport::server::TcpConnectInfo>()
            .and_then(|info| info.remote_addr)
        {
            return Some(address.ip());
        }
        None
    }
}

/// The header in which a proxy writes the client's address.
///
/// A proxy writes one of these headers and usually passes the others on as the client wrote them.
/// So exactly one header is read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
#[non_exhaustive]
pub enum Header {
    /// `X-Forwarded-For`: a list to which each proxy appends the address of its peer.
    XForwardedFor,
    /// `Forwarded` (RFC 7239): a list as above, with `for=`.
    Forwarded,
    /// `X-Real-IP`: a single address.
    XRealIp,
    /// `CF-Connecting-IP`: a single address.
    CfConnectingIp,
    /// Another header with a single address.
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
            other => {
                Self::Custom(other.parse().map_err(|_| format!("invalid header name `{name}`"))?)
            }
        })
    }
}

/// Finds the client's address.
///
/// Exactly one forwarding header is read, the one that your proxy writes, and only its trusted part
/// counts: the chain is read from the right, and the first address that is not a trusted proxy is
/// the client. The header of an untrusted peer is ignored.
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
    /// Networks of proxies whose header is trusted.
    trusted: Vec<IpNet>,
    /// Maximum number of proxies in front.
    hops: Option<usize>,
    header: Option<Header>,
    lenient: bool,
    /// Number of bits of an IPv6 address that identify a client.
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

/// Form in a configuration file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// Networks of proxies whose header is trusted. Default: none.
    #[serde(default)]
    trusted: Vec<IpNet>,
    /// Header that the proxies write.
    header: Option<Header>,
    /// Maximum number of proxies in front. Default: as many as are trusted.
    #[serde(default)]
    hops: Option<usize>,
    /// Number of bits of an IPv6 address that identify a client. Default: 64.
    ipv6_prefix: Option<u8>,
}

impl TryFrom<Written> for ClientIp {
    type Error = &'static str;

    fn try_from(
        Written { trusted, header, hops, ipv6_prefix }: Written,
    ) -> Result<Self, &'static str> {
        let prefix = ipv6_prefix.map_or_else(Prefix::default, Prefix);
        if !(32..=128).contains(&prefix.0) {
            return Err("`ipv6_prefix` must be a number from 32 to 128");
        }
        if header.is_none() && (hops.is_some() || !trusted.is_empty()) {
            return Err("`header` is missing: name the header in which your proxy writes the \
                client's address, for example `x-forwarded-for`");
        }
        let trusted = trusted.into_iter().map(canonical).collect();
        Ok(Self { trusted, hops, header, lenient: false, prefix })
    }
}

/// Maximum number of elements read from a chain, from the right.
const LONGEST_CHAIN: usize = 32;
/// Maximum length of an element, in bytes.
const LONGEST_ELEMENT: usize = 256;

impl ClientIp {
    /// Uses no proxies: the peer is the client.
    pub fn direct() -> Self {
        Self::default()
    }

    /// Trusts proxies in these networks, which write the client's address into this header.
    pub fn behind(trusted: impl IntoIterator<Item = IpNet>, header: Header) -> Self {
        Self {
            trusted: trusted.into_iter().map(canonical).collect(),
            header: Some(header),
            ..Self::default()
        }
    }

    /// Expects exactly `hops` proxies in front, at any address: for a load balancer without fixed
    /// addresses, or a server on a Unix socket. The peer counts as the first proxy. Only safe if no
    /// other client can connect.
    pub fn behind_hops(hops: usize, header: Header) -> Self {
        let everybody = ["0.0.0.0/0", "::/0"].into_iter().filter_map(|net| net.parse().ok());
        Self { hops: Some(hops), ..Self::behind(everybody, header) }
    }

    /// Admits requests whose peer is unknown, without a limit and past the gate. By default such
    /// requests are refused: a configured limit that silently limits nothing is worse than an
    /// error.
    pub fn lenient(self) -> Self {
        Self { lenient: true, ..self }
    }

    /// Sets how many bits of an IPv6 address identify a client, 32 to 128. Default: 64, the usual
    /// size of a network for one machine or one home. Many providers assign a /56 to homes, and a
    /// /48 to machines: fewer bits put more neighbours into one limit, more bits give more limits
    /// to the owner of a whole network. [`LoginGuard`](crate::LoginGuard) also counts by /56 and
    /// /48, independently of this setting.
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

    /// Returns the client's address, given the peer's address and the request's headers.
    #[inline]
    pub fn find(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        match &self.header {
            Some(header) if self.trusts(peer) => self.follow(header, peer, headers),
            Some(_) => peer,
            None => {
                if is_local(peer) && headers.contains_key("x-forwarded-for") {
                    say_what_is_ignored(peer);
                }
                peer
            }
        }
    }

    /// Follows the chain, starting at the peer.
    fn follow(&self, header: &Header, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let hops = self.hops.unwrap_or(LONGEST_CHAIN).min(LONGEST_CHAIN);
        let (name, read): (&str, fn(&[u8]) -> Option<IpAddr>) = match header {
            Header::XForwardedFor => ("x-forwarded-for", address),
            Header::Forwarded => ("forwarded", for_parameter),
            Header::XRealIp => return one(&headers.get_all("x-real-ip"), hops).unwrap_or(peer),
            Header::CfConnectingIp => {
                return one(&headers.get_all("cf-connecting-ip"), hops).unwrap_or(peer);
            }
            Header::Custom(name) => return one(&headers.get_all(name), hops).unwrap_or(peer),
        };
        let mut client = peer;
        let lines = headers.get_all(name).iter().rev();
        let elements = lines.flat_map(|line| FromTheRight {
            rest: line.as_bytes(),
            quotes: *header == Header::Forwarded,
        });
        for element in elements.filter(|element| !element.is_empty()).take(hops) {
            // An unreadable element ends the trusted part of the chain: the proxy that wrote it is
            // the last known address.
            let Some(ip) = Some(element).filter(|e| e.len() <= LONGEST_ELEMENT).and_then(read)
            else {
                return client;
            };
            client = ip;
            if !self.trusts(client) {
                return client;
            }
        }
        client
    }

    /// Returns the key for limits: an IPv4 address, or the [prefix](Self::ipv6_prefix) of an IPv6
    /// address, because a single client usually has a /64. IPv6 addresses that embed an IPv4
    /// address are keyed by the IPv4 address: mapped, NAT64 (RFC 6052), 6to4, Teredo.
    ///
    /// If the peer is unknown ([`Peer::of`]), layers refuse the request with 500 and log what is
    /// missing; with [`lenient`](Self::lenient) the result is `None`. For a Unix socket, set the
    /// peer to `127.0.0.1`, and trust that address if the proxy behind the socket is trusted; for
    /// the PROXY protocol, set the address that it transmits.
    pub fn key<'r>(&self, request: impl Into<RequestHead<'r>>) -> Option<Key> {
        let RequestHead { headers, extensions, .. } = request.into();
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

/// Returns whether the address is one of this machine or of a private network, as proxies have.
fn is_local(peer: IpAddr) -> bool {
    match peer {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_private(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unique_local(),
    }
}

/// Logs once that all clients of a proxy share its limits.
fn say_what_is_ignored(peer: IpAddr) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        tracing::warn!(
            "{peer} sends `X-Forwarded-For`, which `ClientIp::direct` ignores: if it is a proxy, \
             all its clients share one limit; use `ClientIp::behind` with its address"
        );
    }
}

/// Logs the missing setup, at most once in ten seconds.
pub(crate) fn say_what_is_missing() {
    static SAID: AtomicU64 = AtomicU64::new(0);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    if SAID.fetch_max(now, Relaxed) + 10 <= now {
        tracing::error!(
            "the peer address of requests is unknown, so requests limited by address are refused: \
             serve axum with \
             `into_make_service_with_connect_info::<SocketAddr>()` \
             and the feature `axum` of scale-limit, tonic with its feature `tonic`, \
             or put `scale_limit::client::Peer` into each request's extensions; \
             `ClientIp::lenient` admits them without a limit"
        );
    }
}

#[cfg(test)]
mod tests;

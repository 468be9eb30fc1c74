//! Targets of `fuzz/`, which the tests below run on mutated inputs.

use std::net::{IpAddr, Ipv4Addr};

use http::header::{FORWARDED, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::client::{ClientIp, Header};

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// Reads any bytes as the header of a proxy: without a trusted proxy, and without an address in the
/// header, the client is the peer.
pub fn forwarded(data: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(data) else { return };
    let names = [
        (FORWARDED, Header::Forwarded),
        (HeaderName::from_static("x-forwarded-for"), Header::XForwardedFor),
        (HeaderName::from_static("x-real-ip"), Header::XRealIp),
    ];
    let has_address = data.iter().any(|byte| byte.is_ascii_hexdigit() || *byte == b':');
    for (name, header) in names {
        let headers: HeaderMap = [(name, value.clone())].into_iter().collect();
        assert_eq!(ClientIp::direct().find(PEER, &headers), PEER);
        let networks = ["10.0.0.0/8".parse(), "fd00::/8".parse()].into_iter().flatten();
        let behind = ClientIp::behind(networks, header);
        let client = behind.find(PEER, &headers);
        assert!(has_address || client == PEER, "{client}");
        let stranger = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
        assert_eq!(behind.find(stranger, &headers), stranger, "a stranger's header is not used");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_header_of_a_proxy_is_read() {
        let seeds: [&[u8]; 6] = [
            b"203.0.113.9, 10.0.0.2",
            b"for=\"[2001:db8::1]:4711\";proto=https, for=10.0.0.3",
            b"For=_hidden, for=unknown;by=10.1.1.1",
            b"[2001:db8::2]:80, 198.51.100.4:9000",
            b"for=\"203.0.113.9\\\"\";host=\"a,b\"",
            b", ,;=\"",
        ];
        testkit::mutated(&seeds, 20_000, super::forwarded);
    }
}

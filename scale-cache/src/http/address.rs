//! Addresses of requests, under which pages are stored: scheme, authority, path and query (RFC
//! 9110, 4.2.3), normalised so that different addresses stay different.

use http::header::HOST;
use http::{HeaderMap, Uri};

/// Maximum length of an address; longer ones are not cached.
const LONGEST: usize = 4_096;

/// Address of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    /// Scheme; empty if unknown, as in a request in origin form.
    scheme: String,
    /// Authority in lower case, without the scheme's default port; empty if unknown.
    authority: String,
    /// Path with the query.
    path: String,
}

impl Address {
    /// Returns the address, or `None` if it is ambiguous, because the application may read it
    /// differently: two hosts, an invalid host, or a host that differs from the URI's authority.
    pub(super) fn of(uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        let scheme = uri.scheme_str().unwrap_or_default().to_ascii_lowercase();
        let mut hosts = headers.get_all(HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (None, _) => None,
            (Some(host), None) => Some(normal(host.to_str().ok()?, &scheme)?),
            (Some(_), Some(_)) => return None,
        };
        let named = match uri.authority() {
            Some(authority) => Some(normal(authority.as_str(), &scheme)?),
            None => None,
        };
        let authority = match (host, named) {
            (Some(host), Some(named)) if host != named => return None,
            (Some(one), _) | (None, Some(one)) => one,
            (None, None) => String::new(),
        };
        Some(Self {
            scheme,
            authority,
            path: rooted(uri.path_and_query().map_or("/", |path| path.as_str())),
        })
    }

    /// Returns the same address with another path.
    pub(super) fn at(&self, path: &str) -> Self {
        Self { path: rooted(path), ..self.clone() }
    }

    pub(super) fn scheme(&self) -> &str {
        &self.scheme
    }

    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// Returns the path without the query.
    pub(super) fn path(&self) -> &str {
        self.path.split('?').next().unwrap_or_default()
    }

    /// Returns the text form, which is unique per address; `None` if it is too long.
    pub(super) fn text(&self) -> Option<String> {
        let Self { scheme, authority, path } = self;
        // The parts before the path contain no slash.
        (scheme.len() + authority.len() + path.len() <= LONGEST)
            .then(|| format!("{scheme}://{authority}{path}"))
    }
}

fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

/// Returns a host and port in canonical form; `None` for an invalid authority.
pub(super) fn normal(authority: &str, scheme: &str) -> Option<String> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%:[]".contains(&byte);
    if authority.is_empty() || !authority.bytes().all(fine) {
        return None;
    }
    let own_port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => ":",
    };
    let authority = authority
        .strip_suffix(own_port)
        .or_else(|| authority.strip_suffix(':'))
        .unwrap_or(authority);
    (!authority.is_empty()).then(|| authority.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(uri: &str, hosts: &[&str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, http::HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        Address::of(&uri.parse().unwrap(), &headers)?.text()
    }

    #[test]
    fn ways_to_write_one_address_are_one() {
        for (uri, hosts) in [
            ("http://shop.example/a?b", &[][..]),
            ("http://SHOP.example:80/a?b", &[]),
            ("http://shop.example/a?b", &["Shop.Example"]),
            ("http://shop.example:/a?b", &["shop.example:80"]),
        ] {
            assert_eq!(
                text(uri, hosts).as_deref(),
                Some("http://shop.example/a?b"),
                "{uri} {hosts:?}"
            );
        }
        assert_eq!(text("/a", &["Shop"]), text("/a", &["shop"]));
        assert_eq!(text("http://shop", &[]), text("http://shop/", &[]));
    }

    #[test]
    fn different_addresses_are_different() {
        let all = [
            text("/a/b", &["shop"]),
            text("/b", &["shop.a"]),
            text("http://shop/a/b", &[]),
            text("https://shop/a/b", &[]),
            text("https://shop:80/a/b", &[]),
            text("http://shop:443/a/b", &[]),
            text("/a/b", &[]),
            text("/A/b", &["shop"]),
            text("/a/b?", &["shop"]),
            text("/a%2Fb", &["shop"]),
        ];
        for (n, one) in all.iter().enumerate() {
            assert!(one.is_some() && !all[..n].contains(one), "{one:?}");
        }
    }

    #[test]
    fn what_is_ambiguous_is_none() {
        for (uri, hosts) in [
            ("/b", &["shop/a"][..]),
            ("/b", &["shop", "shop"]),
            ("/b", &["shop", "other"]),
            ("/b", &["user@shop"]),
            ("/b", &["sho p"]),
            ("/b", &[""]),
            ("/b", &["sh\u{f6}p"]),
            ("http://shop/b", &["other"]),
            ("http://user@shop/b", &[]),
        ] {
            assert_eq!(text(uri, hosts), None, "{uri} {hosts:?}");
        }
        assert_eq!(text(&format!("/{}", "x".repeat(5_000)), &["shop"]), None);
    }
}

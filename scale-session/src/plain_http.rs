//! Warns when a `Secure` cookie is set over plain HTTP: browsers do not store such a cookie.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use http::header::{COOKIE, HOST};
use http::{HeaderMap, Request};

use crate::config::Config;

/// Warns once per layer.
#[derive(Debug, Default)]
pub(crate) struct PlainHttp {
    said: AtomicBool,
}

/// Host of a request that came over plain HTTP.
pub(crate) struct Plain {
    host: String,
    all: Arc<PlainHttp>,
}

impl PlainHttp {
    /// Returns the host if no header says that the request came over HTTPS and browsers do not
    /// treat the host as the local machine.
    pub(crate) fn look_for<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        config: &Config,
    ) -> Option<Plain> {
        if !config.cookie.is_secure() || self.said.load(Relaxed) {
            return None;
        }
        let headers = request.headers();
        let is_https = request.uri().scheme_str() == Some("https")
            || says(headers, "x-forwarded-proto", "https")
            || says(headers, "forwarded", "proto=https")
            || says(headers, "forwarded", "proto=\"https\"");
        let host = request.uri().host().or_else(|| headers.get(HOST)?.to_str().ok())?;
        if is_https || is_this_machine(host) {
            return None;
        }
        if headers.contains_key(COOKIE)
            && config
                .cookie
                .presents(&headers.get_all(COOKIE).into_iter().cloned().collect::<Vec<_>>())
        {
            // The browser does send the cookie: a proxy speaks HTTPS without a header that says so.
            self.said.store(true, Relaxed);
            return None;
        }
        Some(Plain {
            host: host.chars().filter(|c| !c.is_control()).take(100).collect(),
            all: Arc::clone(self),
        })
    }
}

impl Plain {
    /// Logs the warning, unless it was logged before.
    pub(crate) fn warn(self) {
        if self.all.said.swap(true, Relaxed) {
            return;
        }
        let text = format!(
            "the session cookie was set over plain HTTP at `{}`: browsers do not store it, so \
             sign-ins are lost. Use HTTPS (behind \
             a proxy, have the proxy send `X-Forwarded-Proto: https`), or `localhost`, or, \
             on a private network, \
             `CookiePolicy::default().insecure()`",
            self.host
        );
        tracing::warn!("{text}");
        if !tracing::dispatcher::has_been_set() {
            #[expect(
                clippy::print_stderr,
                reason = "without a log subscriber nothing else explains why signing in fails"
            )]
            {
                eprintln!("scale-session: {text}");
            }
        }
    }
}

fn says(headers: &HeaderMap, name: &str, word: &str) -> bool {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split([',', ';'])).any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// Returns whether browsers send `Secure` cookies to this host over plain HTTP.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_at_this_machine_says_nothing_about_another_host() {
        let all = Arc::<PlainHttp>::default();
        let request = |host: &str, cookie: &str| {
            let request = Request::builder().uri("/").header(HOST, host).header(COOKIE, cookie);
            request.body(()).unwrap()
        };
        let kept = format!("__Host-session={}", "x".repeat(43));
        assert!(all.look_for(&request("localhost:3000", &kept), &Config::default()).is_none());
        assert!(all.look_for(&request("shop.test:8081", "a=b"), &Config::default()).is_some());
        assert!(all.look_for(&request("shop.test:8081", &kept), &Config::default()).is_none());
        assert!(all.look_for(&request("shop.test:8081", "a=b"), &Config::default()).is_none());
    }

    #[test]
    fn plain_http_is_told_from_https_and_from_this_machine() {
        let told = |host: &str, header: Option<(&str, &str)>| {
            let mut request = Request::builder().uri("/").header(HOST, host);
            if let Some((name, value)) = header {
                request = request.header(name, value);
            }
            let (all, request) = (Arc::<PlainHttp>::default(), request.body(()).unwrap());
            let found = all.look_for(&request, &Config::default());
            let is_plain = found.is_some();
            if let Some(found) = found {
                found.warn();
                assert!(all.look_for(&request, &Config::default()).is_none(), "once");
            }
            is_plain
        };
        for host in [
            "192.168.1.20:8080", "shop.test", "example.com:80", "localhost.example.com",
            "[2001:db8::1]:80",
        ] {
            assert!(told(host, None), "{host}");
            assert!(told(host, Some(("x-forwarded-proto", "http"))), "{host}");
            assert!(!told(host, Some(("x-forwarded-proto", "https"))), "{host}");
            assert!(!told(host, Some(("forwarded", "for=10.0.0.1; proto=https"))), "{host}");
        }
        for host in [
            "localhost", "localhost:3000", "app.localhost:80", "127.0.0.1:3000", "[::1]:3000",
            "LOCALHOST.",
        ] {
            assert!(!told(host, None), "{host}");
        }
        assert!(!told("shop.test", Some(("cookie", "__Host-session=x"))), "it comes back");
        assert!(told("shop.test", Some(("cookie", "a=b"))));
        let insecure = Config::default().cookie(crate::CookiePolicy::default().insecure());
        let request = Request::builder().header(HOST, "shop.test").body(()).unwrap();
        assert!(Arc::<PlainHttp>::default().look_for(&request, &insecure).is_none());
    }
}

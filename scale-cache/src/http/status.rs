//! The `Cache-Status` header (RFC 9211).

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Reason for forwarding a request to the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// The method is not cacheable.
    Method,
    Miss,
    VaryMiss,
    Stale,
    /// A directive of the request requires it.
    Request,
}

/// Outcome of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum CacheStatus {
    /// A hit; with the seconds until the page is stale.
    Hit {
        left: i64,
    },
    Forwarded {
        why: Forwarded,
        status: StatusCode,
        stored: bool,
        collapsed: bool,
    },
    /// The origin failed, and a stored page is served.
    Error {
        left: i64,
    },
    /// No page is stored, and the client accepts nothing else.
    OnlyIfCached,
}

impl CacheStatus {
    pub(super) fn add(self, headers: &mut HeaderMap) {
        let text = match self {
            Self::Hit { left } => format!("scale; hit; ttl={left}"),
            Self::Error { left } => format!("scale; hit; ttl={left}; detail=origin-failed"),
            Self::OnlyIfCached => "scale; detail=only-if-cached".to_owned(),
            Self::Forwarded { why, status, stored, collapsed } => {
                let why = match why {
                    Forwarded::Method => "method",
                    Forwarded::Miss => "uri-miss",
                    Forwarded::VaryMiss => "vary-miss",
                    Forwarded::Stale => "stale",
                    Forwarded::Request => "request",
                };
                let flag =
                    |on: bool, name: &str| if on { format!("; {name}") } else { String::new() };
                let status = status.as_u16();
                format!(
                    "scale; fwd={why}; fwd-status={status}{}{}",
                    flag(stored, "stored"),
                    flag(collapsed, "collapsed")
                )
            }
        };
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.append(&CACHE_STATUS, value);
        }
        let result = match self {
            Self::Hit { .. } => "hit",
            Self::Error { .. } => "stale",
            Self::Forwarded { collapsed: true, .. } => "collapsed",
            Self::Forwarded { .. } | Self::OnlyIfCached => "miss",
        };
        metrics::counter!("scale_cache_http_requests_total", "result" => result).increment(1);
    }
}
